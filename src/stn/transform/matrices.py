"""Transformations as matrices: inverse, composition, and the pixels that other libraries count in.

What theta is, its shape says: attention (N, 3), affine (N, 2, 3), projective (N, 8), a homography with all nine
entries (N, 3, 3), affine 3D (N, 3, 4). Thin-plate splines, (N, K, 2), have no matrix.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stn.transform.arguments import check_tensor, checked_size
from stn.transform.constants import exact_device
from stn.transform.grids import attention_matrix, projective_matrix
from stn.transform.precision import full_precision

# Each is a special case of the next, but for the last, which is of volumes.
KINDS = {"attention": (3,), "affine": (2, 3), "projective": (8,), "homography": (3, 3), "affine3d": (3, 4)}
ANY_THETA = "(N, 3), (N, 2, 3), (N, 8), (N, 3, 3) or (N, 3, 4)"


def kind_of(function: str, theta: Tensor) -> str:
    """The key of `KINDS` that theta's shape says.

    Raises: TypeError when theta is not a tensor of floating-point numbers, ValueError when its shape is none of these.
    """
    check_tensor(function, "theta", theta, ANY_THETA)
    for kind, shape in KINDS.items():
        if tuple(theta.shape[1:]) == shape:
            return kind
    if is_spline(theta):
        raise ValueError(
            f"{function}: a thin-plate spline, theta {tuple(theta.shape)}, has no matrix: its inverse, and splines "
            "after one another, are not thin-plate splines"
        )
    raise ValueError(f"{function}: theta must have shape {ANY_THETA}, got {tuple(theta.shape)}")


def is_spline(theta: Tensor) -> bool:
    """Whether theta, (N, K, 2), is that of a thin-plate spline."""
    return theta.ndim == 3 and theta.shape[2] == 2 and theta.shape[1] >= 4


@full_precision
def as_matrix(theta: Tensor) -> Tensor:
    """The matrix that acts on homogeneous points (x, y(, z), 1): any theta -> (N, 3, 3), on volumes (N, 4, 4)."""
    kind = kind_of("as_matrix", theta)
    if kind == "attention":
        theta = attention_matrix(theta)
    elif kind == "projective":
        theta = projective_matrix(theta)
    if theta.shape[1] == theta.shape[2]:
        return theta
    last = torch.zeros_like(theta[:, :1])
    return torch.cat([theta, torch.cat([last[:, :, :-1], last[:, :, -1:] + 1], dim=2)], dim=1)


def _from_matrix(matrix: Tensor, kind: str) -> Tensor:
    if kind == "attention":
        return torch.stack([matrix[:, 0, 0], matrix[:, 0, 2], matrix[:, 1, 2]], dim=1)
    if kind == "projective":
        ninth = matrix[:, 2:, 2:]
        return (matrix / ninth.masked_fill(ninth <= 0, torch.nan)).flatten(1)[:, :8]
    return matrix if kind == "homography" else matrix[:, :-1]


def _exact(theta: Tensor) -> Tensor:
    """In float64 where the device has it: a few numbers per image."""
    return theta.double() if exact_device(theta.device) == theta.device else theta


@full_precision
def inverse(theta: Tensor) -> Tensor:
    """The transformation that takes input points back to output points, of the same kind: any theta but a spline's.

    Convention: projective theta has its ninth entry 1 and so cannot say that the middle lies behind the horizon: where
    it would, the result is NaN; as (N, 3, 3) it has an inverse. A theta without an inverse gives values that are not
    finite.
    Raises: ValueError for a thin-plate spline, whose inverse is none.
    """
    kind = kind_of("inverse", theta)
    matrix = _exact(as_matrix(theta))
    inverted = _inverse3(matrix) if matrix.shape[1] == 3 else _inverse_affine3d(matrix)
    return _from_matrix(inverted, kind).to(theta.dtype)


def _inverse3(matrix: Tensor) -> Tensor:
    """The adjugate over the determinant: no solver, so no error check to wait for, and every exporter knows it."""
    a, b, c = matrix.unbind(1)
    cofactors = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=2)
    return cofactors / (a * cofactors[:, :, 0]).sum(1)[:, None, None]


def _inverse_affine3d(matrix: Tensor) -> Tensor:
    linear = _inverse3(matrix[:, :3, :3])
    shift = -(linear @ matrix[:, :3, 3:])
    return torch.cat([torch.cat([linear, shift], dim=2), matrix[:, 3:]], dim=1)


@full_precision
def compose(a: Tensor, b: Tensor) -> Tensor:
    """One transformation that takes each point where b and then a takes it: a ∘ b.

    A picture warped by `a`, and the result by `b`, is the picture warped by ``compose(a, b)``. Of two kinds the result
    is the more general one; projective as said of `inverse`.
    Raises: ValueError for a thin-plate spline, or one of planes with one of volumes.
    """
    kinds = [kind_of("compose", theta) for theta in (a, b)]
    if kinds.count("affine3d") == 1:
        raise ValueError(f"compose: {kinds[0]} and {kinds[1]} cannot be composed: one is of planes, one of volumes")
    kind = max(kinds, key=list(KINDS).index)
    return _from_matrix(_exact(as_matrix(a)) @ _exact(as_matrix(b)), kind).to(torch.promote_types(a.dtype, b.dtype))


def normalised_from_px(size: Sequence[int]) -> Tensor:
    """The matrix from pixels, counted between the centres of pixels as OpenCV and scikit-image do, to [-1, 1].

    Shapes: size (H, W) -> (3, 3), (D, H, W) -> (4, 4), x first; float64. Pixel 0 has its centre at 0.
    """
    n = torch.tensor(checked_size("normalised_from_px", size, argument="size")[::-1], dtype=torch.float64)
    matrix = torch.diag(torch.cat([2 / n, torch.ones(1, dtype=torch.float64)]))
    matrix[:-1, -1] = 1 / n - 1
    return matrix


def px_from_normalised(size: Sequence[int]) -> Tensor:
    """The inverse of `normalised_from_px`: pixel = ((x + 1)·W - 1) / 2."""
    n = torch.tensor(checked_size("px_from_normalised", size, argument="size")[::-1], dtype=torch.float64)
    matrix = torch.diag(torch.cat([n / 2, torch.ones(1, dtype=torch.float64)]))
    matrix[:-1, -1] = (n - 1) / 2
    return matrix


@full_precision
def theta_from_px(matrix: Tensor, in_size: Sequence[int], out_size: Sequence[int]) -> Tensor:
    """Theta of a matrix in pixels that takes output to input points.

    Such are what ``skimage.transform.warp`` takes, and OpenCV's ``warpAffine`` and ``warpPerspective`` with
    ``WARP_INVERSE_MAP``; without that flag, and with kornia, matrices take input to output: use `inverse` first.
    Shapes: matrix (N, 2, 3), (N, 3, 3) or (N, 3, 4) -> theta of that shape, for `affine_grid`, `homography_grid` or
    `affine3d_grid`.
    """
    kind = _matrix_kind("theta_from_px", matrix)
    return _between(normalised_from_px(in_size), matrix, px_from_normalised(out_size), kind)


@full_precision
def theta_to_px(theta: Tensor, in_size: Sequence[int], out_size: Sequence[int]) -> Tensor:
    """The matrix in pixels that takes output to input points as theta does; see `theta_from_px`.

    Shapes: attention, affine -> (N, 2, 3); projective, homography -> (N, 3, 3); affine 3D -> (N, 3, 4).
    """
    kind = {"attention": "affine", "projective": "homography"}.get(k := kind_of("theta_to_px", theta), k)
    return _between(px_from_normalised(in_size), theta, normalised_from_px(out_size), kind)


def _matrix_kind(function: str, matrix: Tensor) -> str:
    kind = kind_of(function, matrix)
    if kind in ("attention", "projective"):
        raise ValueError(f"{function}: matrix must be (N, 2, 3), (N, 3, 3) or (N, 3, 4), got {tuple(matrix.shape)}")
    return kind


def _between(left: Tensor, theta: Tensor, right: Tensor, kind: str) -> Tensor:
    matrix = _exact(as_matrix(theta))
    if left.shape != matrix.shape[1:] or right.shape != left.shape:
        axes = [len(left) - 1, len(right) - 1, matrix.shape[1] - 1]
        raise ValueError(f"in_size, out_size and the transformation have {axes} axes: they must be of as many")
    return _from_matrix(left.to(matrix) @ matrix @ right.to(matrix), kind).to(theta.dtype)
