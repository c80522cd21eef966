"""The differentiable sampler (Sect. 3.3): the one place that calls `grid_sample`."""

import torch
import torch.nn.functional as F
from torch import Tensor

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


@full_precision
def sample(
    image: Tensor, grid: Tensor, kernel: str = "bilinear", padding: str = "zeros", antialias: bool = False
) -> Tensor:
    """Read `image` at the points of `grid`, every channel alike (Eqs. 3-5, Sect. 3.3).

    Shapes: image (N, C, H, W), grid (N, H', W', 2) -> (N, C, H', W');
    image (N, C, D, H, W), grid (N, D', H', W', 3) -> (N, C, D', H', W').
    Convention: ``kernel="bilinear"`` (trilinear on volumes) is Eq. 5; ``"nearest"`` is Eq. 4, whose gradient reaches
    the image only. Points outside read 0 (``padding="zeros"``) or the nearest border pixel (``"border"``).
    Deviation: with ``antialias=True`` a point is read from a mipmap of the image, at the level at which neighbouring
    grid points are about one pixel apart. The paper names the aliasing of a shrinking bilinear kernel
    (Sect. 3.4) and leaves it. The level itself is not differentiated.
    """
    check_sampler(kernel, padding)
    if image.ndim not in (4, 5) or grid.ndim != image.ndim or grid.shape[-1] != image.ndim - 2:
        raise ValueError(
            "sample: want image (N,C,H,W) with grid (N,H,W,2), or (N,C,D,H,W) with (N,D,H,W,3), "
            f"got {tuple(image.shape)} and {tuple(grid.shape)}"
        )
    dtype = torch.promote_types(image.dtype, grid.dtype)
    # hardtanh is clamp, with a backward pass that is four times as fast on the CPU
    image, grid = image.to(dtype), F.hardtanh(grid.to(dtype), -GRID_LIMIT, GRID_LIMIT)
    if antialias:
        return _sample_mipmap(image, grid, kernel, padding)
    return F.grid_sample(image, grid, mode=kernel, padding_mode=padding, align_corners=False)


def _sample_mipmap(image: Tensor, grid: Tensor, kernel: str, padding: str) -> Tensor:
    level = _mip_level(grid.detach(), tuple(image.shape[2:])).unsqueeze(1)
    pool = F.adaptive_avg_pool2d if image.ndim == 4 else F.adaptive_avg_pool3d
    out = 0.0
    for i in range(MIP_LEVELS + 1):
        if i > 0:  # every level covers [-1, 1] of the level before, whether its size is even or odd
            image = pool(image, [(n + 1) // 2 for n in image.shape[2:]])
        values = F.grid_sample(image, grid, mode=kernel, padding_mode=padding, align_corners=False)
        out = out + (1 - (level - i).abs()).clamp(min=0) * values
    return out


def _mip_level(grid: Tensor, in_size: tuple[int, ...]) -> Tensor:
    """log2 of how many input pixels lie between neighbouring grid points, along the axis where they are most.

    Shapes: grid (N, *out_size, d) -> (N, *out_size), in [0, MIP_LEVELS].
    """
    pixels = torch.stack([axis * (n / 2) for axis, n in zip(grid.unbind(-1), in_size[::-1], strict=True)], dim=-1)
    step = torch.ones_like(pixels[..., 0])
    for axis in range(1, grid.ndim - 1):
        if grid.shape[axis] > 1:
            (spacing,) = torch.gradient(pixels, dim=axis)
            step = torch.maximum(step, spacing.norm(dim=-1))
    return torch.log2(step).clamp(max=MIP_LEVELS)
