"""Draw what the dashboard's panels show of one run, from its offline files, with no account:

python tools/wandb_panels.py outputs/runs/mnist_r/st_fcn_tps/smoke/seed0/wandb/offline-run-… docs/wandb_panels.png
"""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from experiments.dashboard import CURVES, LOGARITHMIC, STEP


def history(folder: Path) -> dict[str, dict[float, float]]:
    """metric -> training step -> value, as wandb's own reader gives them."""
    call = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(call, capture_output=True, text=True, check=True).stdout.splitlines()
    values = defaultdict(dict)
    for line in map(json.loads, lines):
        row = line.get("history", {})
        row = row.get("item", row)
        for name, value in row.items():
            if isinstance(value, int | float):
                values[name][row.get(STEP)] = value
    return values


def draw(folder: Path, picture: Path) -> None:
    logged = history(folder)
    keys = [key for group in CURVES.values() for key in group if key in logged]
    figure = plt.figure(figsize=(12, 9.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[3, 2])
    for axes, key in zip(above.subplots(3, 3).flat, keys, strict=False):
        axes.plot(*zip(*sorted(logged[key].items()), strict=True))
        axes.set_title(key, fontsize=10)
        axes.set_xlabel("training step", fontsize=8)
        if key in LOGARITHMIC:
            axes.set_yscale("log")
    last = max(folder.rglob("media/images/warps*.png"), key=lambda path: int(path.stem.split("_")[1]))
    axes = below.subplots()
    axes.imshow(Image.open(last))
    axes.set_title("warps: input, grid, output, after the last step", fontsize=10)
    axes.axis("off")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
