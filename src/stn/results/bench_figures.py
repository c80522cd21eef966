"""The benchmark's record of growth as a figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from stn.results.sheets import WIDTH_INCHES, save

SIZES = {"canvas": "canvas, px (batch 128)", "batch": "batch (28 px)"}
LINES = {"direct_ms": "direct", "ms": "in the frequency domain where it pays"}


def growth_figure(path: Path, record: Mapping[str, Any]) -> Path:
    """A panel per what grows: time of a step of the CNN (left axis, ms), and its arithmetic (right axis, GFLOP)."""
    figure = Figure(figsize=(WIDTH_INCHES, 3.6), layout="constrained")
    figure.suptitle(f"Forward and backward pass, CNN with 64 filters\n{record['device']}, {record['instructions']}")
    for ax, (what, label) in zip(figure.subplots(1, len(SIZES)), SIZES.items(), strict=True):
        rows = record["models"]["cnn"][what]
        sizes = [row["size"] for row in rows]
        for colour, (name, meaning) in zip(("#d1495b", "#1f5fa8"), LINES.items(), strict=True):
            if name in rows[0]:
                ax.plot(sizes, [row[name] for row in rows], "o-", color=colour, label=meaning)
        arithmetic = ax.twinx()
        arithmetic.plot(sizes, [row["gflop"] for row in rows], "s:", color="#888888", label="GFLOP, direct")
        apart = [size for i, size in enumerate(sizes) if i == 0 or size - sizes[i - 1] > 0.08 * sizes[-1]]
        ax.set(xlabel=label, ylabel="ms", xticks=apart)  # labels nearer than that would run into each other
        ax.tick_params(axis="x", labelsize=7)
        ax.set_ylim(bottom=0)
        arithmetic.set_ylim(bottom=0)
        arithmetic.set_ylabel("GFLOP", color="#888888")
        if what == "canvas":
            handles = [*ax.lines, *arithmetic.lines]
            figure.legend(handles, [line.get_label() for line in handles], loc="outside lower center", ncols=3)
    return save(figure, path)
