"""The verb `bench`: a record has the name of what was measured, and none is lost to a smaller one."""

import json

import pytest

from experiments import bench
from experiments.cli import check_kinds, named
from experiments.config import compose_config, keys


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Call it with overrides: measures nothing; returns the models that each file has."""
    monkeypatch.setattr(bench, "measured", lambda what, run, options: {"ms": 1.23456})
    monkeypatch.setattr("stn.train.provenance.instructions", lambda: "AVX512, bf16")

    def call(*overrides):
        settings = named(compose_config("bench", [*overrides, f"results_dir={tmp_path}"]), "bench")
        check_kinds(settings, keys("bench"))
        bench.bench(settings)
        files = sorted((tmp_path / "bench").glob("*.json"))
        return {path.stem: list(json.loads(path.read_text())["models"]) for path in files}

    return call


def test_what_measures_something_else_has_another_name(measure):
    measure("what=[loop]")
    measure("what=[precision]", "models=[fcn]", "protocol=quick")
    found = measure("what=[precision]", "models=[cnn]", "task=mnist_rts")
    assert found == {
        "loop_cpu": bench.MODELS["loop"],
        "precision_cpu_mnist_rts": ["cnn"],
        "precision_cpu_quick": ["fcn"],
    }


def test_a_record_with_more_models_is_not_replaced(measure):
    before = measure("what=[step]", "models=[fcn,cnn]")
    with pytest.raises(ValueError, match=r"step_cpu\.json also has fcn: give models=\[cnn,fcn\]"):
        measure("what=[loop,step]", "models=[cnn]")
    assert measure("what=[step]", "models=[cnn,fcn]") == {"step_cpu": ["cnn", "fcn"]} != before


def test_all_models_are_looked_up_before_the_first_is_measured(measure, monkeypatch):
    monkeypatch.setattr(bench, "measured", None)
    with pytest.raises(Exception, match="st_cnn_afine"):
        measure("what=[loop]", "models=[fcn,st_cnn_afine]")
