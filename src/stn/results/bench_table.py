"""The benchmark's record as a table."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from stn.results.records import RecordError


def bench_table(path: str | Path) -> str:
    """results/bench/step_<device>.json as Markdown: one row per model. Raises: RecordError for another file."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        rows = [_row(model, record["models"]) for model in record["models"]]
        title = f"A training step on {record['device']}, {record['threads']} thread(s)"
        given = f", instructions {record['instructions']}" if "instructions" in record else ""
        note = (
            f"Task {record['task']}, protocol {record['protocol']}{given}. Images/s over those of a plain eager loop "
            "of the same step, medians of interleaved repeats within one run; parts are timed alone, forward and "
            "backward. Peak: this machine's speed in a large matrix product."
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: not a record of experiments.bench ({type(error).__name__}: {error})") from error
    table = pd.DataFrame(rows).fillna("–").to_markdown(index=False, disable_numparse=True)
    return f"# {title}\n\n{note}\n\n{table}\n"


def _row(model: str, models: dict[str, Any]) -> dict[str, str]:
    measured = models[model]
    contenders, parts = measured["contenders"], measured["shares_ms"]
    ms = contenders["ours"]["ms"]
    without = models.get(model.split("_")[1]) if model.startswith("st_") else None
    row = {
        "model": model,
        "GFLOP/step": f"{measured['flop_per_step'] / 1e9:.2f}",
        "ms/step": f"{ms:.1f}",
        "÷ without ST": f"{ms / without['contenders']['ours']['ms']:.2f}" if without else None,
        "images/s": f"{contenders['ours']['images_per_s']:.0f}",
        "ours ÷ plain loop": f"{contenders['ours']['ratio']:.2f}",
    }
    loader = contenders.get("plain loop, DataLoader")
    row["ours ÷ DataLoader"] = f"{contenders['ours']['images_per_s'] / loader['images_per_s']:.2f}" if loader else None
    for name in ("public layers", "direct"):
        other = contenders.get(name)
        row[f"ours ÷ {name}"] = f"{contenders['ours']['ratio'] / other['ratio']:.2f}" if other else None
    total = sum(parts.values())
    for name in ("distortion", "localisation", "grid and sampler", "classifier", "optimiser"):
        row[f"{name}, %"] = f"{100 * parts[name] / total:.0f}" if name in parts else None
    return row | {"of peak, %": f"{100 * measured['peak_fraction']:.0f}"}
