"""--multirun trains runs that can share a stack as one program, and no run notices."""

import sys

import pytest

from experiments import train
from experiments.config import CONF
from stn.many import pool
from stn.results.records import read_records

SMALL = ["protocol=smoke", "protocol.mnist.steps=20", "protocol.mnist.batch_size=4", "device=cpu", "progress=false"]


@pytest.fixture
def multirun(monkeypatch, toy_mnist, tmp_path):
    """Call it with a folder and overrides: the groups that trained as stacks, and the records of all jobs by run."""
    train_stack, groups = pool.train_stack, []

    def noted(stack, *more, **named):
        groups.append([(s.task.name, s.model.name, s.seed) for s in stack])
        return train_stack(stack, *more, **named)

    monkeypatch.setattr(pool, "train_stack", noted)
    monkeypatch.setattr("stn.tasks.classification.GUESSING_MARGIN", -10)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def call(folder, *overrides):
        groups.clear()
        results = tmp_path / folder
        places = [f"results_dir={results}", f"output_dir={tmp_path / 'outputs' / folder}"]
        arguments = ["--multirun", "--config-path", str(CONF), *SMALL, *places, *overrides]
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        try:
            train.train()
        finally:
            found = read_records(results / "sweeps")
            call.records = {
                (r["task"], r["model"], r["seed"], r["config"]["recipe"]["optimiser"]["lr"]): r for r in found
            }
        return list(groups), call.records

    return call


GRID = ["task=mnist_r,mnist_p", "model=fcn,st_fcn_affine", "seed=0,1"]


def test_a_grid_trains_as_one_stack_per_network_and_ends_as_if_each_run_had_trained_alone(multirun):
    groups, together = multirun("together", *GRID, "stack=true")
    tasks = ("mnist_r", "mnist_p")
    assert groups == [[(task, model, seed) for task in tasks for seed in (0, 1)] for model in ("fcn", "st_fcn_affine")]
    groups, alone = multirun("alone", *GRID, "stack=auto")  # device=cpu
    assert groups == []
    assert together.keys() == alone.keys()
    assert len(alone) == 8
    for key, record in alone.items():
        loss = record["metrics"]["test/loss"]
        assert together[key]["metrics"]["test/loss"] == pytest.approx(loss, rel=1e-3)


def test_a_job_that_cannot_run_leaves_the_stack_of_the_others_alone(multirun):
    with pytest.raises(ValueError, match="lr must be 0 or more"):
        multirun("bad", "task=mnist_r", "model=fcn", "seed=0,1", "protocol.mnist.optimiser.lr=0.01,-1", "stack=true")
    assert {key[2:] for key in multirun.records} == {(0, 0.01), (1, 0.01)}


def test_a_setting_of_stack_that_is_none_is_refused(multirun):
    with pytest.raises(ValueError, match="stack must be one of auto, True, False, got 'perhaps'"):
        multirun("perhaps", "task=mnist_r", "model=fcn", "seed=0,1", "stack=perhaps")


def test_what_ends_a_stack_ends_each_of_its_jobs(multirun, monkeypatch):
    def full(stack, *more, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pool, "train_stack", full)
    with pytest.raises(OSError, match="No space"):
        multirun("full", "task=mnist_r", "model=fcn", "seed=0,1", "stack=true")
    assert multirun.records == {}


def test_a_time_budget_ends_a_stack_cleanly(multirun, capsys):
    grid = ["task=mnist_r", "model=fcn", "seed=0,1", "stack=true", "protocol.mnist.steps=200"]
    groups, records = multirun("late", *grid, "time_budget_s=0")
    assert len(groups) == 1
    assert records == {}
    assert capsys.readouterr().out.count("the same command goes on from there") == 2
    assert len(multirun("late", *grid)[1]) == 2
