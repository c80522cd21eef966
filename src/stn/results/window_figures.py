"""Pictures of windows on images: learned beside true ones (App. A.2), and those that a network looks through
(Sect. 4.3).

*Convention*: a box is (left, top, right, bottom) in pixels from the image's top left corner.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stn.results.sheets import Layout, Panel, Stroke, write_animation, write_sheet

WINDOW, TRUTH = "#ff5a36", "#29c7f7"
WINDOW_COLOURS = (WINDOW, TRUTH, "#8bd450", "#f7c829")  # of a network with several
REGION_COLOURS = {"head": "#ffffff", "body": "#f032e6", "legs": "#a0a0a0", "tail": "#ffe119"}
LEGEND = {"window": WINDOW, "true box": TRUTH}


def window_panels(images: np.ndarray, truth_px: np.ndarray, windows_px: np.ndarray) -> list[Panel]:
    """One line: each image with its window, thick, and its true box, thin and dashed.

    Shapes: images (n, H, W) or (n, H, W, 3), boxes (n, 4).
    """
    return [
        Panel(image, [box_stroke(true, TRUTH, 1.0, "--"), box_stroke(window, WINDOW, 1.8)])
        for image, true, window in zip(images, truth_px, windows_px, strict=True)
    ]


def window_sheet(path: Path, lines: Mapping[str, Sequence[Panel]], title: str) -> Path:
    """A line of `window_panels` per label: a step of the training, say, or a class."""
    return write_sheet(path, list(lines.values()), title, Layout(tuple(lines), legend=LEGEND))


def window_animation(path: Path, steps: Mapping[int, Sequence[Sequence[Panel]]], title: str) -> Path:
    """Lines of `window_panels` at each step of the training."""
    return write_animation(path, steps, title, Layout(legend=LEGEND))


def bird_panel(image: np.ndarray, boxes_px: np.ndarray, parts: np.ndarray, part_regions: Sequence[str]) -> Panel:
    """A bird with all windows of a network, and its visible parts as dots in the colour of their region.

    Shapes: image (H, W, 3), boxes_px (n, 4), parts (P, 3) as (x, y, visible).
    """
    strokes = [
        Stroke(x - 0.5, y - 0.5, REGION_COLOURS[region], 1.3, "o")
        for (x, y, visible), region in zip(parts, part_regions, strict=True)
        if visible
    ]
    strokes += [box_stroke(box, WINDOW_COLOURS[k % len(WINDOW_COLOURS)], 1.6) for k, box in enumerate(boxes_px)]
    return Panel(image, strokes, margin=1 / 12)


def bird_sheet(path: Path, lines: Mapping[str, Sequence[Panel]], n_windows: int, title: str) -> Path:
    """A line of birds per label, each a `bird_panel`."""
    windows = {f"window {k}": WINDOW_COLOURS[k % len(WINDOW_COLOURS)] for k in range(n_windows)}
    return write_sheet(path, list(lines.values()), title, Layout(tuple(lines), legend=windows | REGION_COLOURS))


def box_stroke(box_px: np.ndarray, colour: str, width: float, style: str = "-") -> Stroke:
    """The outline of a box; half a pixel off: pixel 0 reaches from -0.5 to 0.5 in a panel, from 0 to 1 in a box."""
    left, top, right, bottom = (float(edge) - 0.5 for edge in box_px)
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)])
    return Stroke(*corners.T, colour, width, style)
