"""Thin-plate splines (Sect. 3.2): a smooth warp given by where a regular grid of control points goes."""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stn.transform.arguments import check_theta, checked_size
from stn.transform.constants import constant, exact_device
from stn.transform.grids import THETA_LIMIT, as_grid, bounded_product, homogeneous_points
from stn.transform.precision import full_precision, product


def regular_control_points(k: int, like: Tensor | None = None) -> Tensor:
    """The K = k² control points on the output side: a regular k×k grid over [-1, 1]², also the identity theta.

    Shapes: (K, 2) as (x, y), rows from the top, x fastest; of the type and on the device of `like` (then it may be kept
    for other calls, and is not to be changed in place), else float64.
    Raises: ValueError for k below 2.
    """
    if k < 2:
        raise ValueError(f"regular_control_points: k must be 2 or more, got {k}")
    if like is None:
        return torch.tensor(_control_points(k), dtype=torch.float64)
    return constant(_make_control_points, (k,), like)


def _make_control_points(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(_control_points(size[0]), dtype=dtype, device=device)


def _control_points(k: int) -> list[tuple[float, float]]:
    axis = [(2 * i - (k - 1)) / (k - 1) for i in range(k)]
    return [(x, y) for y in axis for x in axis]


def _radial(points: Tensor, controls: Tensor) -> Tensor:
    """The kernel U(r) = r² log r between two sets of points, 0 at r = 0: (..., P, 2), (K, 2) -> (..., P, K)."""
    r2 = (points[..., :, None, :] - controls).square().sum(-1)
    return 0.5 * r2 * torch.log(r2.clamp(min=torch.finfo(r2.dtype).tiny))


@functools.lru_cache(maxsize=16)
def _coefficients(k: int) -> list[list[float]]:
    """The inverse of the kernel matrix among the control points, bordered by the affine part: (K + 3, K).

    In numbers of Python, by Gauss-Jordan elimination with pivoting: no tracer can get hold of them.
    """
    controls, n = _control_points(k), k * k + 3
    rows = [[_u(a, b) for b in controls] + [1.0, *a] for a in controls]
    rows += [[border[i] for border in ((1.0, *c) for c in controls)] + [0.0] * 3 for i in range(3)]
    rows = [row + [float(i == j) for j in range(n)] for i, row in enumerate(rows)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda j: abs(rows[j][i]))
        rows[i], rows[pivot] = rows[pivot], [*rows[i]]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for j in range(n):
            if j != i and rows[j][i] != 0.0:
                factor = rows[j][i]
                rows[j] = [x - factor * y for x, y in zip(rows[j], rows[i], strict=True)]
    return [row[n : n + k * k] for row in rows]


@torch.compiler.assume_constant_result
def _constant_coefficients(k: int) -> list[list[float]]:
    return _coefficients(k)


def _u(a: tuple[float, float], b: tuple[float, float]) -> float:
    r2 = (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
    return 0.5 * r2 * math.log(r2) if r2 > 0 else 0.0


def _side(function: str, n_points: int) -> int:
    k = math.isqrt(n_points)
    if k * k != n_points or k < 2:
        raise ValueError(f"{function}: the number of control points must be a square >= 4, got {n_points}")
    return k


def _weights_at(points: Tensor, k: int) -> Tensor:
    """What each control point counts for at each point: (..., P, 2) -> (..., P, K).

    The spline through K points has coefficients ``L⁻¹ [theta; 0]``, L the kernel matrix among the *control points*
    bordered by the affine part; its value at p is ``[U(p, c), 1, p] · coefficients``. The control points are fixed, so
    the spline is theta times these weights.
    """
    controls = regular_control_points(k, like=points)
    basis = torch.cat([_radial(points, controls), torch.ones_like(points[..., :1]), points], dim=-1)
    return product(basis, constant(_make_coefficients, (k,), points))


def _make_coefficients(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(_constant_coefficients(size[0]), dtype=dtype, device=device)


def _make_weights(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """size (k, H, W) -> (K, H·W), so that grid = thetaᵀ · weights: one constant, as output pixels are fixed, too."""
    k, *out_size = size
    like = torch.empty(0, dtype=torch.float64, device=exact_device(device))
    points = homogeneous_points(tuple(out_size), like)[:2].T
    return _weights_at(points, k).T.to(device, dtype).contiguous()


@full_precision
def tps_grid(theta: Tensor, out_size: Sequence[int]) -> Tensor:
    """Thin-plate-spline sampling grid through a regular grid of control points (Sect. 3.2).

    Shapes: theta (N, K, 2), K a square (16 in the paper); out_size (H, W) -> (N, H, W, 2).
    Convention: the control points are fixed on the *output* side, on a regular grid over [-1, 1]², rows from the
    top, x fastest; theta[n, k] is the input position (x, y) that control point k reads. In between, the spline
    of least bending energy.
    """
    check_theta("tps_grid", theta, ("K", 2))
    size = checked_size("tps_grid", out_size, 2)
    weights = constant(_make_weights, (_side("tps_grid", theta.shape[1]), *size), theta)
    return as_grid(bounded_product(theta.transpose(1, 2), weights), size)


def tps_points(theta: Tensor, points: Tensor) -> Tensor:
    """Where the spline reads for any output points: theta (N, K, 2), points (N, P, 2) -> (N, P, 2)."""
    weights = _weights_at(
        points.to(torch.promote_types(points.dtype, torch.float32)), _side("map_points", theta.shape[1])
    )
    return product(weights, theta.clamp(-THETA_LIMIT, THETA_LIMIT))
