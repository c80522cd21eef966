"""Fetch and check data sets: python -m experiments.prepare mnist|svhn|cub [--data-dir data] [--data standin]"""

import argparse
import importlib
from typing import NamedTuple

from experiments.cli import main
from experiments.config import compose_run
from stn.results.records import DATA_KINDS


class DataSet(NamedTuple):
    """`fetch`: module and function that see to it that the real files lie in a folder; then each of `runs`, task and
    model, has its data prepared as the run itself would.
    """

    title: str
    fetch: tuple[str, str]
    runs: tuple[tuple[str, str], ...]


DATA_SETS = {
    "mnist": DataSet("MNIST", ("stn.data.mnist", "prepare_mnist"), (("mnist_r", "fcn"),)),
    "svhn": DataSet("SVHN", ("stn.data.svhn", "prepare_svhn"), (("svhn_64", "svhn_cnn"), ("svhn_128", "svhn_cnn"))),
    "cub": DataSet("CUB-200-2011", ("stn.data.cub", "fetch_cub"), (("cub_224", "cub_cnn"), ("cub_448", "cub_cnn"))),
}


def prepare() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=list(DATA_SETS))
    parser.add_argument("--data-dir", default="data", help="where data sets live, or a folder that has the files")
    parser.add_argument("--data", choices=DATA_KINDS, default="real", help="subset: a listed part; standin: drawn")
    parser.add_argument("--protocol", default="fast", help="whose sizes the images get, where it decides them")
    arguments = parser.parse_args()
    from stn import families

    wanted = DATA_SETS[arguments.dataset]
    runs = [
        compose_run([f"task={task}", f"model={model}", f"protocol={arguments.protocol}", f"data={arguments.data}"])
        | {"data_dir": arguments.data_dir}
        for task, model in wanted.runs
    ]
    kinds = families.family(runs[0]).DATA
    if arguments.data not in kinds:
        raise ValueError(f"--data {arguments.data}: {wanted.title} has only {', '.join(kinds)}")
    if arguments.data == "real":
        module, function = wanted.fetch
        getattr(importlib.import_module(module), function)(arguments.data_dir)
    for settings in runs:
        families.prepare(settings)
    kind = "drawn" if arguments.data == "standin" else "complete and checked"
    print(f"{wanted.title} is {kind}: {arguments.data_dir}")


if __name__ == "__main__":
    main(prepare)
