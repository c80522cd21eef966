"""Draw the figures of a table from its records and the weights of its runs: python -m experiments.figures [table]

Needs the trained weights (output_dir, not committed): figures whose weights are not there are left as they are.
"""

import argparse
from pathlib import Path

import numpy as np

from experiments.cli import main
from experiments.config import CONF, compose_run
from stn.results.figures import Warp, distortion_sheet, learning_curves, table_figure, warp_gallery
from stn.results.records import RunKey, read_records, unpack_wrong
from stn.results.spec import TableSpec
from stn.results.tables import load_table, select, table_cells

# Figure right of Table 1: these columns, one baseline, one ST model each.
GALLERIES = {
    "mnist_r": ("cnn", "st_cnn_affine"),
    "mnist_rts": ("cnn", "st_cnn_affine"),
    "mnist_p": ("cnn", "st_cnn_projective"),
    "mnist_e": ("cnn", "st_cnn_tps"),
    "mnist_tc": ("cnn", "st_cnn_affine"),
}
GALLERY_DIGITS = 6


def draw_all(spec: TableSpec, records: list[dict], wanted: dict) -> list[Path]:
    """Every figure of a table that can be drawn; returns the files written, in results_dir/figures."""
    protocol, folder = wanted["protocol"], Path(wanted["results_dir"]) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    chosen = select(spec, records, protocol)
    cells = table_cells(spec, chosen, protocol)
    paths = [table_figure(folder / f"{spec.name}_{protocol}.png", cells, spec.unit)]
    for task in spec.tasks:
        of_task = [r for r in chosen if r["task"] == task and r["seed"] == 0]
        if of_task:
            paths.append(learning_curves(folder / f"curves_{task}_{protocol}.png", of_task, task))
        paths += _gallery(folder, task, of_task, wanted)
    return paths


def _gallery(folder: Path, task: str, records: list[dict], wanted: dict) -> list[Path]:
    """Test digits that the baseline gets wrong and the ST model right: input, grid on it, output."""
    by_model = {r["model"]: r for r in records if r["status"] == "ok"}
    baseline, transformed = (by_model.get(model) for model in GALLERIES.get(task, ("", "")))
    if not baseline or not transformed:
        return []
    key = RunKey(task, transformed["model"], transformed["protocol"], transformed["seed"])
    weights = (
        Path(wanted["output_dir"]) / "runs" / key.task / key.model / key.protocol / f"seed{key.seed}" / "weights.pt"
    )
    if not weights.exists():
        return []
    won = unpack_wrong(baseline["test_wrong"])[0] & ~unpack_wrong(transformed["test_wrong"])[0]
    chosen = np.flatnonzero(won)[:GALLERY_DIGITS].tolist()
    if not chosen:
        return []
    rows = _warps(key, weights, chosen, wanted)
    title = f"{task}: {baseline['model']} wrong, {transformed['model']} right ({key.protocol}, seed {key.seed})"
    return [warp_gallery(folder / f"gallery_{task}_{key.protocol}.png", rows, title)]


def _warps(key: RunKey, weights: Path, digits: list[int], wanted: dict) -> list[Warp]:
    """What the trained ST does to those test digits, under the first draw of the test distortion."""
    import torch

    from stn.train.run import build_classification

    settings = compose_run(
        [f"task={key.task}", f"model={key.model}", f"protocol={key.protocol}", f"data_dir={wanted['data_dir']}"]
    )
    module, _ = build_classification(settings)
    module.net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    module.net.eval()
    rows = []
    for digit in digits:
        start, i = module.test_batch_of(digit)
        images, labels, *_ = module.stream.test_batch(0, start)
        with torch.no_grad():
            (warped,) = module.net.transformers.warps(images[i : i + 1])
            output = module.net.pool(warped.image)
        label = int(labels[i])
        rows.append(Warp(images[i, 0].numpy(), warped.grid[0].numpy(), output[0, 0].numpy(), f"a {label}"))
    return rows


def draw_distortions(path: Path, data_dir: str, digits: int = 8) -> Path:
    """A sheet of test digits beside every distortion of Sect. 4.1."""
    import torch

    from stn.data.distortions import distortion
    from stn.data.mnist import load_mnist

    images = load_mnist(data_dir, "test").images[:64]
    distorted = {}
    for task in ("mnist_r", "mnist_rts", "mnist_p", "mnist_e", "mnist_tc"):
        warp = distortion(**compose_run([f"task={task}", "model=fcn"])["task"]["distortion"])
        distorted[task] = warp(images, torch.Generator().manual_seed(1))[:digits, 0].numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    return distortion_sheet(path, images[:digits].numpy() / 255, distorted)


def figures() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", default="table1")
    parser.add_argument("--protocol", default="fast")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--results-dir", default="results")
    parser.add_argument("--output-dir", default="outputs")
    wanted = vars(parser.parse_args())
    spec = load_table(CONF / "table" / f"{wanted['table']}.yaml")
    paths = draw_all(spec, read_records(wanted["results_dir"]), wanted)
    paths.append(draw_distortions(Path(wanted["results_dir"]) / "figures" / "distortions.png", wanted["data_dir"]))
    for path in paths:
        print(path)


if __name__ == "__main__":
    main(figures)
