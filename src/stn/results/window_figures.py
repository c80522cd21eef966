"""Pictures of windows on images as they move during the training: a sheet and an animation (App. A.2)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw

from stn.results.figures import LABEL_SIZE, WIDTH_INCHES, _save

WINDOW, TRUTH = "#ff5a36", "#29c7f7"
FRAME_MS, LAST_FRAME_MS = 180, 2000


def window_sheet(
    path: str | Path,
    images: np.ndarray,
    truth_px: np.ndarray,
    windows_px: np.ndarray,
    steps: Sequence[int],
    title: str,
) -> Path:
    """One line per step, one column per image: the window thick, the true box thin and dashed.

    Shapes: images (n, H, W), truth_px (n, 4), windows_px (len(steps), n, 4), boxes as left, top, right, bottom edge.
    """
    lines = len(steps)
    return class_sheet(path, [images] * lines, [truth_px] * lines, windows_px, [f"step {s}" for s in steps], title)


def class_sheet(
    path: str | Path,
    images: Sequence[np.ndarray],
    truth_px: Sequence[np.ndarray],
    windows_px: Sequence[np.ndarray],
    labels: Sequence[str],
    title: str,
) -> Path:
    """The same with images of their own in every line: one line per class, say.

    Shapes: of each line images (n, H, W) or (n, H, W, 3), truth_px and windows_px (n, 4).
    """
    n, lines = len(images[0]), len(labels)
    cell = (WIDTH_INCHES - 0.9) / n
    figure = Figure(figsize=(WIDTH_INCHES, lines * cell + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(lines, n, squeeze=False)
    for line, label, *of_line in zip(axes, labels, images, truth_px, windows_px, strict=True):
        for ax, image, true, box in zip(line, *of_line, strict=True):
            ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            _outline(ax, true, TRUTH, 1.0, "--")
            _outline(ax, box, WINDOW, 1.8, "-")
            ax.set(xticks=[], yticks=[], xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=LABEL_SIZE)
    return _save(figure, path)


def _outline(ax: Axes, box_px: np.ndarray, colour: str, width: float, style: str) -> None:
    """Pixel i reaches from i - 0.5 to i + 0.5 in imshow, from i to i + 1 in a box."""
    left, top, right, bottom = (float(edge) - 0.5 for edge in box_px)
    ax.add_patch(
        Rectangle((left, top), right - left, bottom - top, fill=False, color=colour, linewidth=width, linestyle=style)
    )


def window_animation(
    path: str | Path,
    images: np.ndarray,
    truth_px: np.ndarray,
    windows_px: np.ndarray,
    steps: Sequence[int],
    zoom: int = 2,
) -> Path:
    """The same as a GIF, a frame per step; images may be in several lines.

    Shapes: images (lines, n, H, W), truth_px (lines, n, 4), windows_px (len(steps), lines, n, 4).
    """
    frames = [_frame(images, truth_px, boxes, step, zoom) for boxes, step in zip(windows_px, steps, strict=True)]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)
    return path


def _frame(images: np.ndarray, truth_px: np.ndarray, boxes_px: np.ndarray, step: int, zoom: int) -> Image.Image:
    lines, n, height, width = images.shape
    caption_px, gap_px = 14, 2
    cell_w, cell_h = width * zoom + gap_px, height * zoom + gap_px
    frame = Image.new("RGB", (n * cell_w - gap_px, lines * cell_h + caption_px), "#404040")
    draw = ImageDraw.Draw(frame)
    for i in range(lines):
        for j in range(n):
            tile = Image.fromarray((255 * images[i, j].clip(0, 1)).astype(np.uint8)).convert("RGB")
            tile = tile.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
            on_tile = ImageDraw.Draw(tile)
            on_tile.rectangle(_corners(truth_px[i, j], zoom), outline=TRUTH)
            on_tile.rectangle(_corners(boxes_px[i, j], zoom), outline=WINDOW, width=2)
            frame.paste(tile, (j * cell_w, i * cell_h))
    draw.text((2, lines * cell_h), f"step {step}", fill="white")
    return frame.quantize(32, dither=Image.Dither.NONE)


def _corners(box_px: np.ndarray, zoom: int) -> list[float]:
    left, top, right, bottom = (float(edge) * zoom for edge in box_px)
    return [left, top, right - 1, bottom - 1]
