"""Sampling grids that are linear or projective in the output coordinates: affine, attention, projective, affine 3D.

Every function is ``(theta, out_size) -> grid`` and differentiable in theta. Any finite theta gives a finite grid
and finite gradients: theta is bounded at `THETA_LIMIT` (far beyond any image), where its gradient is zero. A theta
that is not a number gives a grid that is none.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stn.transform.arguments import check_theta, checked_size
from stn.transform.constants import constant, exact_device
from stn.transform.precision import full_precision, product

THETA_LIMIT = 1e6
# Where a point goes that has no place in the input (behind the horizon of a homography): far outside.
OUTSIDE = 1e3
# Smallest denominator of a homography that counts as in front of the horizon, relative to that at the middle of the
# output; bounds d(x/w)/dw by 1/MIN_W in the image.
MIN_W = 1e-2
# Largest power of two by which a homography is scaled: 2**127 has no reciprocal in float32.
MAX_EXPONENT = 126.0


def _make_points(out_size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    where = exact_device(device)
    axes = [(2 * torch.arange(n, dtype=torch.float64, device=where) + 1) / n - 1 for n in out_size]
    coordinates = torch.meshgrid(*axes, indexing="ij")[::-1]  # ij order is (z,) y, x
    points = torch.stack([*coordinates, torch.ones(out_size, dtype=torch.float64, device=where)])
    return points.flatten(1).to(device, dtype)


def homogeneous_points(out_size: tuple[int, ...], like: Tensor) -> Tensor:
    """Centres of the output pixels, the regular grid G of Sect. 3.2, in homogeneous coordinates.

    Shapes: `out_size` (H, W) -> (3, H·W), rows x, y, 1; (D, H, W) -> (4, D·H·W), rows x, y, z, 1; x fastest. Of the
    type and on the device of `like`; not to be changed in place.
    """
    return constant(_make_points, out_size, like)


def bounded_product(theta: Tensor, constants: Tensor) -> Tensor:
    """theta, bounded, times a constant matrix: one matrix product for the whole batch.

    Shapes: theta (N, d, k), constants (k, P) -> (N, d, P): one plane of P values per output coordinate.
    """
    return _batch_product(theta.clamp(-THETA_LIMIT, THETA_LIMIT), constants)


def _batch_product(theta: Tensor, constants: Tensor) -> Tensor:
    return product(theta.flatten(0, 1), constants).unflatten(0, theta.shape[:2])


def as_grid(planes: Tensor, out_size: tuple[int, ...]) -> Tensor:
    """Planes x, y(, z) to the layout that the sampler reads, without a copy: (N, d, P) -> (N, *out_size, d)."""
    grid = planes.unflatten(2, out_size).movedim(1, -1)
    # Compiled, no copy is made either; of a grid in another order torch's compiler mistakes that of the gradient.
    return grid.contiguous() if torch.compiler.is_compiling() else grid


def _linear_grid(theta: Tensor, out_size: tuple[int, ...]) -> Tensor:
    """theta (N, d, d+1) applied to every output point: (N, *out_size, d)."""
    return as_grid(bounded_product(theta, homogeneous_points(out_size, theta)), out_size)


@full_precision
def affine_grid(theta: Tensor, out_size: Sequence[int]) -> Tensor:
    """Affine sampling grid (Eq. 1, Sect. 3.2).

    Shapes: theta (N, 2, 3), out_size (H, W) -> (N, H, W, 2), last axis (x, y).
    Convention: theta maps output to input, in normalised coordinates: on an image that is not square a pure
    rotation matrix shears, as in the paper.
    """
    check_theta("affine_grid", theta, (2, 3))
    return _linear_grid(theta, checked_size("affine_grid", out_size, 2))


@full_precision
def affine3d_grid(theta: Tensor, out_size: Sequence[int]) -> Tensor:
    """Affine sampling grid on a volume (App. A.3).

    Shapes: theta (N, 3, 4), out_size (D, H, W) -> (N, D, H, W, 3), last axis (x, y, z); x runs along W, z along D.
    """
    check_theta("affine3d_grid", theta, (3, 4))
    return _linear_grid(theta, checked_size("affine3d_grid", out_size, 3))


@full_precision
def attention_grid(theta: Tensor, out_size: Sequence[int]) -> Tensor:
    """Attention: isotropic scale and translation (Eq. 2, Sect. 3.2).

    Shapes: theta (N, 3) as (s, tx, ty), out_size (H, W) -> (N, H, W, 2). s < 1 zooms in, s = 1 is the whole image.
    """
    check_theta("attention_grid", theta, (3,))
    return _linear_grid(attention_matrix(theta), checked_size("attention_grid", out_size, 2))


def attention_matrix(theta: Tensor) -> Tensor:
    """Attention (s, tx, ty) as affine theta: (N, 3) -> (N, 2, 3)."""
    s, tx, ty = theta.unbind(1)
    zero = torch.zeros_like(s)
    return torch.stack([s, zero, tx, zero, s, ty], dim=1).unflatten(1, (2, 3))


@full_precision
def projective_grid(theta: Tensor, out_size: Sequence[int]) -> Tensor:
    """Projective sampling grid: a plane homography (Sect. 3.2).

    Shapes: theta (N, 8), the 3x3 matrix row by row with its ninth entry 1; out_size (H, W) -> (N, H, W, 2).
    Convention: as `homography_grid`.
    """
    check_theta("projective_grid", theta, (8,))
    size = checked_size("projective_grid", out_size, 2)
    return _homography_grid(projective_matrix(theta.clamp(-THETA_LIMIT, THETA_LIMIT)), size)


def projective_matrix(theta: Tensor) -> Tensor:
    """The eight entries of projective theta as matrices whose ninth is 1: (N, 8) -> (N, 3, 3)."""
    return torch.cat([theta, torch.ones_like(theta[:, :1])], dim=1).unflatten(1, (3, 3))


@full_precision
def homography_grid(matrix: Tensor, out_size: Sequence[int]) -> Tensor:
    """Sampling grid of homographies with all nine entries. A positive factor of the matrix does not matter.

    Shapes: matrix (N, 3, 3), out_size (H, W) -> (N, H, W, 2).
    Convention: a point is in front of the horizon where its denominator w is positive: the negative of a matrix shows
    the other side. A point whose w is less than `MIN_W` times the |w| at the middle of the output (near or behind the
    horizon) is sent far outside the input, with zero gradient: it reads as padding, and neither forward nor backward
    can overflow. (Where the horizon runs so near to the middle that w there is below `MIN_W` of its slope, the slope
    takes its place.)
    """
    check_theta("homography_grid", matrix, (3, 3))
    return _homography_grid(matrix, checked_size("homography_grid", out_size, 2))


def _homography_grid(matrix: Tensor, size: tuple[int, ...]) -> Tensor:
    matrix = scaled(matrix)
    points = homogeneous_points(size, matrix)
    xy, w = (_batch_product(rows, points) for rows in matrix.split((2, 1), dim=1))  # split later, they would be copied
    return as_grid(perspective_division(xy, w, matrix), size)


def scaled(matrix: Tensor) -> Tensor:
    """Times the power of two that brings its largest entry to [1, 2): nothing is rounded, and nothing overflows.

    The power is taken as a constant: what the grid changes by with a common factor is zero.
    """
    largest = matrix.detach().abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(matrix.dtype).tiny)
    return matrix * torch.exp2(-torch.floor(torch.log2(largest)).clamp(max=MAX_EXPONENT))


def perspective_division(xy: Tensor, w: Tensor, matrix: Tensor) -> Tensor:
    """x/w and y/w, behind the horizon of the homography `OUTSIDE`.

    Shapes: (N, 2, P), (N, 1, P), (N, 3, 3) -> (N, 2, P).
    """
    size = matrix.detach().abs()
    reference = torch.maximum(size[:, 2:, 2:], MIN_W * size[:, 2:, :2].amax(2, keepdim=True))
    smallest = MIN_W * torch.maximum(reference, size.amax((1, 2), keepdim=True) / THETA_LIMIT)
    behind = w <= smallest  # not ~(w > smallest), which would hide a w that is no number
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return (_quotient if traced else _Quotient.apply)(xy, w, behind)


def _quotient(xy: Tensor, w: Tensor, behind: Tensor) -> Tensor:
    return torch.where(behind, OUTSIDE, xy * _reciprocal(w, behind))


def _reciprocal(w: Tensor, behind: Tensor) -> Tensor:
    """Behind the horizon 0, and so are its gradients there."""
    return w.masked_fill(behind, torch.inf).reciprocal()


class _Quotient(torch.autograd.Function):
    """`_quotient` with a gradient that reads each number once: a grid is larger than a cache."""

    generate_vmap_rule = True

    @staticmethod
    def forward(xy: Tensor, w: Tensor, behind: Tensor) -> Tensor:
        return _quotient(xy, w, behind)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:], output)
        ctx.save_for_forward(*inputs[1:], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w, behind, output = ctx.saved_tensors
        grad = grad.contiguous()  # the sampler's has x and y side by side: slow to read so
        grad_xy = grad.masked_fill(behind, 0.0) * _reciprocal(w, behind)
        return grad_xy, -(grad_xy * output).sum(1, keepdim=True), None

    @staticmethod
    def jvp(ctx: Any, xy: Tensor, w: Tensor, _: None) -> Tensor:
        at_w, behind, output = ctx.saved_tensors
        return torch.where(behind, 0.0, (xy - output * w) * _reciprocal(at_w, behind))
