"""What training in a lower precision does to the error, and to the time."""

import statistics
import tempfile
from pathlib import Path

from stn.train.run import run


def precision_effect(settings: dict, precision: str, seeds: int) -> dict[str, dict | list]:
    """The same run in float32 and in `precision`, seed by seed, measured on held-out training digits.

    Returns: for each of both `error_pct` (by seed; None: diverged) and `ms_per_step` (median); and `difference_pct`,
    by seed, what the lower precision adds to the error.
    """
    records = {"float32": [], precision: []}
    plain = {"evaluate": "heldout", "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            for name, found in records.items():
                places = {"results_dir": str(Path(folder) / name), "output_dir": str(Path(folder) / name)}
                found.append(run(settings | places | plain | {"precision": name, "seed": seed}))
    batch_size = settings["recipe"]["batch_size"]
    measured = {
        name: {
            "error_pct": [record["metrics"].get("test/error_pct") for record in found],
            "ms_per_step": 1000 * batch_size / statistics.median(record["images_per_s"] for record in found),
        }
        for name, found in records.items()
    }
    pairs = zip(measured[precision]["error_pct"], measured["float32"]["error_pct"], strict=True)
    return measured | {"difference_pct": [low - full for low, full in pairs if None not in (low, full)]}
