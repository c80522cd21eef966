"""Pictures of windows: right size, a frame per step, boxes where they should be."""

import numpy as np
from PIL import Image

from stn.results.window_figures import class_sheet, window_animation, window_sheet


def test_the_animation_has_a_frame_per_step_with_the_boxes_in_place(tmp_path):
    images, truth = np.zeros((2, 3, 20, 20)), np.tile([4.0, 4, 16, 16], (2, 3, 1))
    windows = np.stack([np.tile([0.0, 0, 6, 8], (2, 3, 1)), truth + 1])
    path = window_animation(tmp_path / "moving.gif", images, truth, windows, [0, 10], zoom=3)
    with Image.open(path) as picture:
        assert picture.n_frames == 2
        assert picture.size == (3 * 62 - 2, 2 * 62 + 14)
        first = np.asarray(picture.convert("RGB")).astype(int)
    orange = (first[..., 0] > 200) & (first[..., 2] < 120)
    rows, columns = np.nonzero(orange[:60, :60])  # the first image
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 23, 0, 17)


def test_the_sheet_is_the_same_for_the_same_input(tmp_path):
    images, truth = np.random.default_rng(0).random((4, 12, 12)), np.tile([2.0, 2, 8, 8], (4, 1))
    windows = np.stack([truth, truth + 1])
    paths = [window_sheet(tmp_path / f"{name}.png", images, truth, windows, [0, 5], "a title") for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with Image.open(paths[0]) as picture:
        assert picture.width == 900


def test_every_class_has_its_own_images_in_colour(tmp_path):
    images = np.zeros((2, 3, 12, 12, 3))
    images[0, ..., 0] = images[1, ..., 1] = 1  # the first line red, the second green
    boxes = np.tile([2.0, 2, 8, 8], (2, 3, 1))
    path = class_sheet(tmp_path / "classes.png", images, boxes, boxes + 1, ["red", "green"], "a title")
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    reds, greens = (np.nonzero((pixels == colour).all(-1))[0] for colour in ([255, 0, 0], [0, 255, 0]))
    assert len(reds) > 1000
    assert len(greens) > 1000
    assert reds.max() < greens.min()
