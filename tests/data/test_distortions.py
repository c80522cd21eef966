import inspect

import cv2
import numpy as np
import pytest
import torch
from scipy import stats
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import gaussian_filter, map_coordinates
from torch.utils._python_dispatch import TorchDispatchMode

from stn.data.distortions import DISTORTIONS, PointParams, SimilarityParams, distortion

NAMES = ("r", "rts", "rts_ink", "p", "e", "tc")
CANVAS = {"r": 28, "rts": 42, "rts_ink": 42, "p": 28, "e": 28, "tc": 60}
# Seeds are fixed, so a test either always passes or always fails; a right sampler fails a fresh seed once in 10 000.
P_MIN = 1e-4


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def turned(rotation_deg):
    return SimilarityParams(rotation_deg, torch.ones_like(rotation_deg), rotation_deg.new_zeros(len(rotation_deg), 2))


def smooth_digits(n, seed=0):
    """Asymmetric, smooth, ink of varying size and place inside the middle 20 px, as in MNIST."""
    rng = np.random.default_rng(seed)
    images = np.zeros((n, 28, 28))
    for image in images:
        left, top = rng.integers(4, 13, 2)
        right, bottom = rng.integers(15, 25, 2)
        patch = gaussian_filter(rng.random((28, 28)), 2.0)[top:bottom, left:right]
        window = np.outer(*(np.hanning(k + 2)[1:-1] for k in patch.shape))
        image[top:bottom, left:right] = 255 * window * (patch - patch.min() + 0.05) / np.ptp(patch)
    return torch.from_numpy(images.clip(0, 255).astype(np.uint8))


def pixel(normalised, size):
    """Normalised coordinates to OpenCV's and scipy's, whose integers are pixel centres."""
    return ((normalised + 1) * size - 1) / 2


def read(image, x, y):
    """Bilinear, zeros outside, by scipy; x, y normalised."""
    coordinates = [pixel(y, 28), pixel(x, 28)]
    return map_coordinates(image.numpy() / 255.0, coordinates, order=1, mode="grid-constant", cval=0.0)


def out_points(size):
    axis = (2 * np.arange(size) + 1) / size - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return np.stack([x, y], -1).reshape(-1, 2)


@pytest.mark.parametrize("name", NAMES)
def test_output_is_a_batch_of_float_pictures_and_follows_the_generator(name):
    images, d = smooth_digits(9), distortion(name)
    out = d(images, generator())
    assert d.name == name
    assert d.canvas == (CANVAS[name],) * 2
    assert out.shape == (9, 1, *d.canvas)
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert 0.5 < out.max() <= 1
    assert torch.equal(out, d(images, generator()))
    assert not torch.equal(out, d(images, generator(1)))
    g = generator()
    d(images, g)
    assert not torch.equal(out, d(images, g))  # drawn anew at each step


@pytest.mark.parametrize("name", NAMES)
def test_full_white_stays_in_the_unit_interval(name):
    out = distortion(name)(torch.full((64, 28, 28), 255, dtype=torch.uint8), generator())
    assert 0 <= out.min() <= out.max() <= 1


# -- weaker ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_of_a_distortion_is_that_distortion(name):
    images, d = smooth_digits(9), distortion(name)
    assert torch.equal(d.weaker(1.0)(images, generator()), d(images, generator()))


@pytest.mark.parametrize("name", sorted({*NAMES} - {"rts_ink"}))
def test_nothing_of_a_distortion_leaves_the_digit_in_the_middle(name):
    images = smooth_digits(9)
    out, margin = distortion(name).weaker(0.0)(images, generator()), (CANVAS[name] - 28) // 2
    wanted = torch.nn.functional.pad(images[:, None] / 255, 4 * [margin])
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "shift"), [("r", 0), ("rts", 2.1), ("rts_ink", None), ("p", None), ("e", None)])
def test_a_part_of_a_distortion_has_narrower_ranges_about_none(name, shift):
    images, d = smooth_digits(1).expand(3000, 28, 28), distortion(name)
    weak, full = (each.sample(images, generator()) for each in (d.weaker(0.3), d))
    torch.testing.assert_close(weak.scale - 1, 0.3 * (full.scale - 1))
    if hasattr(full, "rotation_deg"):
        torch.testing.assert_close(weak.rotation_deg, 0.3 * full.rotation_deg)
        assert shift is None or weak.shift_px.abs().max() == pytest.approx(shift, abs=0.02)
    else:
        torch.testing.assert_close(weak.shift_px, 0.3 * full.shift_px)


def test_half_of_the_clutter_is_half_its_room_and_half_its_patches():
    params = distortion("tc").weaker(0.5).sample(smooth_digits(1).expand(3000, 28, 28), generator())
    assert params.patch_donor.shape == (3000, 3)
    assert params.shift_px.amin(0).tolist() == [8, 8]
    assert params.shift_px.amax(0).tolist() == [24, 24]


class NoReadBack(TorchDispatchMode):
    """Fails on what makes the host wait for the device: reading a value, or a shape that depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in (
            "_local_scalar_dense",
            "nonzero",
            "masked_select",
            "equal",
            "is_nonzero",
        )
        if func.overloadpacket.__name__.startswith(("index", "_index")):
            tensors = [i for i in args[1] if i is not None] if isinstance(args[1], list | tuple) else []
            assert not any(i.dtype == torch.bool for i in tensors)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_back_to_the_host(name):
    images, d = smooth_digits(4), distortion(name)
    d(images, generator())  # the constants are made once
    with NoReadBack():
        d(images, generator())
        with pytest.raises(AssertionError):
            images[images > 0]


def test_unknown_names_and_wrong_images_are_refused():
    with pytest.raises(ValueError, match=r"'r', 'rts', 'rts_ink', 'p', 'e', 'tc'.*'rot'"):
        distortion("rot")
    for images in (torch.zeros(2, 28, 28), torch.zeros(2, 1, 28, 28, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            distortion("r")(images, generator())
    with pytest.raises(TypeError):
        distortion("r", sigma_px=3.0)
    with pytest.raises(ValueError, match="no other digits"):
        distortion("tc")(smooth_digits(1), generator())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "value", [-1, -0.5, True, "1", None, float("nan"), float("inf"), [], [1.2, 0.7], [0, 1], [1, 2, 3]]
)
def test_a_value_that_a_setting_cannot_have_is_refused(name, value):
    kinds = [kind for kind in DISTORTIONS[name].__mro__ if "__init__" in vars(kind) and kind is not object]
    settings = {setting for kind in kinds for setting in inspect.signature(kind).parameters} - {"similarity"}
    assert settings
    for setting in settings:
        if (setting, value) != ("sigma_px", None):  # the paper's
            with pytest.raises(ValueError, match=rf"^distortion\.{setting} must be "):
                distortion(name, **{setting: value})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("rts", {"canvas": 42.0}),
        ("rts", {"canvas": 0}),
        ("tc", {"canvas": 27}),
        ("tc", {"patch_px": 0}),
        ("tc", {"patch_px": 29}),
        ("tc", {"n_patches": 1.5}),
    ],
)
def test_a_size_is_a_whole_number_that_fits(name, settings):
    with pytest.raises(ValueError, match=rf"^distortion\.{next(iter(settings))} must be "):
        distortion(name, **settings)


@pytest.mark.parametrize("angle_deg", [-90.0, -33.0, 0.0, 20.0, 90.0])
def test_r_turns_counter_clockwise_as_opencv(angle_deg):
    (image,) = images = smooth_digits(1)
    out = distortion("r").apply(images, turned(torch.tensor([angle_deg])))[0, 0].numpy()
    matrix = cv2.getRotationMatrix2D((13.5, 13.5), angle_deg, 1.0)
    wanted = cv2.warpAffine(image.numpy() / 255.0, matrix, (28, 28), flags=cv2.INTER_LINEAR)
    np.testing.assert_allclose(out, wanted, atol=0.02)  # OpenCV rounds to 1/32 px


def test_r_is_exact_at_right_angles_and_its_range_is_uniform():
    images = smooth_digits(4000)
    d = distortion("r")
    quarter = d.apply(images[:4], turned(torch.full((4,), 90.0)))
    torch.testing.assert_close(quarter[:, 0], torch.rot90(images[:4], 1, (1, 2)) / 255, atol=1e-5, rtol=0)
    angles = d.sample(images, generator()).rotation_deg
    assert stats.kstest(angles.numpy(), stats.uniform(-90, 180).cdf).pvalue > P_MIN
    assert distortion("r", rotation_deg=10).sample(images, generator()).rotation_deg.abs().max() <= 10


@pytest.mark.parametrize(
    ("angle_deg", "scale", "shift"), [(0.0, 1.0, (7.0, -7.0)), (30.0, 0.75, (4.2, 6.5)), (-45.0, 1.2, (-3.3, 2.0))]
)
def test_rts_is_opencvs_similarity(angle_deg, scale, shift):
    (image,) = images = smooth_digits(1, seed=3)
    params = SimilarityParams(*(torch.tensor([v]) for v in (angle_deg, scale, shift)))
    out = distortion("rts").apply(images, params)[0, 0].numpy()
    matrix = cv2.getRotationMatrix2D((13.5, 13.5), angle_deg, scale)
    matrix[:, 2] += 7.0 + np.array(shift)  # from the centre of 28 px to the centre of 42 px, then the shift
    wanted = cv2.warpAffine(image.numpy() / 255.0, matrix, (42, 42), flags=cv2.INTER_LINEAR)
    np.testing.assert_allclose(out, wanted, atol=0.02)


def ink_box_px(image, angle_deg, scale):
    """Brute force: the four corners of every ink pixel, turned and scaled."""
    y, x = np.nonzero(image.numpy())
    corners = np.concatenate([np.stack([x - 13.5 + dx, y - 13.5 + dy]) for dx in (-0.5, 0.5) for dy in (-0.5, 0.5)], 1)
    matrix = cv2.getRotationMatrix2D((0, 0), float(angle_deg), float(scale))[:, :2]
    moved = matrix @ corners
    return moved.min(1), moved.max(1)


def check_turns_and_sizes(params):
    assert stats.kstest(params.rotation_deg.numpy(), stats.uniform(-45, 90).cdf).pvalue > P_MIN
    assert stats.kstest(params.scale.numpy(), stats.uniform(0.7, 0.5).cdf).pvalue > P_MIN


def test_rts_moves_the_centre_of_the_28_px_image_uniformly_by_up_to_7_px():
    params = distortion("rts").sample(smooth_digits(3000), generator())
    shift_px = params.shift_px.numpy()
    for axis in (0, 1):
        assert stats.kstest(shift_px[:, axis], stats.uniform(-7, 14).cdf).pvalue > P_MIN
    assert abs(np.corrcoef(shift_px.T)[0, 1]) < 4 / np.sqrt(len(shift_px))
    check_turns_and_sizes(params)
    assert distortion("rts", max_shift_px=0).sample(smooth_digits(9), generator()).shift_px.abs().max() == 0


def test_an_unturned_rts_image_of_its_own_size_is_the_digit_at_a_place_on_the_canvas():
    """At the ends of the range it touches the canvas's edge: 28 + 2 x 7 = 42."""
    images = smooth_digits(3)
    shift_px = torch.tensor([[-7.0, 7.0], [0.0, 0.0], [7.0, -3.0]])
    out = distortion("rts").apply(images, SimilarityParams(torch.zeros(3), torch.ones(3), shift_px))[:, 0]
    for picture, image, (x, y) in zip(out, images, (shift_px + 7).int().tolist(), strict=True):
        wanted = torch.zeros(42, 42)
        wanted[y : y + 28, x : x + 28] = image / 255
        torch.testing.assert_close(picture, wanted, atol=1e-5, rtol=0)


def test_rts_ink_places_the_whole_ink_uniformly_on_the_canvas():
    images = smooth_digits(1500)
    params = distortion("rts_ink").sample(images, generator())
    place = []
    for image, angle_deg, scale, shift_px in zip(images, *params, strict=True):
        low, high = ink_box_px(image, angle_deg, scale)
        assert (low + shift_px.numpy() >= -21 - 1e-4).all()
        assert (high + shift_px.numpy() <= 21 + 1e-4).all()
        place.append((low + shift_px.numpy() + 21) / (42 - (high - low)))
    place = np.array(place)
    for axis in (0, 1):
        assert stats.kstest(place[:, axis], "uniform").pvalue > P_MIN
    assert abs(np.corrcoef(place.T)[0, 1]) < 4 / np.sqrt(len(place))
    check_turns_and_sizes(params)


def test_rts_ink_loses_no_ink():
    images = smooth_digits(400)
    d, wide = distortion("rts_ink"), distortion("rts_ink", canvas=84)
    params = d.sample(images, generator())
    out, wider = d.apply(images, params), wide.apply(images, params)  # 21 px more all round: the same pixel centres
    torch.testing.assert_close(out, wider[..., 21:63, 21:63], atol=1e-4, rtol=0)
    mass = wider.sum((1, 2, 3))
    assert ((mass - out.sum((1, 2, 3))) / mass).max() < 1e-3
    torch.testing.assert_close(mass / (images / 255).sum((1, 2)), params.scale**2, rtol=0.05, atol=0)


def test_rts_ink_of_blank_and_of_too_large_ink_is_finite_and_centred():
    images = torch.stack([torch.zeros(28, 28), torch.full((28, 28), 255)]).to(torch.uint8)
    d = distortion("rts_ink", rotation_deg=0, scale=(2.0, 2.0))
    params = d.sample(images, generator())
    assert torch.isfinite(params.shift_px).all()
    torch.testing.assert_close(params.shift_px[1], torch.zeros(2))
    assert d.apply(images, params)[0].max() == 0


@pytest.mark.parametrize("name", ["r", "rts", "rts_ink"])
def test_src_from_out_is_the_map_of_the_grid(name):
    images, d = smooth_digits(5), distortion(name)
    params = d.sample(images, generator())
    points = np.concatenate([out_points(d.canvas[0]), np.ones((d.canvas[0] ** 2, 1))], 1)
    wanted = points @ d.src_from_out(params).numpy().transpose(0, 2, 1)
    np.testing.assert_allclose(d.grid(params).reshape(5, -1, 2).numpy(), wanted, atol=1e-5)


def moved_corners(scale, corner_shift_px):
    return 14 * scale * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) + np.array(corner_shift_px)


@pytest.mark.parametrize(
    ("scale", "corner_shift_px"),
    [
        (1.0, [[0, 0], [0, 0], [0, 0], [0, 0]]),
        (0.8, [[0, 0], [6, 0], [0, 0], [0, 0]]),
        (0.9, [[-2, 3], [4, -1], [-5, -4], [1.5, 2.5]]),
    ],
)
def test_p_is_opencvs_homography_through_the_moved_corners(scale, corner_shift_px):
    (image,) = images = smooth_digits(1, seed=2)
    params = PointParams(torch.tensor([scale]), torch.tensor([corner_shift_px], dtype=torch.float32))
    out = distortion("p").apply(images, params)[0, 0].numpy()
    square = (moved_corners(1.0, np.zeros((4, 2))) + 13.5).astype(np.float32)
    corners = (moved_corners(scale, corner_shift_px) + 13.5).astype(np.float32)
    wanted = cv2.warpPerspective(image.numpy() / 255.0, cv2.getPerspectiveTransform(square, corners), (28, 28))
    np.testing.assert_allclose(out, wanted, atol=0.02)


@pytest.mark.parametrize("name", ["convex", "one corner inside", "canvas centre behind the horizon"])
def test_p_shows_the_side_of_the_horizon_on_which_the_digit_lies(name):
    corners = {
        "convex": [[-13, -12], [9, -14], [13, 8], [-10, 10]],
        "one corner inside": [[-10, -10], [12, -10], [-4, -4], [-10, 12]],
        "canvas centre behind the horizon": [[-17, -30], [1, -3], [12, 10], [2, 1]],
    }[name]
    (image,) = images = torch.full((1, 28, 28), 255, dtype=torch.uint8)
    shift_px = np.array(corners) - moved_corners(1.0, np.zeros((4, 2)))
    params = PointParams(torch.ones(1), torch.tensor(shift_px, dtype=torch.float32)[None])
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=np.float32)
    out_from_src = cv2.getPerspectiveTransform(square, (np.array(corners) / 14).astype(np.float32))
    src_from_out = np.linalg.inv(out_from_src)
    src_from_out /= (src_from_out @ out_from_src[:, 2] / out_from_src[2, 2])[2]  # w = 1 at the digit's centre
    assert (src_from_out[2, 2] < 0) == name.startswith("canvas")
    x, y, w = src_from_out @ np.concatenate([out_points(28), np.ones((784, 1))], 1).T
    assert (w < 0).any() == (name != "convex")
    inside = (w > 0.02).reshape(28, 28)
    wanted = read(image, x / w, y / w).reshape(28, 28)
    out = distortion("p").apply(images, params)[0, 0].numpy()
    np.testing.assert_allclose(out[inside], wanted[inside], atol=1e-3)
    assert out[(w <= 0).reshape(28, 28)].max(initial=0) == 0
    assert out.sum() > 20


def test_p_never_gives_nan_however_wild_the_corners():
    out = distortion("p", sigma_px=12.0)(smooth_digits(1000), generator())
    assert torch.isfinite(out).all()
    flat = PointParams(torch.ones(1), torch.tensor([[[14.0, 14], [-14, 14], [-14, -14], [14, -14]]]))
    assert torch.isfinite(distortion("p").apply(smooth_digits(1), flat)).all()  # all corners in one point


@pytest.mark.parametrize("seed", [0, 1])
def test_e_is_scipys_thin_plate_spline(seed):
    (image,) = images = smooth_digits(1, seed=seed)
    shift_px = np.random.default_rng(seed).normal(0, 1.5, (16, 2))
    params = PointParams(torch.tensor([0.8]), torch.tensor(shift_px, dtype=torch.float32)[None])
    axis = np.linspace(-1, 1, 4)
    controls = np.array([(x, y) for y in axis for x in axis])
    spline = RBFInterpolator(controls, controls + shift_px / 14, kernel="thin_plate_spline", degree=1)
    x, y = spline(out_points(28)).T / 0.8
    out = distortion("e").apply(images, params)[0, 0].numpy()
    np.testing.assert_allclose(out, read(image, x, y).reshape(28, 28), atol=1e-4)


def test_e_without_movement_scales_about_the_centre():
    (image,) = images = smooth_digits(1)
    out = distortion("e").apply(images, PointParams(torch.tensor([0.75]), torch.zeros(1, 16, 2)))[0, 0].numpy()
    x, y = out_points(28).T / 0.75
    np.testing.assert_allclose(out, read(image, x, y).reshape(28, 28), atol=1e-4)


@pytest.mark.parametrize(("name", "points", "sigma_px"), [("p", 4, 3.0), ("e", 16, 1.5)])
def test_p_and_e_draw_the_stated_scales_and_movements(name, points, sigma_px):
    scale, shift_px = distortion(name).sample(smooth_digits(1).expand(2000, 28, 28), generator())
    assert shift_px.shape == (2000, points, 2)
    assert stats.kstest(scale.numpy(), stats.uniform(0.75, 0.25).cdf).pvalue > P_MIN
    values = shift_px.numpy().ravel()
    assert stats.kstest(values, stats.norm(0, sigma_px).cdf).pvalue > P_MIN
    assert values.std() == pytest.approx(sigma_px, rel=4 / np.sqrt(2 * values.size))  # four standard errors
    still = distortion(name, sigma_px=0.0, scale=(1.0, 1.0))
    images = smooth_digits(3)
    torch.testing.assert_close(still(images, generator())[:, 0], images / 255, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["rts", "p", "e", "tc"])
def test_what_is_drawn_of_a_digit_is_drawn_independently(name):
    n = 4000
    params = distortion(name).sample(smooth_digits(1).expand(n, 28, 28), generator())
    if name == "tc":
        params = params._replace(patch_donor=(params.patch_donor - torch.arange(n)[:, None]) % n)
    columns = torch.cat([part.reshape(n, -1).double() for part in params], dim=1)
    columns = columns[:, columns.std(0) > 0].numpy()  # rts draws 4 numbers, p 9, e 33, tc 32
    assert columns.shape[1] == {"rts": 4, "p": 9, "e": 33, "tc": 32}[name]
    correlation = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert abs(correlation).max() < 5 / np.sqrt(n)


def paste(images, params, canvas, patch_px, how):
    out = np.zeros((len(images), canvas, canvas), dtype=np.uint8)
    for picture, image, (x, y), donors, cuts, places in zip(out, images, *params, strict=True):
        picture[y : y + 28, x : x + 28] = image
        for donor, (cx, cy), (px, py) in zip(donors, cuts, places, strict=True):
            target = picture[py : py + patch_px, px : px + patch_px]
            patch = images[donor, cy : cy + patch_px, cx : cx + patch_px]
            target[:] = np.maximum(target, patch) if how == "max" else patch
    return out


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"canvas": 84, "n_patches": 16},
        {"canvas": 84, "n_patches": 0},
        {"canvas": 28, "patch_px": 28},
        {"canvas": 28, "n_patches": 16, "paste": "overwrite"},
    ],
)
def test_tc_is_a_digit_and_patches_pasted_one_by_one(settings):
    images = torch.randint(0, 256, (20, 28, 28), generator=generator(5), dtype=torch.uint8)
    d = distortion("tc", **settings)
    params = d.sample(images, generator())
    params_np, patch_px = [p.numpy() for p in params], settings.get("patch_px", 6)
    wanted = paste(images.numpy(), params_np, d.canvas[0], patch_px, settings.get("paste", "max"))
    np.testing.assert_allclose(d.apply(images, params)[:, 0].numpy() * 255, wanted, atol=1e-3)


def test_tc_draws_places_cuts_and_other_digits_uniformly():
    n = 5000
    params = distortion("tc").sample(torch.zeros(n, 28, 28, dtype=torch.uint8), generator())
    for values, last in ((params.shift_px, 32), (params.patch_cut_px, 22), (params.patch_shift_px, 54)):
        for axis in (0, 1):
            counts = np.bincount(values[..., axis].numpy().ravel(), minlength=last + 1)
            assert len(counts) == last + 1
            assert stats.chisquare(counts).pvalue > P_MIN
    assert params.patch_donor.shape == (n, 6)
    ahead = (params.patch_donor - torch.arange(n)[:, None]) % n
    assert ahead.min() >= 1
    assert stats.kstest(ahead.numpy().ravel(), stats.uniform(0.5, n - 1).cdf).pvalue > P_MIN
    pair = distortion("tc").sample(torch.zeros(2, 28, 28, dtype=torch.uint8), generator())
    assert (pair.patch_donor == torch.tensor([[1], [0]])).all()


def test_tc_box_holds_the_digit():
    images = torch.full((30, 28, 28), 255, dtype=torch.uint8)
    d = distortion("tc", canvas=84, n_patches=0)
    params = d.sample(images, generator())
    for picture, box in zip(d.apply(images, params)[:, 0], d.box_px(params).int().tolist(), strict=True):
        left, top, right, bottom = box
        assert (right - left, bottom - top) == (28, 28)
        assert picture[top:bottom, left:right].min() == 1
        assert picture.sum() == 28 * 28
