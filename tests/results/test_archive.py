"""Records that travel in an archive arrive whole, once, and never over others."""

import io
import tarfile

import pytest

from experiments import records as verb
from stn.results.archive import merge, pack
from stn.results.records import RecordError, read_records, record_path, run_key, write_records


@pytest.fixture
def three(tmp_path, record):
    """A results folder with three records, and the records."""
    records = [record("fcn", "mnist_r", seed) for seed in range(3)]
    for one in records:
        write_records({record_path(tmp_path / "home", run_key(one)): one})
    return tmp_path / "home", records


def test_the_verb_packs_and_merges_and_says_how_many(tmp_path, three, capsys):
    home, there, archive = three[0], tmp_path / "there", tmp_path / "a.tgz"
    verb.records({"pack": str(archive), "merge": None, "results_dir": str(home)})
    verb.records({"pack": None, "merge": str(archive), "results_dir": str(there)})
    said = capsys.readouterr().out
    assert f"3 records in {archive}" in said
    assert "3 new records, 0 were there already" in said
    assert read_records(there) == read_records(home)
    with pytest.raises(ValueError, match="either pack"):
        verb.records({"pack": str(archive), "merge": str(archive), "results_dir": str(home)})


def tar_of(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_what_was_packed_arrives_and_a_second_merge_changes_nothing(tmp_path, three):
    home, _ = three
    assert pack(home, tmp_path / "a.tgz") == 3
    there = tmp_path / "there"
    assert len(merge(tmp_path / "a.tgz", there).new) == 3
    assert read_records(there) == read_records(home)
    before = {path: path.read_bytes() for path in there.rglob("*.json")}
    assert [len(part) for part in merge(tmp_path / "a.tgz", there)] == [0, 3]
    assert before == {path: path.read_bytes() for path in there.rglob("*.json")}


def test_records_of_sweeps_and_of_drawn_data_travel_to_folders_of_their_own(tmp_path, three, record):
    home, records = three
    folders = ("sweeps", "standin", "sweeps/standin")
    for folder in folders:
        one = record(seed=7, data="standin" if folder.endswith("standin") else "real")
        write_records({record_path(home / folder, run_key(one)): one})
    assert pack(home, tmp_path / "a.tgz") == 6
    there = tmp_path / "there"
    assert len(merge(tmp_path / "a.tgz", there).new) == 6
    assert read_records(there) == records
    assert all(read_records(there / folder) == read_records(home / folder) != [] for folder in folders)


def test_one_conflict_and_nothing_is_merged(tmp_path, three):
    home, records = three
    pack(home, tmp_path / "a.tgz")
    there = tmp_path / "there"
    path = record_path(there, run_key(records[1]))
    write_records({path: {**records[1], "wall_s": 1e6}})
    with pytest.raises(RecordError, match=r"nothing merged, 1 differ.*seed1\.json"):
        merge(tmp_path / "a.tgz", there)
    assert [path] == list(there.rglob("*.json"))


@pytest.mark.parametrize(
    "name", ["../runs/a/b/c/seed0.json", "/runs/a/b/c/seed0.json", "runs/../b/c/seed0.json", "runs/a/b/c/notes.txt"]
)
def test_a_member_that_is_no_record_is_refused(tmp_path, name):
    with pytest.raises(RecordError, match="is no run record"):
        merge(tar_of(tmp_path / "a.tgz", [(name, b"{}")]), tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_a_link_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        link = tarfile.TarInfo("runs/mnist_r/fcn/quick/seed0.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(RecordError, match="is no run record"):
        merge(tmp_path / "a.tgz", tmp_path / "there")


def test_a_damaged_member_or_archive_is_named_and_nothing_is_written(tmp_path, three):
    home, records = three
    good = record_path(home, run_key(records[0])).read_bytes()
    changed = record_path(tmp_path / "changed", run_key(records[0]))
    write_records({changed: {**records[0], "wall_s": 9.0}})
    slower = changed.read_bytes()
    name = "runs/mnist_r/fcn/{}/seed0.json".format(records[0]["protocol"])
    other = name.replace("seed0", "seed1")
    for members, said in (
        ([(name, good), (other, good[:50])], "not JSON"),
        ([(name, good), (other, good)], "seed"),  # says it is seed 0
        ([("standin/" + name, good)], "wrong folder"),
        ([(name, good), (name, slower)], "twice"),
    ):
        with pytest.raises(RecordError, match=said):
            merge(tar_of(tmp_path / "a.tgz", members), tmp_path / "there")
        assert not (tmp_path / "there").exists()
    pack(home, tmp_path / "whole.tgz")
    content = (tmp_path / "whole.tgz").read_bytes()
    middle = len(content) // 2
    flipped = [content[:i] + bytes([content[i] ^ 16]) + content[i + 1 :] for i in (20, middle)]
    for spoilt in (content[:middle], *flipped):
        (tmp_path / "torn.tgz").write_bytes(spoilt)
        with pytest.raises(RecordError, match=r"torn\.tgz"):
            merge(tmp_path / "torn.tgz", tmp_path / "there")
        assert not (tmp_path / "there").exists()


def test_nothing_to_pack_is_said(tmp_path):
    with pytest.raises(RecordError, match="no records to pack"):
        pack(tmp_path, tmp_path / "a.tgz")
