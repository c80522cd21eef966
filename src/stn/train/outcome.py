"""How a run ended: the only place that decides what its record, and with it W&B, says."""

import math
from datetime import UTC, datetime
from typing import Any

from stn.families import Built
from stn.nets.budget import count_parameters
from stn.results.records import SCHEMA, pack_wrong
from stn.saved import weights_sha256
from stn.settings import RunSettings
from stn.tasks.training import Training
from stn.train.provenance import code_state, joined, versions

CURVE_POINTS = 200


def outcome(run: RunSettings, built: Built, error: Exception | None = None) -> dict[str, Any]:
    """The record of a run that was trained and tested, or was ended by an error."""
    module = built.module
    record = {
        "schema": SCHEMA,
        "status": "ok",
        "reason": None,
        **run.key._asdict(),
        "data": run.data,
        "config": run.config,
        "config_hash": run.hash,
        "n_params": count_parameters(module.net),
        "widths": built.widths,
        "metrics": {},
        "per_draw": {},
        "n_test": module.n_test,
        "test_draws": module.test_draws,
        "test_wrong": None,
        "curve": {},
        "steps": module.recipe.steps,
        "wall_s": None,
        "images_per_s": None,
        "device": ", then ".join(module.devices) or None,
        "threads": run.threads,
        "versions": versions() | module.arithmetic,
        "git": joined(module.code or [code_state()]),
        "data_checksums": built.data_checksums,
        "weights_sha256": None,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if error is not None:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        return record | {"status": "failed", "reason": reason}
    curve = thinned(module.curve)
    if reason := module.diverged or _not_finite(module):
        return record | {"status": "diverged", "reason": reason, "curve": curve}
    return record | _measured(module, curve, run.evaluate)


def _not_finite(module: Training) -> str | None:
    """Which number of the test is not finite: the last training step may ruin a net whose losses were finite."""
    bad = next((name for name, value in module.metrics.items() if not math.isfinite(value)), None)
    return f"{bad} is {module.metrics[bad]} after the last step" if bad else None


def _measured(module: Training, curve: dict[str, list], evaluate: str) -> dict[str, Any]:
    """What a finished run adds to its record, with the verdict whether it learned anything. What was measured is called
    by what it was measured on, "test/…" or "heldout/…".
    """
    tail = curve["train/loss"][-max(1, len(curve["train/loss"]) // 10) :]
    loss = sum(tail) / len(tail)
    reason = module.collapse(loss)
    return {
        "status": "collapsed" if reason else "ok",
        "reason": reason,
        "metrics": {"train/loss": loss, **_named(module.metrics, evaluate)},
        "per_draw": _named(module.per_draw, evaluate),
        "test_wrong": None if module.test_wrong is None else pack_wrong(module.test_wrong.numpy()),
        "curve": curve,
        "wall_s": round(module.train_s, 2),
        "weights_sha256": weights_sha256(module.net.state_dict()),
        "images_per_s": round(module.recipe.steps * module.recipe.batch_size / module.train_s, 1),
    }


def _named(measured: dict[str, Any], evaluate: str) -> dict[str, Any]:
    return {name.replace("test/", f"{evaluate}/", 1): value for name, value in measured.items()}


def thinned(curve: dict[str, list]) -> dict[str, list]:
    """The curve at `CURVE_POINTS` points at most, the last one among them."""
    n = len(curve["step"])
    stride = max(1, -(-n // CURVE_POINTS))
    return {name: values[(n - 1) % stride :: stride] if n else [] for name, values in curve.items()}
