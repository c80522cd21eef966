import hashlib
import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from kills import write_archive
from PIL import Image

from stn.data import download, svhn, svhn_crops
from stn.data.digit_struct import HouseNumber, read_digit_struct
from stn.data.errors import DataError
from stn.data.svhn import NumberCrops, holdout, load_svhn, prepare_svhn
from stn.data.svhn_crops import build_crops, crop_number
from stn.data.svhn_standin import write_digit_struct, write_standin
from stn.tasks.classification import cross_entropy, is_wrong
from tests.errors import check_error

N = 40


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """A split folder with 40 pictures; tests copy it before they change it."""
    return write_standin(tmp_path_factory.mktemp("drawn") / "train", N, seed=5)


@pytest.fixture
def split(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "SVHN" / "train")


def same(a, b):
    pairs = zip(a, b, strict=True)
    return all(x[:2] == y[:2] and np.array_equal(x.boxes, y.boxes) for x, y in pairs)


# Crops


def test_the_crop_is_the_union_box_grown_about_its_centre():
    """x is written in red, y in green, so a crop tells where it was cut."""
    x, y = np.meshgrid(np.arange(200), np.arange(100))
    picture = Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))
    boxes = np.array([[80.0, 40, 10, 20], [100, 45, 20, 15]])  # union 80..120 × 40..60
    for size_px, width, height in ((64, 52, 26), (128, 104, 52)):
        crop, boxes_px = crop_number(picture, boxes, size_px)
        crop = crop.astype(float)
        assert crop.shape == (size_px, size_px, 3)
        columns, rows = crop[size_px // 2, :, 0], crop[:, size_px // 2, 1]
        middle = (np.arange(size_px) + 0.5) / size_px - 0.5
        assert np.abs(columns - (100 + middle * width - 0.5)).max() < 1
        assert np.abs(rows - (50 + middle * height - 0.5)).max() < 1
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        back = boxes_px / size_px * np.tile([width, height], 2) + np.tile([100 - width / 2, 50 - height / 2], 2)
        np.testing.assert_allclose(back, corners)


def striped(width, height):
    """A picture whose red is x."""
    return Image.fromarray(np.tile(np.arange(width, dtype=np.uint8)[None, :, None], (height, 1, 3)))


def test_a_crop_beyond_the_border_is_cut_off_there():
    picture = striped(60, 30)
    crop, boxes_px = crop_number(picture, np.array([[0.0, 2, 16, 26]]), 64)  # grown: -2.4..18.4, cut to 0..18.4
    assert np.abs(crop[0, :, 0] - ((np.arange(64) + 0.5) / 64 * 18.4 - 0.5)).max() < 1
    np.testing.assert_allclose(boxes_px[0, [0, 2]], [0, 16 / 18.4 * 64])
    rounded = crop_number(picture, np.array([[-1.0, 2, 17, 26]]), 64)  # whole pixels may end one beyond
    assert rounded.boxes_px[0, 0] < 0


@pytest.mark.parametrize("beyond", [4, 18])
def test_digits_beyond_the_border_are_held_in_proportion_by_the_borders_pixels(beyond):
    """Cut off there, a digit of which little is in the picture would be drawn out to the whole crop."""
    crop, boxes_px = crop_number(striped(60, 30), np.array([[-float(beyond), 2, 20, 26]]), 64)
    high = 10 - beyond + 13  # grown by 30 % on the right; on the left the box itself
    x = (np.arange(64) + 0.5) / 64 * (high + beyond) - beyond - 0.5
    assert np.abs(crop[0, :, 0] - x.clip(0, 59)).max() < 1
    np.testing.assert_allclose(boxes_px[0, [0, 2]], [0, 20 / (high + beyond) * 64])


def test_boxes_outside_or_without_area_give_no_crop():
    picture = striped(60, 30)
    assert crop_number(picture, np.array([[70.0, 2, 5, 5]]), 64) is None
    for box in ([10.0, 2, 0, 5], [10.0, 10, -30, 8]):
        assert crop_number(picture, np.array([box, [15, 10, 6, 8]]), 64) is None


def add_unreadable(split):
    """To a split: a number of six digits, and one whose box is outside of its picture."""
    numbers = read_digit_struct(split / "digitStruct.mat")
    six = HouseNumber("41.png", (1, 2, 3, 4, 5, 6), np.tile([1.0, 1, 5, 8], (6, 1)))
    outside = HouseNumber("42.png", (7,), np.array([[900.0, 900, 9, 9]]))
    for extra in (six, outside):
        shutil.copy(split / "1.png", split / extra.name)
    write_digit_struct(split / "digitStruct.mat", [outside, *numbers, six])


def test_no_test_picture_leaves_the_error(drawn, tmp_path):
    """In training such pictures are skipped; in the test each counts, as wrong where no net can say its number."""
    split = shutil.copytree(drawn, tmp_path / "SVHN" / "test")
    add_unreadable(split)
    crops = load_svhn(tmp_path, "test", 64)
    assert (len(crops), crops.source_pictures) == (N + 2, N + 2)
    whole = Image.open(split / "42.png").convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(crops.images[0].numpy(), np.asarray(whole))
    assert crops.labels[0].tolist() == [7, 10, 10, 10, 10]
    assert crops.lengths[-1] == 6
    assert is_wrong(torch.randn(1, 5, 11), crops.labels[-1:]).all()
    assert cross_entropy(torch.randn(2, 5, 11), crops.labels[[0, -1]]).isfinite()


def test_the_cache_holds_what_the_folder_holds(split, tmp_path):
    numbers = read_digit_struct(split / "digitStruct.mat")
    add_unreadable(split)
    crops = load_svhn(tmp_path, "train", 64)
    assert (crops.images.shape, crops.images.dtype) == ((N, 64, 64, 3), torch.uint8)
    assert (crops.labels.dtype, crops.lengths.dtype, len(crops), crops.standin) == (torch.int64, torch.int64, N, True)
    for i, number in enumerate(numbers):
        n = len(number.labels)
        assert crops.lengths[i] == n
        assert crops.labels[i].tolist() == [*number.labels, *[10] * (5 - n)]
        expected = crop_number(Image.open(split / number.name).convert("RGB"), number.boxes, 64)
        assert np.array_equal(crops.images[i].numpy(), expected.image)
        assert np.array_equal(crops.boxes_px[i, :n].numpy(), expected.boxes_px.astype(np.float32))
        assert (crops.boxes_px[i, n:] == 0).all()
    folder = tmp_path / "SVHN" / "crops" / "train_64"
    stored = [np.load(folder / name, mmap_mode="r") for name in svhn_crops.ARRAYS]
    shapes = [("u1", (N, 64, 64, 3)), ("i1", (N, 5)), ("i1", (N,)), ("f4", (N, 5, 4))]
    assert [(a.dtype, a.shape) for a in stored] == shapes
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["pictures"] == N == sum(manifest["by_length"].values())
    assert manifest["skipped"] == [
        {"name": "42.png", "reason": "its boxes lie outside of the picture, or have no area"},
        {"name": "41.png", "reason": "6 digits, more than 5"},
    ]
    assert load_svhn(tmp_path, "train", 128).images.shape == (N, 128, 128, 3)


def test_writing_to_the_tensors_leaves_the_cache_alone(split, tmp_path):
    crops = load_svhn(tmp_path, "train", 64)
    before = crops.images[0].clone()
    crops.images[0] = 0
    assert torch.equal(load_svhn(tmp_path, "train", 64).images[0], before)


def spoil(name, change):
    def apply(cache):
        content = (cache / name).read_bytes()
        (cache / name).unlink()
        if change(content) is not None:
            (cache / name).write_bytes(change(content))

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        spoil("images.npy", lambda c: c[:-1]),
        spoil("images.npy", lambda c: c[:-1] + bytes([c[-1] ^ 1])),
        spoil("labels.npy", lambda c: c[:-1] + bytes([c[-1] ^ 1])),
        spoil("lengths.npy", lambda c: None),
        spoil("manifest.json", lambda c: c[:40]),
        spoil("manifest.json", lambda c: None),
        spoil("manifest.json", lambda c: b"[]"),
        spoil("manifest.json", lambda c: c.replace(b'"version": 2', b'"version": 0', 1)),
        spoil("manifest.json", lambda c: c.replace(b'"extent": 1.3', b'"extent": 1.2', 1)),
    ],
)
def test_a_spoilt_cache_is_built_anew(split, tmp_path, damage, caplog):
    cache = build_crops(split, 64, tmp_path / "cache" / "train_64")
    good = {p.name: p.read_bytes() for p in cache.iterdir()}
    damage(cache)
    with caplog.at_level(logging.INFO):
        assert build_crops(split, 64, cache) == cache
    assert "made anew" in caplog.text
    assert {p.name: p.read_bytes() for p in cache.iterdir()} == good
    assert sorted(p.name for p in cache.parent.iterdir()) == ["train_64", "train_numbers.npz"]


def test_a_good_cache_is_kept_and_a_stale_one_is_not(split, tmp_path):
    cache = build_crops(split, 64, tmp_path / "cache")
    before = (cache / "images.npy").stat().st_mtime_ns
    for checksums in (True, False):
        build_crops(split, 64, cache, checksums)
        assert (cache / "images.npy").stat().st_mtime_ns == before
    numbers = read_digit_struct(split / "digitStruct.mat")
    write_digit_struct(split / "digitStruct.mat", numbers[:-1])
    build_crops(split, 64, cache)
    assert len(np.load(cache / "labels.npy")) == N - 1
    build_crops(split, 128, cache)
    assert np.load(cache / "images.npy", mmap_mode="r").shape == (N - 1, 128, 128, 3)


def test_builds_at_the_same_time_end_in_one_cache(split, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: build_crops(split, 64, tmp_path / "cache" / "train_64"), range(3)))
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["train_64", "train_numbers.npz"]
    assert np.load(tmp_path / "cache" / "train_64" / "labels.npy").shape == (N, 5)


def test_a_folder_of_something_else_is_not_replaced(split, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(DataError) as error:
        build_crops(split, 64, tmp_path / "mine")
    check_error(error, tmp_path / "mine", "thesis.txt")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize("damage", ["missing", "truncated", "another kind", "empty"])
def test_a_bad_picture_is_named_and_leaves_no_cache(split, tmp_path, damage):
    picture = split / "7.png"
    good = picture.read_bytes()
    picture.unlink()
    if damage != "missing":
        picture.write_bytes({"truncated": good[: len(good) // 2], "another kind": b"GIF", "empty": b""}[damage])
    with pytest.raises(DataError) as error:
        build_crops(split, 64, tmp_path / "cache")
    check_error(error, picture)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["SVHN", "train_numbers.npz"]


def test_the_cache_is_enough_without_the_pictures(split, tmp_path):
    crops = load_svhn(tmp_path, "train", 64)
    shutil.rmtree(split)
    assert torch.equal(load_svhn(tmp_path, "train", 64).images, crops.images)
    (tmp_path / "SVHN" / "crops" / "train_64" / "labels.npy").write_bytes(b"")
    for split_name, size_px in (("train", 64), ("train", 128), ("test", 64)):
        with pytest.raises(DataError) as error:
            load_svhn(tmp_path, split_name, size_px)
        check_error(error, "experiments.prepare", f"{split_name}_{size_px}")


def test_pictures_without_digit_struct_are_not_downloaded_again(split, tmp_path, monkeypatch):
    (split / "digitStruct.mat").unlink()
    monkeypatch.setattr("stn.data.svhn.fetch", lambda *_: pytest.fail("a download"))
    for call in (lambda: prepare_svhn(tmp_path, ["train"]), lambda: load_svhn(tmp_path, "train", 64)):
        with pytest.raises(DataError, match=r"train/digitStruct.mat is missing: put it back"):
            call()


def test_wrong_arguments(split, tmp_path):
    with pytest.raises(ValueError, match=r"'train', 'test', 'extra'.*'val'"):
        load_svhn(tmp_path, "val", 64)
    with pytest.raises(ValueError, match="'val'"):
        prepare_svhn(tmp_path, ["val"])
    with pytest.raises(ValueError, match=r"\(64, 128\), got 32"):
        load_svhn(tmp_path, "train", 32)
    with pytest.raises(DataError, match="is no split of SVHN"):
        build_crops(tmp_path / "none", 64, tmp_path / "cache")


def test_holdout_is_the_end_of_train():
    labels, boxes_px = torch.arange(50).reshape(10, 5), torch.arange(200.0).reshape(10, 5, 4)
    crops = NumberCrops(torch.zeros(10, 1, 1, 3), labels, torch.arange(10), boxes_px, True, 10)
    kept, held_out = holdout(crops, 3)
    assert (kept.lengths.tolist(), held_out.lengths.tolist()) == (list(range(7)), [7, 8, 9])
    assert torch.equal(held_out.boxes_px, boxes_px[7:])
    assert (len(kept.images), held_out.labels[0].tolist(), held_out.standin) == (7, [35, 36, 37, 38, 39], True)
    with pytest.raises(ValueError, match=r"1\.\.9"):
        holdout(crops, 10)


# Archives


@pytest.fixture
def archives(monkeypatch, drawn, tmp_path):
    """The official archives in small, in a folder; nothing can be downloaded."""
    monkeypatch.setattr(svhn, "SITE", "http://127.0.0.1:1/")
    monkeypatch.setattr(download, "RETRY_WAIT_S", 0)
    folder, known = tmp_path / "archives", {}
    folder.mkdir()
    for split_name in ("train", "test"):
        tree = shutil.copytree(drawn, tmp_path / "made" / split_name)
        path = write_archive(tree, folder / f"{split_name}.tar.gz")
        known[split_name] = (path.stat().st_size, hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(svhn, "ARCHIVES", svhn.ARCHIVES | known)
    return folder


@pytest.mark.parametrize("place", [".", "SVHN"])
def test_from_archive_to_crops(archives, drawn, tmp_path, place):
    data_dir = tmp_path / "data"
    shutil.copytree(archives, data_dir / place)
    folders = prepare_svhn(data_dir, ["train", "test"])
    assert folders == {"train": data_dir / "SVHN" / "train", "test": data_dir / "SVHN" / "test"}
    assert same(read_digit_struct(folders["test"] / "digitStruct.mat"), read_digit_struct(drawn / "digitStruct.mat"))
    for path in data_dir.rglob("*.tar.gz"):
        path.unlink()
    assert prepare_svhn(data_dir, ["test", "train"]) == folders
    expected = np.load(build_crops(drawn, 64, tmp_path / "direct") / "images.npy")
    assert np.array_equal(load_svhn(data_dir, "test", 64).images.numpy(), expected)
    (folders["test"] / "3.png").unlink()
    with pytest.raises(DataError) as error:
        prepare_svhn(data_dir, ["test"])
    check_error(error, folders["test"], "not whole any more")


def test_a_folder_unpacked_by_the_user_is_used(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "test")
    assert prepare_svhn(tmp_path, ["test"]) == {"test": tmp_path / "test"}
    assert len(load_svhn(tmp_path, "test", 64)) == N


def test_a_wrong_archive_is_named_and_not_unpacked(archives, tmp_path):
    path = archives / "train.tar.gz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError) as error:
        prepare_svhn(archives, ["train"])
    check_error(error, path, "delete or replace it")
    assert not (archives / "SVHN").exists()


def test_without_a_source_the_error_says_what_to_put_where(archives, tmp_path):
    with pytest.raises(DataError) as error:
        prepare_svhn(tmp_path / "empty", ["extra"])
    check_error(error, tmp_path / "empty" / "SVHN" / "extra.tar.gz", 1955489752, "606f41243d71ca4d5fe66dbaf1f02bee")
