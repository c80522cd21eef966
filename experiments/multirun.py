"""The jobs of a multirun, and how they ended: a table of the settings that differ beside the results."""

import itertools
import sys

import pandas as pd

from experiments.config import compose_config, run_of
from experiments.progress import OUT_OF_TIME


def jobs_of(overrides: list[str]) -> list[list[str]]:
    """The overrides of each job, in hydra's order; those of hydra itself are left out."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    own = [override for override in overrides if not override.lstrip("+~").startswith("hydra")]
    choices = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [given]
        for override, given in zip(OverridesParser.create().parse_overrides(own), own, strict=True)
    ]
    return [list(job) for job in itertools.product(*choices)]


def summarise(overrides: list[str]) -> None:
    """Prints the table and where everything lies; ends with status `OUT_OF_TIME` where a run is not over."""
    jobs, rows = jobs_of(overrides), []
    differing = [i for i, column in enumerate(zip(*jobs, strict=True)) if len(set(column)) > 1]
    for job in jobs:
        row = dict(job[i].split("=", 1) for i in differing)
        try:
            run = run_of(compose_config("train", job))
            record = run.recorded()
        except Exception:  # its own line has said what is wrong with it
            rows.append(row | {"status": "refused"})
            continue
        if record is None:
            rows.append(row | {"status": "not over"})
            continue
        metrics = {name.removeprefix("test/"): record["metrics"].get(name) for name in ("test/error_pct", "test/loss")}
        rows.append(
            row | {"status": record["status"], **metrics, "s": record["wall_s"], "record": str(run.record_file)}
        )
    table = pd.DataFrame(rows)
    print(table.to_markdown(index=False, floatfmt=".4g", tablefmt="simple"))
    if any(row["status"] == "not over" for row in rows):
        sys.exit(OUT_OF_TIME)
