"""Records: what is written is read, and what is wrong is refused with one line that names it."""

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stn.results.records import (
    RecordError,
    RunKey,
    config_hash,
    pack_wrong,
    read_record,
    read_records,
    record_path,
    run_key,
    unpack_wrong,
    write_records,
)


def path_of(folder, record):
    return record_path(folder, run_key(record))


def test_round_trip(tmp_path, record):
    given = record()
    path = path_of(tmp_path, given)
    write_records({path: given})
    assert path == tmp_path / "runs/mnist_r/fcn/fast/seed0.json"
    assert read_record(path) == given


def test_a_list_of_numbers_stays_on_one_line(tmp_path, record):
    write_records({path_of(tmp_path, record()): record()})
    text = path_of(tmp_path, record()).read_text()
    assert '"train/loss": [2.3, 0.5, 0.1]' in text
    assert len(text.splitlines()) < 60


@pytest.mark.parametrize("status", ["failed", "diverged", "collapsed"])
def test_a_bad_run_may_have_measured_nothing(tmp_path, bad, status):
    given = bad(status, n_params=None, widths=None, curve=None, steps=None, device=None)
    write_records({path_of(tmp_path, given): given})
    assert read_records(tmp_path) == [given]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"status": "fine"}, "status must be one of ok, failed, diverged, collapsed, got 'fine'"),
        ({"status": "collapsed"}, "reason is missing"),
        ({"status": "failed", "reason": "two\nlines"}, "reason: must be one line"),
        ({"n_params": None}, "n_params is None"),
        ({"seed": True}, "seed must be an integer, got True"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"schema": 1}, "schema must be one of 2, got 1"),
        ({"task": "a/b"}, "task must match pattern '^[A-Za-z0-9_-]+$', got 'a/b'"),
        ({"data": "fake"}, "data must be one of real, subset, standin, got 'fake'"),
        ({"config_hash": "xyz"}, "config_hash must match pattern"),
        ({"finished_at": "2025-01-01T00:00:00"}, "finished_at"),
        ({"git": {"revision": "abc"}}, "missing key 'git.dirty'"),
        ({"metrics": {"test/error_pct": float("nan")}}, "metrics.test/error_pct must be a finite number, got nan"),
        (
            {"metrics": {"test/error_pct": np.float32(1)}},
            "Object of type float32 is not JSON serializable",
        ),
        ({"metrics": {"test/error_pct": "1.0"}}, "metrics.test/error_pct must be a number, got '1.0'"),
        ({"metrics": {}}, "metrics are empty"),
        ({"config": {"rates": [0.1, float("inf")]}}, "config.rates[1] must be a finite number, got inf"),
        ({"config": {1: 2}}, "config"),
        ({"curve": {"step": [0, 1], "train/loss": [1.0]}}, "differ in length"),
        ({"per_draw": {"test/error_pct": [1.0]}}, "one number per draw (2)"),
        ({"n_test": 999}, "test_wrong has shape (2, 1000)"),
        ({"test_wrong": {"encoding": "?"}}, "test_wrong cannot be unpacked"),
        ({"surprise": 1}, "unknown key 'surprise'"),
    ],
)
def test_refuses_on_write(tmp_path, record, changes, says):
    path = path_of(tmp_path, record())
    with pytest.raises(RecordError) as error:
        write_records({path: record(**changes)})
    assert says in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not path.parent.exists()


def test_refuses_a_missing_key(tmp_path, record):
    given = record()
    del given["wall_s"]
    with pytest.raises(RecordError, match="missing key 'wall_s'"):
        write_records({path_of(tmp_path, given): given})


@pytest.mark.parametrize("other", ["seed1.json", "seed00.json", "../fast/../slow/seed0.json"])
def test_refuses_a_path_that_says_otherwise(tmp_path, record, other):
    path = path_of(tmp_path, record())
    with pytest.raises(RecordError, match="the path disagrees with the key"):
        write_records({path.parent / other: record()})
    write_records({path: record()})
    os.makedirs((path.parent / other).parent, exist_ok=True)
    (path.parent / other).write_bytes(path.read_bytes())
    with pytest.raises(RecordError, match="the path disagrees with the key"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda text: text[: len(text) // 2], "not JSON, perhaps torn"),
        (lambda text: "", "not JSON"),
        (lambda text: "[]", "record must be"),
        (lambda text: text.replace("12.5", "NaN"), "wall_s must be a finite number, got nan"),
        (lambda text: text.replace("12.5", "1e999"), "wall_s must be a finite number, got inf"),
        (lambda text: text.replace('"wall_s"', '"wall"'), "missing key 'wall_s'"),
    ],
)
def test_refuses_on_read(tmp_path, record, spoil, says):
    path = path_of(tmp_path, record())
    write_records({path: record()})
    path.write_text(spoil(path.read_text()))
    with pytest.raises(RecordError, match=says) as error:
        read_records(tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_a_record_in_the_wrong_place_is_an_error_not_a_gap(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "stray.json").write_text("{}")
    with pytest.raises(RecordError, match=r"stray\.json"):
        read_records(tmp_path)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_kill_while_writing_leaves_the_old_record(tmp_path, record, monkeypatch, step):
    path = path_of(tmp_path, record())
    write_records({path: record()})

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, die)
    with pytest.raises(KeyboardInterrupt):
        write_records({path: record(steps=999)})
    assert [p.name for p in path.parent.iterdir()] == ["seed0.json"]
    assert read_record(path)["steps"] == 200


def test_of_several_records_all_are_written_or_none(tmp_path, record, full_disk):
    records = {path_of(tmp_path, one): one for one in (record(seed=seed) for seed in range(3))}
    first, *_, last = records
    with full_disk(3), pytest.raises(OSError, match="no space"):
        write_records(records)
    with pytest.raises(RecordError, match="steps"):
        write_records({**records, last: records[last] | {"steps": "many"}})
    assert list(first.parent.iterdir()) == []
    write_records(records)
    assert read_records(tmp_path) == list(records.values())


def test_leftover_temporary_files_are_ignored(tmp_path, record):
    path = path_of(tmp_path, record())
    write_records({path: record()})
    (path.parent / ".seed0.json.abc.tmp").write_text("{")  # what a power cut leaves
    assert len(read_records(tmp_path)) == 1


def test_records_are_sorted_by_key(tmp_path, record):
    for model, seed in [("fcn", 10), ("fcn", 2), ("cnn", 3)]:
        given = record(model=model, seed=seed)
        write_records({path_of(tmp_path, given): given})
    assert [(r["model"], r["seed"]) for r in read_records(tmp_path)] == [("cnn", 3), ("fcn", 2), ("fcn", 10)]


def test_no_records(tmp_path):
    assert read_records(tmp_path) == []


def test_config_hash_is_that_of_the_cell():
    settings = {"lr": 0.01, "model": {"name": "fcn"}, "seed": 0}
    assert config_hash(settings) == config_hash({"seed": 5, "model": {"name": "fcn"}, "lr": 0.01})
    assert config_hash(settings) != config_hash(settings | {"lr": 0.02})
    assert len(config_hash(settings)) == 16


def test_run_key_reads_like_its_path():
    assert str(RunKey("mnist_r", "fcn", "fast", 3)) == "mnist_r/fcn/fast/seed3"


@given(hnp.arrays(bool, st.tuples(st.integers(0, 4), st.integers(0, 40))))
def test_wrong_round_trip(wrong):
    unpacked = unpack_wrong(json.loads(json.dumps(pack_wrong(wrong))))
    assert unpacked.dtype == bool
    np.testing.assert_array_equal(unpacked, wrong)


def test_wrong_is_small():
    wrong = np.random.default_rng(0).random((4, 10_000)) < 0.01
    assert len(pack_wrong(wrong)["data"]) < 5000  # the entropy of 40 000 such bits is 404 bytes


def test_wrong_refuses_other_arrays():
    with pytest.raises(ValueError, match="bool"):
        pack_wrong(np.zeros((2, 3)))
    packed = pack_wrong(np.zeros((2, 30), bool))
    with pytest.raises(ValueError, match="do not fill"):
        unpack_wrong(packed | {"shape": [2, 31 * 8]})
