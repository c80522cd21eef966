"""Draw the figures of a table from its records and the weights of its runs: python -m experiments.figures table=table1

Needs the trained weights (output_dir, not committed): figures whose weights are not there are left as they are.
"""

from collections.abc import Iterator
from pathlib import Path

from experiments.cli import main, one_of
from experiments.config import CONF, compose_run
from stn.results.figures import learning_curves, table_figure
from stn.results.records import DATA_KINDS, read_records, records_root
from stn.results.spec import TableSpec
from stn.results.tables import load_table, select, table_cells, table_stem
from stn.results.warp_figures import distortion_sheet

# Galleries of real pictures show what is not ours to publish: they go to output_dir, which is never committed.
PHOTOGRAPHS = ("table2", "table3", "tablecubcoloc")


def galleries_of(table: str) -> tuple:
    """The galleries (`experiments.galleries`) of a table."""
    from experiments.galleries import upright, volumes, warps, windows  # and torch, which takes seconds

    galleries = {
        "table1": (warps.wrong_and_right, warps.trainings, upright.turned, upright.turning),
        "table2": (warps.house_numbers, warps.trainings),
        "table3": (windows.birds,),
        "table3d": (volumes.volumes,),
        "table4": (warps.sums, warps.trainings),
        "table5": (windows.digits,),
        "tablecubcoloc": (windows.species,),
    }
    return galleries.get(table, ())


def draw_all(spec: TableSpec, records: list[dict], settings: dict) -> Iterator[Path]:
    """Every figure of a table that can be drawn: the files, as they are written.

    They are in results_dir/figures, galleries of real photographs in output_dir/figures.
    """
    protocol, data, folder = settings["protocol"], settings["data"], Path(settings["results_dir"]) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    chosen = select(spec, records, protocol, data)
    if not chosen:
        raise ValueError(f"no record of {spec.name} at protocol={protocol} with data={data}, so no figure")
    cells = table_cells(spec, chosen, protocol, data)
    overview = folder / f"{table_stem(spec.name, protocol, data)}.png"
    yield table_figure(overview, cells, spec.unit, log=spec.lower_is_better)
    for task in spec.tasks:
        of_task = [r for r in chosen if r["task"] == task and r["seed"] == 0 and r["curve"]]
        if of_task:
            stem = table_stem(f"curves_{task}", protocol, data)
            yield learning_curves(folder / f"{stem}.png", of_task, task)
    shown = [r for r in chosen if r["status"] == "ok" and r["seed"] == 0]
    if spec.name in PHOTOGRAPHS and data != "standin":
        folder = Path(settings["output_dir"]) / "figures"
        folder.mkdir(parents=True, exist_ok=True)
    for gallery in galleries_of(spec.name):
        yield from gallery(folder, shown, settings)


def draw_distortions(path: Path, data_dir: Path, digits: int = 8) -> Path:
    """A sheet of test digits beside every distortion of Sect. 4.1."""
    import torch

    from stn.data.distortions import distortion
    from stn.data.mnist import load_mnist

    images = load_mnist(data_dir, "test").images[:64]
    distorted = {}
    for task in ("mnist_r", "mnist_rts", "mnist_p", "mnist_e", "mnist_tc"):
        warp = distortion(**compose_run([f"task={task}", "model=fcn"]).task.distortion)
        distorted[task] = warp(images, torch.Generator().manual_seed(1))[:digits, 0].numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    return distortion_sheet(path, images[:digits].numpy() / 255, distorted)


def figures(settings: dict) -> None:
    data, results_dir = one_of(settings, "data", DATA_KINDS), Path(settings["results_dir"])
    spec = load_table(CONF / "table" / f"{settings['table']}.yaml")
    for path in draw_all(spec, read_records(records_root(results_dir, data)), settings):
        print(f"wrote {path}")
    if spec.name == "table1":
        sheet = results_dir / "figures" / "distortions.png"
        print(f"wrote {draw_distortions(sheet, Path(settings['data_dir']))}")


if __name__ == "__main__":
    main(figures)
