"""experiments.reproduce runs what is missing, once, whatever was interrupted."""

import inspect
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from experiments import reproduce
from experiments.config import compose_config, compose_run
from stn.many.pool import Finished, Progress
from stn.results.records import read_record, write_records
from stn.train.provenance import instructions
from stn.train.stopped import OutOfTime
from tests.processes import alive, wait_until
from tests.tiny import run

VERB = Path(__file__).parents[1] / "train" / "toy_verb.py"
CELLS = ("mnist_r/fcn", "mnist_r/st_fcn_affine", "mnist_e/fcn", "mnist_e/st_fcn_affine")


@pytest.fixture
def overrides(toy_md5, tmp_path):
    """Four small cells of Table 1."""
    return [
        "table=table1",
        "protocol=smoke",
        "tasks=[mnist_r,mnist_e]",
        "models=[fcn,st_fcn_affine]",
        f"data_dir={toy_md5}",
        f"results_dir={tmp_path / 'results'}",
        f"output_dir={tmp_path / 'outputs'}",
        "device=cpu",
    ]


@pytest.fixture
def call(monkeypatch, capsys, overrides):
    """Call it with further overrides: runs the verb here, one run after the other; returns (what ran, what it said)."""
    ran, broken = [], []

    def one_by_one(stacks, workers, deadline, job):
        for index, (settings,) in enumerate(stacks):
            cell = f"{settings.task.name}/{settings.model.name}"
            ran.append(str(settings.key))
            yield Progress(index, 50)
            if cell in broken:
                yield Finished(index, None, RuntimeError("no\nroom"))
            else:
                yield Finished(index, job([settings], deadline, None), None)

    monkeypatch.setattr("stn.many.pool.run_all", one_by_one)
    monkeypatch.setattr("experiments.figures.draw_all", lambda *_: [])  # tested on their own
    monkeypatch.setattr(reproduce, "console", Console(width=300, highlight=False))
    verb = inspect.unwrap(reproduce.reproduce)

    def once(*more):
        ran.clear()
        try:
            verb(compose_config("reproduce", [*overrides, *more]))
        finally:
            once.ran, once.said = sorted(ran), capsys.readouterr().out
        return once.ran, once.said

    once.broken = broken
    return once


@pytest.fixture
def tiny(monkeypatch):
    """Runs of this process take ten steps, and count as good."""
    recipe = ["protocol.mnist.steps=10", "protocol.mnist.batch_size=4"]
    monkeypatch.setattr(reproduce, "compose_run", lambda overrides: compose_run([*overrides, *recipe]))
    monkeypatch.setattr("stn.tasks.classification.GUESSING_MARGIN", -10)


@pytest.fixture
def cell(overrides, tiny):
    """The settings of a cell, as reproduce runs them."""
    common = [
        o for o in overrides if o.split("=")[0] in ("protocol", "data_dir", "results_dir", "output_dir", "device")
    ]

    def settings(name, seed=0):
        task, model = name.split("/")
        return reproduce.compose_run([f"task={task}", f"model={model}", f"seed={seed}", "progress=false", *common])

    return settings


def put(settings, **changes):
    """Leaves a record of a run that was not made; returns its path."""
    path = settings.record_file
    like = run(settings)
    write_records({path: {**like, "finished_at": "2025-01-01T00:00:00+00:00", **changes}})
    return path


def keys(*cells, seed=0):
    return sorted(f"{cell}/smoke/seed{seed}" for cell in cells)


def test_what_is_missing_is_run_once_and_the_table_is_written(call, tiny, tmp_path):
    ran, said = call()
    assert ran == keys(*CELLS)
    assert "4 runs: 0 done, 0 failed, 4 missing" in said
    records = sorted((tmp_path / "results" / "runs").rglob("*.json"))
    before = [path.read_bytes() for path in records]
    assert [read_record(path)["status"] for path in records] == ["ok"] * 4
    table = tmp_path / "results" / "tables" / "table1_smoke.md"
    assert "Table 1" in table.read_text()
    assert "| FCN" in said
    ran, said = call()
    assert ran == []
    assert "4 runs: 4 done, 0 failed, 0 missing" in said
    assert [path.read_bytes() for path in records] == before


def test_a_dry_run_lists_and_runs_nothing(call, cell, tmp_path):
    put(cell("mnist_r/fcn"))
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    ran, said = call("dry_run=true", "seeds=2")
    assert ran == []
    assert "8 runs: 1 done, 0 failed, 7 missing" in said
    listed = re.findall(r"would run: (\S+)", said)
    assert sorted(listed) == sorted([*keys(*CELLS[1:]), *keys(*CELLS, seed=1)])
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


def test_out_of_time_before_what_the_others_begin_with_they_are_left(monkeypatch, call, tmp_path):
    deadlines = []

    def late(stacks, workers, deadline, job):
        deadlines.append(deadline)
        yield from (Finished(index, None, OutOfTime("stopped")) for index, _ in enumerate(stacks))

    monkeypatch.setattr("stn.many.pool.run_all", late)
    with pytest.raises(SystemExit, match=r"^75$"):
        call("table=table5", "tasks=null", "models=null", "time_budget_s=600")
    assert len(deadlines) == 1
    assert "the time budget is used up; 3 runs are left" in call.said


def test_an_estimate_goes_by_the_latest_run_of_the_model_in_that_precision(call, cell):
    def hours(*overrides):
        return float(re.search(r"about ([\d.]+) hours", call("dry_run=true", *overrides)[1])[1])

    def took(day, precision, hours, has=None):
        settings = cell("mnist_r/fcn", seed=10 - day).changed(precision=precision)
        versions = {"instructions": has or instructions()}
        put(settings, wall_s=3600.0 * hours, finished_at=f"2025-01-0{day}T00:00:00+00:00", versions=versions)

    assert "no estimate" in call("dry_run=true")[1]
    took(9, "float32", 1, has="those of another processor")
    assert "no estimate" in call("dry_run=true")[1]
    only = ("models=[fcn]", "tasks=[mnist_e]", "workers=1")
    took(1, "float32", 2)
    took(2, "bf16", 8)
    assert hours(*only) == pytest.approx(2, rel=0.1)
    took(3, "float32", 4)
    assert hours(*only) == pytest.approx(4, rel=0.1)
    assert hours(*only[:2], "workers=2") == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("status", ["failed", "diverged", "collapsed"])
def test_a_bad_run_is_named_and_only_listed_again_when_asked(call, cell, status):
    put(cell("mnist_e/fcn"), status=status, reason="why")
    only = ("tasks=[mnist_r,mnist_e]", "models=[fcn]", "dry_run=true")
    _, said = call(*only)
    assert "2 runs: 0 done, 1 failed, 1 missing" in said
    assert "failed: mnist_e/fcn/smoke/seed0" in said
    assert "would run: mnist_e/fcn" not in said
    assert "would run: mnist_e/fcn" in call(*only, "retry=true")[1]


def test_a_run_that_fills_several_rows_is_run_once_and_after_the_run_that_it_needs(call, tmp_path):
    _, said = call("table=table5", "tasks=null", "models=null", "dry_run=true")
    assert "2 runs: 0 done, 0 failed, 2 missing" in said
    listed = re.findall(r"would run: (\S+)", said)
    assert listed == keys("mnist_p/cnn") + keys("coloc_t/coloc_st", "coloc_tc/coloc_st")


def test_a_bad_run_is_replaced_when_asked(call, cell):
    path = put(cell("mnist_e/fcn"), status="collapsed", reason="why")
    only = ("tasks=[mnist_e]", "models=[fcn]")
    assert call(*only)[0] == []
    assert call(*only, "retry=true")[0] == keys("mnist_e/fcn")
    assert read_record(path)["status"] == "ok"


def test_what_is_done_is_done_again_when_forced(call, cell):
    path = put(cell("mnist_e/fcn"))
    only = ("tasks=[mnist_e]", "models=[fcn]")
    assert call(*only)[0] == []
    assert call(*only, "force=true")[0] == keys("mnist_e/fcn")
    assert read_record(path)["finished_at"] > "2025-01-01T00:00:00+00:00"


def test_a_record_of_other_settings_counts_as_missing_and_is_replaced(call, cell):
    path = put(cell("mnist_e/fcn"), config_hash="0123456789abcdef")
    only = ("tasks=[mnist_e]", "models=[fcn]")
    assert "0 done, 0 failed, 1 missing" in call(*only, "dry_run=true")[1]
    assert call(*only)[0] == keys("mnist_e/fcn")
    assert read_record(path)["config_hash"] != "0123456789abcdef"
    assert call(*only)[0] == []


def test_a_record_of_other_settings_is_in_no_table(call, tiny, cell, tmp_path):
    call("models=[fcn]")
    put(cell("mnist_e/fcn"), config_hash="0123456789abcdef")
    said = call("models=[fcn]", "tasks=[mnist_r]")[1]
    assert "left out, made with other settings: mnist_e/fcn/smoke/seed0" in said
    cells = (tmp_path / "results" / "tables" / "table1_smoke.md").read_text().partition("## Cells")[2]
    assert re.search(r"\| FCN +\| R +\| \d", cells)
    assert re.search(r"\| FCN +\| E +\| missing", cells)


def test_a_run_that_raises_does_not_stop_the_others_and_ends_the_command_with_its_name(call, tiny):
    call.broken.append("mnist_r/fcn")
    with pytest.raises(SystemExit) as stop:
        call("models=[fcn]")
    assert str(stop.value) == "mnist_r/fcn/smoke/seed0: RuntimeError: no room"
    assert call.ran == keys("mnist_r/fcn", "mnist_e/fcn")
    call.broken.clear()
    assert call("models=[fcn]")[0] == keys("mnist_r/fcn")


def test_seeds_add_runs_to_those_that_are_there(call, tiny):
    only = ("tasks=[mnist_r]", "models=[fcn]")
    assert call(*only)[0] == keys("mnist_r/fcn")
    assert call(*only, "seeds=3")[0] == keys("mnist_r/fcn", seed=1) + keys("mnist_r/fcn", seed=2)


# -- processes ------------------------------------------------------------------------------------------------------


def children(pid):
    """The processes whose parent is `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc to see the workers")
def test_killing_the_command_ends_its_workers_and_the_next_call_completes(
    monkeypatch, call, overrides, toy_md5, tmp_path
):
    # The ST-CNN takes seconds, the FCN a fraction of one: the first is under way when the second has its record.
    cells = ["tasks=[mnist_r]", "models=[fcn,st_cnn_affine]", "workers=2"]
    command = [sys.executable, str(VERB), "experiments.reproduce", *overrides, *cells]
    small = "protocol.mnist.batch_size=16"
    environment = os.environ | {"TOY_DATA_DIR": str(toy_md5), "TOY_EVERY_S": "0", "COLUMNS": "300"}
    environment["TOY_OVERRIDES"] = small
    monkeypatch.setattr(reproduce, "compose_run", lambda overrides: compose_run([*overrides, small]))
    runs = tmp_path / "results" / "runs"
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, cwd=tmp_path)
    try:
        wait_until(lambda: process.poll() is not None or list(runs.rglob("*.json")), 120)
        assert process.poll() is None
        workers = children(process.pid)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len(workers) >= 2
    wait_until(lambda: not any(map(alive, workers)), 30)
    (first,) = runs.rglob("*.json")  # no other run got to its end
    content = first.read_bytes()

    again = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert (again.returncode, again.stderr) == (0, "")
    assert "2 runs: 1 done, 0 failed, 1 missing" in again.stdout
    records = sorted(path for path in runs.rglob("*") if path.is_file())
    assert len(records) == 2  # none lost, none doubled, nothing half written
    assert [read_record(path)["model"] for path in records] == ["fcn", "st_cnn_affine"]
    assert first.read_bytes() == content
    assert (tmp_path / "results" / "tables" / "table1_smoke.md").exists()
    ran, said = call(*cells)
    assert ran == []
    assert "2 done, 0 failed, 0 missing" in said
