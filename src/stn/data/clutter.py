"""TC (Sect. 4.1, App. A.2, A.4): a digit somewhere on a black canvas, among patches of other digits."""

import copy
from typing import NamedTuple, Self

import torch
from torch import Tensor

from stn.data.digit import DIGIT_PX, integers, unit_interval, whole_number


class ClutterParams(NamedTuple):
    shift_px: Tensor  # (N, 2) int64, left and top edge of the digit's square, from the canvas's top left corner
    patch_donor: Tensor  # (N, P) int64, which image of the batch each patch is cut from, never the image's own index
    patch_cut_px: Tensor  # (N, P, 2) int64, left and top edge of the patch in its donor
    patch_shift_px: Tensor  # (N, P, 2) int64, left and top edge of the patch on the canvas


class Clutter:
    """TC: the digit's 28 px square at a uniform integer place, then six 6×6 patches of other digits of the batch.

    ``n_patches=0`` is the T of App. A.2 on its canvas of 84 px; its TC has 16 patches.
    `paste` says what a patch does to what it falls on: "max" keeps the brighter pixel, "overwrite" replaces all, so
    that an empty patch erases. Deviation: the paper does not say which; here "max". Donors are drawn independently, so
    two patches may come from one digit.
    """

    name = "tc"

    def __init__(self, canvas: int = 60, n_patches: int = 6, patch_px: int = 6, paste: str = "max"):
        self.canvas = (whole_number("canvas", canvas, DIGIT_PX),) * 2
        self.n_patches = whole_number("n_patches", n_patches, 0)
        self.patch_px = whole_number("patch_px", patch_px, 1)
        if patch_px > DIGIT_PX:
            raise ValueError(f"distortion.patch_px must be {DIGIT_PX} or less, got {patch_px}")
        if paste not in ("max", "overwrite"):
            raise ValueError(f"distortion.paste must be max or overwrite, got {paste!r}")
        self.paste = paste
        self.room_px = self.canvas[0] - DIGIT_PX  # in which the digit's square is moved, about the middle

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.apply(images, self.sample(images, generator))

    def weaker(self, share: float) -> Self:
        """The same with `share` of the room and of the patches: with 0 the digit alone, in the middle."""
        weak = copy.copy(self)
        weak.room_px, weak.n_patches = round(share * self.room_px), round(share * self.n_patches)
        return weak

    def sample(self, images: Tensor, generator: torch.Generator) -> ClutterParams:
        n, p, device = len(images), self.n_patches, images.device
        if p and n < 2:
            raise ValueError("tc: a batch of one image has no other digits to cut patches from")
        nearest = (self.canvas[0] - DIGIT_PX - self.room_px) // 2
        shift_px = integers(generator, (n, 2), nearest, nearest + self.room_px, device)
        ahead = integers(generator, (n, p), 1, max(n - 1, 1), device)
        donor = (torch.arange(n, device=device)[:, None] + ahead) % n
        cut_px = integers(generator, (n, p, 2), 0, DIGIT_PX - self.patch_px, device)
        patch_shift_px = integers(generator, (n, p, 2), 0, self.canvas[0] - self.patch_px, device)
        return ClutterParams(shift_px, donor, cut_px, patch_shift_px)

    def apply(self, images: Tensor, params: ClutterParams) -> Tensor:
        n, width = len(images), self.canvas[1]
        digits = unit_interval(images).reshape(n, -1)
        out = digits.new_zeros(n, self.canvas[0] * width)
        out.scatter_(1, _pixel_indices(params.shift_px, DIGIT_PX, width), digits)
        in_donor = _pixel_indices(params.patch_cut_px, self.patch_px, DIGIT_PX)  # (N, P, patch_px²)
        patches = digits.reshape(-1)[params.patch_donor[..., None] * DIGIT_PX**2 + in_donor]
        on_canvas = _pixel_indices(params.patch_shift_px, self.patch_px, width)
        if self.paste == "max":
            out.scatter_reduce_(1, on_canvas.reshape(n, -1), patches.reshape(n, -1), reduce="amax")
        else:
            for patch in range(self.n_patches):  # one after the other: where two overlap, the later one stays
                out.scatter_(1, on_canvas[:, patch], patches[:, patch])
        return out.reshape(n, 1, *self.canvas)

    def box_px(self, params: ClutterParams) -> Tensor:
        """The digit's true box, its whole 28 px square, as left, top, right, bottom edge. Shapes: (N, 4) float32."""
        return torch.cat([params.shift_px, params.shift_px + DIGIT_PX], dim=1).float()


def _pixel_indices(corner_px: Tensor, size_px: int, width: int) -> Tensor:
    """Flat indices, in rows of `width`, of the square of `size_px` whose top left pixel is `corner_px` (x, y).

    Shapes: (..., 2) -> (..., size_px²).
    """
    steps = torch.arange(size_px, device=corner_px.device)
    square = (steps[:, None] * width + steps).reshape(-1)
    return (corner_px[..., 1] * width + corner_px[..., 0])[..., None] + square
