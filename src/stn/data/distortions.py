"""Distorted MNIST (Sect. 4.1, App. A.4): R, RTS, P and E, batched, on the device of the images.

A distortion is called as ``d(images, generator)``: images (N, 28, 28) uint8 -> (N, 1, H, W) float32 in [0, 1], black
background. It is ``d.apply(images, d.sample(images, generator))``: `sample` draws the parameters, `apply` is pure.

Convention: pixel lengths are counted from the *centre* of the canvas or of the digit's 28 px square, x to the right,
y down. Parameters are drawn on the generator's device and then moved, so that a CPU generator gives the same pictures
on every device. Nothing is read back to the host: with a CUDA generator a call can be captured in a CUDA graph.
"""

import copy
from typing import NamedTuple, Self

import torch
from torch import Tensor

from stn.data.clutter import Clutter
from stn.data.digit import DIGIT_PX, normal, number, scales, uniform, unit_interval, whole_number
from stn.transform import affine_grid, homography_grid, regular_control_points, tps_grid
from stn.transform import sample as read_at


class SimilarityParams(NamedTuple):
    rotation_deg: Tensor  # (N,), positive turns the digit counter-clockwise on the screen
    scale: Tensor  # (N,), 1 keeps the size in pixels
    shift_px: Tensor  # (N, 2), centre of the digit's square from the centre of the canvas


class PointParams(NamedTuple):
    """Of P the K points are the corners top left, top right, bottom right, bottom left; of E the 4×4 control points,
    rows from the top, x fastest.
    """

    scale: Tensor  # (N,)
    shift_px: Tensor  # (N, K, 2)


class GridDistortion:
    """A distortion that reads the digit at the points of a sampling grid."""

    name: str
    canvas = (DIGIT_PX, DIGIT_PX)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.apply(images, self.sample(images, generator))

    def weaker(self, share: float) -> Self:
        """The same with the range of every random number `share` times as wide about what changes nothing.

        With 1 it is this distortion, with 0 the digit stays as it is, in the middle of the canvas.
        """
        weak = copy.copy(self)
        for name, value in self._ranges(share).items():
            setattr(weak, name, value)
        return weak

    def _ranges(self, share: float) -> dict:
        """The attributes of the ranges, `share` times as wide."""
        raise NotImplementedError

    def apply(self, images: Tensor, params: NamedTuple) -> Tensor:
        return read_at(unit_interval(images), self.grid(params)).clamp_(0, 1)

    def grid(self, params: NamedTuple) -> Tensor:
        """Where each canvas pixel reads the digit image, normalised. Shapes: (N, H, W, 2)."""
        raise NotImplementedError


class AffineDistortion(GridDistortion):
    def src_from_out(self, params: SimilarityParams) -> Tensor:
        """Canvas points to digit points, normalised. Shapes: (N, 2, 3)."""
        return _src_from_out(*params, self.canvas[0])

    def grid(self, params: SimilarityParams) -> Tensor:
        return affine_grid(self.src_from_out(params), self.canvas)


class Rotation(AffineDistortion):
    """R: a rotation about the centre by U(-90°, 90°)."""

    name = "r"

    def __init__(self, rotation_deg: float = 90.0):
        self.rotation_deg = number("rotation_deg", rotation_deg)

    def sample(self, images: Tensor, generator: torch.Generator) -> SimilarityParams:
        r = self.rotation_deg
        rotation_deg = uniform(generator, (len(images),), -r, r, images.device)
        return SimilarityParams(rotation_deg, torch.ones_like(rotation_deg), rotation_deg.new_zeros(len(images), 2))

    def _ranges(self, share: float) -> dict:
        return {"rotation_deg": share * self.rotation_deg}


class Similarity(AffineDistortion):
    """A rotation, a scale and a place on a larger canvas; where, a subclass says."""

    room = 1.0  # of the places that the subclass allows, about the middle one

    def __init__(self, rotation_deg: float = 45.0, scale: tuple[float, float] = (0.7, 1.2), canvas: int = 42):
        self.rotation_deg = number("rotation_deg", rotation_deg)
        self.scale = scales(scale)
        self.canvas = (whole_number("canvas", canvas, 1),) * 2

    def sample(self, images: Tensor, generator: torch.Generator) -> SimilarityParams:
        n, device = len(images), images.device
        rotation_deg = uniform(generator, (n,), -self.rotation_deg, self.rotation_deg, device)
        scale = uniform(generator, (n,), *self.scale, device)
        place = uniform(generator, (n, 2), -self.room / 2, self.room / 2, device)
        return SimilarityParams(rotation_deg, scale, self.shift_px(place, images, rotation_deg, scale))

    def _ranges(self, share: float) -> dict:
        scale = _about_one(self.scale, share)
        return {"rotation_deg": share * self.rotation_deg, "scale": scale, "room": share * self.room}

    def shift_px(self, place: Tensor, images: Tensor, rotation_deg: Tensor, scale: Tensor) -> Tensor:
        """Where the centre of the digit's square goes, from the canvas's; `place` is uniform within ±0.5."""
        raise NotImplementedError


class PlacedImage(Similarity):
    """RTS: rotation U(-45°, 45°), scale U(0.7, 1.2), and the digit's 28 px image placed at random on a 42 px canvas.

    Deviation: "placed in a random location" is taken as the image's centre moved from the canvas's by U(-7 px, 7 px) in
    x and in y, the room that an unturned image of its own size has. Fixed on the FCN alone: with the digit's ink
    anywhere on the canvas (`PlacedInk`) no network came near the paper's errors.
    """

    name = "rts"

    def __init__(self, max_shift_px: float = 7.0, **similarity):
        super().__init__(**similarity)
        self.max_shift_px = number("max_shift_px", max_shift_px)

    def shift_px(self, place: Tensor, images: Tensor, rotation_deg: Tensor, scale: Tensor) -> Tensor:
        return place * (2 * self.max_shift_px)


class PlacedInk(Similarity):
    """RTS, harder: the digit's ink anywhere on the canvas, which spreads it about twice as far. In no table.

    Uniform over all (continuous) positions at which the whole ink lies on the canvas, axis by axis; ink is every pixel
    above 0, a square that turns and scales along.
    """

    name = "rts_ink"

    def shift_px(self, place: Tensor, images: Tensor, rotation_deg: Tensor, scale: Tensor) -> Tensor:
        low, high = _ink_extent_px(images, rotation_deg, scale)
        # Ink larger than the canvas (impossible with the paper's numbers) is centred: no room, no randomness.
        room = (self.canvas[0] - (high - low)).clamp(min=0)
        return place * room - (low + high) / 2


class PointDistortion(GridDistortion):
    """A scale, then `n_points` points that are moved by N(0, σ) in x and in y."""

    n_points: int
    sigma_px: float

    def __init__(self, scale: tuple[float, float] = (0.75, 1.0), sigma_px: float | None = None):
        self.scale = scales(scale)
        self.sigma_px = self.sigma_px if sigma_px is None else number("sigma_px", sigma_px)

    def sample(self, images: Tensor, generator: torch.Generator) -> PointParams:
        n, device = len(images), images.device
        return PointParams(
            uniform(generator, (n,), *self.scale, device),
            normal(generator, (n, self.n_points, 2), self.sigma_px, device),
        )

    def _ranges(self, share: float) -> dict:
        return {"scale": _about_one(self.scale, share), "sigma_px": share * self.sigma_px}


class Projective(PointDistortion):
    """P: scale U(0.75, 1), then each corner of the digit's square moved by N(0, σ) in x and in y.

    Deviation: σ is 3 px, not the 5 px stated, which destroys many digits and stands far above the paper's errors.
    Points behind the horizon are black.
    """

    name, n_points, sigma_px = "p", 4, 3.0

    def grid(self, params: PointParams) -> Tensor:
        x = torch.stack([-params.scale, params.scale, params.scale, -params.scale], dim=1)
        square = torch.stack([x, x.roll(1, dims=1)], dim=2)
        corners = square + params.shift_px * (2 / DIGIT_PX)
        return homography_grid(_src_from_out_of_corners(corners), self.canvas)


class Elastic(PointDistortion):
    """E: scale U(0.75, 1), then a thin-plate spline whose 4×4 control points are moved by N(0, 1.5 px).

    Convention: the control points lie on the canvas; a point moved by d reads the scaled digit d further on, so that
    the digit itself moves by about -d there.
    """

    name, n_points, sigma_px = "e", 16, 1.5

    def grid(self, params: PointParams) -> Tensor:
        shift = params.shift_px * (2 / DIGIT_PX)
        theta = regular_control_points(4, like=shift) + shift
        return tps_grid(theta / params.scale[:, None, None], self.canvas)


DISTORTIONS = {d.name: d for d in (Rotation, PlacedImage, PlacedInk, Projective, Elastic, Clutter)}


def distortion(name: str, **settings) -> GridDistortion | Clutter:
    """The distortion of that name (a key of `DISTORTIONS`), with the paper's numbers unless `settings` say else.

    Raises: ValueError for an unknown name or a value that it cannot have, TypeError for an unknown setting.
    """
    if name not in DISTORTIONS:
        raise ValueError(f"distortion must be one of {tuple(DISTORTIONS)}, got {name!r}")
    return DISTORTIONS[name](**settings)


def _about_one(scale: tuple[float, float], share: float) -> tuple[float, float]:
    return tuple(1 + share * (end - 1) for end in scale) if share < 1 else scale


def _cos_sin(rotation_deg: Tensor) -> tuple[Tensor, Tensor]:
    angle = torch.deg2rad(rotation_deg)
    return torch.cos(angle), torch.sin(angle)


def _src_from_out(rotation_deg: Tensor, scale: Tensor, shift_px: Tensor, canvas: int) -> Tensor:
    """Inverse of out = scale·R·src + shift with R = [[cos, sin], [-sin, cos]], counter-clockwise because y points down.

    Shapes: (N,), (N,), (N, 2) -> (N, 2, 3), normalised on both sides: ±1 is ±canvas/2 px on one, ±14 px on the other.
    """
    cos, sin = (v / scale for v in _cos_sin(rotation_deg))
    x, y = shift_px.unbind(1)
    linear = torch.stack([cos, -sin, sin, cos], dim=1).reshape(-1, 2, 2) * (canvas / DIGIT_PX)
    offset = torch.stack([sin * y - cos * x, -sin * x - cos * y], dim=1) * (2 / DIGIT_PX)
    return torch.cat([linear, offset[:, :, None]], dim=2)


def _ink_extent_px(images: Tensor, rotation_deg: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Bounding box of the turned and scaled ink, from the centre of the digit's square.

    Along any direction the extreme ink pixel is the first or the last one of its row, so 2 points a row are enough.
    Shapes: (N, 28, 28), (N,), (N,) -> low, high, each (N, 2) as (x, y). A blank image has its extent at 0.
    """
    ink = images > 0
    index = torch.arange(1, DIGIT_PX + 1, dtype=torch.uint8, device=images.device)
    last = (ink * index).amax(2)  # counted from 1; 0 in a row without ink
    first = DIGIT_PX + 1 - (ink * index.flip(0)).amax(2)
    row_has_ink = last > 0
    centre = (DIGIT_PX + 1) / 2
    x = torch.cat([first, last], dim=1) - centre  # (N, 56)
    y = (index - centre).repeat(2)
    cos, sin = ((v * scale)[:, None] for v in _cos_sin(rotation_deg))
    out = torch.stack([cos * x + sin * y, cos * y - sin * x], dim=1)  # (N, 2, 56)
    inked = row_has_ink.repeat(1, 2)[:, None]
    low = torch.where(inked, out, torch.inf).amin(2)
    high = torch.where(inked, out, -torch.inf).amax(2)
    half = (cos.abs() + sin.abs()) / 2  # of one turned and scaled pixel
    blank = ~row_has_ink.any(1, keepdim=True)
    return torch.where(blank, 0.0, low - half), torch.where(blank, 0.0, high + half)


def _src_from_out_of_corners(corners: Tensor) -> Tensor:
    """The homography that takes four points to the corners of [-1, 1]²: top left, top right, bottom right, bottom left.

    Closed form, with no solver and so no error check to wait for on the host. With P = (x, y, 1) of the corners, the
    inverse map is F = [X Y C], X = a·P1 - d·P0, Y = b·P3 - d·P0, C = a·P1 + b·P3, where a, b, d are twice the signed
    areas of the triangles 0-2-3, 0-1-2, 1-2-3 (so that F takes (1, 1, 1) to a multiple of P2). F^-1 is its adjugate
    over its determinant.

    Convention: the denominator w is scaled to 1 where the centre of the digit lies (at C): the half-plane of that
    point is the visible one. An entry at the canvas's centre, fixed to 1, could pick the other half. Corners on one
    line have no such homography: the zero matrix, which shows nothing.
    Shapes: (N, 4, 2) -> (N, 3, 3).
    """
    p0, p1, p2, p3 = corners.unbind(1)
    d, a, b = _cross(p1 - p2, p3 - p2), _cross(p0 - p3, p3 - p2), _cross(p1 - p2, p0 - p1)
    points = torch.cat([corners, torch.ones_like(corners[..., :1])], dim=2)
    p0, p1, _, p3 = points.unbind(1)
    p0, p1, p3 = d[:, None] * p0, a[:, None] * p1, b[:, None] * p3
    x, y, c = p1 - p0, p3 - p0, p1 + p3
    adjugate = torch.stack([torch.linalg.cross(y, c), torch.linalg.cross(c, x), torch.linalg.cross(x, y)], dim=1)
    determinant = (adjugate[:, 0] * x).sum(1)
    matrix = adjugate * (c[:, 2] / determinant)[:, None, None]
    return torch.nan_to_num(matrix, nan=0.0, posinf=0.0, neginf=0.0)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
