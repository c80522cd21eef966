"""Several runs by one command (seed=0,1 model=fcn,cnn), and how they ended: the settings that differ, the results."""

import itertools

from experiments.config import compose_config, resolved, run_of
from experiments.jobs import train_all
from experiments.progress import deadline_of, leave
from stn.settings import RunSettings, check_batch


def jobs_of(overrides: list[str]) -> list[list[str]]:
    """The overrides of each run, one for every combination of values; the last setting changes fastest."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    choices = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [given]
        for override, given in zip(OverridesParser.create().parse_overrides(overrides), overrides, strict=True)
    ]
    return [list(job) for job in itertools.product(*choices)]


def train_grid(jobs: list[list[str]]) -> None:
    """Trains the runs without a record, prints a table of all; exit status `OUT_OF_TIME` where a run is not over."""
    settings = resolved(compose_config("train", jobs[0]))
    check_batch(settings)
    runs = [run_of(compose_config("train", job)) for job in jobs]
    if any(run.processes > 1 for run in runs):
        raise ValueError("trainer.devices: of several runs each trains in one process, workers=… at a time; allowed: 1")
    todo = []
    for run in {run.record_file: run for run in runs}.values():  # values may be given twice, or as 0.01 and 1e-2
        if (record := run.recorded()) and not run.force:
            print(f"{run.key}: {record['status']}, as its record says; force=true runs it again")
        else:
            todo.append(run)
    listed = {str(run.record_file): record and record["finished_at"] for run in todo for record in [run.recorded()]}
    failures, late = train_all(todo, settings, deadline_of(settings["time_budget_s"]), listed) if todo else ([], 0)
    print(table_of(jobs, runs))
    if late and not failures:
        print(f"the time budget is used up; {late} runs are not over, the same command goes on with them")
    leave(failures, late)


def table_of(jobs: list[list[str]], runs: list[RunSettings]) -> str:
    """A line per run: the settings that differ, how it ended, where its record is."""
    import pandas as pd

    differing, rows = [i for i, column in enumerate(zip(*jobs, strict=True)) if len(set(column)) > 1], []
    for job, run in zip(jobs, runs, strict=True):
        row = dict(job[i].split("=", 1) for i in differing)
        record = run.recorded()
        if record is None:
            rows.append(row | {"status": "not over"})
            continue
        row |= {"status": record["status"]}
        row |= {name: record["metrics"].get(f"{run.evaluate}/{name}") for name in ("error_pct", "loss")}
        rows.append(row | {"s": record["wall_s"], "record": str(run.record_file)})
    return pd.DataFrame(rows).to_markdown(index=False, floatfmt=".4g", tablefmt="simple")
