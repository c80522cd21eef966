"""Sheets of equal square panels, as a PNG or, a sheet per training step, as a GIF: the same bytes for the same input.

Figures are made without pyplot and so leave no global state.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from PIL import Image

DPI = 100
WIDTH_INCHES = 9.0  # at 100 dpi the width of a README
MAX_PANEL_INCHES = 1.7
TITLE_INCHES, CAPTION_INCHES, LABEL_INCHES, LEGEND_INCHES = 0.35, 0.2, 0.85, 0.35
GAP_INCHES, GROUP_GAP_INCHES, LABEL_GAP_INCHES = 0.06, 0.25, 0.08
TITLE_SIZE, LABEL_SIZE = 10, 8
OUTSIDE = "#d7dbe0"  # of a panel that shows more than its image
GIF_COLOURS = 48  # greys and a few hues
FRAME_MS, LAST_FRAME_MS = 500, 2500


class Stroke(NamedTuple):
    """A line or, with a marker as its style, points on an image. Units: pixels, whose centres are whole numbers."""

    columns: np.ndarray
    rows: np.ndarray
    colour: str
    width: float = 1.0
    style: str = "-"
    behind: bool = False  # shows where the image is transparent


class Panel(NamedTuple):
    """One image of a sheet with what is drawn on it."""

    image: np.ndarray  # (H, W), (H, W, 3), or with opacity (H, W, 4), in [0, 1]
    strokes: Sequence[Stroke] = ()
    caption: str = ""
    margin: float = 0.0  # how much is shown around the image, as a share of its size


class Layout(NamedTuple):
    """`labels`: one per line, at its left. `group`: so many panels belong together, with a wider gap behind them.
    `legend`: the colours of strokes by what they stand for.
    """

    labels: Sequence[str] = ()
    group: int = 0
    legend: Mapping[str, str] = {}


PLAIN = Layout()


def in_lines(groups: Sequence[Sequence[Panel]], per_line: int) -> list[list[Panel]]:
    """Lines of so many groups of panels."""
    starts = range(0, len(groups), per_line)
    return [[panel for group in groups[i : i + per_line] for panel in group] for i in starts]


def write_sheet(path: Path, lines: Sequence[Sequence[Panel]], title: str, layout: Layout = PLAIN) -> Path:
    """Lines of panels as a PNG."""
    return save(_figure(lines, title, layout), path)


def write_animation(
    path: Path, steps: Mapping[int, Sequence[Sequence[Panel]]], title: str, layout: Layout = PLAIN
) -> Path:
    """The sheets of several training steps as an endless GIF that rests on the last one."""
    last = max(steps)
    frames = [
        Image.fromarray(_pixels(_figure(lines, f"{title}: step {step} of {last}", layout)))
        for step, lines in sorted(steps.items())
    ]
    first_and_last = Image.fromarray(np.concatenate([np.asarray(frames[0]), np.asarray(frames[-1])]))
    palette = first_and_last.quantize(GIF_COLOURS, dither=Image.Dither.NONE)
    first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [FRAME_MS] * len(others) + [LAST_FRAME_MS]
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0)
    return path


def save(figure: Figure, path: Path, dpi: int = DPI) -> Path:
    """A figure as a PNG, without the name and version of the software that drew it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=dpi, metadata={"Software": None}, facecolor="white")
    return path


def _pixels(figure: Figure) -> np.ndarray:
    """(H, W, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _widest_inches(labels: Sequence[str]) -> float:
    lines = [line for label in labels for line in label.splitlines() if line.strip()]
    return max((TextPath((0, 0), line, size=LABEL_SIZE).get_extents().width / 72 for line in lines), default=0.0)


def _figure(lines: Sequence[Sequence[Panel]], title: str, layout: Layout) -> Figure:
    """Every length in inches, and the figure just as large as its panels need."""
    columns = max(map(len, lines))
    left = max(LABEL_INCHES, _widest_inches(layout.labels) + 2 * LABEL_GAP_INCHES) if layout.labels else GAP_INCHES
    gaps = [GROUP_GAP_INCHES if layout.group and j % layout.group == 0 else GAP_INCHES for j in range(1, columns)]
    panel = min((WIDTH_INCHES - left - sum(gaps) - GAP_INCHES) / columns, MAX_PANEL_INCHES)
    lefts = left + np.concatenate([[0.0], np.cumsum([panel + gap for gap in gaps])])
    captions = [CAPTION_INCHES if any(panel.caption for panel in line) else 0.0 for line in lines]
    bottom = LEGEND_INCHES if layout.legend else GAP_INCHES
    width = lefts[-1] + panel + GAP_INCHES
    height = TITLE_INCHES + sum(captions) + len(lines) * (panel + GAP_INCHES) - GAP_INCHES + bottom
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    figure.text(0.5, 1 - TITLE_INCHES / 2 / height, title, ha="center", va="center", fontsize=TITLE_SIZE)
    top = height - TITLE_INCHES
    for i, (line, caption) in enumerate(zip(lines, captions, strict=True)):
        top -= caption
        for x, content in zip(lefts, line, strict=False):
            _draw(figure.add_axes((x / width, (top - panel) / height, panel / width, panel / height)), content)
        if layout.labels:
            place = (left - LABEL_GAP_INCHES) / width, (top - panel / 2) / height
            figure.text(*place, layout.labels[i], ha="right", va="center", fontsize=LABEL_SIZE)
        top -= panel + GAP_INCHES
    if layout.legend:
        _legend(figure, layout.legend)
    return figure


def _draw(ax: Axes, panel: Panel) -> None:
    height, width = panel.image.shape[:2]
    brightest = max(1.0, float(panel.image.max()))
    ax.imshow(panel.image, cmap="gray", vmin=0.0, vmax=brightest, interpolation="nearest", zorder=2)
    for stroke in panel.strokes:
        size = {"linewidth": stroke.width, "markersize": 2 * stroke.width, "mec": "black", "mew": 0.4}
        order = 1 if stroke.behind else 3
        ax.plot(stroke.columns, stroke.rows, stroke.style, color=stroke.colour, zorder=order, **size)
    half, middle = max(height, width) * (0.5 + panel.margin), ((width - 1) / 2, (height - 1) / 2)
    ax.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] + half, middle[1] - half))
    ax.set(xticks=[], yticks=[], facecolor=OUTSIDE if panel.margin else "white")
    ax.spines[:].set_visible(False)
    if panel.caption:
        ax.set_title(panel.caption, fontsize=LABEL_SIZE, pad=3)


def _legend(figure: Figure, colours: Mapping[str, str]) -> None:
    ax = figure.add_axes((0, 0, 1, LEGEND_INCHES / figure.get_figheight()))
    ax.axis("off")
    for name, colour in colours.items():
        ax.plot([], [], "s", color=colour, mec="#404040", mew=0.5, label=name)
    ax.legend(loc="center", ncols=len(colours), fontsize=LABEL_SIZE, frameon=False)
