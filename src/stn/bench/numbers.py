"""What a faster way to compute does to the error, and to the time: whole runs, seed by seed, on held-out digits."""

import statistics
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from stn.nets.frequency import direct_convolutions
from stn.settings import RunSettings
from stn.train.run import train


class Way(NamedTuple):
    """How a run is made: with these settings, inside of this context."""

    settings: Mapping[str, Any] = MappingProxyType({})
    inside: Callable[[], AbstractContextManager] = nullcontext


def precision_effect(run: RunSettings, precision: str, seeds: int) -> dict[str, dict | list]:
    """`effect` of training in `precision` instead of float32. Raises: ValueError for TF32 on a CPU, which has none."""
    if precision == "tf32" and run.device == "cpu":
        raise ValueError("TF32 is CUDA's: there is nothing to compare on the CPU")
    return effect(run, {name: Way({"precision": name}) for name in ("float32", precision)}, seeds)


def convolution_effect(run: RunSettings, seeds: int) -> dict[str, dict | list]:
    """`effect` of convolutions in the frequency domain, where they pay, instead of the direct ones."""
    return effect(run, {"direct": Way(inside=direct_convolutions), "frequency": Way()}, seeds)


def effect(run: RunSettings, ways: Mapping[str, Way], seeds: int) -> dict[str, dict | list]:
    """The same run in two ways, in turn, seed by seed, measured on held-out training digits.

    Returns: for each of both `error_pct` (by seed; None: diverged) and `ms_per_step` (median; None: all diverged); and
    `difference_pct`, by seed, what the second way adds to the error.
    """
    records: dict[str, list] = {name: [] for name in ways}
    plain = {"evaluate": "heldout", "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            for name, way in ways.items():
                places = {"results_dir": Path(folder) / name, "output_dir": Path(folder) / name}
                with way.inside():
                    records[name] += train([run.changed(**places, **plain, **way.settings, seed=seed)])
    batch_size = run.recipe["batch_size"]
    measured = {
        name: {
            "error_pct": [record["metrics"].get("heldout/error_pct") for record in found],
            "ms_per_step": _ms_per_step(found, batch_size),
        }
        for name, found in records.items()
    }
    pairs = zip(*(measured[name]["error_pct"] for name in ways), strict=True)
    return measured | {"difference_pct": [second - first for first, second in pairs if None not in (first, second)]}


def _ms_per_step(records: list[dict], batch_size: int) -> float | None:
    rates = [record["images_per_s"] for record in records if record["images_per_s"] is not None]
    return 1000 * batch_size / statistics.median(rates) if rates else None
