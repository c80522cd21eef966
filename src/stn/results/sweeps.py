"""Runs with settings of their own, which are in no table, and searches: what differed, and what came of it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stn.results.records import DATA_NOTES, USUAL, USUAL_RECIPE, flat, run_key

Record = Mapping[str, Any]
NOT_SETTINGS = ("seed", "protocol_note")
PAGE = """# Runs with changed settings

In no table, and on held-out training images where the metric says so: what was tried on the way to a protocol. Of each
task, model and protocol the settings that differ among its runs, the best first; a variant's record is
`results/sweeps/[subset/]runs/<task>/<model>/<variant>/seed<k>.json`."""
METRICS = ("heldout/error_pct", "test/error_pct", "test/accuracy_pct", "test/correct_pct")


class Sweep(NamedTuple):
    """Runs of one task, model and protocol whose settings differ."""

    title: str
    rows: pd.DataFrame  # a row per variant: its record folder, the settings that differ, seeds, metric; the best first
    records: tuple[Record, ...]


class Study(NamedTuple):
    """A search by `experiments.sweep`: its trials, the best first, and its plots."""

    name: str
    trials: pd.DataFrame
    plots: tuple[Path, ...]


def sweeps_of(records: Iterable[Record]) -> list[Sweep]:
    """The variants of each protocol, whose names are <protocol>-<hash>."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        protocol = record["protocol"].partition("-")[0]
        groups.setdefault((record["task"], record["model"], protocol, record["data"]), []).append(record)
    sweeps = []
    for (task, model, protocol, data), members in sorted(groups.items()):
        title = f"{task}, {model}: departures from {protocol}{DATA_NOTES[data]}"
        sweeps.append(Sweep(title, _rows(members), tuple(sorted(members, key=run_key))))
    return sweeps


def sweeps_page(sweeps: Iterable[Sweep]) -> str:
    """A page in Markdown: a heading and a table for each."""
    parts = [PAGE]
    for sweep in sweeps:
        rows = sweep.rows.apply(lambda column: column.map(short))
        parts += [f"## {sweep.title}", rows.to_markdown(index=False, disable_numparse=True)]
    return "\n\n".join(parts) + "\n"


def short(value: Any) -> str:
    """A number to four digits, and a dash where there is nothing."""
    if isinstance(value, float):
        return "–" if pd.isna(value) else f"{value:.4g}"
    return "–" if value is None else str(value)


def studies(folder: Path) -> list[Study]:
    """What `stn.results.search` wrote, each study in a folder of its own. Raises: OSError, ValueError."""
    return [
        Study(file.parent.name, pd.read_csv(file, encoding="utf-8"), tuple(sorted(file.parent.glob("*.png"))))
        for file in sorted(folder.glob("*/trials.csv"))
        if file.stat().st_size > 1  # an empty frame is an empty line
    ]


def differing(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of several nested settings, those that are not the same in all, by dotted name."""
    leaves = [flat(each) for each in settings]
    names = dict.fromkeys(name for each in leaves for name in each)
    kept = [name for name in names if len({repr(each.get(name)) for each in leaves}) > 1]
    return [{name: each.get(name) for name in kept} for each in leaves]


def _rows(records: Sequence[Record]) -> pd.DataFrame:
    variants: dict[str, list[Record]] = {}
    for record in records:
        variants.setdefault(record["protocol"], []).append(record)
    metric = next((name for name in METRICS for r in records if name in (r["metrics"] or {})), METRICS[1])
    configs = [_settings(runs[0]["config"]) for runs in variants.values()]
    rows = []
    for (name, runs), settings in zip(variants.items(), differing(configs), strict=True):
        values = [r["metrics"][metric] for r in runs if r["status"] == "ok" and metric in r["metrics"]]
        statuses = Counter(r["status"] for r in runs)
        state = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
        result = float(np.mean(values)) if values else np.nan
        rows.append({"variant": name, **settings, "runs": state, metric: result})
    best_first = metric.endswith("error_pct")
    return pd.DataFrame(rows).sort_values([metric, "variant"], ascending=[best_first, True], ignore_index=True)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """All that is not the same for every seed, and what is left unsaid."""
    said = {name: value for name, value in config.items() if name not in NOT_SETTINGS}
    return USUAL | said | {"recipe": USUAL_RECIPE | said["recipe"]}
