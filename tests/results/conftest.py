"""A complete, valid run record to vary, and a small table to put it in."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stn.results.records import pack_wrong


def make_record(model="fcn", task="mnist_r", seed=0, wrong: int | np.ndarray = 50, **changes) -> dict[str, Any]:
    """An ok record whose first `wrong` of 1000 digits are wrong in both draws (or with the given bool array)."""
    if not isinstance(wrong, np.ndarray):
        wrong = np.tile(np.arange(1000) < wrong, (2, 1))
    record = {
        "schema": 2,
        "status": "ok",
        "reason": None,
        "task": task,
        "model": model,
        "protocol": "fast",
        "seed": seed,
        "data": "real",
        "config": {"model": {"name": model}, "protocol_note": "40k steps", "seed": seed},
        "config_hash": "0123456789abcdef",
        "n_params": 123456,
        "widths": {"hidden": 205},
        "metrics": {"test/error_pct": 100.0 * float(wrong.mean()), "train/loss": 0.01},
        "per_draw": {"test/error_pct": [100.0 * float(draw.mean()) for draw in wrong]},
        "n_test": wrong.shape[1],
        "test_draws": wrong.shape[0],
        "test_wrong": pack_wrong(wrong),
        "curve": {"step": [0, 100, 200], "train/loss": [2.3, 0.5, 0.1], "train/error_pct": [90.0, 9.0, 2.0]},
        "steps": 200,
        "wall_s": 12.5,
        "images_per_s": 4096.0,
        "device": "cpu",
        "threads": 2,
        "versions": {"numpy": "2"},
        "git": {"revision": "abc", "dirty": False},
        "data_checksums": {"mnist": "00ff"},
        "finished_at": "2025-01-01T00:00:00+00:00",
    }
    return record | changes


def make_bad(status="collapsed", **changes) -> dict[str, Any]:
    """A record of a run that measured nothing."""
    nothing = dict.fromkeys(("n_test", "test_draws", "test_wrong", "wall_s", "images_per_s"))
    empty = {"metrics": {}, "per_draw": {}, "curve": {}}
    return make_record(**{"status": status, "reason": "error above 80 %", **nothing, **empty, **changes})


@pytest.fixture
def record() -> Callable[..., dict[str, Any]]:
    return make_record


@pytest.fixture
def bad() -> Callable[..., dict[str, Any]]:
    return make_bad


SMALL_TABLE = """
name: tablegolden
title: "Golden: two distortions"
metric: test/error_pct
unit: "% error"
lower_is_better: true
columns:
  - {task: mnist_r, label: R}
  - {task: mnist_e, label: E}
rows:
  - {model: fcn, label: FCN}
  - {model: st_fcn_affine, label: ST-FCN Aff}
  - {model: st_fcn_tps, label: ST-FCN TPS}
reference:
  fcn: {mnist_r: 2.1, mnist_e: 3.2}
  st_fcn_affine: {mnist_r: 1.2, mnist_e: 2.7}
  st_fcn_tps: {mnist_r: 1.1}
cited:
  Maxout: {mnist_r: 4.0}
claims:
  - id: st_improves
    statement: An ST improves the FCN.
    kind: improves
    tasks: [mnist_r, mnist_e]
    pairs: [[st_fcn_affine, fcn], [st_fcn_tps, fcn]]
  - id: tps_no_worse
    statement: TPS does not overfit R.
    kind: no_worse
    tasks: [mnist_r]
    pairs: [[st_fcn_tps, st_fcn_affine]]
    margin_pp: 0.2
"""


@pytest.fixture
def small_table(tmp_path) -> Callable[..., Any]:
    """Write the small table, with any replacements (old, new), to conf/table; returns its path."""

    def write(*replacements: tuple[str, str]):
        text = SMALL_TABLE
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "conf" / "table" / "tablegolden.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write
