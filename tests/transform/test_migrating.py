"""What docs/migrating.md says of other libraries, where they are installed."""

import pytest
import torch
import torch.nn.functional as F

from stn.transform import (
    TRANSFORMATIONS,
    affine_grid,
    homography_grid,
    inverse,
    map_points,
    regular_control_points,
    sample,
    theta_from_px,
)

F64 = torch.float64
SIZE, OUT = (12, 17), (9, 14)


def noise(*shape, seed=0):
    return torch.rand(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


IMAGE = noise(2, 3, *SIZE)
AFFINE = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=F64) + 0.3 * (noise(2, 2, 3, seed=1) - 0.5)
MATRIX = torch.eye(3, dtype=F64) + 0.2 * (noise(2, 3, 3, seed=2) - 0.5)


def assert_same(got, wanted, atol=1e-9):
    torch.testing.assert_close(got, wanted, rtol=0, atol=atol)


@pytest.fixture
def kornia_transform():
    return pytest.importorskip("kornia.geometry.transform")


@pytest.mark.filterwarnings("ignore:Default grid_sample and affine_grid behavior")
def test_the_tutorials_two_lines_are_these():
    """x before y, output to input, zeros outside, ±1 at the outer edges by torch's default."""
    wanted = F.grid_sample(IMAGE, F.affine_grid(AFFINE, [2, 3, *OUT]))
    assert_same(sample(IMAGE, affine_grid(AFFINE, OUT)), wanted)


@pytest.mark.filterwarnings("ignore")
def test_kornias_homography_warp_is_this_unless_told_to_count_from_the_centres(kornia_transform):
    ours = sample(IMAGE, homography_grid(MATRIX, OUT))
    assert_same(kornia_transform.homography_warp(IMAGE, MATRIX, OUT), ours, 1e-6)
    assert (kornia_transform.homography_warp(IMAGE, MATRIX, OUT, align_corners=True) - ours).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("align_corners", [True, False])
def test_kornias_matrices_in_pixels_take_input_to_output(kornia_transform, align_corners):
    matrix = torch.tensor([[[0.9, -0.2, 1.5], [0.1, 0.8, -0.7], [0.002, -0.003, 1.0]]], dtype=F64).expand(2, 3, 3)
    ours = sample(IMAGE, homography_grid(theta_from_px(inverse(matrix), SIZE, OUT), OUT))
    theirs = kornia_transform.warp_perspective(IMAGE, matrix, OUT, align_corners=align_corners)
    assert_same(theirs, ours, 1e-6)
    affine = matrix[:, :2]
    ours = sample(IMAGE, affine_grid(theta_from_px(inverse(affine), SIZE, OUT), OUT))
    assert_same(kornia_transform.warp_affine(IMAGE, affine, OUT, align_corners=align_corners), ours, 1e-6)


def test_kornias_splines_go_through_the_same_points_and_differ_in_between(kornia_transform):
    """Its kernel is between the two sets of points, ours among the control points, as Bookstein's."""
    theta = torch.tensor(TRANSFORMATIONS["tps"].identity, dtype=F64) + 0.2 * (noise(2, 16, 2, seed=3) - 0.5)
    controls = regular_control_points(4).expand(2, 16, 2)
    weights = kornia_transform.get_tps_transform(controls, theta)

    def theirs(points):
        return kornia_transform.warp_points_tps(points, theta, *weights)

    assert_same(theirs(controls), theta, 1e-6)
    assert_same(map_points(theta, controls), theta, 1e-6)
    between = 0.8 * controls + 0.05
    assert (theirs(between) - map_points(theta, between)).abs().max() > 1e-3
