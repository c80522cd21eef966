"""kill -9 at random moments, a few times; campaign.py does it some hundred times."""

import gzip
import hashlib
import os
import random
import time
from pathlib import Path

import kills
import pytest
from kills import Scenario, folders_of, harass, record_parts, small_run, train_runs
from zygote import Child, write_toy_digits

from stn.data.staging import staging
from stn.results.records import read_record
from tests.processes import wait_until


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    return write_toy_digits(tmp_path_factory.mktemp("digits"))


def test_a_killed_training_ends_at_the_numbers_of_an_uninterrupted_one(digits, tmp_path):
    runs = [[small_run(digits, "fcn", steps=150)]]
    found = harass(Scenario("training", train_runs, (digits, runs), record_parts), tmp_path, 2, random.Random(5))
    assert found.kills == 2


@pytest.mark.parametrize(
    ("task", "parts"),
    [
        (kills.prepare_svhn, ("drawn/train", "unpacked/train", "crops/train_64")),
        (kills.prepare_birds, ("birds/CUB_200_2011", "cache/cub_32px")),
    ],
)
def test_killed_preparations_end_as_an_uninterrupted_one(tmp_path, task, parts):
    assert harass(Scenario("data", task, (), folders_of(*parts)), tmp_path, 3, random.Random(5)).ends >= 1


def test_a_killed_unpacking_and_a_killed_download_leave_whole_files(digits, tmp_path):
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    for path in digits.iterdir():
        (zipped / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    raw = folders_of(*(f"data/MNIST/raw/{path.name}" for path in digits.iterdir()))
    harass(Scenario("MNIST", kills.unzip_mnist, (zipped, digits), raw), tmp_path / "raw", 2, random.Random(5))
    content = random.Random(1).randbytes(1 << 18)
    with kills.slow_site(content) as url:
        arguments = (url, hashlib.md5(content).hexdigest(), len(content))
        site = Scenario("download", kills.download, arguments, folders_of("data/file"))
        harass(site, tmp_path / "download", 3, random.Random(5))


def test_records_are_whole_whenever_their_writer_is_killed(digits, tmp_path):
    ended = Child(tmp_path / "like", train_runs, digits, [[small_run(digits, "fcn", steps=50)]]).wait()
    assert ended.status == 0, ended.said
    (path,) = (tmp_path / "like" / "results").rglob("seed0.json")
    writing = Scenario("records", kills.write_many, (read_record(path), 15), record_parts)
    assert harass(writing, tmp_path / "many", 4, random.Random(5)).kills == 4


def stage(parent: Path) -> None:
    """Works in a temporary folder until it is killed."""
    with staging(parent, ".work-") as folder:
        (folder / "half").write_bytes(bytes(1000))
        (parent / "ready").touch()
        time.sleep(300)


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_works_in_is_not(tmp_path):
    child = Child(tmp_path, stage, tmp_path)
    wait_until(lambda: (tmp_path / "ready").exists() or child.process.exitcode is not None, 60)
    assert child.process.exitcode is None, child.said.read_text()
    (left,) = tmp_path.glob(".work-*")
    with staging(tmp_path, ".work-") as mine:
        assert sorted(tmp_path.glob(".work-*")) == sorted([left, mine])
        assert (left / "half").exists()
    os.kill(child.process.pid, 9)
    child.process.join()
    assert list(tmp_path.glob(".work-*")) == [left]
    with staging(tmp_path, ".work-") as mine:
        assert list(tmp_path.glob(".work-*")) == [mine]
    assert list(tmp_path.glob(".work-*")) == []
