import csv
import gzip
import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from kills import write_archive

from stn.data import cub, cub_annotations, subset, svhn
from stn.data.cub import load_cub, prepare_cub, prepare_cub_part
from stn.data.cub_annotations import FORMS, read_annotations
from stn.data.digit_struct import read_digit_struct
from stn.data.errors import DataError
from stn.data.subset import Part, check_part, place_part, read_part
from stn.data.svhn import load_svhn, prepare_svhn_part
from stn.data.svhn_standin import write_digit_struct, write_standin
from stn.results.tables import load_table
from tests.errors import check_error

TABLES = Path(__file__).parents[2] / "conf" / "table"
PICTURES = Path(__file__).parents[2] / subset.NEARBY
real = pytest.mark.skipif(not PICTURES.is_dir(), reason=f"the real pictures are not in {PICTURES}")


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def part_of(folder, names, **checksums):
    return Part("toy", {name: md5(folder / name) for name in names}, checksums)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    monkeypatch.setattr(subset, "NEARBY", tmp_path / "nearby")
    monkeypatch.delenv(subset.SOURCES_VARIABLE, raising=False)


# The committed lists


def test_the_lists_are_what_the_tables_say():
    part = read_part("svhn")
    assert list(part.files) == [f"{s}/{k + 1}.png" for s, n in (("train", 2000), ("test", 1000)) for k in range(n)]
    birds = read_part("cub")
    photographs = [name for name in birds.files if name.startswith("images/")]
    assert {name for name in birds.files if name not in photographs} == FORMS.keys()
    assert (len(photographs), len({name.split("/")[1] for name in photographs})) == (659, 12)
    assert all(re.fullmatch("[0-9a-f]{32}", digest) for p in (part, birds) for digest in p.files.values())
    said = {path.stem: load_table(path).part for path in TABLES.glob("*.yaml")}
    numbers = "2 000 of 33 402 training and 1 000 of 13 068 test numbers"
    species = "12 of 200 species, 360 of 5 994 training and 299 of 5 794 test photographs"
    assert {name: text for name, text in said.items() if text} == {
        **dict.fromkeys(("table2", "table2boxes", "table2drawn"), numbers),
        **dict.fromkeys(("table3", "tablecubcoloc", "tablecubspecies"), species),
    }


@pytest.mark.parametrize("content", [None, "title: a", "files: none.md5\ntitle: a", "[", "files: 3\ntitle: a"])
def test_a_list_that_is_none_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(DataError) as error:
        read_part("mine", tmp_path)
    check_error(error, tmp_path / "mine.yaml")


# Placing and checking


@pytest.fixture
def two_files(tmp_path):
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    (source / "a" / "1.png").write_bytes(b"one")
    (source / "b.txt").write_bytes(b"two")
    (source / "other.txt").write_bytes(b"not listed")
    return source, part_of(source, ["a/1.png", "b.txt"])


def test_exactly_the_listed_files_are_placed_once(two_files, tmp_path):
    source, part = two_files
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(source / "b.txt", elsewhere / "b.txt")
    made = []
    for _ in range(2):
        folder = place_part(part, [source, elsewhere], tmp_path / "parts" / "toy", made.append)
        check_part(part, folder, [])
    assert len(made) == 1
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == ["a/1.png", "b.txt"]
    assert [p.name for p in folder.parent.iterdir()] == ["toy"]


@pytest.mark.parametrize("fault", ["missing", "changed"])
def test_a_fault_of_the_source_is_named_and_nothing_is_placed(two_files, tmp_path, fault):
    source, part = two_files
    (source / "b.txt").unlink() if fault == "missing" else (source / "b.txt").write_bytes(b"three")
    with pytest.raises(DataError) as error:
        place_part(part, [source], tmp_path / "parts" / "toy", lambda tree: None)
    check_error(error, "b.txt", source)
    assert not any((tmp_path / "parts").glob("*"))


@pytest.mark.parametrize(
    ("fault", "name", "words"),
    [
        (lambda folder: (folder / "b.txt").unlink(), "b.txt", "is missing"),
        (lambda folder: (folder / "mark").unlink(), "mark", "is missing"),
        (lambda folder: (folder / "a" / "1.png").write_bytes(b"another"), "a/1.png", "is not the official file"),
        (lambda folder: (folder / "a" / "2.png").write_bytes(b"one"), "a/2.png", "is not of the part toy"),
    ],
)
def test_a_missing_changed_or_extra_file_is_named(two_files, tmp_path, fault, name, words):
    source, part = two_files
    folder = place_part(part, [source], tmp_path / "toy", lambda tree: (tree / "mark").write_text(""))
    check_part(part, folder, ["mark"])
    fault(folder)
    with pytest.raises(DataError) as error:
        check_part(part, folder, ["mark"])
    check_error(error, folder / name, words, "made anew")


# House numbers


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    for split, seed in (("train", 5), ("test", 6)):
        write_standin(folder / split, 8, seed)
        (folder / split / "standin.json").unlink()
    return folder


@pytest.fixture
def numbers(drawn):
    names = [f"{split}/{k}.png" for split, ks in (("train", (1, 2, 5)), ("test", (3, 4))) for k in ks]
    all_numbers = {s: {n.name: n for n in read_digit_struct(drawn / s / "digitStruct.mat")} for s in ("train", "test")}
    chosen = {s: [all_numbers[s][n.split("/")[1]] for n in names if n.startswith(s)] for s in all_numbers}
    return part_of(drawn, names, boxes_sha256=svhn._boxes_sha256(chosen))


def write_table(path, all_numbers):
    with gzip.open(path, "wt", newline="") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["name", "label", "top", "left", "height", "width"])
        for number in all_numbers:
            for label, (left, top, width, height) in zip(number.labels, number.boxes, strict=True):
                rows.writerow([number.name, label, top, left, height, width])


@pytest.mark.parametrize("source", ["unpacked", "archives", "pictures and tables"])
def test_a_part_of_svhn_is_the_same_from_every_source(drawn, numbers, tmp_path, monkeypatch, source):
    data_dir = tmp_path / "data"
    if source == "unpacked":
        shutil.copytree(drawn, data_dir / "SVHN")
    elif source == "archives":
        (data_dir / "SVHN").mkdir(parents=True)
        paths = {
            split: write_archive(drawn / split, data_dir / "SVHN" / f"{split}.tar.gz") for split in ("train", "test")
        }
        known = {split: (path.stat().st_size, md5(path)) for split, path in paths.items()}
        monkeypatch.setattr(svhn, "ARCHIVES", svhn.ARCHIVES | known)
    else:
        monkeypatch.setenv(subset.SOURCES_VARIABLE, str(tmp_path / "theirs"))
        for name in numbers.files:
            (tmp_path / "theirs" / "svhn" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(drawn / name, tmp_path / "theirs" / "svhn" / name)
        for split in ("train", "test"):
            table = tmp_path / "theirs" / "svhn" / f"{split}_digitStruct_full.csv.gz"
            write_table(table, read_digit_struct(drawn / split / "digitStruct.mat"))
    folder = prepare_svhn_part(numbers, data_dir)
    assert folder == data_dir / "subset" / "toy"
    for split, chosen in (("train", [0, 1, 4]), ("test", [2, 3])):
        whole = load_svhn(drawn.parent / drawn.name, split, 64)
        part = load_svhn(folder, split, 64)
        assert (part.standin, part.source_pictures) == (False, len(chosen))
        for name in ("images", "labels", "lengths", "boxes_px"):
            assert np.array_equal(getattr(part, name).numpy(), getattr(whole, name)[chosen].numpy())
    assert prepare_svhn_part(numbers, tmp_path / "data") == folder


def test_boxes_that_are_not_the_official_ones_are_named(drawn, numbers, tmp_path):
    shutil.copytree(drawn, tmp_path / "SVHN")
    folder = prepare_svhn_part(numbers, tmp_path)
    path = folder / "SVHN" / "test" / "digitStruct.mat"
    moved = [number._replace(boxes=number.boxes + 1) for number in read_digit_struct(path)]
    write_digit_struct(path, moved)
    with pytest.raises(DataError) as error:
        prepare_svhn_part(numbers, tmp_path)
    check_error(error, "the boxes in", folder / "SVHN", "made anew")


def test_without_pictures_the_first_is_named_and_where_it_was_sought(numbers, tmp_path):
    with pytest.raises(DataError) as error:
        prepare_svhn_part(numbers, tmp_path)
    check_error(error, "train/1.png (5 of the 5 files", tmp_path / "SVHN", tmp_path / "nearby", "STN_DATA")


# Birds


@pytest.fixture
def birds(tmp_path, monkeypatch):
    """Species 2 and 3 of 4 stand-in species, in the place of the official ones."""
    root = cub.ROOT
    from stn.data.cub_standin import write_standin as write_birds

    whole = write_birds(tmp_path / "whole", n_classes=4, n_per_class=4, seed=3, size_px=96)
    (whole / "standin.json").unlink()
    monkeypatch.setattr(cub_annotations, "OFFICIAL_COUNTS", (4, 16, 8, 15))
    photographs = [
        p.relative_to(whole) for p in sorted((whole / "images").rglob("*.jpg")) if p.parent.name[:3] in ("002", "003")
    ]
    part = part_of(whole, [*FORMS, *map(str, photographs)])
    for name in part.files:
        (tmp_path / root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(whole / name, tmp_path / root / name)
    return whole, part


def test_a_part_of_cub_has_its_species_alone(birds, tmp_path):
    whole, part = birds
    folder = prepare_cub_part(part, tmp_path)
    some, everything = read_annotations(folder / cub.ROOT), read_annotations(whole)
    assert (some.source, everything.source) == ("subset", "real")
    assert some.classes == everything.classes[1:3]
    index = np.flatnonzero(np.isin(everything.labels, (1, 2)))
    assert some.image_files == tuple(everything.image_files[i] for i in index)
    assert np.array_equal(some.labels, everything.labels[index] - 1)
    for name in ("is_train", "boxes_px", "parts"):
        assert np.array_equal(getattr(some, name), getattr(everything, name)[index])
    prepare_cub(folder, 48, "subset")
    train = load_cub(folder, "train", 48)
    assert (len(train), train.source, len(train.classes)) == (4, "subset", 2)
    prepare_cub_part(part, tmp_path)  # the caches beside it are nobody's fault
    (folder / cub.ROOT / cub_annotations.PART_MARK).write_text("")
    with pytest.raises(DataError, match="of another list"):
        prepare_cub_part(part, tmp_path)


def test_missing_photographs_are_named_where_all_are_wanted(birds, tmp_path):
    with pytest.raises(DataError) as error:
        read_annotations(tmp_path / cub.ROOT)
    check_error(error, "is missing (8 of the 16 listed images are)")


# The real pictures


@real
def test_the_real_part_of_svhn(tmp_path, monkeypatch):
    monkeypatch.setattr(subset, "NEARBY", PICTURES)
    folder = prepare_svhn_part(read_part("svhn"), tmp_path)
    train, test = (load_svhn(folder, split, 64) for split in ("train", "test"))
    assert (len(train), len(test)) == (2000, 1000)
    assert [
        ("".join(map(str, split.labels[i, : split.lengths[i]].tolist())))
        for split, i in [
            (train, 0),
            (train, 1),
            (train, 2),
            (test, 0),
            (test, 1),
            (test, 2),  # level
            (train, 261),
            (test, 20),
            (test, 858),
            (train, 1163),
            (train, 1250),  # out of order, stacked, rising, falling
        ]
    ] == ["19", "23", "25", "5", "210", "6", "124", "129", "780", "436", "165"]
    assert train.lengths.bincount().tolist() == [0, 272, 1110, 530, 88]
    beyond = train.boxes_px[[251, 476]]  # past the picture's edge: held whole all the same
    assert beyond.min() > -1  # of 252.png, 1 px that may be the rounding of the box
    assert beyond.max() <= 64


@real
def test_the_real_part_of_cub(tmp_path, monkeypatch):
    monkeypatch.setattr(subset, "NEARBY", PICTURES)
    folder = prepare_cub_part(read_part("cub"), tmp_path)
    annotations = read_annotations(folder / cub.ROOT)
    assert (len(annotations.labels), int(annotations.is_train.sum()), annotations.source) == (659, 360, "subset")
    assert [name[:3] for name in annotations.classes] == [f"{k:03d}" for k in range(1, 13)]
    assert np.bincount(annotations.labels[~annotations.is_train]).tolist() == [
        30,
        30,
        28,
        30,
        14,
        11,
        23,
        18,
        29,
        30,
        30,
        26,
    ]
