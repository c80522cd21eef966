import cv2
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from stn.transform import (
    TRANSFORMATIONS,
    affine3d_grid,
    affine_grid,
    attention_grid,
    homography_grid,
    inverse,
    projective_grid,
    sample,
    theta_from_px,
    tps_grid,
)
from stn.transform.constants import forget
from stn.transform.grids import MIN_W, OUTSIDE

NAMES = tuple(TRANSFORMATIONS)
F64 = torch.float64


def size_for(name):
    return (3, 4, 5) if name == "affine3d" else (4, 7)


def identity(name, n=1, dtype=F64):
    return torch.tensor(TRANSFORMATIONS[name].identity, dtype=dtype).repeat(n, *[1] * len(TRANSFORMATIONS[name].shape))


def near_identity(name, n=3, spread=0.1, dtype=F64, seed=0):
    start = identity(name, n, dtype)
    return start + spread * torch.randn(start.shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def centres(n):
    return (2 * np.arange(n) + 1) / n - 1


@pytest.mark.parametrize("out_size", [(28, 28), (4, 7), (9, 2), (1, 1)])
@pytest.mark.parametrize("name", [n for n in NAMES if n != "affine3d"])
def test_identity_grid_is_the_pixel_centres_x_before_y(name, out_size):
    grid = TRANSFORMATIONS[name].grid(identity(name, 2), out_size)
    assert grid.shape == (2, *out_size, 2)
    y, x = np.meshgrid(centres(out_size[0]), centres(out_size[1]), indexing="ij")
    # The spline's weights come from a 19x19 inverse: some 1e-15 of rounding; the others are exact.
    np.testing.assert_allclose(grid[1].numpy(), np.stack([x, y], -1), rtol=0, atol=1e-13)


def test_identity_grid_of_a_volume_is_the_voxel_centres_x_before_y_before_z():
    grid = affine3d_grid(identity("affine3d", 2), (3, 4, 5))
    assert grid.shape == (2, 3, 4, 5, 3)
    z, y, x = np.meshgrid(centres(3), centres(4), centres(5), indexing="ij")
    np.testing.assert_array_equal(grid[1].numpy(), np.stack([x, y, z], -1))


@pytest.mark.parametrize("name", NAMES)
def test_float32_identity_grid_is_within_rounding_of_the_float64_one(name):
    size = size_for(name)
    narrow = TRANSFORMATIONS[name].grid(identity(name, dtype=torch.float32), size)
    assert narrow.dtype == torch.float32
    # A handful of products of numbers of about 1, with 6e-8 each.
    torch.testing.assert_close(narrow.double(), TRANSFORMATIONS[name].grid(identity(name), size), rtol=0, atol=1e-6)


def test_affine_rows_give_x_and_y_and_the_last_column_shifts():
    theta = torch.tensor([[[2.0, 3.0, 0.5], [-1.0, 4.0, 0.25]]], dtype=F64)
    grid = affine_grid(theta, (2, 3))[0]
    for i, y in enumerate(centres(2)):
        for j, x in enumerate(centres(3)):
            expected = [2 * x + 3 * y + 0.5, -x + 4 * y + 0.25]
            np.testing.assert_allclose(grid[i, j].numpy(), expected, rtol=0, atol=1e-14)


def test_affine3d_rows_give_x_y_and_z():
    theta = near_identity("affine3d", spread=1.0)
    grid = affine3d_grid(theta, (2, 3, 4))
    z, y, x = np.meshgrid(centres(2), centres(3), centres(4), indexing="ij")
    expected = np.einsum("nij,jdhw->ndhwi", theta.numpy(), np.stack([x, y, z, np.ones_like(x)]))
    np.testing.assert_allclose(grid.numpy(), expected, rtol=0, atol=1e-13)


def test_attention_is_the_affine_grid_of_a_scaled_identity():
    theta = near_identity("attention", 5, spread=0.7)
    matrix = torch.zeros(5, 2, 3, dtype=F64)
    matrix[:, 0, 0] = matrix[:, 1, 1] = theta[:, 0]
    matrix[:, :, 2] = theta[:, 1:]
    assert torch.equal(attention_grid(theta, (4, 7)), affine_grid(matrix, (4, 7)))


def test_projective_with_a_flat_last_row_is_affine():
    theta = near_identity("affine", 5, spread=0.7)
    flat = torch.cat([theta.flatten(1), torch.zeros(5, 2, dtype=F64)], dim=1)
    torch.testing.assert_close(projective_grid(flat, (4, 7)), affine_grid(theta, (4, 7)), rtol=0, atol=1e-14)


def test_projective_points_are_those_of_opencv():
    theta = near_identity("projective", 8, spread=0.3)
    grid = projective_grid(theta, (5, 6))
    y, x = np.meshgrid(centres(5), centres(6), indexing="ij")
    points = np.stack([x, y], -1).reshape(1, -1, 2)
    for row, ours in zip(theta.numpy(), grid, strict=True):
        matrix = np.append(row, 1.0).reshape(3, 3)
        assert (np.append(points[0], np.ones((30, 1)), 1) @ matrix[2] > MIN_W).all()
        expected = cv2.perspectiveTransform(points, matrix)
        np.testing.assert_allclose(ours.reshape(1, -1, 2).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_points_behind_the_horizon_are_far_outside_and_have_no_gradient():
    theta = identity("projective").requires_grad_()
    with torch.no_grad():
        theta[0, 6] = 4.0  # w = 1 + 4x: -2, 0, 2, 4 at the centres of four pixels
    grid = projective_grid(theta, (2, 4))
    assert (grid[:, :, :2] == OUTSIDE).all()
    assert (grid[:, :, 2:].abs() < 1).all()
    (gradient,) = torch.autograd.grad(grid[:, :, :2].sum(), theta)
    assert (gradient == 0).all()


def test_behind_the_horizon_nothing_spreads_that_is_no_number():
    matrix = torch.eye(3, dtype=F64).repeat(2, 1, 1)
    matrix[:, 2, 0] = 1.5
    matrix[1, 0, 0] = torch.inf
    matrix.requires_grad_()
    grid = homography_grid(matrix, (4, 5))
    behind = grid[0, ..., 0] == OUTSIDE
    assert 0 < behind.sum() < behind.numel()
    assert torch.equal(grid[1], torch.full_like(grid[1], OUTSIDE))
    upstream = torch.where(behind[..., None], torch.nan, 1.0).expand(2, 4, 5, 2)
    assert torch.autograd.grad(grid, matrix, upstream)[0][0].isfinite().all()


@pytest.mark.parametrize(("w", "visible"), [(1.5 * MIN_W, True), (0.5 * MIN_W, False), (0.0, False)])
def test_a_point_just_before_the_horizon_is_read_only_if_its_gradient_is_bounded(w, visible):
    theta = identity("projective")
    theta[0, 6] = 2 * (1 - w)  # w = 1 + theta_6 x, and x = -0.5 at the left one of two pixels
    grid = projective_grid(theta, (1, 2))[0, 0, 0]
    torch.testing.assert_close(grid[0].item(), -0.5 / w if visible else OUTSIDE, rtol=1e-9, atol=0)


FACTORS = (1e-6, 3e-4, 0.009, 1.0, 77.7, 1e6)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_a_positive_factor_of_a_homography_never_matters(dtype, spread):
    matrix = torch.eye(3, dtype=dtype) + spread * torch.randn(
        20, 3, 3, dtype=dtype, generator=torch.Generator().manual_seed(0)
    )
    weights = torch.randn(20, 6, 7, 2, dtype=dtype, generator=torch.Generator().manual_seed(1))

    def grid_and_gradient(factor):
        scaled = (factor * matrix).requires_grad_()
        grid = homography_grid(scaled, (6, 7))
        return grid.detach(), factor * torch.autograd.grad((grid * weights).sum(), scaled)[0]

    wanted, gradient = grid_and_gradient(1.0)
    eps = torch.finfo(dtype).eps
    for factor in FACTORS:
        got, got_gradient = grid_and_gradient(factor)
        # Rounding of the entries, at w = MIN_W: a hundred times larger in the grid, and that again in its gradient.
        torch.testing.assert_close(got, wanted, rtol=1e3 * eps, atol=1e3 * eps)
        torch.testing.assert_close(got_gradient, gradient, rtol=1e4 * eps, atol=1e5 * eps * gradient.abs().max().item())


@pytest.mark.parametrize("factor", FACTORS)
def test_the_identity_times_a_factor_is_the_identity_and_its_negative_shows_nothing(factor):
    matrix = factor * torch.eye(3)[None]
    wanted = affine_grid(torch.eye(2, 3)[None], (8, 8))
    torch.testing.assert_close(homography_grid(matrix, (8, 8)), wanted, rtol=0, atol=1e-6)
    assert (homography_grid(-matrix, (8, 8)) == OUTSIDE).all()


@pytest.mark.parametrize("shift", [-200, 200])
def test_a_far_shift_as_a_matrix_of_unit_norm_is_that_of_opencv(shift):
    picture = np.random.default_rng(0).random((480, 640)).astype(np.float32)
    out_from_in_px = np.array([[1.0, 0, shift], [0, 1, -shift / 2], [0, 0, 1]])
    out_from_in_px /= np.linalg.norm(out_from_in_px)
    matrix = theta_from_px(inverse(torch.from_numpy(out_from_in_px)[None]), (480, 640), (480, 640))
    matrix = matrix / matrix.norm()
    out = sample(torch.from_numpy(picture)[None, None], homography_grid(matrix, (480, 640)))
    expected = cv2.warpPerspective(picture, out_from_in_px, (640, 480))
    # OpenCV's positions are float32: 640 px have 6e-5 px of rounding, and white noise a slope of 1/px.
    np.testing.assert_allclose(out[0, 0].numpy(), expected, rtol=0, atol=2e-4)


def test_a_horizon_through_the_middle_of_the_output_shows_the_half_before_it():
    matrix = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [1, 0, 0]]], requires_grad=True)  # w = x
    grid = homography_grid(matrix, (2, 4))
    assert (grid[:, :, :2] == OUTSIDE).all()
    assert (grid[:, :, 2:, 0] == 1).all()
    assert torch.autograd.grad(grid.sum(), matrix)[0].isfinite().all()


def test_a_homography_that_is_no_numbers_gives_a_grid_of_none():
    matrix = torch.eye(3)[None].clone()
    matrix[0, 1, 1] = torch.nan
    assert homography_grid(matrix, (4, 4)).isnan().all()


@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_the_grid_in_theta(name):
    theta = near_identity(name, 2).requires_grad_()
    assert gradcheck(lambda t: TRANSFORMATIONS[name].grid(t, size_for(name)), (theta,))


@pytest.mark.parametrize("name", NAMES)
def test_grid_rows_depend_on_their_own_theta_alone(name):
    theta, size = near_identity(name, 4), size_for(name)
    together = TRANSFORMATIONS[name].grid(theta, size)
    for i in range(4):
        alone = TRANSFORMATIONS[name].grid(theta[i : i + 1], size)[0]
        torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_gives_an_empty_grid(name):
    size = size_for(name)
    assert TRANSFORMATIONS[name].grid(identity(name, 0), size).shape == (0, *size, len(size))


@pytest.mark.parametrize("name", NAMES)
def test_size_may_be_a_list_or_a_torch_size_and_arguments_may_be_named(name):
    theta, size = near_identity(name), size_for(name)
    grid = TRANSFORMATIONS[name].grid
    wanted = grid(theta, size)
    assert torch.equal(grid(theta, list(size)), wanted)
    assert torch.equal(grid(theta=theta, out_size=torch.Size(size)), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_a_size_first_seen_in_inference_mode_can_be_trained_on(name):
    forget()
    theta = near_identity(name)
    with torch.inference_mode():
        TRANSFORMATIONS[name].grid(theta, size_for(name))
    theta.requires_grad_()
    TRANSFORMATIONS[name].grid(theta, size_for(name)).square().sum().backward()
    assert theta.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_theta_gives_a_float32_grid(name, dtype):
    theta = near_identity(name, dtype=torch.float32).to(dtype)
    grid = TRANSFORMATIONS[name].grid(theta, size_for(name))
    assert grid.dtype == torch.float32
    assert torch.equal(grid, TRANSFORMATIONS[name].grid(theta.float(), size_for(name)))


@pytest.mark.parametrize("name", NAMES)
def test_autocast_leaves_the_grid_in_float32(name):
    theta = near_identity(name, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grid = TRANSFORMATIONS[name].grid(theta, size_for(name))
    assert grid.dtype == torch.float32
    assert torch.equal(grid, TRANSFORMATIONS[name].grid(theta, size_for(name)))


@pytest.mark.parametrize(
    ("grid", "given", "wanted"),
    [
        (affine_grid, (2, 6), "(N, 2, 3)"),
        (affine_grid, (2, 3), "(N, 2, 3)"),
        (attention_grid, (2, 2), "(N, 3)"),
        (projective_grid, (2, 3, 3), "(N, 8)"),
        (affine3d_grid, (2, 2, 3), "(N, 3, 4)"),
        (tps_grid, (2, 32), "(N, K, 2)"),
        (tps_grid, (2, 16, 3), "(N, K, 2)"),
    ],
)
def test_wrong_theta_is_refused_by_shape_given_and_shape_wanted(grid, given, wanted):
    with pytest.raises(ValueError, match="theta must have shape") as error:
        grid(torch.zeros(given), size_for("affine3d" if grid is affine3d_grid else ""))
    assert f"{wanted}, got {given}" in str(error.value)
    assert grid.__name__ in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_number_of_output_axes_is_refused_by_name(name):
    wrong, wanted = ((4, 7), "(D, H, W)") if name == "affine3d" else ((3, 4, 7), "(H, W)")
    with pytest.raises(ValueError, match="out_size must be") as error:
        TRANSFORMATIONS[name].grid(identity(name), wrong)
    assert f"{wanted}, got {wrong}" in str(error.value)


@pytest.mark.parametrize("wrong", [[[1.0, 0, 0]], np.eye(3), None, torch.ones(2, 3, dtype=torch.int64)])
@pytest.mark.parametrize("name", NAMES)
def test_a_theta_that_is_no_tensor_of_floating_point_numbers_is_refused_in_a_line(name, wrong):
    with pytest.raises(TypeError, match="theta must be a floating-point tensor of shape") as error:
        TRANSFORMATIONS[name].grid(wrong, size_for(name))
    assert str(error.value).endswith(("got list", "got ndarray", "got NoneType", "got a tensor of torch.int64"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [28, 28.0, None, "28", (28.0, 28.0), ("a", "b")])
def test_an_out_size_that_is_no_sequence_of_integers_is_refused_in_a_line(wrong):
    with pytest.raises(TypeError, match=r"out_size must be \(H, W\)") as error:
        affine_grid(identity("affine"), wrong)
    assert f"got {wrong!r}" in str(error.value)


def test_an_out_size_without_pixels_is_refused():
    with pytest.raises(ValueError, match=r"out_size must be positive, got \(0, 3\)"):
        affine_grid(identity("affine"), (0, 3))


class MatrixProducts(TorchDispatchMode):
    """Notes the types that matrix products are made in."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
            self.dtypes.append(out.dtype)
        return out


@pytest.mark.skipif(
    torch.__version__ < (2, 11) and not torch.cuda.is_available(),
    reason="fake CUDA tensors of torch 2.4 ask for a driver",
)
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_cannot_round_the_product_to_tf32(name):
    """It is made in float64 there, so that no setting of the caller's reaches it. On a device that need not exist."""
    with FakeTensorMode(), MatrixProducts() as products:
        theta = torch.empty(3, *TRANSFORMATIONS[name].shape, device="cuda")
        grid = TRANSFORMATIONS[name].grid(theta, size_for(name))
    assert grid.dtype == torch.float32
    assert products.dtypes
    assert set(products.dtypes) == {F64}
