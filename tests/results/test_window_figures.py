"""Pictures of windows: a frame per step, boxes where they should be, a line per label."""

import numpy as np
from PIL import Image

from stn.results.window_figures import bird_panel, bird_sheet, window_animation, window_panels, window_sheet

SIDE = 170  # px of a panel with room enough


def first_panel(picture: Image.Image) -> np.ndarray:
    """Its pixels, below the title."""
    return np.asarray(picture.convert("RGB")).astype(int)[35 : 35 + SIDE, 6 : 6 + SIDE]


def extent(mask: np.ndarray) -> tuple[float, ...]:
    rows, columns = np.nonzero(mask)
    return rows.min() / SIDE, rows.max() / SIDE, columns.min() / SIDE, columns.max() / SIDE


def test_the_animation_has_a_frame_per_step_with_the_boxes_in_place(tmp_path):
    images, truth = np.zeros((3, 20, 20)), np.tile([4.0, 4, 16, 16], (3, 1))
    frames = {
        10: [window_panels(images, truth, truth + 1)],
        0: [window_panels(images, truth, truth * [0, 0, 0.5, 0.6])],
    }
    path = window_animation(tmp_path / "moving.gif", frames, "title")
    with Image.open(path) as picture:
        assert picture.n_frames == 2
        first = first_panel(picture)
        picture.seek(1)
        last = first_panel(picture)
    for pixels, box in ((first, (0, 0.48, 0, 0.4)), (last, (0.25, 0.85, 0.25, 0.85))):  # top, bottom, left, right
        orange = (pixels[..., 0] > 200) & (pixels[..., 2] < 120)
        np.testing.assert_allclose(extent(orange), box, atol=0.025)


def test_every_label_has_its_own_line_in_colour(tmp_path):
    images = np.zeros((2, 3, 12, 12, 3))
    images[0, ..., 0] = images[1, ..., 1] = 1  # the first line red, the second green
    boxes = np.tile([2.0, 2, 8, 8], (3, 1))
    lines = {name: window_panels(line, boxes, boxes + 1) for name, line in zip(("red", "green"), images, strict=True)}
    paths = [window_sheet(tmp_path / f"{name}.png", lines, "a title") for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with Image.open(paths[0]) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    reds, greens = (np.nonzero((pixels == colour).all(-1))[0] for colour in ([255, 0, 0], [0, 255, 0]))
    assert len(reds) > 1000
    assert len(greens) > 1000
    assert reds.max() < greens.min()


def test_a_birds_visible_parts_are_dots_in_the_colour_of_their_region(tmp_path):
    parts = np.array([[3.0, 3, 1], [9.0, 9, 0]])  # the second is hidden
    panel = bird_panel(np.zeros((12, 12, 3)), np.array([[1.0, 1, 7, 7]]), parts, ["body", "tail"])
    with Image.open(bird_sheet(tmp_path / "birds.png", {"": [panel]}, 1, "a title")) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)[35 : 35 + SIDE]
    dots = [np.nonzero((pixels == colour).all(-1)) for colour in ([0xF0, 0x32, 0xE6], [0xFF, 0xE1, 0x19])]
    np.testing.assert_allclose(dots[0][0].mean() / SIDE, (1 + 3) / 14, atol=0.02)  # a margin of one pixel on each side
    assert len(dots[1][0]) == 0
