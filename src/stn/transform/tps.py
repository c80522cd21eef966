"""Thin-plate splines (Sect. 3.2): a smooth warp given by where a regular grid of control points goes."""

import functools
import math

import torch
from torch import Tensor

from stn.transform.grids import as_grid, bounded_product, check_arguments, homogeneous_points
from stn.transform.precision import full_precision


def regular_control_points(k: int) -> Tensor:
    """The K = k² control points on the output side: a regular k×k grid over [-1, 1]², also the identity theta.

    Shapes: (K, 2) as (x, y), rows from the top, x fastest; float64.
    """
    axis = torch.linspace(-1, 1, k, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def _radial(a: Tensor, b: Tensor) -> Tensor:
    """The kernel U(r) = r² log r between two sets of points, 0 at r = 0: (A, 2), (B, 2) -> (A, B)."""
    r2 = (a[:, None] - b[None]).square().sum(-1)
    return 0.5 * r2 * torch.log(r2.clamp(min=torch.finfo(r2.dtype).tiny))


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _spline_weights(n_points: int, out_size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The constant matrix M (K, H·W) with grid = thetaᵀ M.

    The spline through K points has coefficients ``L⁻¹ [theta; 0]``, L the kernel matrix among the *control points*
    bordered by the affine part; its value at p is ``[U(p, c), 1, p] · coefficients``. Control points and output
    pixels are both fixed, so the product of the two matrices is a constant of (K, out_size).
    """
    k = math.isqrt(n_points)
    if k * k != n_points or k < 2:
        raise ValueError(f"tps_grid: the number of control points must be a square >= 4, got {n_points}")
    controls = regular_control_points(k)
    border = torch.cat([torch.ones(n_points, 1, dtype=torch.float64), controls], dim=1)
    system = torch.zeros(n_points + 3, n_points + 3, dtype=torch.float64)
    system[:n_points, :n_points] = _radial(controls, controls)
    system[:n_points, n_points:] = border
    system[n_points:, :n_points] = border.T
    points = homogeneous_points(out_size, torch.float64, torch.device("cpu")).T
    basis = torch.cat([_radial(points[:, :2], controls), points[:, [2, 0, 1]]], dim=1)
    return (basis @ torch.linalg.inv(system)[:, :n_points]).T.to(device, dtype).contiguous()


@full_precision
def tps_grid(theta: Tensor, out_size: tuple[int, int]) -> Tensor:
    """Thin-plate-spline sampling grid through a regular grid of control points (Sect. 3.2).

    Shapes: theta (N, K, 2), K a square (16 in the paper); out_size (H, W) -> (N, H, W, 2).
    Convention: the control points are fixed on the *output* side, on a regular grid over [-1, 1]², rows from the
    top, x fastest; theta[n, k] is the input position (x, y) that control point k reads. In between, the spline
    of least bending energy.
    """
    check_arguments("tps_grid", theta, ("K", 2), out_size)
    weights = _spline_weights(theta.shape[1], tuple(out_size), theta.dtype, theta.device)
    return as_grid(bounded_product(theta.transpose(1, 2), weights), out_size)
