"""The differentiable sampler (Sect. 3.3): the one place that calls `grid_sample`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from stn.transform.arguments import check_tensor
from stn.transform.precision import full_precision

KERNELS = ("bilinear", "nearest")
PADDINGS = ("zeros", "border")
# Grid coordinates are bounded here, a hundred images away: outside all the same, and safe to convert to a pixel index.
GRID_LIMIT = 100.0
# Mipmap levels of the anti-aliased sampler: shrinking by up to 2**MIP_LEVELS is free of aliasing.
MIP_LEVELS = 3


def check_sampler(kernel: str, padding: str) -> None:
    """Raises: ValueError naming what is allowed, for an unknown kernel or padding."""
    if kernel not in KERNELS or padding not in PADDINGS:
        raise ValueError(
            f"sample: kernel must be one of {KERNELS} and padding one of {PADDINGS}, got {kernel!r}, {padding!r}"
        )


def sample(
    image: Tensor, grid: Tensor, kernel: str = "bilinear", padding: str = "zeros", antialias: bool = False
) -> Tensor:
    """Read `image` at the points of `grid`, every channel alike (Eqs. 3-5, Sect. 3.3).

    Shapes: image (N, C, H, W), grid (N, H', W', 2) -> (N, C, H', W');
    image (N, C, D, H, W), grid (N, D', H', W', 3) -> (N, C, D', H', W').
    The wider of the two types is the output's, and float32 at least; a float16 or bfloat16 image is read in float32
    and comes out in its own type.
    Convention: ``kernel="bilinear"`` (trilinear on volumes) is Eq. 5; ``"nearest"`` is Eq. 4, floor(x + 0.5): halfway
    between two pixels it reads the one to the right or below. Its gradient reaches the image only. Points outside read
    0 (``padding="zeros"``) or the nearest border pixel (``"border"``). A point that is not a number reads NaN.
    Deviation: with ``antialias=True`` a point is read from a mipmap of the image, at the level at which neighbouring
    grid points are about one pixel apart (along an output axis of one pixel there are none, and nothing is averaged).
    The paper names the aliasing of a shrinking bilinear kernel (Sect. 3.4) and leaves it. The level itself is not
    differentiated.
    """
    check_sampler(kernel, padding)
    if not isinstance(image, Tensor):
        raise TypeError(f"sample: image must be a tensor, got {type(image).__name__}")
    check_tensor("sample", "grid", grid, "(N, H, W, 2) or (N, D, H, W, 3)")
    if image.ndim not in (4, 5) or grid.ndim != image.ndim or grid.shape[-1] != image.ndim - 2:
        raise ValueError(
            "sample: want image (N,C,H,W) with grid (N,H,W,2), or (N,C,D,H,W) with (N,D,H,W,3), "
            f"got {tuple(image.shape)} and {tuple(grid.shape)}"
        )
    out = _sample(image, grid, kernel, padding, antialias)
    return out.to(image.dtype) if image.dtype in (torch.float16, torch.bfloat16) else out


@full_precision
def _sample(image: Tensor, grid: Tensor, kernel: str, padding: str, antialias: bool) -> Tensor:
    dtype = torch.promote_types(image.dtype, grid.dtype)
    image, grid = image.to(dtype), grid.to(dtype, copy=True)
    with torch.no_grad():  # so that no copy is kept for the gradient, which grid_sample makes zero that far outside
        F.hardtanh(grid, -GRID_LIMIT, GRID_LIMIT, inplace=True)  # what clamp_ does; vmap has no rule for that
    out = _sample_mipmap(image, grid, kernel, padding) if antialias else _read(image, grid, kernel, padding)
    with torch.no_grad():  # grid_sample makes a pixel of a point that is not a number: 0 times it is added, 0 or NaN
        for axis in grid.unbind(-1):
            out.add_(axis.unsqueeze(1), alpha=0)
    return out


def _read(image: Tensor, grid: Tensor, kernel: str, padding: str) -> Tensor:
    if kernel == "nearest":  # grid_sample's own rounding takes the even pixel of two that are equally near
        grid = _pixel_centres(grid, tuple(image.shape[2:]))
    return F.grid_sample(image, grid, mode=kernel, padding_mode=padding, align_corners=False)


def _pixel_centres(grid: Tensor, in_size: tuple[int, ...]) -> Tensor:
    """The centres of the pixels in which the points lie, floor(x + 0.5) in pixels: (N, *out_size, d), as the grid."""
    return torch.stack([(2 * torch.floor(x) + 1) / n - 1 for x, n in _pixels(grid, in_size)], dim=-1)


def _pixels(grid: Tensor, in_size: tuple[int, ...]) -> list[tuple[Tensor, int]]:
    """Each coordinate in pixels from the image's edge, 0 to n, and that n: x first."""
    return [((axis + 1) * (n / 2), n) for axis, n in zip(grid.unbind(-1), in_size[::-1], strict=True)]


def _sample_mipmap(image: Tensor, grid: Tensor, kernel: str, padding: str) -> Tensor:
    in_size = tuple(image.shape[2:])
    spacings = _spacings_px(grid.detach(), in_size)
    level = _mip_level(spacings).unsqueeze(1)
    out = torch.zeros((), dtype=image.dtype, device=image.device)
    for i in range(MIP_LEVELS + 1):
        if i > 0:  # every level covers [-1, 1] of the level before, whether its size is even or odd
            image = _halved(image)
        # A coarse level's pixels are larger than the output's: read with zeros around, it would be dark at the rim.
        out = out + (1 - (level - i).abs()).clamp(min=0) * _read(image, grid, kernel, "border")
    return out if padding == "border" else out * _share_inside(grid, spacings, in_size, kernel).unsqueeze(1)


def _halved(image: Tensor) -> Tensor:
    if image.ndim == 4:
        return F.adaptive_avg_pool2d(image, ((image.shape[2] + 1) // 2, (image.shape[3] + 1) // 2))
    depth, height, width = ((n + 1) // 2 for n in image.shape[2:])
    return F.adaptive_avg_pool3d(image, (depth, height, width))


def _spacings_px(grid: Tensor, in_size: tuple[int, ...]) -> list[list[Tensor]]:
    """How far apart neighbouring grid points are along each axis of the input, squared, by each axis of the output.

    Shapes: grid (N, *out_size, d) -> d lists (x first) of tensors (N, *out_size), in input pixels.
    """
    axes = range(1, grid.ndim - 1)
    return [
        [torch.gradient(x, dim=i)[0].square() if grid.shape[i] > 1 else torch.zeros_like(x) for i in axes]
        for x, _ in _pixels(grid, in_size)
    ]


def _mip_level(spacings: list[list[Tensor]]) -> Tensor:
    """log2 of how many input pixels lie between neighbouring grid points, along the axis where they are most.

    Shapes: those of `_spacings_px` -> (N, *out_size), in [0, MIP_LEVELS].
    """
    step = torch.stack([torch.stack(along).sum(0) for along in zip(*spacings, strict=True)]).amax(0)
    return (0.5 * torch.log2(step.clamp(min=1))).clamp(max=MIP_LEVELS)


def _share_inside(grid: Tensor, spacings: list[list[Tensor]], in_size: tuple[int, ...], kernel: str) -> Tensor:
    """How much of what each point stands for lies in the image: (N, *out_size, d) -> (N, *out_size).

    A point stands for a box as wide as its neighbours are apart, a pixel at least (which is the bilinear kernel's
    fading at the border); of the nearest kernel, for itself.
    """
    inside = torch.ones_like(grid[..., 0])
    for (x, n), spacing in zip(_pixels(grid, in_size), spacings, strict=True):
        if kernel == "nearest":
            inside = inside * ((x >= 0) & (x < n))
            continue
        width = torch.stack(spacing).sum(0).clamp(min=1).sqrt()
        overlap = (x + width / 2).clamp(max=n) - (x - width / 2).clamp(min=0)
        inside = inside * (overlap / width).clamp(min=0)
    return inside
