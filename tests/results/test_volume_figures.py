import numpy as np
import pytest

from stn.results.volume_figures import (
    AMBIENT,
    HALF_VIEW,
    LIGHT,
    SURFACE,
    VolumeWarp,
    shaded,
    view_matrix,
    volume_gallery,
)

BOX = np.zeros((40, 40, 40))
BOX[17:23, 4:20, 8:32] = 1.0  # thin in depth, in the upper half, wide


def silhouette(azimuth_deg, elevation_deg):
    """First and last (row, column) of what is seen, of a picture of 150 px of which the cube face on takes 100."""
    rows, columns = np.nonzero(~np.isnan(shaded(BOX, azimuth_deg, elevation_deg, side_px=151)))
    return rows.min(), rows.max(), columns.min(), columns.max()


def test_the_view_from_the_front_is_the_array():
    """The half-way surface: edges lie half a voxel, 1.25 px, out or in at most."""
    assert silhouette(0, 0) == pytest.approx((25 + 10, 25 + 50, 25 + 20, 25 + 80), abs=2)


def test_from_the_side_the_box_is_as_wide_as_it_is_deep_and_from_above_as_high():
    top, bottom, left, right = silhouette(90, 0)
    assert (top, bottom) == pytest.approx((35, 75), abs=2)
    assert (left, right) == pytest.approx((25 + 42.5, 25 + 57.5), abs=2)
    top, bottom, left, right = silhouette(0, 90)
    assert (left, right) == pytest.approx((45, 105), abs=2)
    assert bottom - top == pytest.approx(15, abs=3)


def test_the_viewer_walks_to_the_right_and_looks_down():
    viewer = np.array([0.0, 0.0, -1.0])
    assert view_matrix(90, 0) @ viewer == pytest.approx([1, 0, 0])  # x: right
    assert view_matrix(0, 90) @ viewer == pytest.approx([0, -1, 0])  # y: down
    assert np.linalg.det(view_matrix(35, 25)) == pytest.approx(1)


@pytest.mark.parametrize("azimuth_deg", [0, 130])  # the light moves with the viewer
def test_a_ball_is_brightest_towards_the_light(azimuth_deg):
    """Lambert: on a ball of radius r the normal at (x, y) is (x, y, -sqrt(r^2 - x^2 - y^2)) / r."""
    z, y, x = np.meshgrid(*3 * [(2 * np.arange(48) + 1) / 48 - 1], indexing="ij")
    radius = 0.7
    ball = ((radius - np.sqrt(x**2 + y**2 + z**2)) * 24 / 3 + SURFACE).clip(0, 1)  # a soft rim
    seen = shaded(ball, azimuth_deg, 0, side_px=91)
    axis = np.linspace(-HALF_VIEW, HALF_VIEW, 91)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    inside = x**2 + y**2 < (0.9 * radius) ** 2
    height = np.sqrt(radius**2 - x[inside] ** 2 - y[inside] ** 2)
    cosine = np.stack([x[inside], y[inside], -height]).T @ LIGHT / radius / np.linalg.norm(LIGHT)
    assert seen[inside] == pytest.approx(AMBIENT + (1 - AMBIENT) * cosine.clip(0, 1), abs=0.06)
    assert np.isnan(seen[x**2 + y**2 > (1.1 * radius) ** 2]).all()


def test_an_empty_volume_shows_nothing():
    assert np.isnan(shaded(np.zeros((8, 8, 8)), 30, 20)).all()


def test_the_gallery_is_the_same_twice(tmp_path):
    rows = [VolumeWarp(BOX, BOX[::2], BOX.mean(0), np.zeros((40, 40)), f"a {i}") for i in range(2)]
    first, second = (volume_gallery(tmp_path / f"{i}.png", rows, "3D") for i in range(2))
    assert first.read_bytes() == second.read_bytes()
