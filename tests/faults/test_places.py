"""Full disks, folders that take nothing, two commands at once: one line with the remedy, and nothing is lost."""

import campaign
import kills
import places
import pytest
from campaign import one_line
from kills import record_parts, small_run, train_runs
from zygote import Child, write_toy_digits

from stn.many import pool
from stn.results.records import read_record
from stn.train import run as run_module
from stn.train.claim import claimed
from stn.train.stopped import Busy
from tests.processes import wait_until


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_toy_digits(tmp_path_factory.mktemp("digits"))


def test_folders_that_take_nothing_are_found_before_the_training(digits, tmp_path):
    rows = list(campaign.read_only(tmp_path, digits, 0, None))
    assert [row.fault.split()[1] for row in rows] == ["results", "outputs", "data"]
    assert all("make that folder writable" in row.seen for row in rows), [row.seen for row in rows]


def test_a_training_that_cannot_write_goes_on_when_it_can(digits, tmp_path):
    settings = (digits, *small_run(digits, "fcn", steps=100))
    child = Child(tmp_path / "full", places.with_small_files, 50_000, places.train_command, *settings)
    line = one_line(child.wait())
    assert "File too large" in line
    assert "give the same command again" in line
    assert record_parts(tmp_path / "full") == {}  # a full disk says nothing about the run
    assert not list((tmp_path / "full").rglob("*.tmp"))
    for name in ("full", "other"):
        ended = Child(tmp_path / name, places.train_command, *settings).wait()
        assert ended.status == 0, ended.said
    assert record_parts(tmp_path / "full") == record_parts(tmp_path / "other") != {}


def test_a_preparation_on_a_full_disk_leaves_nothing_half_done(tmp_path):
    if not places.can_mount(tmp_path / "try"):
        pytest.skip("mounting is not allowed here")
    parts = kills.folders_of(*campaign.SVHN)
    with places.small_disk(tmp_path / "disk", 600) as resize:
        task = (places.said_in_a_line, kills.prepare_svhn)
        line = one_line(Child(tmp_path / "disk", *task, said=tmp_path / "said.txt").wait())
        assert "No space left on device" in line
        resize(1 << 16)
        ended = Child(tmp_path / "disk", *task, said=tmp_path / "said.txt").wait()
        assert ended.status == 0, ended.said
        Child(tmp_path / "whole", *task).wait()
        assert parts(tmp_path / "disk") == parts(tmp_path / "whole")


def test_a_run_that_another_command_has_finished_meanwhile_is_not_trained_again(toy_mnist, settings_of, monkeypatch):
    first, second = (settings_of("mnist_r", "fcn", f"seed={k}", steps=50, batch_size=4) for k in range(2))
    nothing = {str(settings.record_file): None for settings in (first, second)}
    (done,) = pool.train_stack([first], None, None)
    trained, built = [], run_module.build

    def noted(run):
        trained.append(run.seed)
        return built(run)

    monkeypatch.setattr(run_module, "build", noted)
    records = pool.train_stack([first, second], None, None, nothing)
    assert trained == [1]
    assert records[0] == read_record(first.record_file) == {**done, "git": records[0]["git"]}
    listed = {path: record["finished_at"] for path, record in zip(nothing, records, strict=True)}
    pool.train_stack([first], None, None, listed)  # the record that was listed is to be replaced
    assert trained == [1, 0]


def test_a_second_training_of_a_run_is_refused_in_a_line(digits, tmp_path, settings_of):
    child = Child(tmp_path, train_runs, digits, [[small_run(digits, "fcn", steps=100_000)]])
    wait_until(lambda: list(tmp_path.rglob("last.ckpt")) or child.process.exitcode is not None, 300)
    assert child.process.exitcode is None, child.said.read_text()
    settings = settings_of("mnist_r", "fcn", f"output_dir={tmp_path / 'outputs'}")
    with pytest.raises(Busy, match="give the same command again when that has ended"), claimed([settings]):
        pass
    child.kill_after(0)
    with claimed([settings]):
        pass
