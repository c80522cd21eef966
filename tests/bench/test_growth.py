"""How cost grows: every size is measured, and the arithmetic is that of the direct way."""

import json

import pytest

from stn.bench import growth as measured
from stn.results.bench_figures import growth_figure


def test_every_size_has_its_time_and_its_arithmetic(monkeypatch, tmp_path):
    monkeypatch.setattr(measured, "FILTERS", 2)
    monkeypatch.setattr(measured, "CANVASES", (28, 42))
    monkeypatch.setattr(measured, "BATCHES", (1, 2))
    monkeypatch.setattr(measured, "BATCH", 2)
    found = measured.growth(repeats=1)
    assert {name: [row["size"] for row in rows] for name, rows in found.items()} == {
        "canvas": [28, 42],
        "batch": [1, 2],
    }
    assert all(row["ms"] > 0 and row["gflop"] > 0 for rows in found.values() for row in rows)
    one, two = found["batch"]
    assert two["gflop"] == pytest.approx(2 * one["gflop"])
    record = {"device": "A processor", "instructions": "AVX2", "models": {"cnn": json.loads(json.dumps(found))}}
    assert growth_figure(tmp_path / "growth.png", record).read_bytes().startswith(b"\x89PNG")
