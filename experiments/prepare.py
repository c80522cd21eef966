"""Fetch and check a data set: python -m experiments.prepare dataset=mnist"""

import importlib
from typing import NamedTuple

from experiments.cli import main, one_of
from experiments.config import compose_run, quoted
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


def prepare(wanted: dict) -> None:
    chosen = DATA_SETS[one_of(wanted, "dataset", DATA_SETS)]
    data, data_dir = one_of(wanted, "data", DATA_KINDS), wanted["data_dir"]
    from stn import families

    common = [f"protocol={wanted['protocol']}", f"data={data}", f"data_dir={quoted(data_dir)}"]
    runs = [compose_run([f"task={task}", f"model={model}", *common]) for task, model in chosen.runs]
    kinds = families.family(runs[0]).DATA
    if data not in kinds:
        raise ValueError(f"data={data}: {chosen.title} has only data={', '.join(kinds)}")
    if data == "real":
        module, function = chosen.fetch
        getattr(importlib.import_module(module), function)(data_dir)
    for settings in runs:
        families.prepare(settings)
    print(f"{chosen.title} is {'drawn' if data == 'standin' else 'complete and checked'}: {data_dir}")


if __name__ == "__main__":
    main(prepare)
