"""Reproduce a table: python -m experiments.reproduce table=table1 protocol=quick seeds=1

Lists which runs of the table are done, failed and missing, trains the missing ones, renders the table.
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from experiments.cli import main
from experiments.config import CONF, compose_config, compose_run, quoted, resolved
from experiments.jobs import train_all
from experiments.progress import console, deadline_of, leave
from stn.results.records import read_record, read_records, records_root, run_key
from stn.results.spec import TableSpec
from stn.results.tables import load_table, render_table, select
from stn.settings import Experiment, RunSettings, check_batch


def reproduce(config: DictConfig) -> None:
    """The whole verb."""
    name = config.protocol.name
    as_it_stands = compose_config("reproduce", [f"protocol={name}"]).protocol
    if OmegaConf.to_container(config.protocol) != OmegaConf.to_container(as_it_stands):
        raise ValueError(
            f"a table is made by a protocol as it stands: give conf/protocol/{name}.yaml another name and change that, "
            "or train single runs with experiments.train"
        )
    settings = resolved(OmegaConf.merge(config, {"protocol": None})) | {"protocol": name}
    check_batch(settings)
    settings |= {name: [settings[name]] for name in ("tasks", "models") if isinstance(settings[name], str)}
    spec = _spec(settings)
    states = {"done": [], "failed": [], "missing": []}
    cells = _cells(spec, settings)
    listed = {}  # what another process finishes after it was read here is not done again
    for run in cells:
        states[_state(run, listed)].append(run)
    todo = states["missing"] + (states["failed"] if settings["retry"] or settings["force"] else [])
    todo += states["done"] if settings["force"] else []
    counts = ", ".join(f"{len(cells)} {state}" for state, cells in states.items())
    console.print(f"{spec.title}, protocol {settings['protocol']}: {sum(map(len, states.values()))} runs: {counts}")
    for run in states["failed"]:
        console.print(f"  failed: {run.key} (retry=true runs it again)")
    needed = _needed(todo, settings, listed) if todo else []
    if settings["dry_run"]:
        for run in needed + todo:
            console.print(f"  would run: {run.key}")
        if todo:
            console.print(_estimate(needed + todo, settings))
        return
    deadline = deadline_of(settings["time_budget_s"])
    failures, late = [], 0
    for stage in (needed, todo):
        if late:  # the others begin with what was not finished
            late += len(stage)
        elif stage:
            raised, late = train_all(stage, settings, deadline, listed)
            failures += raised
    if late:
        console.print(f"the time budget is used up; {late} runs are left, the same command goes on with them")
    _render(spec, settings)
    leave(failures, late)


def _estimate(todo: list[RunSettings], settings: dict) -> str:
    """How long these runs would take, by the arithmetic per second of earlier records of this device, where it is a CPU
    with the same instructions; on CUDA, where runs share the device and its time, that of all of them together.
    """
    import torch

    from stn.many.cost import run_cost
    from stn.train.provenance import device_name, instructions, uses_cuda

    cuda = uses_cuda(settings["device"])
    device = device_name(torch.device("cuda" if cuda else "cpu"))
    has = None if cuda else instructions()

    def kind(run: Experiment) -> tuple[str, str]:
        return run.model.name, run.precision

    latest, done = {}, []
    records = read_records(records_root(settings["results_dir"], settings["data"]))
    for record in sorted(records, key=lambda record: record["finished_at"]):
        there = record["device"], None if cuda else record["versions"].get("instructions")
        if record["status"] == "ok" and there == (device, has) and record["wall_s"]:
            experiment = Experiment(**record["config"])
            latest[kind(experiment)] = experiment, record["wall_s"]
            done.append((experiment, record["wall_s"]))
    device += f" ({has})" if has else ""
    if not latest:
        petaflop = sum(run_cost(run, not cuda) for run in todo) / 1e15
        return f"no estimate: no records of {device} yet; {petaflop:.3g} PFLOP of arithmetic, see docs/scaling.md"
    asked = latest.keys() & {kind(run) for run in todo} or latest.keys()
    rates = {name: run_cost(latest[name][0], not cuda) / latest[name][1] for name in asked}
    usual = sorted(rates.values())[len(rates) // 2]
    if cuda:
        rates, usual = {}, sum(run_cost(run, False) for run, _ in done) / sum(wall_s for _, wall_s in done)
    seconds = sum(run_cost(run, not cuda) / rates.get(kind(run), usual) for run in todo)
    minutes = seconds / settings["workers"] / 60
    takes = f"about {minutes / 60:.1f} hours" if minutes > 60 else f"about {max(minutes, 1):.0f} minutes"
    return f"{takes} with {settings['workers']} workers on {device}, by the speed of earlier records"


def _spec(settings: dict) -> TableSpec:
    spec = load_table(CONF / "table" / f"{settings['table']['name']}.yaml")
    for name, allowed in (("tasks", spec.tasks), ("models", spec.models)):
        unknown = set(settings[name] or ()) - set(allowed)
        if unknown:
            raise ValueError(f"{name}={', '.join(sorted(unknown))} not in {spec.name}; allowed: {', '.join(allowed)}")
    if spec.only not in (None, settings["data"]):
        raise ValueError(f"table={spec.name} is about data={spec.only}, got data={settings['data']}")
    return spec


def _cells(spec: TableSpec, settings: dict) -> list[RunSettings]:
    """Every run that the table asks for, seed by seed."""
    cells = dict.fromkeys(  # one run may fill several rows
        (column.task, row.model)
        for row, column, _ in spec.cells()
        if column.task in (settings["tasks"] or spec.tasks) and row.model in (settings["models"] or spec.models)
    )
    return [_compose(task, model, seed, settings) for seed in range(settings["seeds"]) for task, model in cells]


def _compose(task: str, model: str, seed: int, settings: dict) -> RunSettings:
    common = [f"{name}={settings[name]}" for name in ("protocol", "data", "device")]
    folders = [f"{name}={quoted(str(settings[name]))}" for name in ("data_dir", "results_dir", "output_dir")]
    run = compose_run([f"task={task}", f"model={model}", f"seed={seed}", *common, *folders, "progress=false"])
    return run.changed(**{name: settings[name] for name in ("wandb", "loggers", "force")})


def _needed(todo: list[RunSettings], settings: dict, listed: dict[str, str | None]) -> list[RunSettings]:
    """The runs, in no table, whose weights those of `todo` begin with, and which are not done or left no weights."""
    from stn.families import check_data, needs

    for run in todo:
        check_data(run)
    keys = dict.fromkeys(key for run in todo for key in needs(run))
    runs = [_compose(key.task, key.model, key.seed, settings | {"protocol": key.protocol}) for key in keys]
    return [run for run in runs if _state(run, listed) != "done" or not (run.folder / "weights.pt").exists()]


def _state(run: RunSettings, listed: dict[str, str | None]) -> str:
    """done, failed, or missing; a record that was made with other settings counts as missing.

    Notes in `listed` when the record that is there finished, by its file.
    """
    path = run.record_file
    record = read_record(path) if path.exists() else None
    listed[str(path)] = record and record["finished_at"]
    if record is None or record["config_hash"] != run.hash:
        return "missing"
    return "done" if record["status"] == "ok" else "failed"


def _render(spec: TableSpec, settings: dict) -> None:
    """Writes the table and its figures, and prints the table. Records that other settings made are left out."""
    results, data = Path(settings["results_dir"]), settings["data"]
    found = select(spec, read_records(records_root(results, data)), settings["protocol"], data)
    now = {cell: _compose(*cell, 0, settings).hash for cell in {(r["task"], r["model"]) for r in found}}
    others = [record for record in found if record["config_hash"] != now[record["task"], record["model"]]]
    for record in others:
        console.print(f"  left out, made with other settings: {run_key(record)}")
    records = [record for record in found if record not in others]
    if not records:
        console.print("no records yet, so no table")
        return
    paths = render_table(spec, records, settings["protocol"], results / "tables", data)
    print(paths[0].read_text(encoding="utf-8").split("\n## Claims, part by part")[0])
    from experiments.figures import draw_all

    paths += draw_all(spec, records, settings)
    for path in paths:
        console.print(f"wrote {path}")


if __name__ == "__main__":
    main(reproduce)
