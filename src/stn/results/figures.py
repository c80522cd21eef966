"""Figures from arrays and records: numpy in, one PNG out, the same bytes for the same input.

*Convention*: grids are in normalised coordinates, x before y, align_corners=False, so x = -1 is the left
outer edge of the first pixel. Figures are made without pyplot and so leave no global state.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

WIDTH_INCHES = 9.0  # at 100 dpi the width of a README
DPI = 100
TOP_EDGE = "#ff5a36"  # where the first row of the output is read
GRID_LINES = "#29c7f7"
OURS, PAPER = "#1f5fa8", "#d1495b"
LABEL_SIZE = 8


class Warp(NamedTuple):
    """One image through a spatial transformer."""

    input: np.ndarray  # (H, W), or (H, W, 3) in colour
    grid: np.ndarray  # (h, w, 2), where in the input each output pixel is read
    output: np.ndarray  # (h, w) or (h, w, 3), or smaller when it was pooled
    caption: str


def to_pixels(grid: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Normalised (x, y) as pixel indices (column, row): -1 is -0.5 and +1 is width - 0.5, as imshow draws them."""
    columns = ((grid[..., 0] + 1) * width - 1) / 2
    rows = ((grid[..., 1] + 1) * height - 1) / 2
    return columns, rows


def warp_gallery(path: str | Path, rows: Sequence[Warp], title: str, per_line: int = 3, lines_every: int = 4) -> Path:
    """Each warp as three panels: input, input with the sampling grid on it, output.

    The grid's top edge, where the output's first row is read, is drawn orange and thick: which way is up in the output.
    """
    per_line = min(per_line, len(rows))
    lines = -(-len(rows) // per_line)
    cell = WIDTH_INCHES / (3.25 * per_line)
    figure = Figure(figsize=(WIDTH_INCHES, lines * (cell + 0.3) + 0.6), layout="constrained")
    figure.suptitle(title)
    ratios = [1, 1, 1, 0.25] * per_line  # three panels and a gap
    axes = figure.subplots(lines, 4 * per_line, squeeze=False, width_ratios=ratios)
    for ax in axes.flat:
        ax.axis("off")
    for index, warp in enumerate(rows):
        line, first = divmod(index, per_line)
        left, middle, right = axes[line, 4 * first : 4 * first + 3]
        _image(left, warp.input)
        _image(middle, warp.input)
        draw_grid(middle, warp.grid, warp.input.shape[:2], lines_every)
        _image(right, warp.output)
        middle.set_title(warp.caption, fontsize=LABEL_SIZE)
    return _save(figure, path)


def draw_grid(ax: Axes, grid: np.ndarray, shape: tuple[int, ...], lines_every: int) -> None:
    """Outline, every k-th line, and the marked top edge of a sampling grid, on an input of the given shape.

    The outline runs through the centres of the outermost output pixels. What leaves the input is drawn up
    to a margin of a sixth of its size.
    """
    height, width = shape
    columns, rows = to_pixels(grid, height, width)
    thin = {"color": GRID_LINES, "linewidth": 0.5, "alpha": 0.7}
    for i in range(lines_every, grid.shape[0] - 1, lines_every):
        ax.plot(columns[i], rows[i], **thin)
    for j in range(lines_every, grid.shape[1] - 1, lines_every):
        ax.plot(columns[:, j], rows[:, j], **thin)
    for edge in (np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        ax.plot(columns[edge], rows[edge], color=GRID_LINES, linewidth=1.2)
    ax.plot(columns[0], rows[0], color=TOP_EDGE, linewidth=2.2)
    ax.set_xlim(-0.5 - width / 6, width - 0.5 + width / 6)
    ax.set_ylim(height - 0.5 + height / 6, -0.5 - height / 6)


def distortion_sheet(path: str | Path, originals: np.ndarray, distorted: Mapping[str, np.ndarray]) -> Path:
    """Originals (n, H, W) in the first line, then one line per distortion, each canvas with its size in pixels."""
    sheets = {"original": originals, **distorted}
    n = len(originals)
    cell = (WIDTH_INCHES - 1.0) / n
    figure = Figure(figsize=(WIDTH_INCHES, len(sheets) * cell), layout="constrained")
    axes = figure.subplots(len(sheets), n, squeeze=False)
    for line, (name, images) in zip(axes, sheets.items(), strict=True):
        if len(images) != n:
            raise ValueError(f"{name!r} has {len(images)} images, the originals are {n}")
        for ax, image in zip(line, images, strict=True):
            _image(ax, image)
            ax.set(xticks=[], yticks=[])
        label = f"{name}\n{images.shape[1]}×{images.shape[2]} px"
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=LABEL_SIZE)
    return _save(figure, path)


def learning_curves(path: str | Path, records: Iterable[Mapping[str, Any]], task: str) -> Path:
    """Training error and loss of one task against the step, a colour per model, a line per seed."""
    runs = sorted(
        (r for r in records if r["task"] == task and (r["curve"] or {}).get("step")),
        key=lambda r: (r["model"], r["protocol"], r["seed"]),
    )
    models = list(dict.fromkeys(r["model"] for r in runs))
    figure = Figure(figsize=(WIDTH_INCHES, 3.6), layout="constrained")
    figure.suptitle(f"{task}: training")
    names = {"train/error_pct": "training error, %", "train/loss": "training loss"}
    for ax, (name, label) in zip(figure.subplots(1, 2), names.items(), strict=True):
        labelled = set()
        for run in runs:
            if name not in run["curve"]:
                continue
            values = np.array([np.nan if v is None or v <= 0 else v for v in run["curve"][name]], float)
            style = {"color": f"C{models.index(run['model'])}", "linewidth": 1.0, "alpha": 0.8}
            first = run["model"] not in labelled
            ax.plot(run["curve"]["step"], values, label=run["model"] if first else None, **style)
            labelled.add(run["model"])
        ax.set(xlabel="step", ylabel=label, yscale="log")
        ax.grid(alpha=0.3)
    if models:
        figure.legend(*ax.get_legend_handles_labels(), loc="outside right center", fontsize=LABEL_SIZE)
    return _save(figure, path)


def table_figure(path: str | Path, cells: pd.DataFrame, unit: str = "% error", log: bool = True) -> Path:
    """Ours beside the paper's number, cell by cell: a panel per column of the table, a line per row.

    `cells` is what `tables.table_cells` gives. A cell without a mean says so ("missing", "1 collapsed").
    """
    columns = cells.drop_duplicates("task")
    labels = cells.drop_duplicates("row").set_index("row")["label"]
    size = (WIDTH_INCHES, 0.32 * len(labels) + 1.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for ax, (task, name) in zip(axes, zip(columns["task"], columns["column"], strict=True), strict=True):
        shown = cells[cells["task"] == task]
        for cell in shown.to_dict("records"):
            _dots(ax, cell, labels.index.get_loc(cell["row"]))
        ax.set_title(name, fontsize=10)
        ax.set_xlabel(unit, fontsize=LABEL_SIZE)
        ax.grid(axis="x", which="both", alpha=0.25)
        if log:
            _log_axis(ax, [v for v in [*shown["mean"], *shown["paper"]] if v is not None and v > 0] or [1.0])
        else:
            low, high = ax.get_xlim()
            ax.set_xlim(max(low, -2.0), min(high, 102.0))  # percent: an interval beyond 100 leaves the panel
        ax.tick_params(labelsize=LABEL_SIZE)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].set_ylim(len(labels) - 0.5, -0.5)
    handles, names = [ax.plot([], [], "o", color=OURS)[0]], ["ours, mean ± 95 % interval"]
    if cells["paper"].notna().any():
        handles, names = [*handles, ax.plot([], [], "D", color=PAPER, mfc="none")[0]], [*names, "paper"]
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=LABEL_SIZE)
    return _save(figure, path)


def _dots(ax: Axes, cell: Mapping[str, Any], y: int) -> None:
    ax.plot(cell["paper"], y, "D", color=PAPER, mfc="none", markersize=6)  # NaN, no number: nothing is drawn
    if not cell["n"]:
        place, axes = ((0, y), ax.get_yaxis_transform()) if np.isnan(cell["paper"]) else ((cell["paper"], y), "data")
        ax.annotate(cell["verdict"], place, (8, 0), axes, "offset points", fontsize=6, va="center")
        return
    mean, half_width = cell["mean"], cell["half_width"] or 0.0
    ax.plot([max(mean - half_width, 1e-3), mean + half_width], [y, y], color=OURS, linewidth=1.2)
    ax.plot(max(mean, 1e-3), y, "o", color=OURS, markersize=4)  # a log axis has no zero


def _log_axis(ax: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis around the values, with plain numbers; a very wide interval leaves the panel."""
    low, high = min(values) / 1.7, max(values) * 1.7
    steps = (1, 1.5, 2, 3, 4, 5, 7) if high / low < 8 else (1, 2, 5) if high / low < 200 else (1,)
    ticks = [m * 10.0**e for e in range(-3, 3) for m in steps if low <= m * 10.0**e <= high]
    ax.set(xscale="log", xlim=(low, high))
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xticks([], minor=True)


def _image(ax: Axes, image: np.ndarray) -> None:
    ax.imshow(image, cmap="gray", vmin=0.0, vmax=max(1.0, float(image.max())), interpolation="nearest")


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DPI, metadata={"Software": None}, facecolor="white")
    return path
