"""Does the ST turn digits upright (Sect. 4.1)? One class of test digits, turned by -90° to 90°, and what each trained
transformer makes of them; and the same through the training of one of them.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from experiments.galleries import figure_path, figure_title, snapshots_of, with_weights
from stn.results.sheets import Layout, Panel, write_animation, write_sheet
from stn.results.warp_figures import grid_strokes
from stn.tasks.warp_statistics import Pose

TASK, DIGIT = "mnist_r", 2
COLUMNS = 11
ANIMATED = "st_fcn_affine"  # a minute of training
FEWEST = 5  # digits of an animation; snapshots of earlier versions hold fewer


def turned(folder: Path, records: list[dict], settings: dict) -> Iterator[Path]:
    """A line per model below the inputs; the last column is the mean of all test digits of the class in a batch."""
    lines, labels = [], []
    with_transformers = [r for r in records if r["task"] == TASK and r["model"].startswith("st_")]
    for record, module in with_weights(with_transformers, settings):
        inputs, outputs = before_and_after(module)
        if not lines:
            lines.append(inputs)
            labels.append("input")
        lines.append(outputs)
        labels.append(f"{record['model']}\n{_spread(record)}")
    if lines:
        title = figure_title(record, f"a {DIGIT}, turned, and after the ST; spread of all digits' angles")
        yield write_sheet(figure_path(folder, f"upright_{TASK}", record), lines, title, Layout(labels))


def turning(folder: Path, records: list[dict], settings: dict) -> Iterator[Path]:
    """Inputs with the sampling grid above the outputs, a frame per snapshot."""
    shown = [r for r in records if (r["task"], r["model"]) == (TASK, ANIMATED)]
    for record, module in with_weights(shown, settings):
        if snapshots := snapshots_of(record, settings):
            images, angles_deg, numbers = _digits_by_angle(module, len(snapshots["theta_0"][0]))
            if len(images) < FEWEST:
                continue
            frames = {}
            for step, theta in zip(snapshots["step"].tolist(), torch.from_numpy(snapshots["theta_0"]), strict=True):
                with torch.no_grad():
                    (warped,) = module.net.input_warps(images, [theta[numbers]])
                grids = [grid_strokes(grid.numpy(), images.shape[2:], 7) for grid in warped.grid]
                frames[step] = [_line(images, _captions(angles_deg), grids), _line(warped.image)]
            path = figure_path(folder, f"turning_{TASK}_{record['model']}", record, "gif")
            title = figure_title(record, record["model"])
            yield write_animation(path, frames, title, Layout(("input\nand grid", "output")))


def before_and_after(module) -> tuple[list[Panel], list[Panel]]:
    """Digits of the class by angle, and what the transformer makes of them."""
    images, angles_deg, _ = _digits_by_angle(module)
    with torch.no_grad():
        (warped,) = module.net.input_warps(images)
    return _line(images, _captions(angles_deg)), _line(warped.image)


def _digits_by_angle(module, first: int = 1000):
    """The digits of the class among the first test images, in the order of the angle that they were turned by, counter-
    clockwise: images, angles, and their numbers in the test.
    """
    batch = module.stream.test_batch(0, 0)
    numbers = (batch.labels[:first] == DIGIT).nonzero()[:, 0]
    angles_deg = Pose.of(batch.src_from_out[numbers, 0]).angle_deg
    order = angles_deg.argsort()
    return batch.images[numbers[order]], angles_deg[order], numbers[order]


def _line(images, captions=None, strokes=None) -> list[Panel]:
    """Some of the images, evenly spaced, and the mean of all."""
    chosen = np.linspace(0, len(images) - 1, min(COLUMNS, len(images))).round().astype(int).tolist()
    mean = images[:, 0].mean(0)
    last = Panel((mean / mean.max()).numpy(), caption=f"mean of {len(images)}" if captions else "")
    margin = 1 / 6 if strokes else 0.0
    captions, strokes = captions or [""] * len(images), strokes or [()] * len(images)
    return [*(Panel(images[i, 0].numpy(), strokes[i], captions[i], margin) for i in chosen), last]


def _captions(angles_deg) -> list[str]:
    return [f"{angle:+.0f}°" for angle in angles_deg.tolist()]


def _spread(record: dict) -> str:
    before, after = (record["metrics"][f"test/angle_std_{place}_deg"] for place in ("before", "after"))
    return f"{after:.0f}° of {before:.0f}°"
