"""One self-contained HTML page of all tables, claims, curves and pictures, with the runs behind every number."""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
import yaml

from stn.results.claims import judge_claims
from stn.results.figures import AGREEMENT_DPI, agreement_figure, learning_curves, table_figure
from stn.results.pictures import Picture, picture, pictures_of
from stn.results.records import (
    DATA_KINDS,
    DATA_NOTES,
    RecordError,
    read_record,
    record_path,
    records_root,
    run_key,
    sweeps_dir,
)
from stn.results.sheets import DPI
from stn.results.spec import TableSpec
from stn.results.statistics import VERDICT_RULE
from stn.results.sweeps import Study, short, studies, sweeps_of
from stn.results.tables import CLAIMS_NOTE, Record, cell_text, describe, load_table, select, table_cells, table_stem

TITLE = "Spatial Transformer Networks, replicated"
NONE, UNSTATED = "no result", "no number of the paper’s"
VERDICTS = ("match", "better", "worse", "undecided", NONE, UNSTATED)
NO_RESULT = "smoke"  # a protocol that only shows that everything runs


class Run(NamedTuple):
    """A record with what a reader needs besides."""

    record: Record
    path: str  # below the results folder
    command: str | None  # repeats the run; of one with changed settings, its note says what is changed
    value: float | None  # of the metric that the cell shows


def write_report(results_dir: Path, conf_dir: Path, path: Path) -> list[str]:
    """Write the page; returns a line for everything that could not be shown, which the page states, too.

    Raises: FileNotFoundError for a folder that is not there, TableError for an invalid table file.
    """
    if not results_dir.is_dir():
        raise FileNotFoundError(f"{results_dir}: no such folder; results_dir must be one with runs/ in it")
    if not (conf_dir / "table").is_dir():
        raise FileNotFoundError(f"{conf_dir / 'table'}: no such folder; conf_dir must be one with table/ in it")
    problems: list[str] = []
    records, variants = (_without_smoke(_read(folder, problems)) for folder in (results_dir, sweeps_dir(results_dir)))
    searches = _searches(sweeps_dir(results_dir) / "studies", problems)
    pictures = pictures_of(results_dir / "figures", problems)
    if all(record["protocol"] != NO_RESULT for record in records):
        pictures = [shown for shown in pictures if NO_RESULT not in shown.stem.split("_")]
    sections, used = [], set()
    for spec in [load_table(file) for file in sorted((conf_dir / "table").glob("*.yaml"))]:
        for protocol, data in sorted({(r["protocol"], r["data"]) for r in records}):
            if not select(spec, records, protocol, data):
                continue
            try:
                sections.append(section(spec, records, protocol, data, pictures))
            except RecordError as error:
                problems.append(f"{table_stem(spec.name, protocol, data)}: {error}")
            else:
                used |= {_identity(record) for record in select(spec, records, protocol, data)}
    tables = [(shown["spec"], shown["id"].removeprefix(shown["spec"].name)) for shown in sections]
    template = _environment().get_template("report.html.jinja")
    html = template.render(
        title=TITLE,
        sections=sections,
        others=[_run(record) for record in records if _identity(record) not in used],
        sweeps=[(s, [_run(r, s.rows.columns[-1], "results/sweeps") for r in s.records]) for s in sweeps_of(variants)],
        searches=searches,
        other_pictures=[p for p in pictures if not any(_belongs(p, *table) for table in tables)],
        problems=problems,
        n_records=len(records) + len(variants),
        finished_at=max((record["finished_at"] for record in [*records, *variants]), default=None),
        verdicts=VERDICTS,
        verdict_rule=VERDICT_RULE,
        claims_note=CLAIMS_NOTE,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8", newline="\n")
    return problems


def _read(results_dir: Path, problems: list[str]) -> list[dict[str, Any]]:
    """All records of all kinds of data; each that cannot be trusted is a line in `problems`."""
    records = []
    for data in DATA_KINDS:
        for path in sorted((records_root(results_dir, data) / "runs").rglob("*.json")):
            try:
                records.append(read_record(path))
            except RecordError as error:
                problems.append(str(error))
    return sorted(records, key=_identity)


def section(
    spec: TableSpec, records: Sequence[Record], protocol: str, data: str, pictures: Sequence[Picture]
) -> dict[str, Any]:
    """A table of the page, at one protocol on one kind of data. Raises: RecordError for records that do not go
    together.
    """
    spec = spec if data == "real" else spec.without_paper()
    chosen = select(spec, records, protocol, data)
    frame = table_cells(spec, chosen, protocol, data)
    stem = table_stem(spec.name, protocol, data)
    title, note = describe(spec, chosen, frame, protocol, data)
    seeds = max(record["seed"] for record in chosen) + 1
    settings = {"table": spec.name, "protocol": protocol, "seeds": seeds, "force": "true"}
    cells = _cells(stem, frame, chosen)
    suffix = stem.removeprefix(spec.name)
    own = [p._replace(caption=p.caption.replace(f"{suffix}:", ":", 1)) for p in pictures if _belongs(p, spec, suffix)]
    return {
        "id": stem,
        "title": title,
        "note": note,
        "command": _command("reproduce", settings, data),
        "spec": spec,
        "protocol": protocol,
        "data": data,
        "data_note": DATA_NOTES[data],
        "cells": cells,  # by (row, task)
        "counts": Counter(map(_counted, cells.values())),
        "claims": judge_claims(spec, chosen),
        "n_runs": len(chosen),
        "wall_s": sum(record["wall_s"] or 0.0 for record in chosen),  # of training, all runs together
        "agreement": _agreement(spec, frame, protocol),
        "plots": _plots(spec, frame, chosen, stem),
        "pictures": [p for p in own if p.still is None],
        "animations": [p for p in own if p.still is not None],
    }


def _cells(stem: str, frame: pd.DataFrame, records: Sequence[Record]) -> dict[tuple[str, str], dict[str, Any]]:
    """What `table_cells` says of each cell, what it is called, and its runs."""
    cells, expected_n = {}, int(frame["n"].max())
    for i, cell in enumerate(frame.to_dict("records")):
        runs = [r for r in records if (r["model"], r["task"]) == (cell["model"], cell["task"])]
        cells[cell["row"], cell["task"]] = cell | {
            "id": f"{stem}-{i}",
            "name": f"{cell['label']} on {cell['column']}",
            "ours": cell_text(cell, expected_n),
            "paper": None if pd.isna(cell["paper"]) else cell["paper"],
            "runs": [_run(record, cell["metric"]) for record in sorted(runs, key=run_key)],
        }
    return cells


def _counted(cell: Mapping[str, Any]) -> str:
    """Under which of `VERDICTS` a cell is counted."""
    if not cell["n"]:
        return NONE
    return UNSTATED if cell["paper"] is None else cell["verdict"]


def _without_smoke(records: list[Record]) -> list[Record]:
    """Records that are results; all where there is nothing else."""
    return [record for record in records if record["protocol"].partition("-")[0] != NO_RESULT] or records


def _searches(folder: Path, problems: list[str]) -> list[tuple[Study, list[Picture]]]:
    """Searches with their plots; a line in `problems` when they cannot be shown."""
    try:
        return [
            (study, [picture(path, f"{study.name}: {path.stem.replace('_', ' ')}") for path in study.plots])
            for study in studies(folder)
        ]
    except (OSError, ValueError) as error:
        problems.append(f"{folder}: no searches ({' '.join(str(error).split())})")
        return []


def _agreement(spec: TableSpec, frame: pd.DataFrame, protocol: str) -> Picture | None:
    """Drawn at twice the size at which the page shows it, so that it is sharp on a phone."""
    if not frame["paper"].notna().any():
        return None
    with tempfile.TemporaryDirectory() as folder:
        title = f"{spec.title.partition(':')[0]}, {protocol}"
        path = agreement_figure(Path(folder) / "agreement.png", frame, title, spec.unit, log=spec.lower_is_better)
        large = picture(path, f"{spec.title}, {protocol}: our numbers against the paper's")
        scale = AGREEMENT_DPI // DPI
        return large._replace(width_px=large.width_px // scale, height_px=large.height_px // scale)


def _plots(spec: TableSpec, frame: pd.DataFrame, records: Sequence[Record], stem: str) -> tuple[Picture, ...]:
    """Figures that need records alone are drawn afresh, so that they are never out of date."""
    plots = []
    with tempfile.TemporaryDirectory() as folder:
        path = table_figure(Path(folder) / f"{stem}.png", frame, spec.unit, log=spec.lower_is_better)
        plots.append(picture(path, f"Our numbers beside the paper's, as in the table above ({spec.unit})"))
        for column in spec.columns:
            runs = [r for r in records if r["task"] == column.task and r["seed"] == 0 and r["curve"]]
            if runs:
                path = learning_curves(Path(folder) / f"curves_{column.task}.png", runs, column.task)
                caption = "training error and training loss against the step, a colour per model, seed 0"
                plots.append(picture(path, f"{column.label}: {caption}"))
    return tuple(plots)


def _run(record: Record, metric: str = "test/error_pct", folder: str = "results") -> Run:
    settings = {name: record[name] for name in ("task", "model", "protocol", "seed")}
    path = record_path(records_root(folder, record["data"]), run_key(record))
    is_variant = "-" in record["protocol"]  # <protocol>-<hash>, no file of conf/protocol
    command = None if is_variant else _command("train", settings | {"force": "true"}, record["data"])
    return Run(record, path.as_posix(), command, (record["metrics"] or {}).get(metric))


def _command(verb: str, settings: Mapping[str, Any], data: str) -> str:
    settings = settings if data == "real" else {**settings, "data": data}
    return " ".join([f"python -m experiments.{verb}", *(f"{name}={value}" for name, value in settings.items())])


def _belongs(shown: Picture, spec: TableSpec, suffix: str) -> bool:
    """Whether a file of results/figures is one of this table's: <kind>_<task>[_…]<suffix>, _<protocol>[_standin]."""
    _, _, subject = shown.stem.removesuffix(suffix).partition("_")
    return shown.stem.endswith(suffix) and any(f"{subject}_".startswith(f"{task}_") for task in spec.tasks)


def _identity(record: Record) -> tuple:
    return record["data"], run_key(record)


def _environment() -> jinja2.Environment:
    """Everything that a template prints is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stn.results", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "utc": _utc, "yaml": _yaml, "short": short}
    return environment


def duration(seconds: float | None) -> str:
    """12.5 -> "12.5 s", 484.2 -> "8 min 4 s", 7322 -> "2 h 2 min"."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _utc(time: str) -> str:
    """A record's time, ISO in UTC, to the minute."""
    return f"{time[:16].replace('T', ' ')} UTC"


def _yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).rstrip()
