"""Reproduce a table: python -m experiments.reproduce table=table1 protocol=quick seeds=1

Lists which runs of the table are done, failed and missing, trains the missing ones, renders the table.
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.cli import job, main
from experiments.config import CONF, compose_config, compose_run, resolved
from stn.results.records import config_hash, read_record, read_records, records_root
from stn.results.spec import TableSpec
from stn.results.tables import load_table, render_table, select
from stn.train.settings import record_file, run_key, science

console = Console(highlight=False)


@hydra.main(config_path="../conf", config_name="reproduce", version_base="1.3")
@job
def reproduce(config: DictConfig) -> None:
    """The whole verb."""
    wanted = resolved(config)
    name = wanted["protocol"]["name"]
    if wanted["protocol"] != resolved(compose_config("reproduce", [f"protocol={name}"]))["protocol"]:
        raise ValueError(
            f"a table is made by a protocol as it stands: give conf/protocol/{name}.yaml another name and change that, "
            "or train single runs with experiments.train"
        )
    wanted["protocol"] = name
    spec = _spec(wanted)
    states = {"done": [], "failed": [], "missing": []}
    for settings in _cells(spec, wanted):
        states[_state(settings)].append(settings)
    todo = states["missing"] + (states["failed"] if wanted["retry"] else [])
    counts = ", ".join(f"{len(cells)} {state}" for state, cells in states.items())
    console.print(f"{spec.title}, protocol {wanted['protocol']}: {sum(map(len, states.values()))} runs: {counts}")
    for settings in states["failed"]:
        console.print(f"  failed: {run_key(settings)} (retry=true runs it again)")
    if wanted["dry_run"]:
        for settings in todo:
            console.print(f"  would run: {run_key(settings)}")
        return
    failures = _train(todo, wanted) if todo else []
    _render(spec, wanted)
    if failures:
        sys.exit("\n".join(failures))


def _spec(wanted: dict) -> TableSpec:
    spec = load_table(CONF / "table" / f"{wanted['table']['name']}.yaml")
    for name, allowed in (("tasks", spec.tasks), ("models", spec.models)):
        unknown = set(wanted[name] or ()) - set(allowed)
        if unknown:
            raise ValueError(f"{name}={', '.join(sorted(unknown))} not in {spec.name}; allowed: {', '.join(allowed)}")
    return spec


def _cells(spec: TableSpec, wanted: dict) -> list[dict]:
    """The settings of every run that the table asks for, seed by seed."""
    cells = [
        (column.task, row.model)
        for row, column, _ in spec.cells()
        if column.task in (wanted["tasks"] or spec.tasks) and row.model in (wanted["models"] or spec.models)
    ]
    common = [
        f"{name}={wanted[name]}" for name in ("protocol", "data", "data_dir", "results_dir", "output_dir", "device")
    ]
    common += [f"wandb.mode={wanted['wandb_mode']}", "progress=false"]
    return [
        compose_run([f"task={task}", f"model={model}", f"seed={seed}", *common])
        for seed in range(wanted["seeds"])
        for task, model in cells
    ]


def _state(settings: dict) -> str:
    """done, failed, or missing; a record that was made with other settings counts as missing."""
    path = record_file(settings)
    if not path.exists():
        return "missing"
    record = read_record(path)
    if record["config_hash"] != config_hash(science(settings)):
        return "missing"
    return "done" if record["status"] == "ok" else "failed"


def _train(todo: list[dict], wanted: dict) -> list[str]:
    """Trains, longest runs first, under a progress bar; one line per run that raised."""
    from stn.families import prepare
    from stn.train.cost import run_cost
    from stn.train.pool import Finished, run_all

    for settings in todo:
        prepare(settings)
    jobs = sorted(((run_cost(settings), settings) for settings in todo), key=lambda job: (job[1]["seed"], -job[0]))
    steps, failures, finished = [0] * len(jobs), [], 0
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(
        *columns, TextColumn("left"), TimeRemainingColumn(), console=console, speed_estimate_period=300
    ) as bar:
        task = bar.add_task(f"0/{len(jobs)} runs", total=sum(cost for cost, _ in jobs))
        for event in run_all([settings for _, settings in jobs], wanted["workers"]):
            cost, settings = jobs[event.index]
            now = settings["recipe"]["steps"]
            if isinstance(event, Finished):
                finished += 1
                failures += _report(event, run_key(settings))
            else:
                now = event.steps
            bar.update(
                task,
                description=f"{finished}/{len(jobs)} runs",
                advance=cost * (now - steps[event.index]) / settings["recipe"]["steps"],
            )
            steps[event.index] = now
    return failures


def _report(event, key) -> list[str]:
    """Prints how a run ended; returns a line when it raised."""
    if event.error is not None:
        line = f"{key}: {type(event.error).__name__}: {' '.join(str(event.error).split())}"
        console.print(f"  {line}")
        return [line]
    record = event.record
    error = f"{record['metrics']['test/error_pct']:.2f} % error" if record["metrics"] else ""
    console.print(f"  {key}: {record['status']} {error} {record['reason'] or ''}".rstrip())
    return []


def _render(spec: TableSpec, wanted: dict) -> None:
    """Writes the table and its figures, and prints the table."""
    results, data = Path(wanted["results_dir"]), wanted["data"]
    records = read_records(records_root(results, data))
    if not select(spec, records, wanted["protocol"], data):
        console.print("no records yet, so no table")
        return
    paths = render_table(spec, records, wanted["protocol"], results / "tables", data)
    print(paths[0].read_text().split("\n## Claims, part by part")[0])
    from experiments.figures import draw_all

    paths += draw_all(spec, records, wanted)
    for path in paths:
        console.print(f"wrote {path}")


if __name__ == "__main__":
    main(reproduce, "reproduce")
