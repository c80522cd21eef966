"""Fetch and check a data set: python -m experiments.prepare dataset=mnist"""

from pathlib import Path

from experiments.cli import main, one_of
from experiments.config import compose_run, quoted
from stn.results.records import DATA_KINDS


def prepare(settings: dict) -> None:
    from stn import families

    data_sets = families.data_sets()
    data_set = data_sets[one_of(settings, "dataset", data_sets)]
    data, data_dir = one_of(settings, "data", DATA_KINDS), Path(settings["data_dir"])
    common = [f"protocol={settings['protocol']}", f"data={data}", f"data_dir={quoted(str(data_dir))}"]
    runs = [compose_run([f"task={task}", f"model={model}", *common]) for task, model in data_set.runs]
    kinds = families.family(runs[0]).DATA
    if data not in kinds:
        raise ValueError(f"data={data}: {data_set.title} has only data={', '.join(kinds)}")
    if data == "real":
        data_set.fetch(data_dir)
    for run in runs:
        families.prepare(run)
    print(f"{data_set.title} is {'drawn' if data == 'standin' else 'complete and checked'}: {data_dir}")


if __name__ == "__main__":
    main(prepare)
