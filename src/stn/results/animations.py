"""Animations: numpy in, one small GIF out, the same bytes for the same input."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from stn.results.figures import DPI, LABEL_SIZE, Warp, _image, draw_grid

WIDTH_INCHES = 7.0
COLOURS = 48  # greys and two hues
FRAME_MS, LAST_FRAME_MS = 700, 2500


def training_animation(path: str | Path, steps: Mapping[int, Sequence[Warp]], title: str) -> Path:
    """The same images through a spatial transformer at several steps of its training, a frame per step.

    Each warp is a column: the input with the sampling grid on it, its top edge orange, above the output.
    """
    last = max(steps)
    return write_gif(path, [_frame(warps, f"{title}: step {step} of {last}") for step, warps in sorted(steps.items())])


def write_gif(path: str | Path, frames: Sequence[np.ndarray]) -> Path:
    """Frames (H, W, 3) uint8 as an endless GIF that rests on the last one."""
    palette = Image.fromarray(np.concatenate([frames[0], frames[-1]])).quantize(COLOURS, dither=Image.Dither.NONE)
    pictures = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    durations = [FRAME_MS] * (len(pictures) - 1) + [LAST_FRAME_MS]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return path


def _frame(warps: Sequence[Warp], title: str) -> np.ndarray:
    """(H, W, 3) uint8."""
    cell = (WIDTH_INCHES - 0.9) / len(warps)
    figure = Figure(figsize=(WIDTH_INCHES, 2 * cell + 0.6), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    margins = {"left": 0.9 / WIDTH_INCHES, "right": 0.995, "bottom": 0.01, "top": 1 - 0.55 / (2 * cell + 0.6)}
    axes = figure.subplots(2, len(warps), squeeze=False, gridspec_kw={**margins, "wspace": 0.06, "hspace": 0.06})
    for warp, (above, below) in zip(warps, axes.T, strict=True):
        _image(above, warp.input)
        draw_grid(above, warp.grid, warp.input.shape[:2], max(1, warp.grid.shape[0] // 8))
        _image(below, warp.output)
        above.set_title(warp.caption, fontsize=LABEL_SIZE, pad=2)
    for row, label in zip(axes, ("input\nand grid", "output"), strict=True):
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=LABEL_SIZE)
        for ax in row:
            ax.set(xticks=[], yticks=[], frame_on=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
