import hashlib
import json
import tarfile

import h5py
import numpy as np
import pytest
from kills import write_archive
from PIL import Image

from stn.data import svhn_standin
from stn.data.digit_struct import read_digit_struct
from stn.data.errors import DataError
from stn.data.standin import read_mark
from stn.data.svhn_standin import DIGIT_COUNTS, PICTURES_BY_LENGTH, write_standin
from stn.data.svhn_standin_drawing import FONTS, HEIGHT_PX, _glyphs, draw_number

N = 150


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return write_standin(tmp_path_factory.mktemp("standin") / "train", N, seed=3)


@pytest.fixture(scope="module")
def numbers(split):
    return read_digit_struct(split / "digitStruct.mat")


def digests(folder):
    return {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in folder.glob("*.png")}


def test_the_folder_is_laid_out_as_the_real_one(split, numbers):
    names = {f"{k + 1}.png" for k in range(N)}
    assert {p.name for p in split.iterdir()} == names | {"digitStruct.mat", "standin.json"}
    assert [number.name for number in numbers] == [f"{k + 1}.png" for k in range(N)]
    assert read_mark(split) == {"standin": "svhn", "version": svhn_standin.VERSION, "n": N, "seed": 3}


def test_digit_struct_is_matlab_7_3(split, numbers):
    head = (split / "digitStruct.mat").read_bytes()[:520]
    assert head.startswith(b"MATLAB 7.3 MAT-file, ")
    assert head[124:128] == b"\x00\x02IM"
    assert head[512:] == b"\x89HDF\r\n\x1a\n"
    lengths = [len(number.labels) for number in numbers]
    with h5py.File(split / "digitStruct.mat") as file:
        assert set(file) == {"#refs#", "digitStruct"}
        assert set(file["digitStruct"]) == {"name", "bbox"}
        for i in (lengths.index(1), lengths.index(3)):
            name = file[file["digitStruct/name"][i, 0]]
            assert (name.dtype, name.shape) == ("<u2", (len(numbers[i].name), 1))
            assert name.attrs["MATLAB_class"] == b"char"
            box = file[file["digitStruct/bbox"][i, 0]]
            assert set(box) == {"height", "label", "left", "top", "width"}
            assert {d.shape for d in box.values()} == {(lengths[i], 1)}
            dtype = "<f8" if lengths[i] == 1 else h5py.ref_dtype
            assert {d.dtype for d in box.values()} == {np.dtype(dtype)}
            labels = [d[0, 0] if lengths[i] == 1 else [file[r][0, 0] for r in d[:, 0]] for d in [box["label"]]]
            assert np.ravel(labels).tolist() == [digit or 10 for digit in numbers[i].labels]
            assert all(name.startswith("/#refs#/") for name in (name.name, box.name))


def test_lengths_and_digits_are_those_of_svhn(tmp_path, monkeypatch):
    """On 3000 numbers without their pictures; the bounds are four standard errors."""
    monkeypatch.setattr(svhn_standin, "draw_number", lambda digits, rng: (Image.new("RGB", (1, 1)), np.ones((1, 4))))
    monkeypatch.setattr(Image.Image, "save", lambda *args, **kwargs: None)
    digits = [svhn_standin._write_picture(tmp_path, i, 0).labels for i in range(3000)]
    shares = np.array(list(PICTURES_BY_LENGTH.values())) / sum(PICTURES_BY_LENGTH.values())
    found = np.bincount([len(d) for d in digits], minlength=6)[1:] / len(digits)
    assert np.all(np.abs(found - shares) < 4 * np.sqrt(shares * (1 - shares) / len(digits)) + 1e-3)
    assert min(d[0] for d in digits) == 1
    later = np.bincount([k for d in digits for k in d[1:]], minlength=10)
    shares = np.array(DIGIT_COUNTS) / sum(DIGIT_COUNTS)
    assert np.all(np.abs(later / later.sum() - shares) < 4 * np.sqrt(shares * (1 - shares) / later.sum()))


def test_the_statistics_add_up_to_svhn_train():
    """33 402 pictures with 73 257 digits, of which one picture has six."""
    assert sum(PICTURES_BY_LENGTH.values()) + 1 == 33402
    assert sum(k * n for k, n in PICTURES_BY_LENGTH.items()) + 6 == sum(DIGIT_COUNTS) == 73257


def test_the_boxes_lie_on_the_digits(split, numbers):
    """In the picture and from left to right; and the wall changes where they are: there is ink in them."""
    for number in numbers:
        with Image.open(split / number.name) as picture:
            assert picture.mode == "RGB"
            size = np.array(picture.size)
        low, high = number.boxes[:, :2], number.boxes[:, :2] + number.boxes[:, 2:]
        assert (low >= -1).all()
        assert (high <= size + 1).all()
        assert (np.diff(low[:, 0]) > 0).all()
        assert (number.boxes[:, 2:] >= 1).all()
        assert 0.5 * HEIGHT_PX[0] < np.median(number.boxes[:, 3]) < 1.6 * HEIGHT_PX[1]


def test_box_and_ink_agree_where_nothing_else_is_drawn(monkeypatch):
    """On a plain wall, without neighbours, camera or extras, the digits' boxes are the bounds of what was painted."""
    drawing = svhn_standin.draw_number.__globals__
    monkeypatch.setitem(drawing, "_wall", lambda size, box, rng: (Image.new("RGB", size), np.zeros(3)))
    monkeypatch.setitem(drawing, "_neighbours", lambda scene, *args: scene)
    monkeypatch.setitem(drawing, "_paint", lambda scene, mask, *args: Image.merge("RGB", [mask] * 3))
    monkeypatch.setitem(drawing, "_camera", lambda scene, *args: scene)
    for k in range(60):
        picture, boxes = draw_number((7, 3), np.random.default_rng(k))
        ink = np.argwhere(np.asarray(picture)[:, :, 0] > 100)[:, ::-1]
        low, high = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
        slack = 2 + 0.25 * boxes[:, 2:].max()  # a turned glyph does not fill its turned box's corners
        assert (ink.min(axis=0) > low - 2).all()
        assert (ink.max(axis=0) < high + 2).all()
        assert (ink.min(axis=0) < low + slack).all()
        assert (ink.max(axis=0) > high - slack).all()


def test_pictures_vary(split, numbers):
    pictures = [Image.open(split / number.name) for number in numbers]
    heights = [np.median(number.boxes[:, 3]) for number in numbers]
    assert np.quantile(heights, 0.9) > 2 * np.quantile(heights, 0.1)
    means = np.array([np.asarray(picture).mean(axis=(0, 1)) for picture in pictures])
    assert (means.std(axis=0) > 25).all()
    pairs = zip(numbers, pictures, strict=True)
    centres = [(n.boxes[:, 0] + n.boxes[:, 2] / 2).mean() / picture.width for n, picture in pairs]
    assert np.std(centres) > 0.05


def test_every_font_has_ten_different_digits():
    for font in range(len(FONTS)):
        glyphs = _glyphs(font, 24)
        assert len({(g.size, g.tobytes()) for g in glyphs}) == 10
        assert all(14 <= g.height <= 32 for g in glyphs), FONTS[font]


def test_a_picture_depends_on_seed_and_index_alone(split, tmp_path):
    shorter = write_standin(tmp_path / "a", 20, seed=3)
    assert digests(shorter).items() <= digests(split).items()
    assert not digests(write_standin(tmp_path / "b", 20, seed=4)).items() & digests(split).items()
    again = write_standin(tmp_path / "c", 20, seed=3)
    assert (again / "digitStruct.mat").read_bytes() == (shorter / "digitStruct.mat").read_bytes()


def test_what_is_there_is_kept_or_refused(tmp_path):
    folder = write_standin(tmp_path / "train", 3, seed=0)
    before = (folder / "1.png").stat().st_mtime_ns
    assert write_standin(folder, 3, seed=0) == folder
    assert (folder / "1.png").stat().st_mtime_ns == before
    with pytest.raises(DataError) as error:
        write_standin(folder, 4, seed=0)
    assert str(folder) in str(error.value)
    real = tmp_path / "real"
    real.mkdir()
    (real / "1.png").write_bytes(b"precious")
    with pytest.raises(DataError, match="delete it or move it away"):
        write_standin(real, 3, seed=0)
    assert (real / "1.png").read_bytes() == b"precious"
    (folder / "standin.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_mark(folder)
    (folder / "standin.json").write_text(json.dumps([1]))
    assert read_mark(folder) == {}


def test_the_archive_has_the_official_names(tmp_path):
    folder = write_standin(tmp_path / "test", 2, seed=0)
    with tarfile.open(write_archive(folder, tmp_path / "test.tar.gz")) as tar:
        assert set(tar.getnames()) == {
            "test",
            "test/1.png",
            "test/2.png",
            "test/digitStruct.mat",
            "test/standin.json",
        }
