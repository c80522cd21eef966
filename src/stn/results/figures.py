"""Figures drawn from records: numbers beside the paper's, learning curves; one PNG, the same bytes for equal input."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stn.results.sheets import LABEL_SIZE, WIDTH_INCHES, save
from stn.results.statistics import TOLERANCE_PP, TOLERANCE_RELATIVE

OURS, PAPER = "#1f5fa8", "#d1495b"
VERDICT_COLOURS = {"match": "#2a8f4b", "better": "#1f5fa8", "worse": "#d1495b", "undecided": "#a08a2c"}
AGREEMENT_INCHES = 3.3  # three of them side by side on a page, one on a phone
AGREEMENT_DPI = 200


def learning_curves(path: Path, records: Iterable[Mapping[str, Any]], task: str) -> Path:
    """Training error and loss of one task against the step, a colour per model, a line per seed."""
    runs = sorted(
        (r for r in records if r["task"] == task and (r["curve"] or {}).get("step")),
        key=lambda r: (r["model"], r["protocol"], r["seed"]),
    )
    models = list(dict.fromkeys(r["model"] for r in runs))
    figure = Figure(figsize=(WIDTH_INCHES, 3.6), layout="constrained")
    figure.suptitle(f"{task}: training")
    names = {"train/error_pct": "training error, %", "train/loss": "training loss"}
    for ax, (name, label) in zip(figure.subplots(1, 2, sharex=True), names.items(), strict=True):
        labelled = set()
        for run in runs:
            if name not in run["curve"]:
                continue
            values = np.array([np.nan if v is None or v <= 0 else v for v in run["curve"][name]], float)
            style = {"color": f"C{models.index(run['model'])}", "linewidth": 1.0, "alpha": 0.8}
            style |= {"marker": "."} if len(values) == 1 else {}
            first = run["model"] not in labelled
            ax.plot(run["curve"]["step"], values, label=run["model"] if first else None, **style)
            labelled.add(run["model"])
        ax.set(xlabel="step", ylabel=label, yscale="log")
        if runs and max(run["curve"]["step"][-1] for run in runs) >= 10_000:
            ax.locator_params(axis="x", nbins=4)  # labels of five digits touch
        _scale(ax, "y", *ax.get_ylim(), log=True)
        ax.grid(alpha=0.3)
    if models:
        figure.legend(*ax.get_legend_handles_labels(), loc="outside right center", fontsize=LABEL_SIZE)
    return save(figure, path)


def agreement_figure(path: Path, cells: pd.DataFrame, title: str, unit: str, log: bool = True) -> Path:
    """Our number against the paper's, a point per cell, by verdict; on the line both are equal, in the band they match.

    `cells` is what `tables.table_cells` gives. How many cells with a number of the paper's lack one of ours stands
    inside the axes.
    """
    compared = cells[cells["paper"].notna()]
    done = compared[compared["n"] > 0]
    figure = Figure(figsize=(AGREEMENT_INCHES, AGREEMENT_INCHES), layout="constrained")
    ax = figure.subplots()
    ax.set_title(title, fontsize=10)
    values = [float(v) for v in [*done["mean"], *compared["paper"]] if v > 0 or not log]
    low, high = (min(values) / 1.4, max(values) * 1.4) if log else (min(values) - 2, max(values) + 2)
    for axis in (ax.xaxis, ax.yaxis):
        _scale(ax, axis.axis_name, low, high, log)
    line = np.geomspace(low, high, 100) if log else np.linspace(low, high, 100)
    tolerance = np.maximum(TOLERANCE_PP, TOLERANCE_RELATIVE * (line if log else 100 - line))
    ax.fill_between(line, line - tolerance, line + tolerance, color="#8896a4", alpha=0.2, linewidth=0)
    ax.plot(line, line, color="#8896a4", linewidth=0.8)
    for verdict, colour in VERDICT_COLOURS.items():
        shown = done[done["verdict"] == verdict].astype({"mean": float})
        if shown.empty:
            continue
        ax.plot(shown["paper"], shown["mean"], "o", color=colour, markersize=4.5, label=f"{len(shown)} {verdict}")
    if len(done) < len(compared):
        ax.plot([], [], " ", label=f"{len(compared) - len(done)} without a result")
    ax.set_xlabel(f"paper, {unit}", fontsize=LABEL_SIZE)
    ax.set_ylabel(f"ours, {unit}", fontsize=LABEL_SIZE)
    ax.tick_params(labelsize=LABEL_SIZE)
    ax.legend(fontsize=LABEL_SIZE, loc="upper left" if log else "lower right", handletextpad=0.2)
    ax.set_aspect("equal")
    return save(figure, path, AGREEMENT_DPI)


def table_figure(path: Path, cells: pd.DataFrame, unit: str = "% error", log: bool = True) -> Path:
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
        lines = [labels.index.get_loc(row) for row in shown["row"]]
        ax.plot(shown["paper"], lines, "D", color=PAPER, mfc="none", markersize=6)  # NaN, no number: nothing is drawn
        for cell, y in zip(shown.to_dict("records"), lines, strict=True):
            if cell["n"]:
                _interval(ax, cell, y)
        ax.set_title(name, fontsize=10)
        ax.set_xlabel(unit, fontsize=LABEL_SIZE)
        ax.grid(axis="x", which="both", alpha=0.25)
        numbers = [v for v in [*shown["mean"], *shown["paper"]] if v is not None and v > 0] or [1.0]
        # percent: an interval beyond 100, or a very wide one, leaves the panel
        low, high = (min(numbers) / 1.7, max(numbers) * 1.7) if log else ax.get_xlim()
        _scale(ax, "x", low if log else max(low, -2.0), high if log else min(high, 102.0), log)
        for cell, y in zip(shown.to_dict("records"), lines, strict=True):
            if not cell["n"]:
                _say(ax, cell, y)
        ax.tick_params(labelsize=LABEL_SIZE)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].set_ylim(len(labels) - 0.5, -0.5)
    handles, names = [ax.plot([], [], "o", color=OURS)[0]], ["ours, mean ± 95 % interval"]
    if cells["paper"].notna().any():
        handles, names = [*handles, ax.plot([], [], "D", color=PAPER, mfc="none")[0]], [*names, "paper"]
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=LABEL_SIZE)
    return save(figure, path)


def _interval(ax: Axes, cell: Mapping[str, Any], y: int) -> None:
    mean, half_width = cell["mean"], cell["half_width"] or 0.0
    ax.plot([max(mean - half_width, 1e-3), mean + half_width], [y, y], color=OURS, linewidth=1.2)
    ax.plot(max(mean, 1e-3), y, "o", color=OURS, markersize=4)  # a log axis has no zero


def _say(ax: Axes, cell: Mapping[str, Any], y: int) -> None:
    """Why a cell has no number: beside the paper's, on the side where there is more room, or in the middle."""
    if np.isnan(cell["paper"]):
        ax.text(0.5, y, cell["verdict"], transform=ax.get_yaxis_transform(), ha="center", va="center", fontsize=6)
        return
    place = ax.transAxes.inverted().transform(ax.transData.transform((cell["paper"], y)))[0]
    side = 1 if place < 0.5 else -1
    text = {"ha": "left" if side > 0 else "right", "va": "center", "fontsize": 6}
    ax.annotate(cell["verdict"], (cell["paper"], y), (7 * side, 0), textcoords="offset points", **text)


def _scale(ax: Axes, axis: str, low: float, high: float, log: bool) -> None:
    """Limits of the axis "x" or "y"; a logarithmic one with plain numbers at its ticks."""
    ax.set(**{f"{axis}lim": (low, high)})
    if not log:
        return
    steps = (1, 1.5, 2, 3, 4, 5, 7) if high / low < 8 else (1, 2, 5) if high / low < 200 else (1,)
    ticks = [m * 10.0**e for e in range(-3, 3) for m in steps if low <= m * 10.0**e <= high]
    ax.set(**{f"{axis}scale": "log", f"{axis}lim": (low, high)})
    locate = getattr(ax, f"set_{axis}ticks")
    locate(ticks, [f"{tick:g}" for tick in ticks])
    locate([], minor=True)
