"""Points and boxes through a transformation, from the output to the input, and in pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stn.transform.arguments import check_tensor, checked_size
from stn.transform.grids import OUTSIDE, THETA_LIMIT, perspective_division, scaled
from stn.transform.matrices import as_matrix, is_spline, kind_of
from stn.transform.precision import full_precision, product
from stn.transform.tps import tps_points


@full_precision
def map_points(theta: Tensor, points: Tensor) -> Tensor:
    """Where in the input the transformation reads these points of the output; with ``inverse(theta)`` the other way.

    Shapes: theta of any kind of `KINDS` or a spline's (N, K, 2), points (N, P, d) as (x, y(, z)), normalised ->
    (N, P, d). Points behind the horizon of a homography go far outside, as in `homography_grid`.
    """
    check_tensor("map_points", "points", points, "(N, P, 2) or (N, P, 3)")
    axes = 2 if is_spline(theta) or kind_of("map_points", theta) != "affine3d" else 3
    if points.ndim != 3 or points.shape[2] != axes:
        raise ValueError(f"map_points: points must have shape (N, P, {axes}), got {tuple(points.shape)}")
    dtype = torch.promote_types(theta.dtype, points.dtype)
    theta, points = theta.to(dtype), points.to(dtype)
    if is_spline(theta):
        return tps_points(theta, points)
    kind = kind_of("map_points", theta)
    theta = theta if kind == "homography" else theta.clamp(-THETA_LIMIT, THETA_LIMIT)
    matrix = as_matrix(theta)
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], dim=2).mT
    if kind in ("projective", "homography"):
        matrix = scaled(matrix)
        xy, w = product(matrix, homogeneous).split((2, 1), dim=1)
        return perspective_division(xy, w, matrix).mT
    return product(matrix[:, :-1], homogeneous).mT


@full_precision
def map_boxes(theta: Tensor, boxes: Tensor) -> Tensor:
    """The smallest upright boxes in the input that hold these boxes of the output.

    Shapes: theta of planes, (N, …), boxes (N, P, 4) as (x0, y0, x1, y1), normalised -> (N, P, 4); NaN for a box with
    a corner behind the horizon of a homography, since no box holds what that one shows.
    Raises: ValueError for a thin-plate spline, where a box's edges are curves, and for volumes.
    """
    check_tensor("map_boxes", "boxes", boxes, "(N, P, 4)")
    if is_spline(theta):
        raise ValueError("map_boxes: a thin-plate spline makes curves of a box's edges: map points along them instead")
    if kind_of("map_boxes", theta) == "affine3d" or boxes.ndim != 3 or boxes.shape[2] != 4:
        given = f"{tuple(boxes.shape)}, {tuple(theta.shape)}"
        raise ValueError(f"map_boxes: boxes must have shape (N, P, 4) and theta be of planes, got {given}")
    corners = torch.stack([boxes[..., list(corner)] for corner in ((0, 1), (2, 1), (2, 3), (0, 3))], dim=2)
    mapped = map_points(theta, corners.flatten(1, 2)).unflatten(1, corners.shape[1:3])
    mapped_boxes = torch.cat([mapped.amin(2), mapped.amax(2)], dim=2)
    behind = (mapped == OUTSIDE).all(3).any(2, keepdim=True)
    is_homography = kind_of("map_boxes", theta) in ("projective", "homography")
    return mapped_boxes.masked_fill(behind, torch.nan) if is_homography else mapped_boxes


def points_to_px(points: Tensor, size: Sequence[int]) -> Tensor:
    """Normalised points as pixels, whose integers are the centres of pixels: ((x + 1)·W - 1) / 2.

    Shapes: points (..., d) as (x, y(, z)), size (H, W) or (D, H, W) -> (..., d).
    """
    return torch.stack([((x + 1) * n - 1) / 2 for x, n in _axes("points_to_px", points, size)], dim=-1)


def points_from_px(points: Tensor, size: Sequence[int]) -> Tensor:
    """The inverse of `points_to_px`."""
    return torch.stack([(2 * x + 1) / n - 1 for x, n in _axes("points_from_px", points, size)], dim=-1)


def boxes_to_px(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Normalised boxes in pixels counted from the image's edge: all of it is (0, 0, W, H), as data sets have them.

    Shapes: boxes (..., 4) as (x0, y0, x1, y1), size (H, W) -> (..., 4).
    """
    axes = _axes("boxes_to_px", _corners("boxes_to_px", boxes), size)
    return torch.stack([(x + 1) * (n / 2) for x, n in axes], dim=-1).flatten(-2)


def boxes_from_px(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """The inverse of `boxes_to_px`."""
    axes = _axes("boxes_from_px", _corners("boxes_from_px", boxes), size)
    return torch.stack([x / (n / 2) - 1 for x, n in axes], dim=-1).flatten(-2)


def _corners(function: str, boxes: Tensor) -> Tensor:
    """(..., 4) -> (..., 2, 2)"""
    check_tensor(function, "boxes", boxes, "(..., 4)")
    if boxes.shape[-1:] != (4,):
        raise ValueError(f"{function}: boxes must have shape (..., 4), got {tuple(boxes.shape)}")
    return boxes.unflatten(-1, (2, 2))


def _axes(function: str, points: Tensor, size: Sequence[int]) -> list[tuple[Tensor, int]]:
    """Each coordinate with the length of its axis, x first."""
    check_tensor(function, "points", points, "(..., 2) or (..., 3)")
    if points.shape[-1:] not in ((2,), (3,)):
        raise ValueError(f"{function}: points must have shape (..., 2) or (..., 3), got {tuple(points.shape)}")
    return list(zip(points.unbind(-1), checked_size(function, size, points.shape[-1], "size")[::-1], strict=True))
