"""Animations of a training: a frame per step, in order, the same bytes for the same input."""

from pathlib import Path

import numpy as np
from PIL import Image

from stn.results.sheets import LAST_FRAME_MS
from stn.results.warp_figures import Warp, training_animation


def warps(level: float) -> list[Warp]:
    """Two images, one of them in colour, whose outputs are of one brightness."""
    grid = np.stack(np.meshgrid(np.linspace(-0.9, 0.9, 10), np.linspace(-0.9, 0.9, 10)), axis=-1)
    grey, colour = np.full((10, 10), 0.5), np.full((10, 10, 3), 0.5)
    return [Warp(grey, grid, np.full((10, 10), level), "a"), Warp(colour, grid, np.full((10, 10, 3), level), "b")]


def test_frames_are_in_the_order_of_the_steps(tmp_path):
    path = training_animation(tmp_path / "a.gif", {200: warps(1.0), 0: warps(0.0), 50: warps(0.5)}, "title")
    with Image.open(path) as image:
        assert (image.n_frames, image.info["loop"]) == (3, 0)
        levels = []
        for frame in range(3):
            image.seek(frame)
            width, height = image.size
            levels.append(np.asarray(image.convert("L"))[int(height * 0.8), int(width * 0.3)])
        assert image.info["duration"] == LAST_FRAME_MS
    assert levels[0] < 20 < 100 < levels[1] < 160 < 240 < levels[2]


def test_the_same_input_gives_the_same_bytes(tmp_path):
    steps = {step: warps(step / 600) for step in (0, 300, 600)}
    one, other = (Path(training_animation(tmp_path / name, steps, "title")).read_bytes() for name in ("a.gif", "b.gif"))
    assert one == other
