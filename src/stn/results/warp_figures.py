"""Pictures of what spatial transformers do to images.

*Convention*: grids are in normalised coordinates, x before y, align_corners=False, so x = -1 is the left
outer edge of the first pixel.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stn.results.sheets import Layout, Panel, Stroke, in_lines, write_animation, write_sheet

TOP_EDGE = "#ff5a36"  # where the first row of the output is read
GRID_LINES = "#29c7f7"
MARGIN = 1 / 6  # of the input's size: how far a grid that leaves it is followed


class Warp(NamedTuple):
    """One image through a spatial transformer."""

    input: np.ndarray  # (H, W), or (H, W, 3) in colour
    grid: np.ndarray  # (h, w, 2), where in the input each output pixel is read
    output: np.ndarray  # (h, w) or (h, w, 3), or smaller when it was pooled
    caption: str


def channel_pictures(image: np.ndarray) -> list[np.ndarray]:
    """(C, H, W) -> one (H, W, 3) array of colours in [0, 1], or C of (H, W)."""
    image = image.clip(0, 1)
    return [image.transpose(1, 2, 0)] if len(image) == 3 else list(image)


def warp_gallery(path: Path, warps: Sequence[Warp], title: str, per_line: int = 3, lines_every: int = 4) -> Path:
    """Each warp as three panels: input, input with the sampling grid on it, output.

    The grid's top edge, where the output's first row is read, is drawn orange and thick: which way is up in the output.
    """
    triples = [[Panel(w.input), _with_grid(w, lines_every, w.caption), Panel(w.output)] for w in warps]
    return write_sheet(path, in_lines(triples, per_line), title, Layout(group=3))


def training_animation(path: Path, steps: Mapping[int, Sequence[Warp]], title: str) -> Path:
    """The same images through a spatial transformer at several steps of its training, a frame per step.

    Each warp is a column: the input with the sampling grid on it, its top edge orange, above the output.
    """
    frames = {
        step: [[_with_grid(w, max(1, len(w.grid) // 8), w.caption) for w in warps], [Panel(w.output) for w in warps]]
        for step, warps in steps.items()
    }
    return write_animation(path, frames, title, Layout(labels=("input\nand grid", "output")))


def distortion_sheet(path: Path, originals: np.ndarray, distorted: Mapping[str, np.ndarray]) -> Path:
    """Originals (n, H, W) in the first line, then one line per distortion, each canvas with its size in pixels."""
    sheets = {"original": originals, **distorted}
    for name, images in sheets.items():
        if len(images) != len(originals):
            raise ValueError(f"{name!r} has {len(images)} images, the originals are {len(originals)}")
    labels = [f"{name}\n{images.shape[1]}×{images.shape[2]} px" for name, images in sheets.items()]
    lines = [[Panel(image) for image in images] for images in sheets.values()]
    return write_sheet(path, lines, "The distortions of Sect. 4.1", Layout(labels))


def grid_strokes(grid: np.ndarray, shape: tuple[int, ...], lines_every: int) -> list[Stroke]:
    """Every k-th line, the outline and the marked top edge of a sampling grid, on an input of the given shape.

    The outline runs through the centres of the outermost output pixels.
    """
    columns, rows = to_pixels(grid, *shape[:2])
    height, width = columns.shape
    inner = [np.s_[i] for i in range(lines_every, height - 1, lines_every)]
    inner += [np.s_[:, j] for j in range(lines_every, width - 1, lines_every)]
    strokes = [Stroke(columns[line], rows[line], GRID_LINES, 0.5) for line in inner]
    strokes += [Stroke(columns[edge], rows[edge], GRID_LINES, 1.2) for edge in (np.s_[-1], np.s_[:, 0], np.s_[:, -1])]
    return [*strokes, Stroke(columns[0], rows[0], TOP_EDGE, 2.2)]


def to_pixels(grid: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Normalised (x, y) as pixel indices (column, row): -1 is -0.5 and +1 is width - 0.5, as imshow draws them."""
    columns = ((grid[..., 0] + 1) * width - 1) / 2
    rows = ((grid[..., 1] + 1) * height - 1) / 2
    return columns, rows


def _with_grid(warp: Warp, lines_every: int, caption: str) -> Panel:
    return Panel(warp.input, grid_strokes(warp.grid, warp.input.shape, lines_every), caption, MARGIN)
