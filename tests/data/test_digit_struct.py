import itertools
import re

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn.data import digit_struct
from stn.data.digit_struct import HouseNumber, cached_digit_struct, read_digit_struct, reading_order
from stn.data.errors import DataError
from stn.data.svhn_standin import write_digit_struct
from tests.errors import check_error


def same(a, b):
    pairs = zip(a, b, strict=True)
    return all(x[:2] == y[:2] and np.array_equal(x.boxes, y.boxes) for x, y in pairs)


def in_a_row(rng, n):
    """Boxes of n digits, from the left."""
    left = np.sort(rng.uniform(-3, 50, n))[:, None] + 30 * np.arange(n)[:, None]
    return np.round(np.concatenate([left, rng.uniform(-3, 9, (n, 1)), rng.uniform(1, 50, (n, 2))], axis=1))


def numbers_of(*lengths):
    rng = np.random.default_rng(1)
    return [
        HouseNumber(
            f"{i + 1}.png",
            tuple(rng.integers(0, 10, n).tolist()),
            in_a_row(rng, n),
        )
        for i, n in enumerate(lengths)
    ]


@pytest.fixture(scope="session")
def small_mat(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "digitStruct.mat"
    write_digit_struct(path, numbers_of(1, 3, 2))
    return path, path.read_bytes()


def test_records_come_back_as_written(tmp_path):
    numbers = numbers_of(1, 2, 5, 1, 3, 6)
    write_digit_struct(tmp_path / "d.mat", numbers)
    assert same(read_digit_struct(tmp_path / "d.mat"), numbers)


def test_the_example_of_the_format(tmp_path):
    """Written here by plain h5py, as MATLAB lays it out: 0 is stored as 10, one digit as doubles, two as references."""
    with h5py.File(tmp_path / "d.mat", "w", userblock_size=512) as file:
        refs, table = file.create_group("#refs#"), file.create_group("digitStruct")

        def text(name, value):
            return refs.create_dataset(name, data=np.array([[ord(c)] for c in value], dtype=np.uint16)).ref

        one, two = refs.create_group("b"), refs.create_group("d")
        for k, (field, values) in enumerate(
            {"height": (30, 31), "label": (10, 7), "left": (-1, 43), "top": (7, 8), "width": (19, 20)}.items()
        ):
            one[field] = np.array([[float(values[0])]])
            doubles = [refs.create_dataset(f"x{k}{i}", data=np.array([[float(v)]])).ref for i, v in enumerate(values)]
            two.create_dataset(field, data=np.array([[r] for r in doubles], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)
        for field, items in {"name": [text("a", "1.png"), text("c", "22.png")], "bbox": [one.ref, two.ref]}.items():
            table.create_dataset(field, data=np.array([[r] for r in items], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)
    first, second = read_digit_struct(tmp_path / "d.mat")
    assert (first.name, first.labels, first.boxes.tolist()) == ("1.png", (0,), [[-1, 7, 19, 30]])
    assert (second.name, second.labels) == ("22.png", (0, 7))
    assert second.boxes.tolist() == [[-1, 7, 19, 30], [43, 8, 20, 31]]


@pytest.mark.parametrize("kind", ["compressed", "single precision", "newest headers"])
def test_other_layouts_are_read_too(small_mat, tmp_path, kind):
    """Rewrites every dataset of doubles and names; the references are made anew."""
    path = tmp_path / "d.mat"
    options = {"compressed": {"chunks": (1, 1), "compression": 1}, "single precision": {"dtype": "f4"}}.get(kind, {})
    libver = "latest" if kind == "newest headers" else "earliest"
    with h5py.File(small_mat[0]) as old, h5py.File(path, "w", userblock_size=512, libver=libver) as new:
        places = (f"#refs#/{k}" for k in itertools.count())

        def copied(item):
            if isinstance(item, h5py.Dataset):
                return put(new, next(places), item).ref
            group = new.create_group(next(places))
            for key, value in item.items():
                put(group, key, value)
            return group.ref

        def put(parent, key, dataset):
            if dataset.dtype == h5py.ref_dtype:
                data = np.array([[copied(old[r[0]])] for r in dataset[()]], dtype=h5py.ref_dtype)
                return parent.create_dataset(key, data=data, dtype=h5py.ref_dtype)
            return parent.create_dataset(key, data=dataset[()], **options if dataset.dtype.kind == "f" else {})

        for field in ("name", "bbox"):
            put(new, f"digitStruct/{field}", old["digitStruct"][field])
    assert same(read_digit_struct(path), read_digit_struct(small_mat[0]))


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def replace(group, key, value):
    del group[key]
    group[key] = value


def bbox_of(file, i):
    return file[file["digitStruct/bbox"][i, 0]]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda f: bbox_of(f, 0)["label"].__setitem__((0, 0), 11), "'1.png' has .*label 11"),
        (lambda f: bbox_of(f, 3)["label"].__setitem__((0, 0), 2.5), r"'4.png' has .*label 2\.5"),
        (lambda f: bbox_of(f, 0)["left"].__setitem__((0, 0), np.nan), r"'1.png' has .*box \[nan"),
        (lambda f: bbox_of(f, 0).__delitem__("top"), "'1.png' has no readable boxes"),
        (lambda f: replace(bbox_of(f, 1), "top", bbox_of(f, 0)["top"]), "'2.png' has .*2, 2, 1, 2, 2.* values"),
        (lambda f: empty(f, "a group without fields"), "'2.png' has no readable boxes"),
        (lambda f: empty(f, "fields without values"), "'2.png' has .*0 values where 1"),
        (lambda f: empty(f, "MATLAB's []"), "'2.png' has no readable boxes"),
        (lambda f: f["digitStruct/bbox"].__setitem__((1, 0), h5py.Reference()), "'2.png' has .*points nowhere"),
        (lambda f: f["digitStruct"].__delitem__("name"), "digitStruct"),
        (lambda f: f.__delitem__("digitStruct"), "digitStruct"),
        (lambda f: replace(f["digitStruct"], "name", np.zeros((4, 1))), "object references"),
        (lambda f: replace(f["digitStruct"], "name", f["digitStruct/name"][:3]), "3 names for 4"),
        (lambda f: f[f["digitStruct/name"][0, 0]].__setitem__((0, 0), ord("/")), "is named '/.png'"),
        (lambda f: f[f["digitStruct/name"][1, 0]].__setitem__((0, 0), ord("1")), "named twice"),
        (lambda f: f["digitStruct/bbox"].__setitem__((0, 0), f["digitStruct/name"][0, 0]), "'1.png' has no readable"),
        (lambda f: f["digitStruct/name"].__setitem__((0, 0), f["digitStruct/bbox"][0, 0]), "digitStruct"),
        (lambda f: f["digitStruct/name"].__setitem__((0, 0), h5py.Reference()), "points nowhere"),
    ],
)
def test_what_is_not_a_digit_struct_is_named(tmp_path, change, part):
    path = tmp_path / "digitStruct.mat"
    write_digit_struct(path, numbers_of(1, 2, 2, 1))
    edit(path, change)
    with pytest.raises(DataError) as error:
        read_digit_struct(path)
    check_error(error, path)
    assert re.search(part, str(error.value))


def empty(file, how):
    """The second picture's boxes in each of the forms that "no digit" can take."""
    if how == "MATLAB's []":
        dataset = file.create_dataset("#refs#/none", data=np.zeros(2, dtype=np.uint64))
        dataset.attrs["MATLAB_empty"] = np.uint8(1)
        file["digitStruct/bbox"][1, 0] = dataset.ref
        return
    group = bbox_of(file, 1)
    for field in list(group):
        del group[field]
        if how == "fields without values":
            group[field] = np.zeros((0, 0))


@pytest.mark.parametrize("content", [None, b"", b"MATLAB 5.0 MAT-file", b"\x89HDF\r\n\x1a\n"])
def test_a_file_of_another_kind_is_named(tmp_path, content):
    path = tmp_path / "digitStruct.mat"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_digit_struct(path)
    check_error(error, path)


def read_or_data_error(path, content):
    path.write_bytes(content)
    numbers, message = [], str(path)
    try:
        numbers = read_digit_struct(path)
    except DataError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message
    assert all(set(number.labels) <= set(range(10)) for number in numbers)
    assert all(number.boxes.shape == (len(number.labels), 4) for number in numbers)


@given(st.data())
def test_flipped_bits_give_numbers_or_a_data_error(small_mat, data):
    path, good = small_mat[0].with_name("flipped.mat"), small_mat[1]
    content = bytearray(good)
    used = [k for k, byte in enumerate(good) if byte]
    for _ in range(data.draw(st.integers(1, 4))):
        k = data.draw(st.sampled_from(used) | st.integers(0, len(good) - 1))
        content[k] ^= 1 << data.draw(st.integers(0, 7))
    read_or_data_error(path, bytes(content))


@given(st.data())
def test_a_truncated_file_gives_a_data_error(small_mat, data):
    path, good = small_mat[0].with_name("truncated.mat"), small_mat[1]
    read_or_data_error(path, good[: data.draw(st.integers(0, len(good) - 1))])


# As stored: label, left, top, width, height of each digit, and the number that they make.
OUT_OF_ORDER = {
    "train/262": ([(2, 61, 23, 18, 44), (4, 78, 25, 23, 44), (1, 59, 26, 20, 46)], "124"),
    "train/10855": ([(9, 41, 6, 12, 22), (7, 30, 7, 10, 22)], "79"),
    "train/16278": ([(2, 44, 1, 10, 26), (0, 53, 1, 10, 26), (2, 25, 2, 10, 26), (6, 35, 2, 7, 26)], "2620"),
    "train/18702": ([(5, 47, 6, 1, 11), (2, 47, 6, 14, 11), (4, 33, 7, 14, 28)], "452"),
    "train/19970": ([(2, 24, 2, 14, 25), (6, 24, 3, 16, 25), (7, 48, 4, 9, 25), (2, 37, 5, 13, 25)], "2627"),
    "test/7314": (
        [(1, 124, 47, 13, 18), (8, 139, 41, 13, 18), (9, 151, 41, 19, 18), (9, 151, 42, 16, 18), (0, 114, 49, 8, 29)],
        "01899",
    ),
    "test/10036": ([(8, 75, 10, 24, 46), (4, 56, 14, 19, 34)], "48"),
    "test/12100": ([(4, 223, 103, 39, 56), (6, 180, 106, 45, 43)], "64"),
}
STACKED = {
    "train/3349, in order": ([(2, 43, 4, 10, 15), (3, 43, 20, 7, 15), (1, 43, 34, 7, 15)], "231"),
    "train/2834": ([(3, 193, 42, 33, 63), (9, 193, 166, 33, 63), (5, 195, 104, 31, 63)], "359"),
    "train/8066": ([(1, 65, 12, 9, 16), (4, 66, 67, 15, 16), (4, 67, 30, 10, 16), (2, 67, 48, 12, 16)], "1424"),
    "train/4218, leaning": ([(1, 124, 110, 35, 40), (9, 133, 70, 28, 40), (5, 140, 26, 25, 40)], "591"),
    "test/1648, leaning": ([(1, 146, 15, 17, 30), (5, 146, 74, 32, 30), (9, 147, 42, 16, 30)], "195"),
}
SLANTED = {
    "train/1164, rising": ([(4, 74, 54, 45, 43), (3, 91, 30, 43, 43), (6, 102, 2, 45, 43)], "436"),
    "train/6692, rising": ([(2, 124, 106, 18, 40), (4, 140, 69, 30, 40), (8, 160, 22, 22, 40)], "248"),
    "test/12794, rising": ([(4, 45, 19, 9, 21), (7, 48, 9, 10, 21)], "47"),
    "train/1251, falling": ([(1, 115, 1, 31, 53), (6, 128, 32, 39, 53), (5, 145, 85, 39, 53)], "165"),
    "train/1, level": ([(1, 246, 77, 81, 219), (9, 323, 81, 96, 219)], "19"),
}


@pytest.mark.parametrize("name", [*OUT_OF_ORDER, *STACKED, *SLANTED])
def test_official_numbers_are_read_in_their_order(tmp_path, name):
    digits, number = (OUT_OF_ORDER | STACKED | SLANTED)[name]
    table = np.array(digits, dtype=float)
    assert "".join(str(int(d)) for d in table[reading_order(table[:, 1:]), 0]) == number
    stored = HouseNumber("1.png", tuple(int(d) for d in table[:, 0]), table[:, 1:])
    write_digit_struct(tmp_path / "d.mat", [stored])
    (read,) = read_digit_struct(tmp_path / "d.mat")
    assert "".join(map(str, read.labels)) == number
    rows = sorted((label, *box) for label, box in zip(read.labels, read.boxes.tolist(), strict=True))
    assert rows == sorted(digits)


def test_the_kept_table_is_read_in_place_of_the_file(small_mat, tmp_path, monkeypatch):
    table = tmp_path / "numbers.npz"
    first = cached_digit_struct(small_mat[0], table)
    assert same(first, read_digit_struct(small_mat[0]))
    changed = small_mat[0].with_name("changed.mat")
    changed.write_bytes(small_mat[1] + b"0")
    with monkeypatch.context() as patch:
        patch.setattr(digit_struct, "read_digit_struct", lambda path: pytest.fail("read again"))
        assert same(cached_digit_struct(small_mat[0], table), first)
        with pytest.raises(pytest.fail.Exception):
            cached_digit_struct(changed, table)
    table.write_bytes(table.read_bytes()[:-30])
    assert same(cached_digit_struct(small_mat[0], table), first)
    assert [p.name for p in tmp_path.iterdir()] == ["numbers.npz"]
