import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator

from stn.transform import affine_grid, regular_control_points, tps_grid

F64 = torch.float64


def random_theta(k, n=3, spread=0.3, seed=0):
    noise = torch.randn(n, k * k, 2, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return regular_control_points(k) + spread * noise


def out_points(out_size):
    h, w = out_size
    y, x = np.meshgrid((2 * np.arange(h) + 1) / h - 1, (2 * np.arange(w) + 1) / w - 1, indexing="ij")
    return np.stack([x, y], -1).reshape(-1, 2)


def test_control_points_run_along_x_first_from_the_top_left_corner():
    points = regular_control_points(4)
    third = 1 / 3
    assert points.dtype == F64
    assert points.shape == (16, 2)
    np.testing.assert_allclose(points[:5], [[-1, -1], [-third, -1], [third, -1], [1, -1], [-1, -third]], atol=1e-15)
    np.testing.assert_array_equal(points[-1], [1, 1])


@pytest.mark.parametrize("out_size", [(28, 28), (5, 8)])
@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_spline_is_that_of_scipy(k, out_size):
    theta = random_theta(k)
    grid = tps_grid(theta, out_size)
    controls = regular_control_points(k).numpy()
    for ours, values in zip(grid, theta.numpy(), strict=True):
        oracle = RBFInterpolator(controls, values, kernel="thin_plate_spline", degree=1)
        expected = oracle(out_points(out_size)).reshape(*out_size, 2)
        np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("k", "n", "n_hit"), [(3, 1, 1), (3, 5, 1), (5, 2, 4), (5, 6, 4), (7, 3, 9)])
def test_a_pixel_centred_on_a_control_point_reads_where_that_point_goes(k, n, n_hit):
    theta = random_theta(k, spread=0.5)
    grid = tps_grid(theta, (n, n)).flatten(1, 2)
    distance = torch.cdist(torch.from_numpy(out_points((n, n))), regular_control_points(k))
    pixels, controls = (distance < 1e-12).nonzero(as_tuple=True)
    assert len(pixels) == n_hit
    torch.testing.assert_close(grid[:, pixels], theta[:, controls], rtol=0, atol=1e-12)


@pytest.mark.parametrize("corner", [0, 3, 12, 15])
def test_the_corner_pixels_tend_to_the_corner_control_points(corner):
    theta = random_theta(4)
    grid = tps_grid(theta, (1000, 1000))[:, ::999, ::999].flatten(1, 2)
    # The pixel's centre is 0.001 from the corner; the spline's slope is below 10 here.
    torch.testing.assert_close(grid[:, [0, 3, 12, 15].index(corner)], theta[:, corner], rtol=0, atol=0.02)


@pytest.mark.parametrize("k", [2, 3, 4, 6])
def test_affinely_moved_control_points_give_the_affine_grid(k):
    matrix = torch.tensor([[[0.7, -0.4, 0.2], [0.5, 1.1, -0.3]]], dtype=F64)
    points = torch.cat([regular_control_points(k), torch.ones(k * k, 1, dtype=F64)], dim=1)
    theta = points @ matrix[0].T
    torch.testing.assert_close(tps_grid(theta[None], (6, 9)), affine_grid(matrix, (6, 9)), rtol=0, atol=1e-12)


def test_grid_is_linear_in_theta():
    a, b = random_theta(4, seed=1), random_theta(4, seed=2)
    mixed = tps_grid(2 * a - 3 * b, (5, 7))
    torch.testing.assert_close(mixed, 2 * tps_grid(a, (5, 7)) - 3 * tps_grid(b, (5, 7)), rtol=0, atol=1e-12)


def test_moving_one_control_point_moves_the_pixels_around_it_most_and_only_in_that_coordinate():
    theta = regular_control_points(4)[None].clone()
    theta[0, 6, 0] += 0.1  # second row, third column: (1/3, -1/3)
    moved = tps_grid(theta, (30, 30)) - tps_grid(regular_control_points(4)[None], (30, 30))
    assert moved[..., 1].abs().max() < 1e-12
    row, column = divmod(int(moved[0, :, :, 0].argmax()), 30)
    # (1/3, -1/3) lies at pixel (19.5, 9.5) of (x, y): one of the four pixels around it.
    assert row in (9, 10)
    assert column in (19, 20)


@pytest.mark.parametrize("n_points", [1, 2, 15, 17])
def test_a_number_of_control_points_that_is_no_square_is_refused(n_points):
    with pytest.raises(ValueError, match=f"must be a square >= 4, got {n_points}"):
        tps_grid(torch.zeros(1, n_points, 2), (4, 4))
