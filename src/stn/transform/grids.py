"""Sampling grids that are linear or projective in the output coordinates: affine, attention, projective, affine 3D.

Every function is ``(theta, out_size) -> grid`` and differentiable in theta. Any finite theta gives a finite grid
and finite gradients: theta is bounded at `THETA_LIMIT` (far beyond any image), where its gradient is zero.
"""

import functools

import torch
from torch import Tensor

from stn.transform.precision import full_precision

THETA_LIMIT = 1e6
# Where a point goes that has no place in the input (behind the horizon of a homography): far outside.
OUTSIDE = 1e3
# Smallest denominator of a homography that counts as in front of the horizon; bounds d(x/w)/dw by 1/MIN_W in the image.
MIN_W = 1e-2


@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)  # kept for later calls: a tensor made in inference mode could not enter a backward pass
def homogeneous_points(out_size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Centres of the output pixels, the regular grid G of Sect. 3.2, in homogeneous coordinates.

    Shapes: `out_size` (H, W) -> (3, H·W), rows x, y, 1; (D, H, W) -> (4, D·H·W), rows x, y, z, 1; x fastest.
    """
    axes = [(2 * torch.arange(n, dtype=torch.float64) + 1) / n - 1 for n in out_size]
    coordinates = torch.meshgrid(*axes, indexing="ij")[::-1]  # ij order is (z,) y, x
    points = torch.stack([*coordinates, torch.ones(out_size, dtype=torch.float64)])
    return points.flatten(1).to(device, dtype)


def check_arguments(name: str, theta: Tensor, shape: tuple[int | str, ...], out_size: tuple[int, ...]) -> None:
    """Raises: ValueError when theta is not (N, *shape) or `out_size` has not as many axes as a point has coordinates.

    A letter in `shape` stands for any size.
    """
    same = [isinstance(want, str) or want == got for want, got in zip(shape, theta.shape[1:], strict=False)]
    if theta.ndim != len(shape) + 1 or not all(same):
        wanted = ", ".join(map(str, ("N", *shape)))
        raise ValueError(f"{name}: theta must have shape ({wanted}), got {tuple(theta.shape)}")
    axes = "(D, H, W)" if shape == (3, 4) else "(H, W)"
    if len(out_size) != axes.count(",") + 1:
        raise ValueError(f"{name}: out_size must be {axes}, got {tuple(out_size)}")


def bounded_product(theta: Tensor, constants: Tensor) -> Tensor:
    """theta, bounded, times a constant matrix: one matrix product for the whole batch.

    Shapes: theta (N, d, k), constants (k, P) -> (N, d, P): one plane of P values per output coordinate.
    """
    return (theta.clamp(-THETA_LIMIT, THETA_LIMIT).flatten(0, 1) @ constants).unflatten(0, theta.shape[:2])


def as_grid(planes: Tensor, out_size: tuple[int, ...]) -> Tensor:
    """Planes x, y(, z) to the layout that the sampler reads, without a copy: (N, d, P) -> (N, *out_size, d)."""
    return planes.unflatten(2, tuple(out_size)).movedim(1, -1)


def _linear_grid(theta: Tensor, out_size: tuple[int, ...]) -> Tensor:
    """theta (N, d, d+1) applied to every output point: (N, *out_size, d)."""
    points = homogeneous_points(tuple(out_size), theta.dtype, theta.device)
    return as_grid(bounded_product(theta, points), out_size)


@full_precision
def affine_grid(theta: Tensor, out_size: tuple[int, int]) -> Tensor:
    """Affine sampling grid (Eq. 1, Sect. 3.2).

    Shapes: theta (N, 2, 3), out_size (H, W) -> (N, H, W, 2), last axis (x, y).
    Convention: theta maps output to input, in normalised coordinates: on an image that is not square a pure
    rotation matrix shears, as in the paper.
    """
    check_arguments("affine_grid", theta, (2, 3), out_size)
    return _linear_grid(theta, out_size)


@full_precision
def affine3d_grid(theta: Tensor, out_size: tuple[int, int, int]) -> Tensor:
    """Affine sampling grid on a volume (App. A.3).

    Shapes: theta (N, 3, 4), out_size (D, H, W) -> (N, D, H, W, 3), last axis (x, y, z); x runs along W, z along D.
    """
    check_arguments("affine3d_grid", theta, (3, 4), out_size)
    return _linear_grid(theta, out_size)


@full_precision
def attention_grid(theta: Tensor, out_size: tuple[int, int]) -> Tensor:
    """Attention: isotropic scale and translation (Eq. 2, Sect. 3.2).

    Shapes: theta (N, 3) as (s, tx, ty), out_size (H, W) -> (N, H, W, 2). s < 1 zooms in, s = 1 is the whole image.
    """
    check_arguments("attention_grid", theta, (3,), out_size)
    s, tx, ty = theta.unbind(1)
    zero = torch.zeros_like(s)
    matrix = torch.stack([s, zero, tx, zero, s, ty], dim=1).reshape(-1, 2, 3)
    return _linear_grid(matrix, out_size)


@full_precision
def projective_grid(theta: Tensor, out_size: tuple[int, int]) -> Tensor:
    """Projective sampling grid: a plane homography (Sect. 3.2).

    Shapes: theta (N, 8), the 3x3 matrix row by row with its ninth entry 1; out_size (H, W) -> (N, H, W, 2).
    Convention: a point whose denominator w is below `MIN_W` (near or behind the horizon) is sent far outside the
    input, with zero gradient: it reads as padding, and neither forward nor backward can overflow.
    """
    check_arguments("projective_grid", theta, (8,), out_size)
    matrix = torch.cat([theta, torch.ones_like(theta[:, :1])], dim=1).unflatten(1, (3, 3))
    return homography_grid(matrix, out_size)


@full_precision
def homography_grid(matrix: Tensor, out_size: tuple[int, int]) -> Tensor:
    """Sampling grid of homographies with all nine entries, as `projective_grid`: a common factor's sign matters.

    Shapes: matrix (N, 3, 3), out_size (H, W) -> (N, H, W, 2).
    """
    check_arguments("homography_grid", matrix, (3, 3), out_size)
    xyw = bounded_product(matrix, homogeneous_points(tuple(out_size), matrix.dtype, matrix.device))
    w = xyw[:, 2:]
    planes = xyw[:, :2] * w.clamp(min=MIN_W).reciprocal()  # half the time of a division, which broadcasts backward, too
    return as_grid(planes.masked_fill(~(w > MIN_W), OUTSIDE), out_size)
