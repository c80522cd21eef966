import math
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter, map_coordinates
from torch.autograd import gradcheck

from stn.transform import TRANSFORMATIONS, affine3d_grid, affine_grid, attention_grid, projective_grid, sample

NAMES = tuple(TRANSFORMATIONS)
PLANE_NAMES = tuple(n for n in NAMES if n != "affine3d")
F64 = torch.float64


def identity(name, n=1, dtype=F64):
    return torch.tensor(TRANSFORMATIONS[name].identity, dtype=dtype).repeat(n, *[1] * len(TRANSFORMATIONS[name].shape))


def near_identity(name, n=2, spread=0.1, dtype=F64, seed=0):
    start = identity(name, n, dtype)
    return start + spread * torch.randn(start.shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def picture(*size, sigma=1.5, seed=0):
    """A smooth picture or volume without any symmetry, in [0, 1]: (1, 1, *size), float64."""
    smooth = gaussian_filter(np.random.default_rng(seed).random(size), sigma)
    return torch.from_numpy((smooth - smooth.min()) / np.ptp(smooth))[None, None]


def noise(*shape, dtype=F64, seed=0):
    return torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def in_from_out_px(theta, in_size, out_size):
    """A 3x3 matrix between normalised coordinates as one between OpenCV's, whose integers are pixel centres."""

    def normalised_from_px(h, w):
        return np.array([[2 / w, 0, 1 / w - 1], [0, 2 / h, 1 / h - 1], [0, 0, 1]])

    return np.linalg.inv(normalised_from_px(*in_size)) @ theta @ normalised_from_px(*out_size)


def size_for(name):
    return (3, 4, 5) if name == "affine3d" else (4, 7)


# -- identity and translation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "atol"), [(F64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("size", [(28, 28), (13, 20), (1, 6)])
@pytest.mark.parametrize("name", PLANE_NAMES)
def test_identity_returns_the_image(name, size, padding, dtype, atol):
    """To rounding: a coordinate is off by a few eps, so W/2 times that in pixels; white noise has a slope of 1/px."""
    image = noise(2, 3, *size, dtype=dtype)
    out = sample(image, TRANSFORMATIONS[name].grid(identity(name, 2, dtype), size), padding=padding)
    torch.testing.assert_close(out, image, rtol=0, atol=atol)


def test_identity_returns_the_volume():
    image = noise(2, 3, 4, 5, 6)
    out = sample(image, affine3d_grid(identity("affine3d", 2), (4, 5, 6)))
    torch.testing.assert_close(out, image, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PLANE_NAMES)
def test_identity_to_a_larger_size_interpolates_as_opencv_resize(name):
    image = noise(1, 1, 7, 10)
    out = sample(image, TRANSFORMATIONS[name].grid(identity(name), (14, 25)), padding="border")
    expected = cv2.resize(image[0, 0].numpy(), (25, 14), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(out[0, 0].numpy(), expected, rtol=0, atol=1e-6)  # OpenCV's weights are float32


@pytest.mark.parametrize("name", PLANE_NAMES)
def test_identity_to_half_the_size_averages_two_by_two(name):
    image = noise(2, 3, 8, 14)
    out = sample(image, TRANSFORMATIONS[name].grid(identity(name, 2), (4, 7)))
    expected = image.unflatten(3, (7, 2)).unflatten(2, (4, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", ["bilinear", "nearest"])
@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (-1, 0), (0, 1), (0, -1), (3, -2)])
def test_translation_by_whole_pixels_shifts_the_content_exactly(dx, dy, kernel):
    """Reading d pixels further on moves the picture by -d. Powers of two as sizes leave nothing to round."""
    h, w = 8, 16
    image = noise(1, 2, h, w, dtype=torch.float32)
    theta = torch.tensor([[[1.0, 0.0, 2 * dx / w], [0.0, 1.0, 2 * dy / h]]])
    padded = torch.nn.functional.pad(image, (3, 3, 3, 3))
    expected = padded[:, :, 3 + dy : 3 + dy + h, 3 + dx : 3 + dx + w]
    assert torch.equal(sample(image, affine_grid(theta, (h, w)), kernel=kernel), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_translation_of_a_volume_by_one_voxel_shifts_x_y_or_z(axis):
    size = (4, 8, 16)
    image = noise(1, 1, *size, dtype=torch.float32)
    theta = identity("affine3d", dtype=torch.float32)
    theta[0, axis, 3] = 2 / size[2 - axis]
    out = sample(image, affine3d_grid(theta, size))
    last = [slice(None)] * 5
    last[4 - axis] = slice(-1, None)
    expected = image.roll(-1, dims=4 - axis)
    expected[tuple(last)] = 0
    assert torch.equal(out, expected)


# -- against OpenCV and scipy ------------------------------------------------------------------------------------------


LETTER_F = np.zeros((16, 16))
LETTER_F[3:13, 4:6] = LETTER_F[3:5, 4:12] = LETTER_F[7:9, 4:10] = 1.0


def rotation(angle_deg):
    """The theta that turns the picture counter-clockwise on the screen: the grid turns the other way."""
    cos, sin = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    return torch.tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]])


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_rotation_turns_the_letter_the_way_numpy_does(quarter_turns):
    image = torch.from_numpy(LETTER_F)[None, None]
    out = sample(image, affine_grid(rotation(90 * quarter_turns), (16, 16)))
    # rot90 turns counter-clockwise on the screen
    np.testing.assert_allclose(out[0, 0].numpy(), np.rot90(LETTER_F, quarter_turns), rtol=0, atol=1e-12)


# OpenCV may round a source position to 1/32 px. A smooth picture's slope is at most SLOPE per px and axis, so the
# values differ by less than 2 axes * 1/64 px * SLOPE.
SLOPE = 0.4
OPENCV_ATOL = 2 * SLOPE / 64


def test_the_test_picture_is_as_smooth_as_the_tolerance_assumes():
    for size in ((16, 16), (17, 29)):
        image = np.pad(picture(*size)[0, 0].numpy(), 1, mode="edge")
        assert max(np.abs(np.diff(image, axis=a)).max() for a in (0, 1)) < SLOPE


@pytest.mark.parametrize("angle_deg", [30, -75])
def test_rotation_has_the_sign_of_opencv(angle_deg):
    image = picture(16, 16)
    out = sample(image, affine_grid(rotation(angle_deg), (16, 16)), padding="border")
    matrix = cv2.getRotationMatrix2D((7.5, 7.5), angle_deg, 1.0)
    expected = cv2.warpAffine(image[0, 0].numpy(), matrix, (16, 16), borderMode=cv2.BORDER_REPLICATE)
    np.testing.assert_allclose(out[0, 0].numpy(), expected, rtol=0, atol=OPENCV_ATOL)
    other_way = sample(image, affine_grid(rotation(-angle_deg), (16, 16)), padding="border")
    assert np.abs(other_way[0, 0].numpy() - expected).max() > 10 * OPENCV_ATOL


BORDERS = {"zeros": cv2.BORDER_CONSTANT, "border": cv2.BORDER_REPLICATE}


def assert_close_to_opencv(out, expected, padding):
    """With zeros around it the picture's edge is a step: OpenCV's rounded position shows there 1/32 of its height."""
    atol = OPENCV_ATOL if padding == "border" else OPENCV_ATOL + 2 / 64
    np.testing.assert_allclose(out[0, 0].numpy(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("padding", BORDERS)
@pytest.mark.parametrize("out_size", [(17, 29), (12, 40)])
@pytest.mark.parametrize("seed", range(4))
def test_affine_warp_is_that_of_opencv(seed, out_size, padding):
    image, theta = picture(17, 29), near_identity("affine", 1, spread=0.4, seed=seed)
    matrix = in_from_out_px(np.vstack([theta[0].numpy(), [0, 0, 1]]), (17, 29), out_size)[:2]
    expected = cv2.warpAffine(
        image[0, 0].numpy(),
        matrix,
        out_size[::-1],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=BORDERS[padding],
    )
    assert_close_to_opencv(sample(image, affine_grid(theta, out_size), padding=padding), expected, padding)


@pytest.mark.parametrize("padding", BORDERS)
@pytest.mark.parametrize("out_size", [(17, 29), (12, 40)])
@pytest.mark.parametrize("seed", range(4))
def test_projective_warp_is_that_of_opencv(seed, out_size, padding):
    image, theta = picture(17, 29), near_identity("projective", 1, spread=0.2, seed=seed)
    matrix = in_from_out_px(np.append(theta[0].numpy(), 1).reshape(3, 3), (17, 29), out_size)
    expected = cv2.warpPerspective(
        image[0, 0].numpy(),
        matrix,
        out_size[::-1],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=BORDERS[padding],
    )
    assert_close_to_opencv(sample(image, projective_grid(theta, out_size), padding=padding), expected, padding)


def scipy_sample(image, grid, **settings):
    """`map_coordinates` of each channel of image (1, C, *size) at grid (1, *out_size, d), normalised."""
    size = np.array(image.shape[2:])
    pixels = np.moveaxis(((grid[0].numpy()[..., ::-1] + 1) * size - 1) / 2, -1, 0)  # to z, y, x and first axis
    return np.stack([map_coordinates(channel, pixels, **settings) for channel in image[0].numpy()])


SCIPY_MODE = {"zeros": "grid-constant", "border": "nearest"}


@pytest.mark.parametrize("padding", SCIPY_MODE)
@pytest.mark.parametrize(("kernel", "order"), [("bilinear", 1), ("nearest", 0)])
@pytest.mark.parametrize(("in_size", "out_size"), [((5, 8), (9, 7)), ((4, 6, 9), (5, 3, 8))])
def test_sampling_at_random_points_is_that_of_scipy(in_size, out_size, kernel, order, padding):
    image = noise(1, 2, *in_size)
    grid = 3 * noise(1, *out_size, len(in_size), seed=1) - 1.5
    out = sample(image, grid, kernel=kernel, padding=padding)
    expected = scipy_sample(image, grid, order=order, mode=SCIPY_MODE[padding])
    np.testing.assert_allclose(out[0].numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_affine3d_warp_of_a_volume_is_that_of_scipy(seed):
    image, theta = noise(1, 1, 5, 6, 9), near_identity("affine3d", 1, spread=0.4, seed=seed)
    out_size = (4, 7, 8)
    z, y, x = np.meshgrid(*[(2 * np.arange(n) + 1) / n - 1 for n in out_size], indexing="ij")
    points = np.stack([x, y, z, np.ones_like(x)])
    grid = torch.from_numpy(np.einsum("ij,jdhw->dhwi", theta[0].numpy(), points))[None]
    expected = scipy_sample(image, grid, order=1, mode="grid-constant")
    out = sample(image, affine3d_grid(theta, out_size))
    np.testing.assert_allclose(out[0].numpy(), expected, rtol=0, atol=1e-12)


# -- gradients ---------------------------------------------------------------------------------------------------------


def smooth_theta(name, in_size, out_size, margin_px=0.02):
    """A theta near the identity whose points all lie well between pixel centres, where the kernel has no kink."""
    for seed in range(200):
        theta = near_identity(name, 1, spread=0.08, seed=seed)
        grid = TRANSFORMATIONS[name].grid(theta, out_size)
        pixels = ((grid + 1) * torch.tensor(in_size[::-1], dtype=F64) - 1) / 2
        if (pixels - pixels.round()).abs().min() > margin_px:
            return theta
    raise AssertionError("no such theta found")


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_through_grid_and_sampler_in_theta_and_image(name, padding):
    in_size, out_size = ((3, 4, 5), (2, 2, 3)) if name == "affine3d" else ((5, 6), (3, 4))
    theta = smooth_theta(name, in_size, out_size).requires_grad_()
    image = noise(1, 2, *in_size).requires_grad_()

    def warp(image, theta):
        return sample(image, TRANSFORMATIONS[name].grid(theta, out_size), padding=padding)

    assert gradcheck(warp, (image, theta))


@pytest.mark.parametrize("size", [(5, 6), (3, 4, 5)])
def test_nearest_kernel_passes_a_gradient_to_the_image_only(size):
    image = noise(1, 2, *size).requires_grad_()
    grid = (2 * noise(1, *size, len(size), seed=1) - 1).requires_grad_()
    assert gradcheck(lambda image: sample(image, grid.detach(), kernel="nearest"), (image,))
    sample(image, grid, kernel="nearest").square().sum().backward()
    assert image.grad.abs().sum() > 0
    assert grid.grad is None or (grid.grad == 0).all()


def shifted_by_half(n, axis):
    """A row or column 0, 1, …, read half a pixel to the right or below, with ties exactly where n is a power of two."""
    size = (1, n) if axis == "x" else (n, 1)
    theta = identity("affine")
    theta[0, 0 if axis == "x" else 1, 2] = 1 / n
    image = torch.arange(n, dtype=F64).reshape(1, 1, *size)
    return image, affine_grid(theta, size)


@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize("n", [2, 4, 8, 64])
def test_nearest_at_ties_is_eq_4_floor_of_x_plus_a_half(n, axis):
    image, grid = shifted_by_half(n, axis)
    border = sample(image, grid, kernel="nearest", padding="border").flatten().tolist()
    assert border == [*range(1, n), n - 1]
    assert sample(image, grid, kernel="nearest").flatten().tolist() == [*range(1, n), 0]


@pytest.mark.parametrize("n", [1, 3, 4, 5, 6, 7, 12, 28])
def test_nearest_is_eq_4_in_rational_numbers(n):
    """Of the coordinates as they are in float64; on sizes that are no power of two ties lie between two of them."""
    centres = torch.tensor([2 * k / n - 1 for k in range(n + 1)], dtype=F64)
    x = torch.cat([centres, torch.nextafter(centres, centres + 1), torch.nextafter(centres, centres - 1)])
    grid = torch.stack([x, torch.zeros_like(x)], dim=-1)[None, None]
    out = sample(torch.arange(1, n + 1, dtype=F64).reshape(1, 1, 1, n), grid, kernel="nearest").flatten()
    for at, value in zip(x.tolist(), out.tolist(), strict=True):
        exact = (Fraction(at) + 1) * n / 2  # x + 0.5 in pixels
        allowed = {math.floor(exact + slack) for slack in (0, Fraction(1, 2**48), -Fraction(1, 2**48))}
        if exact.denominator == 1 or abs(exact - round(exact)) > Fraction(1, 2**48):
            allowed = {math.floor(exact)}
        assert value in {i + 1 if 0 <= i < n else 0 for i in allowed}, (at, float(exact))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("kernel", ["bilinear", "nearest"])
@pytest.mark.parametrize("name", NAMES)
def test_a_theta_that_is_no_number_comes_out_as_one_that_is_none(name, kernel, padding, antialias):
    theta = near_identity(name, 2)
    theta[1].view(-1)[0] = torch.nan
    in_size = (3, 4, 5) if name == "affine3d" else (6, 5)
    grid = TRANSFORMATIONS[name].grid(theta, size_for(name))
    out = sample(noise(2, 2, *in_size), grid, kernel=kernel, padding=padding, antialias=antialias)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def test_only_the_points_that_are_no_numbers_read_none():
    grid = affine_grid(identity("affine"), (3, 4))
    grid[0, 1, 2, 0] = torch.nan
    out = sample(noise(1, 2, 3, 4), grid, padding="border")
    assert (
        out.isnan()
        == torch.zeros(3, 4, dtype=torch.bool).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(True))
    ).all()


ANY_FLOAT = st.floats(width=32, allow_nan=False, allow_infinity=False)
MODERATE = st.floats(-4, 4, width=32)


def thetas(name):
    shape = (2, *TRANSFORMATIONS[name].shape)
    return st.one_of(arrays(np.float32, shape, elements=elements) for elements in (ANY_FLOAT, MODERATE))


def assert_finite_both_ways(name, theta, padding, antialias):
    in_size = (3, 4, 5) if name == "affine3d" else (6, 5)
    image = noise(2, 2, *in_size, dtype=torch.float32).requires_grad_()
    theta = torch.as_tensor(theta).clone().requires_grad_()
    grid = TRANSFORMATIONS[name].grid(theta, size_for(name))
    out = sample(image, grid, padding=padding, antialias=antialias)
    assert grid.isfinite().all()
    assert out.isfinite().all()
    # A mean of values in [0, 1], to rounding, or 0 outside.
    assert -1e-4 <= out.min() <= out.max() <= 1 + 1e-4
    weights = noise(*out.shape, dtype=torch.float32, seed=1) - 0.5
    gradients = torch.autograd.grad((out * weights).sum(), (image, theta), retain_graph=True)
    assert all(g.isfinite().all() for g in gradients)
    assert torch.autograd.grad(grid.sum(), theta)[0].isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_any_finite_theta_gives_finite_values_and_gradients(name, data):
    padding = data.draw(st.sampled_from(["zeros", "border"]))
    assert_finite_both_ways(name, data.draw(thetas(name)), padding, data.draw(st.booleans()))


# w = 1 + g x + h y at the centres x = ±1/7, ±3/7, ±5/7, 0 and y = ±1/4, ±3/4 of a 4 x 7 grid.
HORIZONS = {
    "w is 0 at a column of pixels": (7.0, 0.0),
    "w is 0 at a row of pixels": (0.0, 4.0),
    "w is 0 on a slanted line": (3.5, 2.0),
    "w is 1e-7 at a column": (7.0 * (1 - 1e-7), 0.0),
    "w is just above the bound": (7.0 * (1 - 1.01e-2), 0.0),
    "w is huge": (3e38, -3e38),
}


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("gain", [1.0, 1e6, 3e38])
@pytest.mark.parametrize("last_row", HORIZONS.values(), ids=HORIZONS)
def test_a_horizon_through_the_picture_gives_finite_values_and_gradients(last_row, gain, padding):
    theta = identity("projective", 2, torch.float32)
    theta[:, :6] *= gain
    theta[:, 6:] = torch.tensor(last_row)
    for antialias in (False, True):
        assert_finite_both_ways("projective", theta, padding, antialias)


@pytest.mark.parametrize("coordinate", [1e3, -1e9, 3e38, float("inf"), -float("inf")])
@pytest.mark.parametrize("kernel", ["bilinear", "nearest"])
def test_a_grid_far_outside_reads_the_padding(kernel, coordinate):
    image = noise(1, 1, 4, 6, dtype=torch.float32) + 1
    grid = torch.full((1, 2, 2, 2), coordinate)
    assert (sample(image, grid, kernel=kernel) == 0).all()
    corner = image[0, 0, -1, -1] if coordinate > 0 else image[0, 0, 0, 0]
    assert (sample(image, grid, kernel=kernel, padding="border") == corner).all()


# -- anti-aliasing -----------------------------------------------------------------------------------------------------


def checkerboard(*size):
    return (np.indices(size).sum(0) % 2).astype(np.float64)


def ripple(picture):
    """Root mean square distance from 0.5, the mean of a checkerboard: what is left of it after shrinking."""
    return (picture - 0.5).square().mean().sqrt().item()


@pytest.mark.parametrize("size", [(48, 48), (24, 96), (24, 24, 24)])
@pytest.mark.parametrize("shrink", [2, 3, 4, 6, 8])
def test_shrinking_a_checkerboard_aliases_without_antialiasing_and_is_even_with_it(size, shrink):
    """Shrunk by an even factor, the four pixels around each point average out; half a pixel further they do not."""
    image = torch.from_numpy(checkerboard(*size))[None, None]
    name = "affine" if len(size) == 2 else "affine3d"
    theta = identity(name)
    if shrink % 2 == 0:
        theta[0, :, -1] = 1 / torch.tensor(size[::-1], dtype=F64)
    grid = TRANSFORMATIONS[name].grid(theta, tuple(n // shrink for n in size))
    assert ripple(sample(image, grid, padding="border")) > 0.49
    assert ripple(sample(image, grid, padding="border", antialias=True)) < 1e-12


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shrinking_along_one_axis_alone_is_antialiased(axis):
    size = [12, 12, 12]
    image = torch.from_numpy(checkerboard(*size))[None, None]
    size[axis] //= 3
    grid = affine3d_grid(identity("affine3d"), tuple(size))
    assert ripple(sample(image, grid, padding="border")) > 0.49
    assert ripple(sample(image, grid, padding="border", antialias=True)) < 1e-12


@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_antialiased_shrinking_by_a_power_of_two_averages_blocks(shrink):
    image = noise(1, 2, 16, 32)
    grid = affine_grid(identity("affine"), (16 // shrink, 32 // shrink))
    expected = image.unflatten(3, (-1, shrink)).unflatten(2, (-1, shrink)).mean(dim=(3, 5))
    torch.testing.assert_close(sample(image, grid, antialias=True), expected, rtol=0, atol=1e-12)


def test_a_theta_that_zooms_out_is_antialiased_without_a_change_of_size():
    image = torch.from_numpy(checkerboard(32, 32))[None, None]
    grid = attention_grid(torch.tensor([[3.0, 0.0, 0.0]], dtype=F64), (32, 32))
    inside = (grid.abs() < 0.7).all(-1)[:, None]
    assert ripple(sample(image, grid)[inside]) > 0.49
    assert ripple(sample(image, grid, antialias=True)[inside]) < 1e-12


@pytest.mark.parametrize("theta", [(1.0, 0.0, 0.0), (1.0, 0.31, -0.17), (0.6, 0.1, 0.0)])
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("kernel", ["bilinear", "nearest"])
def test_antialiasing_changes_nothing_where_nothing_shrinks(kernel, padding, theta):
    image = noise(2, 3, 11, 14)
    grid = attention_grid(torch.tensor([theta, theta], dtype=F64), (11, 14))
    settings = {"kernel": kernel, "padding": padding}
    plain = sample(image, grid, **settings)
    torch.testing.assert_close(sample(image, grid, antialias=True, **settings), plain, rtol=0, atol=1e-12)


def test_antialiasing_a_rotation_changes_nothing_to_rounding():
    image = noise(1, 1, 16, 16, dtype=torch.float32)
    grid = affine_grid(rotation(37.0).float(), (16, 16))
    # A step of 1 + 1e-6 px, by rounding, is a level of 1e-6.
    torch.testing.assert_close(sample(image, grid, antialias=True), sample(image, grid), rtol=0, atol=1e-5)


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize(
    ("in_size", "out_size"),
    [((64, 64), (24, 24)), ((64, 64), (64, 16)), ((63, 50), (9, 31)), ((20, 20, 20), (6, 20, 9))],
)
def test_antialiasing_does_not_darken_the_rim(in_size, out_size, padding):
    """As PIL's resize and torch's `interpolate(antialias=True)`: white stays white."""
    name = "affine" if len(in_size) == 2 else "affine3d"
    grid = TRANSFORMATIONS[name].grid(identity(name), out_size)
    out = sample(torch.ones(1, 1, *in_size, dtype=F64), grid, padding=padding, antialias=True)
    torch.testing.assert_close(out, torch.ones_like(out), rtol=0, atol=1e-12)
    if len(in_size) == 2:
        white = torch.ones(1, 1, *in_size, dtype=F64)
        resized = torch.nn.functional.interpolate(white, out_size, mode="bilinear", antialias=True)
        torch.testing.assert_close(out, resized, rtol=0, atol=1e-12)


def test_antialiased_an_image_smaller_than_a_pixel_counts_for_its_area():
    """A white image in one pixel of a black world, at any place in that pixel: 2 x 2 px of 6 x 6, of 8 x 8 in all."""
    grid = attention_grid(torch.tensor([[24.0, 0.0, 0.0]], dtype=F64), (8, 8))  # an output pixel is 6 px wide
    out = sample(torch.ones(1, 1, 2, 2, dtype=F64), grid, antialias=True)
    assert out.sum().item() == pytest.approx(4 / 36, rel=1e-9)


@pytest.mark.parametrize("size", [(15, 23), (5, 7, 9)])
def test_antialiasing_keeps_a_constant_image_of_odd_size_constant(size):
    image = torch.full((1, 1, *size), 0.7, dtype=F64)
    name = "affine" if len(size) == 2 else "affine3d"
    out = sample(image, TRANSFORMATIONS[name].grid(identity(name), (2,) * len(size)), padding="border", antialias=True)
    torch.testing.assert_close(out, torch.full_like(out, 0.7), rtol=0, atol=1e-12)


def test_gradient_of_the_antialiased_sampler_in_the_image_and_a_translation():
    """A translation leaves the mipmap level as it is, which is not differentiated."""
    image = noise(1, 2, 12, 10).requires_grad_()
    shift = torch.tensor([0.031, -0.047], dtype=F64, requires_grad=True)

    def warp(image, shift):
        theta = torch.cat([torch.full((1,), 1.3, dtype=F64), shift])[None]
        return sample(image, attention_grid(theta, (4, 4)), antialias=True)

    assert gradcheck(warp, (image, shift))


def test_the_mipmap_level_has_no_gradient():
    """The nearest kernel has none either, so that nothing is left."""
    grid = (1.5 * affine_grid(identity("affine"), (4, 5))).requires_grad_()
    sample(noise(1, 2, 12, 10).requires_grad_(), grid, kernel="nearest", antialias=True).square().sum().backward()
    assert grid.grad is None or (grid.grad == 0).all()


# -- precision ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name, antialias):
    image = noise(2, 3, *((5, 6, 7) if name == "affine3d" else (14, 13)), dtype=torch.float32)
    theta = near_identity(name, 2, dtype=torch.float32)

    def warp():
        return sample(image, TRANSFORMATIONS[name].grid(theta, size_for(name)), antialias=antialias)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = warp()
    assert out.dtype == torch.float32
    assert torch.equal(out, warp())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_are_read_in_float32_and_come_out_in_their_own_type(dtype):
    image = noise(2, 3, 6, 5, dtype=torch.float32).to(dtype)
    grid = affine_grid(near_identity("affine", 2, dtype=torch.float32), (4, 4))
    wide = sample(image.float(), grid)
    assert wide.dtype == torch.float32
    assert torch.equal(sample(image, grid), wide.to(dtype))
    assert torch.equal(
        sample(image=image, grid=grid.to(dtype)), sample(image.float(), grid.to(dtype).float()).to(dtype)
    )


def test_mixed_image_and_grid_types_give_the_wider_one():
    image, grid = noise(1, 1, 4, 4, dtype=torch.float32), affine_grid(identity("affine"), (4, 4))
    assert sample(image, grid).dtype == F64
    assert sample(torch.full((1, 1, 4, 4), 7, dtype=torch.uint8), grid.float()).dtype == torch.float32


# -- replicas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("kernel", ["bilinear", "nearest"])
@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_replicas_is_the_loop_over_replicas(name, kernel, antialias):
    in_size = (3, 4, 5) if name == "affine3d" else (6, 5)
    image = noise(3, 2, 2, *in_size)
    theta = torch.stack([near_identity(name, 2, spread=0.3, seed=s) for s in range(3)])

    def warp(image, theta):
        grid = TRANSFORMATIONS[name].grid(theta, size_for(name))
        return sample(image, grid, kernel=kernel, antialias=antialias)

    together = torch.func.vmap(warp)(image, theta)
    alone = torch.stack([warp(*replica) for replica in zip(image, theta, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_vmapped_gradients_are_those_of_each_replica_alone(name):
    in_size = (3, 4, 5) if name == "affine3d" else (6, 5)
    image = noise(3, 2, 2, *in_size)
    theta = torch.stack([near_identity(name, 2, spread=0.3, seed=s) for s in range(3)])

    def loss(image, theta):
        return sample(image, TRANSFORMATIONS[name].grid(theta, size_for(name))).square().sum()

    together = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))(image, theta)
    for i in range(3):
        leaves = image[i].clone().requires_grad_(), theta[i].clone().requires_grad_()
        alone = torch.autograd.grad(loss(*leaves), leaves)
        for got, wanted in zip(together, alone, strict=True):
            torch.testing.assert_close(got[i], wanted, rtol=0, atol=1e-11)


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"kernel": "bicubic"}, {"padding": "reflection"}])
def test_unknown_kernel_or_padding_is_refused_with_what_is_allowed(wrong):
    with pytest.raises(ValueError, match="must be one of") as error:
        sample(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4, 2), **wrong)
    for word in (*wrong.values(), "bilinear", "nearest", "zeros", "border"):
        assert repr(word) in str(error.value)


@pytest.mark.parametrize(
    ("image", "grid"),
    [((4, 4), (4, 4, 2)), ((1, 1, 4, 4), (1, 4, 4, 3)), ((1, 1, 4, 4, 4), (1, 4, 4, 2)), ((1, 4, 4), (1, 4, 4, 2))],
)
def test_wrong_shapes_are_refused_by_what_was_given(image, grid):
    with pytest.raises(ValueError, match="sample: want") as error:
        sample(torch.zeros(image), torch.zeros(grid))
    assert f"{image} and {grid}" in str(error.value)
