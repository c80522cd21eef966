import itertools

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn.data import digit_struct
from stn.data.digit_struct import HouseNumber, read_digit_struct
from stn.data.errors import DataError
from stn.data.svhn_standin import write_digit_struct


def check_error(error, *parts):
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


def same(a, b):
    pairs = zip(a, b, strict=True)
    return all(x[:2] == y[:2] and np.array_equal(x.boxes, y.boxes) for x, y in pairs)


def numbers_of(*lengths):
    rng = np.random.default_rng(1)
    return [
        HouseNumber(
            f"{i + 1}.png",
            tuple(rng.integers(0, 10, n).tolist()),
            np.round(np.concatenate([rng.uniform(-3, 50, (n, 2)), rng.uniform(1, 50, (n, 2))], axis=1)),
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


def test_both_ways_of_reading_agree(small_mat, monkeypatch):
    path = small_mat[0]
    by_address = read_digit_struct(path)

    def unusual(*args):
        raise digit_struct._UnusualHeader

    with monkeypatch.context() as patch:
        patch.setattr(digit_struct, "_read_by_address", unusual)
        assert same(read_digit_struct(path), by_address)
    # And the plain layout is indeed read by address: the other way takes a minute for the real file.
    monkeypatch.setattr(digit_struct, "_read_by_reference", lambda file: pytest.fail("read by reference"))
    assert same(read_digit_struct(path), by_address)


@pytest.mark.parametrize("kind", ["compressed", "single precision", "newest headers"])
def test_other_layouts_are_read_by_reference(small_mat, tmp_path, kind):
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
        (lambda f: bbox_of(f, 0)["label"].__setitem__((0, 0), 11), "'1.png' has a digit with label 11"),
        (lambda f: bbox_of(f, 3)["label"].__setitem__((0, 0), 2.5), "'4.png' has a digit with label 2.5"),
        (lambda f: bbox_of(f, 0)["left"].__setitem__((0, 0), np.nan), "'1.png' has a digit with"),
        (lambda f: bbox_of(f, 0).__delitem__("top"), "digitStruct"),
        (lambda f: replace(bbox_of(f, 1), "top", bbox_of(f, 0)["top"]), "digitStruct"),
        (lambda f: f["digitStruct"].__delitem__("name"), "digitStruct"),
        (lambda f: f.__delitem__("digitStruct"), "digitStruct"),
        (lambda f: replace(f["digitStruct"], "name", np.zeros((4, 1))), "object references"),
        (lambda f: replace(f["digitStruct"], "name", f["digitStruct/name"][:3]), "3 names for 4"),
        (lambda f: f[f["digitStruct/name"][0, 0]].__setitem__((0, 0), ord("/")), "is named '/.png'"),
        (lambda f: f[f["digitStruct/name"][1, 0]].__setitem__((0, 0), ord("1")), "named twice"),
        (lambda f: f["digitStruct/bbox"].__setitem__((0, 0), f["digitStruct/name"][0, 0]), "digitStruct"),
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
    check_error(error, path, part)


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
