"""Pictures of birds with the windows that a network looks through: numpy in, one PNG out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from stn.results.figures import LABEL_SIZE, WIDTH_INCHES, _save

WINDOW_COLOURS = ("#ff5a36", "#29c7f7", "#8bd450", "#f7c829")
REGION_COLOURS = {"head": "#ffffff", "body": "#f032e6", "legs": "#a0a0a0", "tail": "#ffe119"}


class Look(NamedTuple):
    """One picture and where each window looks.

    Shapes: image (H, W, 3) in [0, 1]; boxes_px (n, 4) as (x0, y0, x1, y1); parts (P, 3) as (x, y, visible).
    Units: pixels of the image, counted from its top left corner.
    """

    image: np.ndarray
    boxes_px: np.ndarray
    parts: np.ndarray


def window_sheet(
    path: str | Path, lines: Mapping[str, Sequence[Look]], part_regions: Sequence[str], title: str
) -> Path:
    """One line of pictures per label: windows as frames, visible parts as dots in the colour of their region."""
    per_line = max(map(len, lines.values()))
    cell = (WIDTH_INCHES - 1.0) / per_line
    figure = Figure(figsize=(WIDTH_INCHES, len(lines) * cell + 0.9), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(len(lines), per_line, squeeze=False)
    for row, (label, looks) in zip(axes, lines.items(), strict=True):
        for ax in row:
            ax.set(xticks=[], yticks=[], frame_on=False)
        for ax, look in zip(row, looks, strict=False):
            _draw(ax, look, part_regions)
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=LABEL_SIZE)
    n_windows = max(len(look.boxes_px) for looks in lines.values() for look in looks)
    handles = [Line2D([], [], color=WINDOW_COLOURS[k % 4], label=f"window {k}") for k in range(n_windows)]
    style = {"linestyle": "", "marker": "o", "markeredgecolor": "black", "markersize": 5}
    handles += [Line2D([], [], color=colour, label=region, **style) for region, colour in REGION_COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=LABEL_SIZE)
    return _save(figure, path)


def _draw(ax: Axes, look: Look, part_regions: Sequence[str]) -> None:
    """Pixels from the top left corner are half a pixel off imshow's own coordinates: `extent` makes them the same."""
    height, width = look.image.shape[:2]
    ax.imshow(look.image, extent=(0, width, height, 0), interpolation="nearest")
    for (x, y, visible), region in zip(look.parts, part_regions, strict=True):
        if visible:
            ax.plot(x, y, "o", color=REGION_COLOURS[region], markersize=2.5, mec="black", mew=0.4)
    for k, (x0, y0, x1, y1) in enumerate(look.boxes_px):
        ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=WINDOW_COLOURS[k % 4], linewidth=1.6))
    ax.set_xlim(-width / 12, width * 13 / 12)
    ax.set_ylim(height * 13 / 12, -height / 12)
