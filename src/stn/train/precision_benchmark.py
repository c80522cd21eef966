"""What training in a lower precision does to the error, and to the time."""

import statistics
import tempfile
from pathlib import Path

from stn.settings import RunSettings
from stn.train.run import train


def precision_effect(run: RunSettings, precision: str, seeds: int) -> dict[str, dict | list]:
    """The same run in float32 and in `precision`, seed by seed, measured on held-out training digits.

    Raises: ValueError for TF32 on a CPU, which has none.
    Returns: for each of both `error_pct` (by seed; None: diverged) and `ms_per_step` (median; None: all diverged); and
    `difference_pct`, by seed, what the lower precision adds to the error.
    """
    if precision == "tf32" and run.device == "cpu":
        raise ValueError("TF32 is CUDA's: there is nothing to compare on the CPU")
    records = {"float32": [], precision: []}
    plain = {"evaluate": "heldout", "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            for name, found in records.items():
                places = {"results_dir": Path(folder) / name, "output_dir": Path(folder) / name}
                found += train([run.changed(**places, **plain, precision=name, seed=seed)])
    batch_size = run.recipe["batch_size"]
    measured = {
        name: {
            "error_pct": [record["metrics"].get("test/error_pct") for record in found],
            "ms_per_step": _ms_per_step(found, batch_size),
        }
        for name, found in records.items()
    }
    pairs = zip(measured[precision]["error_pct"], measured["float32"]["error_pct"], strict=True)
    return measured | {"difference_pct": [low - full for low, full in pairs if None not in (low, full)]}


def _ms_per_step(records: list[dict], batch_size: int) -> float | None:
    rates = [record["images_per_s"] for record in records if record["images_per_s"] is not None]
    return 1000 * batch_size / statistics.median(rates) if rates else None
