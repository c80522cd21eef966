import itertools
import re

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from stn.transform import (
    TRANSFORMATIONS,
    affine_grid,
    as_matrix,
    boxes_from_px,
    boxes_to_px,
    compose,
    homography_grid,
    inverse,
    map_boxes,
    map_points,
    normalised_from_px,
    points_from_px,
    points_to_px,
    px_from_normalised,
    sample,
    theta_from_px,
    theta_to_px,
    tps_grid,
)
from stn.transform.grids import OUTSIDE

F64 = torch.float64
IDENTITY = {name: t.identity for name, t in TRANSFORMATIONS.items() if name != "tps"}
IDENTITY["homography"] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
KINDS = tuple(IDENTITY)


def near_identity(kind, n=4, spread=0.15, seed=0):
    start = torch.tensor(IDENTITY[kind], dtype=F64)
    return start + spread * torch.randn(n, *start.shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def points(kind, n=4, p=7, seed=1):
    d = 3 if kind == "affine3d" else 2
    return 2 * torch.rand(n, p, d, dtype=F64, generator=torch.Generator().manual_seed(seed)) - 1


def grid_of(kind, theta, size):
    return homography_grid(theta, size) if kind == "homography" else TRANSFORMATIONS[kind].grid(theta, size)


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_is_that_of_numpy_and_of_the_same_kind(kind):
    theta = near_identity(kind)
    back = inverse(theta)
    assert back.shape == theta.shape
    wanted = np.linalg.inv(as_matrix(theta).numpy())
    got = as_matrix(back).numpy()
    if kind == "projective":
        wanted = wanted / wanted[:, 2:, 2:]
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_point_there_and_back_is_where_it_was(kind):
    theta, at = near_identity(kind), points(kind)
    torch.testing.assert_close(map_points(inverse(theta), map_points(theta, at)), at, rtol=0, atol=1e-10)


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_composition_takes_points_where_one_after_the_other_takes_them(first, second):
    a, b, at = near_identity(first), near_identity(second, seed=2), points(second)
    if (first == "affine3d") != (second == "affine3d"):
        with pytest.raises(ValueError, match=f"{first} and {second} cannot be composed"):
            compose(a, b)
        return
    got = map_points(compose(a, b), at)
    torch.testing.assert_close(got, map_points(a, map_points(b, at)), rtol=0, atol=1e-10)


def test_composition_of_warps_is_one_warp():
    smooth = gaussian_filter(np.random.default_rng(0).random((64, 64)), 4)
    image = torch.from_numpy((smooth - smooth.min()) / np.ptp(smooth))[None, None]
    a = torch.tensor([[[1.0, 0.1, 0.3], [0.0, 1.0, -0.1]]], dtype=F64)
    b = torch.tensor([[[0.6, 0.0, 0.0], [0.1, 0.6, 0.1]]], dtype=F64)
    twice = sample(sample(image, affine_grid(a, (64, 64))), affine_grid(b, (64, 64)))
    once = sample(image, affine_grid(compose(a, b), (64, 64)))
    torch.testing.assert_close(once[..., 20:-20, 20:-20], twice[..., 20:-20, 20:-20], rtol=0, atol=0.02)
    other = sample(image, affine_grid(compose(b, a), (64, 64)))
    assert (other - twice)[..., 20:-20, 20:-20].abs().max() > 0.1


@pytest.mark.parametrize("kind", [*KINDS, "tps"])
def test_grids_are_the_centres_of_the_output_pixels_mapped(kind):
    size = (3, 4, 5) if kind == "affine3d" else (5, 6)
    theta = near_identity(kind) if kind != "tps" else torch.tensor(TRANSFORMATIONS["tps"].identity, dtype=F64)[None]
    theta = theta + 0.1 * torch.randn(theta.shape, dtype=F64, generator=torch.Generator().manual_seed(5))
    px = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij")[::-1], dim=-1).double().flatten(0, -2)
    centres = points_from_px(px, size).expand(len(theta), -1, -1)
    grid = tps_grid(theta, size) if kind == "tps" else grid_of(kind, theta, size)
    torch.testing.assert_close(map_points(theta, centres), grid.flatten(1, -2), rtol=0, atol=1e-12)


def test_points_of_a_homography_are_those_of_opencv_and_scikit_image():
    transform = pytest.importorskip("skimage.transform")
    theta, at = near_identity("homography"), points("homography")
    for matrix, source, got in zip(theta.numpy(), at.numpy(), map_points(theta, at).numpy(), strict=True):
        np.testing.assert_allclose(got, cv2.perspectiveTransform(source[None], matrix)[0], rtol=1e-10)
        np.testing.assert_allclose(got, transform.ProjectiveTransform(matrix)(source), rtol=1e-10)


def test_points_behind_the_horizon_go_far_outside():
    theta = torch.tensor([[1.0, 0, 0, 0, 1, 0, 4, 0]])
    assert (map_points(theta, torch.tensor([[[-0.5, 0.0]]])) == OUTSIDE).all()


def test_the_inverse_of_a_projection_that_puts_the_middle_behind_the_horizon_is_nan_and_as_nine_entries_exact():
    theta = torch.tensor([[1.0, 0, 2, 0, 1, 0, 1, 0]], dtype=F64)  # the inverse has a ninth entry of -1
    assert inverse(theta).isnan().all()
    back = inverse(as_matrix(theta))
    np.testing.assert_allclose(back[0].numpy(), np.linalg.inv(as_matrix(theta)[0].numpy()), rtol=1e-12, atol=1e-12)


def test_gradients_go_through_inverse_and_composition():
    for kind in KINDS:
        theta = near_identity(kind, 2).requires_grad_()
        assert torch.autograd.gradcheck(inverse, (theta,))
        assert torch.autograd.gradcheck(lambda t: compose(t, t), (theta,))


@pytest.mark.parametrize(
    "function", [inverse, as_matrix, lambda t: compose(t, t), lambda t: theta_to_px(t, (4, 4), (4, 4))]
)
def test_splines_have_no_matrix_and_the_line_says_why(function):
    with pytest.raises(ValueError, match=r"a thin-plate spline, theta .* has no matrix"):
        function(torch.zeros(2, 16, 2))


def test_an_empty_batch_is_as_good_as_another():
    for kind in KINDS:
        theta = near_identity(kind, 0)
        assert inverse(theta).shape == compose(theta, theta).shape == theta.shape


# -- pixels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 8), (3, 4, 6)])
def test_pixels_are_counted_between_centres(size):
    to, back = normalised_from_px(size), px_from_normalised(size)
    torch.testing.assert_close(to @ back, torch.eye(len(size) + 1, dtype=F64), rtol=0, atol=1e-14)
    first = to @ torch.tensor([0.0] * len(size) + [1.0], dtype=F64)
    np.testing.assert_allclose(first[:-1], [1 / n - 1 for n in size[::-1]], rtol=1e-14)
    at = points_to_px(torch.tensor([[-1.0] * len(size), [1.0] * len(size)]), size)
    assert at.tolist() == [[-0.5] * len(size), [n - 0.5 for n in size[::-1]]]


PICTURE = gaussian_filter(np.random.default_rng(1).random((48, 64)), 3).astype(np.float32)


def warped(theta, size):
    grid = affine_grid(theta, size) if theta.shape[1] == 2 else homography_grid(theta, size)
    return sample(torch.from_numpy(PICTURE)[None, None], grid.float())[0, 0].numpy()


TURN = cv2.getRotationMatrix2D((20.0, 30.0), 25.0, 0.8)
HOMOGRAPHY = cv2.getPerspectiveTransform(
    np.float32([[0, 0], [63, 0], [63, 47], [0, 47]]), np.float32([[5, 3], [50, 1], [55, 40], [2, 44]])
)


def test_opencvs_affine_matrices_can_be_used_directly():
    theta = theta_from_px(inverse(torch.from_numpy(TURN)[None]), (48, 64), (40, 50))
    # OpenCV may round positions to 1/32 px
    np.testing.assert_allclose(warped(theta, (40, 50)), cv2.warpAffine(PICTURE, TURN, (50, 40)), rtol=0, atol=4e-3)


def test_opencvs_homographies_can_be_used_directly():
    theta = theta_from_px(inverse(torch.from_numpy(HOMOGRAPHY)[None]), (48, 64), (40, 50))
    np.testing.assert_allclose(
        warped(theta, (40, 50)), cv2.warpPerspective(PICTURE, HOMOGRAPHY, (50, 40)), rtol=0, atol=4e-3
    )


def test_scikit_images_inverse_maps_can_be_used_directly():
    transform = pytest.importorskip("skimage.transform")
    theta = theta_from_px(torch.from_numpy(HOMOGRAPHY)[None], (48, 64), (40, 50))
    wanted = transform.warp(PICTURE, HOMOGRAPHY, output_shape=(40, 50), order=1, mode="constant")
    # at the border scikit-image fades over the pixel beyond in another way
    np.testing.assert_allclose(warped(theta, (40, 50))[2:-2, 2:-2], wanted[2:-2, 2:-2], rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_theta_in_pixels_and_back_is_the_same_map(kind):
    in_size, out_size = ((5, 6, 7), (3, 4, 8)) if kind == "affine3d" else ((20, 30), (40, 25))
    theta, at = near_identity(kind), points(kind)
    back = theta_from_px(theta_to_px(theta, in_size, out_size), in_size, out_size)
    torch.testing.assert_close(map_points(back, at), map_points(theta, at), rtol=0, atol=1e-11)


def test_sizes_of_other_dimensions_are_refused():
    with pytest.raises(ValueError, match=re.escape("[3, 2, 2] axes")):
        theta_to_px(near_identity("affine"), (4, 4, 4), (4, 4))
    with pytest.raises(ValueError, match=re.escape("must be (N, 2, 3), (N, 3, 3) or (N, 3, 4), got (4, 3)")):
        theta_from_px(near_identity("attention"), (4, 4), (4, 4))


# -- boxes -------------------------------------------------------------------------------------------------------------


def test_a_window_in_pixels_is_the_box_that_it_crops():
    theta = torch.tensor([[0.5, -0.5, 0.5]])  # the lower left quarter
    box = map_boxes(theta, torch.tensor([[[-1.0, -1.0, 1.0, 1.0]]]))
    assert boxes_to_px(box, (40, 60)).tolist() == [[[0.0, 20.0, 30.0, 40.0]]]
    assert torch.equal(boxes_from_px(boxes_to_px(box, (40, 60)), (40, 60)), box)


@pytest.mark.parametrize("kind", ["attention", "affine", "projective", "homography"])
def test_a_mapped_box_is_the_bounding_rectangle_of_its_edges_mapped(kind):
    theta = near_identity(kind)
    box = torch.tensor([-0.6, -0.2, 0.3, 0.7], dtype=F64)
    share = torch.linspace(0, 1, 50, dtype=F64)[:, None]
    corners = box[torch.tensor([[0, 1], [2, 1], [2, 3], [0, 3], [0, 1]])]
    outline = torch.cat([a + share * (b - a) for a, b in itertools.pairwise(corners)])
    edge = map_points(theta, outline.expand(4, -1, -1)).numpy()
    wanted = np.concatenate([edge.min(1), edge.max(1)], axis=1)
    got = map_boxes(theta, box.expand(4, 1, 4))[:, 0]
    np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("theta", [[1.0, 0, 0, 0, 1, 0, 2, 0], [[1.0, 0, 0], [0, 1, 0], [2, 0, 1]]])
def test_a_box_that_the_horizon_crosses_has_no_box_that_holds_it(theta):
    theta = torch.tensor([theta])  # w = 1 + 2x: the horizon is at x = -0.5
    boxes = torch.tensor([[[-0.8, -0.2, 0.5, 0.2], [-0.9, -0.2, -0.7, 0.2], [-0.4, -0.2, 0.5, 0.2]]])
    across, behind, before = map_boxes(theta, boxes)[0]
    assert across.isnan().all()
    assert behind.isnan().all()
    torch.testing.assert_close(before, torch.tensor([-2.0, -1.0, 0.25, 1.0]))


def test_points_and_boxes_of_another_shape_are_refused_by_name():
    with pytest.raises(ValueError, match=re.escape("points_to_px: points must have shape (..., 2) or (..., 3), got")):
        points_to_px(torch.zeros(3, 4), (4, 4))
    with pytest.raises(ValueError, match=re.escape("boxes_to_px: boxes must have shape (..., 4), got (3, 5)")):
        boxes_to_px(torch.zeros(3, 5), (4, 4))
    with pytest.raises(TypeError, match="normalised_from_px: size must be"):
        normalised_from_px(28)


def test_boxes_through_splines_and_volumes_are_refused():
    boxes = torch.zeros(1, 1, 4)
    with pytest.raises(ValueError, match="curves of a box's edges"):
        map_boxes(torch.zeros(1, 16, 2), boxes)
    with pytest.raises(ValueError, match="theta be of planes"):
        map_boxes(torch.zeros(1, 3, 4), boxes)
    with pytest.raises(ValueError, match=re.escape("points must have shape (N, P, 2)")):
        map_points(torch.zeros(1, 8), torch.zeros(1, 2, 3))
