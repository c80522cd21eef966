"""Values between commas make several runs: those that can share a stack train as one program, and none notices."""

import pytest

from experiments import train
from stn.many import pool
from stn.many.pool import Finished
from stn.results.records import read_records

SMALL = ["protocol=smoke", "protocol.mnist.steps=20", "protocol.mnist.batch_size=4", "device=cpu", "progress=false"]


@pytest.fixture
def grid(monkeypatch, toy_mnist, tmp_path):
    """Call it with a folder and overrides: the groups that trained, and the records of all runs by setting.

    Jobs run here, one after the other.
    """
    groups = []

    def one_by_one(stacks, workers, deadline, job):
        for index, stack in enumerate(stacks):
            groups.append([(run.task.name, run.model.name, run.seed) for run in stack])
            try:
                yield Finished(index, job(stack, deadline, None), None)
            except Exception as error:
                yield Finished(index, None, error)

    monkeypatch.setattr(pool, "run_all", one_by_one)
    monkeypatch.setattr("stn.families.mnist.prepare_mnist", lambda data_dir: None)
    monkeypatch.setattr("stn.tasks.classification.GUESSING_MARGIN", -10)

    def call(folder, *overrides):
        groups.clear()
        results = tmp_path / folder
        places = [f"results_dir={results}", f"output_dir={tmp_path / 'outputs' / folder}"]
        try:
            train.train([*SMALL, *places, *overrides])
        finally:
            records = read_records(results / "sweeps")
            call.records = {
                (r["task"], r["model"], r["seed"], r["config"]["recipe"]["optimiser"]["lr"]): r for r in records
            }
        return list(groups), call.records

    return call


GRID = ["task=mnist_r,mnist_p", "model=fcn,st_fcn_affine", "seed=0,1"]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_grid_trains_as_a_stack_per_worker_and_ends_as_if_each_run_had_trained_alone(grid, workers):
    groups, together = grid("together", *GRID, "stack=true", f"workers={workers}")
    assert sorted(map(len, groups)) == ([8] if workers == 1 else [2, 3, 3])
    assert len({cell for group in groups for cell in group}) == 8
    groups, alone = grid("alone", *GRID, "stack=auto")  # device=cpu
    assert len(groups) == 8
    assert together.keys() == alone.keys()
    assert len(alone) == 8
    for key, record in alone.items():
        loss = record["metrics"]["test/loss"]
        assert together[key]["metrics"]["test/loss"] == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("stack", ["true", "false"])
def test_a_run_that_is_named_twice_is_trained_once(grid, stack):
    groups, records = grid(
        "twice", "task=mnist_r", "model=fcn", "seed=3,3", "protocol.mnist.optimiser.lr=0.01,1e-2", f"stack={stack}"
    )
    assert groups == [[("mnist_r", "fcn", 3)]]
    assert len(records) == 1


def test_what_cannot_run_is_refused_before_anything_trains(grid):
    for override in ("protocol.mnist.optimiser.lr=0.01,-1", "stack=perhaps", "workers=0", "trainer.devices=2"):
        with pytest.raises(ValueError, match=r"must be|allowed: 1"):
            grid("bad", "task=mnist_r", "model=fcn", "seed=0,1", override)
        assert grid.records == {}


def test_what_ends_a_stack_is_said_of_each_of_its_runs(grid, monkeypatch):
    def full(*more, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stn.train.run.train", full)
    with pytest.raises(SystemExit, match=r"fcn/smoke-\w+/seed0, mnist_r/fcn/smoke-\w+/seed1: OSError: .*No space"):
        grid("full", "task=mnist_r", "model=fcn", "seed=0,1", "stack=true")
    assert grid.records == {}


def test_a_time_budget_ends_a_stack_cleanly(grid, capsys):
    runs = ["task=mnist_r", "model=fcn", "seed=0,1", "stack=true", "protocol.mnist.steps=200"]
    with pytest.raises(SystemExit) as ended:
        grid("late", *runs, "time_budget_s=0.001")
    assert ended.value.code == 75
    said = capsys.readouterr().out
    assert "2 runs are not over" in said
    assert said.count("not over") == 3
    assert len(grid("late", *runs)[1]) == 2


def test_given_again_nothing_is_trained_twice_and_a_table_says_how_all_ended(grid, capsys):
    runs = ["task=mnist_r", "model=fcn,st_fcn_affine", "seed=0,1"]
    _, first = grid("twice", *runs)
    head, _, *rows = capsys.readouterr().out.splitlines()[-6:]
    assert head.split()[:4] == ["model", "seed", "status", "error_pct"]
    assert [row.split()[:2] for row in rows[:4]] == [[m, s] for m in ("fcn", "st_fcn_affine") for s in "01"]
    groups, again = grid("twice", *runs)
    assert (groups, again) == ([], first)
    assert capsys.readouterr().out.count("as its record says; force=true runs it again") == 4
    groups, forced = grid("twice", "task=mnist_r", "model=fcn", "seed=0,1", "force=true")
    assert len(groups) == 2
    key = next(key for key in first if key[1:3] == ("fcn", 0))
    assert forced[key]["metrics"] == first[key]["metrics"]
