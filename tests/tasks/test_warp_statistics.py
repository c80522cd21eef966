import math

import cv2
import numpy as np
import pytest
import torch
from scipy.linalg import polar
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from scipy.stats import circmean

from stn.data.distortions import distortion
from stn.data.streams import Batch
from stn.tasks.warp_statistics import (
    WarpStatistics,
    deviations_deg,
    middle_affine,
    robust_spread_deg,
    rotation_deg,
    rotation_kept,
    spread_deg,
)
from stn.transform import (
    TRANSFORMATIONS,
    Warped,
    affine_grid,
    projective_grid,
    regular_control_points,
    sample,
    tps_grid,
)

F64 = torch.float64


def rotation(*angles_deg, scale=1.0):
    a = torch.tensor(angles_deg, dtype=F64).deg2rad()
    return scale * torch.stack([a.cos(), -a.sin(), a.sin(), a.cos()], dim=1).reshape(-1, 2, 2)


def random_matrices(n, spread=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.eye(2, dtype=F64) + spread * torch.randn(n, 2, 2, dtype=F64, generator=generator)


def angle_of(grid):
    return rotation_deg(middle_affine(grid)[..., :2])


def digits(n, seed=0):
    """Smooth asymmetric blobs, as uint8 digits (n, 28, 28)."""
    noise = gaussian_filter(np.random.default_rng(seed).random((n, 28, 28)), (0, 2.5, 2.5))
    window = np.outer(np.hanning(28), np.hanning(28))
    pictures = np.clip((noise - 0.45) * 5, 0, 1) * window
    return torch.from_numpy((255 * pictures / pictures.max(axis=(1, 2), keepdims=True)).astype(np.uint8))


# -- rotation_deg ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 179.0, -45.0, -150.0])
@pytest.mark.parametrize("scale", [0.2, 1.0, 7.0])
def test_the_angle_of_a_scaled_rotation_is_its_own(angle, scale):
    assert rotation_deg(rotation(angle, scale=scale)).item() == pytest.approx(angle, abs=1e-10)


def test_the_angle_is_that_of_the_rotation_nearest_to_the_matrix():
    """Scipy finds the rotation that aligns vectors best: the rows of the identity with the columns of the matrix."""
    matrices = random_matrices(20, spread=0.5)
    matrices = matrices[torch.linalg.det(matrices) > 0.05]
    assert len(matrices) > 10
    for matrix, angle in zip(matrices, rotation_deg(matrices), strict=True):
        to = np.pad(matrix.numpy().T, ((0, 0), (0, 1)))
        # The third pair, of great weight, keeps the rotation in the plane.
        found, _ = Rotation.align_vectors(np.vstack([to, [0, 0, 1]]), np.eye(3), weights=[1, 1, 1e6])
        assert found.as_euler("zyx", degrees=True)[0] == pytest.approx(angle.item(), abs=1e-2)


@pytest.mark.parametrize("stretch", [(2.0, 0.5), (1.0, 3.0)])
def test_a_stretch_along_the_axes_does_not_turn(stretch):
    assert rotation_deg(torch.diag(torch.tensor(stretch))[None]).item() == 0
    turned = rotation(25.0) @ torch.diag(torch.tensor(stretch, dtype=F64))
    assert rotation_deg(turned).item() == pytest.approx(25.0, abs=1e-10)


# -- middle_affine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out_size", [(28, 28), (3, 9), (2, 2)])
def test_the_affine_map_of_an_affine_grid_is_its_theta(out_size):
    matrix = random_matrices(6)
    theta = torch.cat([matrix, torch.tensor([[[0.7], [-2.0]]], dtype=F64).expand(6, 2, 1)], dim=2)
    torch.testing.assert_close(middle_affine(affine_grid(theta, out_size)), theta, rtol=0, atol=1e-12)


def test_the_affine_map_is_a_least_squares_fit_of_the_middle():
    theta = regular_control_points(4) + 0.2 * torch.randn(
        3, 16, 2, dtype=F64, generator=torch.Generator().manual_seed(0)
    )
    grid = tps_grid(theta, (12, 9))
    y, x = np.meshgrid((2 * np.arange(12) + 1) / 12 - 1, (2 * np.arange(9) + 1) / 9 - 1, indexing="ij")
    design = np.stack([x, y, np.ones_like(x)], -1)[3:9, 2:7].reshape(-1, 3)
    for ours, values in zip(middle_affine(grid), grid[:, 3:9, 2:7], strict=True):
        fitted = np.linalg.lstsq(design, values.reshape(-1, 2).numpy(), rcond=None)[0]
        np.testing.assert_allclose(ours.numpy(), fitted.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("angle", [20.0, -70.0, 160.0])
def test_turned_control_points_turn_a_spline_by_their_angle(angle):
    theta = regular_control_points(4) @ rotation(angle)[0].T
    assert angle_of(tps_grid(theta[None], (28, 28))).item() == pytest.approx(angle, abs=1e-9)
    noise = 0.03 * torch.randn(200, 16, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    errors = angle_of(tps_grid(theta + noise, (28, 28))) - angle
    # The middle follows the 4 inner control points, of square radius 2/9: a rotation fitted to those is off by
    # 0.03 / sqrt(4 * 2/9) rad = 1.8 degrees (root mean square; 0.8 of that is the mean).
    assert errors.abs().mean() < 1.8
    assert errors.abs().max() < 4 * 1.8


@pytest.mark.parametrize("angle", [20.0, -70.0, 160.0])
def test_a_turned_homography_has_about_its_angle(angle):
    theta = torch.zeros(4, 8, dtype=F64)
    turn = rotation(angle)[0]
    theta[:, :2], theta[:, 3:5] = turn[0], turn[1]
    theta[:, 6:] = torch.tensor([[0.1, 0.0], [0.0, 0.1], [-0.1, 0.1], [0.0, 0.0]])
    measured = angle_of(projective_grid(theta, (28, 28)))
    # x / (1 + g x) is odd about g = 0 but for a stretch: some 2 degrees at most.
    torch.testing.assert_close(measured, torch.full_like(measured, angle), rtol=0, atol=2.0)


# -- spread_deg --------------------------------------------------------------------------------------------------------


def test_identical_angles_have_no_spread():
    assert spread_deg(torch.full((12,), 33.0), torch.arange(12) % 3) == pytest.approx(0, abs=1e-4)


def test_an_offset_per_class_does_not_count():
    labels = torch.arange(60) % 10
    angles = torch.linspace(-20, 20, 60)
    offset = torch.linspace(-170, 170, 10)[labels]
    assert spread_deg(angles + offset, labels) == pytest.approx(spread_deg(angles, labels), abs=1e-3)
    assert spread_deg(offset, labels) == pytest.approx(0, abs=1e-3)


def test_the_spread_within_one_class_is_the_standard_deviation():
    angles = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 5
    # Of narrow angles; the circular mean differs from the plain one in the third order.
    assert spread_deg(angles, torch.zeros(500, dtype=torch.long)) == pytest.approx(
        angles.std(correction=0).item(), rel=1e-3
    )


@pytest.mark.parametrize("centre", [0.0, 90.0, 180.0, -180.0, 540.0])
def test_the_spread_does_not_see_where_the_circle_is_cut(centre):
    angles = torch.tensor([-10.0, -5.0, 5.0, 10.0]) + centre
    angles = torch.remainder(angles + 180, 360) - 180
    assert spread_deg(angles, torch.zeros(4, dtype=torch.long)) == pytest.approx(math.sqrt(62.5), abs=1e-3)


def test_classes_without_an_image_do_not_matter():
    assert spread_deg(torch.tensor([10.0, -10.0]), torch.tensor([7, 7])) == pytest.approx(10.0, abs=1e-4)


# -- how upright ----------------------------------------------------------------------------------------------------


def turned(n=4000, classes=10, seed=0):
    """Rotations U(-90°, 90°) of n digits, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    return 180 * torch.rand(n, generator=generator) - 90, torch.randint(classes, (n,), generator=generator)


@pytest.mark.parametrize("share", [1.0, 0.6, 0.25, 0.0])
def test_an_st_that_undoes_a_share_of_every_rotation_keeps_the_rest_whatever_upright_is(share):
    before, labels = turned()
    upright = torch.tensor([0.0, 170.0, -100.0, 30.0, 90.0, -45.0, 179.0, -179.0, 60.0, 10.0])[labels]
    after = share * before + upright
    assert rotation_kept(before, after, labels) == pytest.approx(share, abs=2e-2)
    assert spread_deg(after, labels) == pytest.approx(share * spread_deg(before, labels), abs=0.3)


def test_the_spread_of_handwriting_is_in_the_spread_and_not_in_what_is_kept():
    before, labels = turned(n=20000)
    slant = 12 * torch.randn(20000, generator=torch.Generator().manual_seed(1))
    assert spread_deg(slant, labels) == pytest.approx(12, abs=0.2)
    assert robust_spread_deg(slant, labels) == pytest.approx(12, abs=0.3)
    assert rotation_kept(before, slant, labels) == pytest.approx(0, abs=0.01)


def test_of_one_digit_of_each_class_there_is_nothing_to_say_how_much_rotation_is_kept():
    """A metric that is no number would call the whole run diverged, so the summary leaves it out (test_looks.py)."""
    angles = torch.linspace(-80, 80, 10)
    assert math.isnan(rotation_kept(angles, angles / 2, torch.arange(10)))


def test_symmetric_digits_may_stand_on_their_head_and_others_may_not():
    """As an ST must leave them that cannot tell a 1 turned by 80° from one turned by -100°."""
    before, labels = turned()
    after = torch.where(before > 45, 180.0, 0.0)  # a quarter of them
    for digit, spread in ((8, 0.0), (6, 180.0)):
        of_class = labels == digit
        deviations = deviations_deg(after[of_class], labels[of_class], symmetric=(0, 1, 8))
        assert deviations.abs().max().item() == pytest.approx(spread, abs=1e-3)
    near = deviations_deg(torch.tensor([80.0, -95.0]), torch.tensor([1, 1]), symmetric=(1,))
    assert near.tolist() == pytest.approx([-2.5, 2.5], abs=1e-3)


def test_a_few_digits_on_their_head_move_the_robust_spread_little_and_the_other_much():
    angles, labels = 5 * torch.randn(3000, generator=torch.Generator().manual_seed(0)), torch.full((3000,), 3)
    angles[:150] += 180
    assert robust_spread_deg(angles, labels) == pytest.approx(5, rel=0.1)
    assert spread_deg(angles, labels) > 35


def test_deviations_are_those_of_scipys_circular_mean():
    angles, labels = turned(n=500, classes=3)
    for period, symmetric in ((360, ()), (180, (0, 1, 2))):
        ours = deviations_deg(angles, labels, symmetric).numpy()
        for k in range(3):
            of_class = (labels == k).numpy()
            mean = circmean(angles.numpy()[of_class], high=period / 2, low=-period / 2)
            expected = (angles.numpy()[of_class] - mean + period / 2) % period - period / 2
            difference = (ours[of_class] - expected + period / 2) % period - period / 2
            np.testing.assert_allclose(difference, 0, atol=1e-3)


def test_shear_and_unequal_scale_do_not_pass_for_a_rotation():
    """Polar decomposition by scipy; of a symmetric matrix, which only stretches, the rotation is none."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        stretch = rng.normal(size=(2, 2))
        stretch = stretch @ stretch.T + 0.3 * np.eye(2)
        angle = rng.uniform(-180, 180)
        matrix = rotation(angle)[0].numpy() @ stretch
        turn, _ = polar(matrix)
        expected = np.rad2deg(np.arctan2(turn[1, 0], turn[0, 0]))
        assert rotation_deg(torch.from_numpy(matrix)).item() == pytest.approx(expected, abs=1e-9)
        assert (expected - angle + 180) % 360 - 180 == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["projective", "tps"])
def test_the_angle_of_a_bent_grid_is_that_of_its_jacobian_in_the_middle(name):
    """Of mild distortions, whose middle half is near enough to its tangent: numerical derivative of the grid."""
    generator = torch.Generator().manual_seed(0)
    turn = rotation(25.0)[0]
    if name == "tps":
        points = regular_control_points(4).double()
        theta = ((points + 0.05 * torch.randn(points.shape, generator=generator, dtype=F64)) @ turn.T)[None]
    else:
        bend = torch.tensor([0.1, -0.08], dtype=F64)
        theta = torch.cat([torch.cat([turn, torch.zeros(2, 1, dtype=F64)], 1).flatten(), bend])[None]
    grid = TRANSFORMATIONS[name].grid(theta, (201, 201))
    middle, step = 100, 2 / 201
    along_x = (grid[0, middle, middle + 1] - grid[0, middle, middle - 1]) / (2 * step)
    along_y = (grid[0, middle + 1, middle] - grid[0, middle - 1, middle]) / (2 * step)
    jacobian = torch.stack([along_x, along_y], dim=1)
    assert angle_of(grid).item() == pytest.approx(rotation_deg(jacobian).item(), abs=3)


# -- the summary -------------------------------------------------------------------------------------------------------


def batch(digits, src_from_out=None):
    return Batch(images=None, labels=None, digits=digits, src_from_out=src_from_out)


def warped_by(theta, image, name="affine", size=None):
    grid = TRANSFORMATIONS[name].grid(theta, size or tuple(image.shape[2:]))
    return Warped(sample(image, grid), theta, grid)


def distorted(name, n=40):
    """A distorted set, its maps and labels, and the theta that undoes each distortion exactly."""
    d = distortion(name)
    images = digits(n)
    params = d.sample(images, torch.Generator().manual_seed(0))
    src_from_out = d.src_from_out(params)
    bottom = torch.tensor([[[0.0, 0.0, 1.0]]]).expand(n, 1, 3)
    undo = torch.linalg.inv(torch.cat([src_from_out, bottom], dim=1))[:, :2]
    return images, d.apply(images, params), params, src_from_out, undo, torch.arange(n) % 4


def summary_of(theta, image, labels, src_from_out, size=16):
    statistics = WarpStatistics()
    for i in range(0, len(image), size):
        part = slice(i, i + size)
        statistics.add([warped_by(theta[part], image[part])], batch(labels[part, None], src_from_out[part, None]))
    return statistics.summary()


@pytest.mark.parametrize("name", ["r", "rts"])
def test_an_st_that_undoes_the_distortion_leaves_no_spread_of_angles(name):
    _, image, params, src_from_out, undo, labels = distorted(name)
    summary = summary_of(undo, image, labels, src_from_out)
    assert summary["angle_std_after_deg"] == pytest.approx(0, abs=1e-3)
    assert summary["angle_std_before_deg"] == pytest.approx(spread_deg(params.rotation_deg, labels), abs=1e-3)
    assert summary["angle_std_before_deg"] > 20


def test_what_an_st_undoes_of_place_and_scale_is_what_was_distorted():
    """In digit pixels: a digit of scale s, shifted by d, has the canvas's middle at -d/s, turned with it."""
    _, image, params, src_from_out, undo, labels = distorted("rts", n=400)
    summary = summary_of(undo, image, labels, src_from_out)
    assert summary["position_std_after_px"] == pytest.approx(0, abs=1e-3)
    assert summary["scale_std_after_octaves"] == pytest.approx(0, abs=1e-4)
    of_class = [labels.numpy() == k for k in range(4)]
    log2_scale = np.log2(params.scale.numpy())
    scales = np.concatenate([log2_scale[c] - log2_scale[c].mean() for c in of_class])
    assert summary["scale_std_before_octaves"] == pytest.approx(scales.std(), rel=1e-4)
    a = np.deg2rad(params.rotation_deg.numpy())
    x, y = (params.shift_px / params.scale[:, None]).numpy().T
    # Positive angles turn counter-clockwise on a screen whose y points down.
    middle = -np.stack([np.cos(a) * x - np.sin(a) * y, np.sin(a) * x + np.cos(a) * y], axis=1)
    deviations = np.concatenate([middle[c] - middle[c].mean(0) for c in of_class])
    expected = np.sqrt((deviations**2).sum(1).mean())
    assert summary["position_std_before_px"] == pytest.approx(expected, rel=1e-3)


def test_the_same_zoom_for_all_changes_no_spread_and_a_shift_before_the_turning_does():
    _, image, _, src_from_out, _, labels = distorted("rts")
    zoom = (0.5 * torch.eye(2, 3)).expand_as(src_from_out)
    shift = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]).expand_as(src_from_out)
    plain, zoomed, shifted = (
        summary_of(theta, image, labels, src_from_out) for theta in (torch.eye(2, 3).expand_as(zoom), zoom, shift)
    )
    for name in ("scale_std_after_octaves", "position_std_after_px"):
        assert zoomed[name] == pytest.approx(plain[name], rel=1e-4)
    assert shifted["position_std_after_px"] > 1.05 * plain["position_std_after_px"]


@pytest.mark.parametrize("name", ["r", "rts"])
def test_the_theta_that_undoes_the_distortion_gives_the_digits_back(name):
    """So that the sign of the statistic is the sign of the pictures. RTS fills its 42 px with the 28 px digit."""
    images, image, _, src_from_out, undo, _ = distorted(name)
    size = image.shape[2]
    upright = np.stack([cv2.resize(i.numpy() / 255, (size, size)) for i in images])

    def error(theta):
        return np.abs(warped_by(theta, image).image[:, 0].numpy() - upright).mean()

    identity = torch.eye(2, 3).expand_as(undo)
    assert error(undo) < 0.01  # interpolated twice; at scale 0.7 a digit has lost detail
    assert error(undo) < error(identity) / 5
    assert error(undo) < error(src_from_out) / 5


def test_turning_upright_to_another_pose_per_class_counts_as_upright():
    _, image, _, src_from_out, undo, labels = distorted("r")
    pose = rotation(15.0, -80.0, 120.0, 0.0).float()[labels]
    turned = torch.cat([undo[:, :, :2] @ pose, undo[:, :, 2:]], dim=2)
    assert summary_of(turned, image, labels, src_from_out)["angle_std_after_deg"] == pytest.approx(0, abs=1e-3)


def test_an_st_that_does_nothing_leaves_the_spread_and_the_wrong_sign_doubles_it():
    _, image, params, src_from_out, _, labels = distorted("r")
    identity = torch.eye(2, 3).expand_as(src_from_out)
    nothing = summary_of(identity, image, labels, src_from_out)
    assert nothing["angle_std_after_deg"] == pytest.approx(nothing["angle_std_before_deg"], abs=1e-3)
    assert nothing["angle_kept"] == pytest.approx(1, abs=1e-5)
    half = distortion("r").src_from_out(params._replace(rotation_deg=-params.rotation_deg / 2))
    assert summary_of(half, image, labels, src_from_out)["angle_kept"] == pytest.approx(0.5, abs=0.05)
    small = params._replace(rotation_deg=params.rotation_deg / 10)
    src_from_out = distortion("r").src_from_out(small)
    wrong = summary_of(src_from_out, image, labels, src_from_out)
    assert wrong["angle_std_after_deg"] == pytest.approx(2 * wrong["angle_std_before_deg"], rel=1e-3)


def test_of_two_transformers_the_one_that_undoes_most_counts():
    """One undoes the rotation, the other turns on beyond it: a negative share is kept."""
    _, image, params, src_from_out, undo, labels = distorted("r")
    beyond = distortion("r").src_from_out(params._replace(rotation_deg=-1.5 * params.rotation_deg))
    statistics, part = WarpStatistics(), slice(0, 64)
    warps = [warped_by(theta[part], image[part]) for theta in (undo, beyond)]
    statistics.add(warps, batch(labels[part, None], src_from_out[part, None]))
    assert statistics.summary()["angle_kept"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("name", ["tps", "projective"])
def test_other_transformations_that_undo_a_rotation_leave_no_spread(name):
    _, image, _, src_from_out, undo, labels = distorted("r")
    if name == "tps":
        theta = regular_control_points(4).float() @ undo[:, :, :2].transpose(1, 2)
    else:
        theta = torch.cat([undo.flatten(1), torch.zeros(len(undo), 2)], dim=1)
    statistics = WarpStatistics()
    statistics.add([warped_by(theta, image, name)], batch(labels[:, None], src_from_out[:, None]))
    summary = statistics.summary()
    assert summary["angle_std_after_deg"] == pytest.approx(0, abs=1e-2)
    assert {k for k in summary if k.startswith("theta_std_")} == {
        f"theta_std_{i}" for i in range(TRANSFORMATIONS[name].size)
    }


def test_the_share_of_the_grid_inside_the_image_and_of_cells_turned_over():
    image = torch.rand(3, 1, 20, 20)
    theta = torch.tensor(
        [
            [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],  # all inside
            [[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],  # a mirror: inside, and turned over everywhere
            [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]],  # a quarter inside
        ]
    )
    statistics = WarpStatistics()
    statistics.add([warped_by(theta, image)], batch(torch.zeros(3, 1, dtype=torch.long)))
    summary = statistics.summary()
    assert summary["grid_inside"] == pytest.approx((1 + 1 + 0.25) / 3)
    assert summary["grid_folded"] == pytest.approx(1 / 3)
    assert summary["theta_std_0"] == pytest.approx(np.std([1, -1, 2]), rel=1e-6)
    assert summary["theta_std_1"] == 0


def test_rotations_and_zooms_fold_nothing_and_a_crossed_spline_folds_some():
    image = torch.rand(1, 1, 28, 28)
    labels = torch.zeros(1, dtype=torch.long)
    theta = regular_control_points(4).float()[None].clone()
    theta[0, [5, 6]] = theta[0, [6, 5]]  # two neighbours change places
    for transformation, value, low, high in (
        ("affine", torch.cat([rotation(130.0, scale=0.4).float(), torch.zeros(1, 2, 1)], 2), 0, 0),
        ("tps", theta, 0.02, 0.5),
    ):
        statistics = WarpStatistics()
        for _ in range(2):
            statistics.add([warped_by(value, image, transformation)], batch(labels[:, None]))
        assert low <= statistics.summary()["grid_folded"] <= high


def test_without_a_map_to_the_digit_there_are_no_angles_and_without_images_no_metrics():
    statistics = WarpStatistics()
    assert statistics.summary() == {}
    statistics.add(
        [warped_by(torch.eye(2, 3).repeat(2, 1, 1), torch.rand(2, 1, 8, 8))], batch(torch.tensor([[0], [1]]))
    )
    assert not any(key.startswith("angle") for key in statistics.summary())


def test_points_behind_the_horizon_at_the_edge_do_not_spoil_the_angle():
    cos, sin = np.cos(np.deg2rad(20)), np.sin(np.deg2rad(20))
    theta = torch.tensor([[cos, -sin, 0, sin, cos, 0, 1.1, 0.2]], dtype=F64)
    grid = projective_grid(theta, (28, 28))
    assert (grid.abs() > 10).any()
    assert abs(angle_of(grid).item() - 20) < 10


def test_two_transformers_that_each_undo_one_channel_stabilise_both():
    rotate = distortion("r")
    image = torch.zeros(40, 28, 28, dtype=torch.uint8)
    params = [rotate.sample(image, torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    src_from_out = torch.stack([rotate.src_from_out(p) for p in params], dim=1)
    undo = [rotate.src_from_out(p._replace(rotation_deg=-p.rotation_deg)) for p in params]
    statistics = WarpStatistics()
    statistics.add(
        [warped_by(theta, torch.rand(40, 2, 28, 28)) for theta in undo],
        batch(torch.zeros(40, 2).long(), src_from_out),
    )
    summary = statistics.summary()
    assert summary["angle_std_before_deg"] > 40
    assert summary["angle_std_after_deg"] == pytest.approx(0, abs=0.01)
    assert summary["st0_ch0_angle_std_after_deg"] == pytest.approx(0, abs=0.01)
    assert summary["st0_ch1_angle_std_after_deg"] > 40
    assert summary["st1_ch0_angle_std_after_deg"] > 40
    assert summary["st0_ch0_position_std_after_px"] == pytest.approx(0, abs=0.01)
    assert {"st0_grid_inside", "st1_grid_inside", "st1_theta_std_5"} <= summary.keys()
