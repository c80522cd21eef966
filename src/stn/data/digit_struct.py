"""digitStruct.mat of the full SVHN numbers: a MATLAB 7.3 (HDF5) struct array, as one record per picture.

digitStruct/name and digitStruct/bbox hold one object reference per picture: to its name (UTF-16 in uint16), and to
a group with height, label, left, top, width. Each of these five is a double where the picture has one digit, else an
array of references to doubles.
"""

import csv
import gzip
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from h5py import h5d, h5r, h5s, h5t

from stn.data.cache import sha256
from stn.data.errors import DataError, one_line
from stn.data.staging import staging

FIELDS = (b"label", b"left", b"top", b"width", b"height")
MAX_NAME = 64  # characters; more is damage
MAX_DIGITS = 64  # in one picture; more is damage
MAX_PX = 1e6
FORMAT = 1  # of the kept table: to be raised when the same file gives other numbers
# |Δx|/|Δy| of the digits' middles below which they are read from the top. Among SVHN's 46 470 training and test
# numbers, those that rise to the right have 0.16 and less (stacked) or 0.35 and more (slanted).
STACKED_SLOPE = 0.25
# What h5py raises depends on which byte is wrong; the file is at fault in each case.
H5_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError, OverflowError)


class HouseNumber(NamedTuple):
    """One picture's number.

    labels: its digits 0..9 in `reading_order` (0 is stored as 10). boxes: (n, 4) float64, one row per digit:
    left, top, width, height in px: left and top count from 0 (SVHN's see_bboxes.m adds 1).
    """

    name: str
    labels: tuple[int, ...]
    boxes: np.ndarray


def reading_order(boxes: np.ndarray) -> np.ndarray:
    """The order of a number's digits, from their boxes: by the top where they stand one above the other, else by left.

    Shapes: boxes (n, 4) as left, top, width, height -> (n,) indices. Ties keep the stored order.
    Deviation: SVHN stores digits by their left edge, with eight exceptions, top-to-bottom numbers among those that are
    so sorted; published results take that order. Digits turned by 90° are read from the top as well.
    """
    spread = np.ptp(boxes[:, :2] + boxes[:, 2:] / 2, axis=0)
    return np.argsort(boxes[:, 1 if spread[0] < STACKED_SLOPE * spread[1] else 0], kind="stable")


def read_digit_struct(path: Path) -> list[HouseNumber]:
    """All records, in file order. Source: the format of ufldl.stanford.edu/housenumbers (format 1).

    Half a million objects in train/, which HDF5 opens one by one: about a minute.
    Raises: DataError, one line naming the file, and the picture where one is at fault, when it is missing, damaged or
    of another form.
    """
    try:
        with h5py.File(path, "r") as file:
            numbers = list(_numbers(file))
        if len({number.name for number in numbers}) < len(numbers):
            raise DataError("the same picture is named twice")
        return numbers
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing") from error
    except H5_ERRORS as error:
        raise DataError(f"{path} is truncated, corrupt or no MATLAB 7.3 digitStruct ({one_line(error)})") from error


def read_box_table(path: Path) -> dict[str, HouseNumber]:
    """The same records by name, from a table name;label;top;left;height;width (.csv.gz), one digit a line."""
    rows = {}
    try:
        with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file, delimiter=";"):
                values = [float(row[field.decode()]) for field in FIELDS]
                rows.setdefault(row["name"], []).append(values)
        return {name: _of_table(name, np.array(table)) for name, table in rows.items()}
    except (OSError, EOFError, KeyError, ValueError, TypeError, zlib.error, csv.Error, DataError) as error:
        raise DataError(f"{path} is no table of boxes ({one_line(error)})") from error


def cached_digit_struct(path: Path, table: Path) -> list[HouseNumber]:
    """`read_digit_struct(path)`, read once and then kept as `table`, an .npz."""
    source = f"{sha256(path)} {FORMAT}"
    try:
        with open(table, "rb") as file, np.load(file, allow_pickle=False) as stored:
            if stored["source"] == source:
                ends = np.cumsum(stored["lengths"])[:-1]
                parts = (np.split(stored[name], ends) for name in ("labels", "boxes"))
                rows = zip(stored["names"].tolist(), *parts, strict=True)
                return [HouseNumber(name, tuple(labels.tolist()), boxes) for name, labels, boxes in rows]
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile):
        pass  # not there, or damaged: made anew
    numbers = read_digit_struct(path)
    names, labels, boxes = zip(*numbers, strict=True)
    lengths = np.array([len(row) for row in labels])
    columns = {"names": np.array(names), "lengths": lengths, "labels": np.concatenate(labels)}
    with staging(table.parent, ".numbers-") as temporary:
        np.savez(temporary / "numbers.npz", source=source, boxes=np.concatenate(boxes), **columns)
        os.replace(temporary / "numbers.npz", table)
    return numbers


def _numbers(file: h5py.File) -> Iterator[HouseNumber]:
    names, boxes = (file["digitStruct"][field] for field in ("name", "bbox"))
    for dataset in (names, boxes):
        if not isinstance(dataset, h5py.Dataset) or h5py.check_ref_dtype(dataset.dtype) is not h5py.Reference:
            raise DataError("digitStruct/name and digitStruct/bbox are not arrays of object references")
    if names.size != boxes.size or names.size * 8 > file.id.get_filesize():
        raise DataError(f"{names.size} names for {boxes.size} groups of boxes")
    if names.size == 0:
        raise DataError("no picture is in it")
    for name, bbox in zip(names[()].flat, boxes[()].flat, strict=True):
        name = _name(_read(_open(name, file.id), np.uint16, MAX_NAME))
        try:
            yield _number(name, _open(bbox, file.id), file.id)
        except (DataError, *H5_ERRORS) as error:
            raise DataError(f"{name!r} has no readable boxes ({one_line(error)})") from error


def _name(codes: np.ndarray) -> str:
    name = codes.astype("<u2").tobytes().decode("utf-16le")
    if not name.isprintable() or "/" in name or "\\" in name or name.startswith("."):
        raise DataError(f"a picture is named {name!r}")
    return name


def _number(name: str, group: h5py.h5g.GroupID, file_id: h5py.h5f.FileID) -> HouseNumber:
    columns = [_column(h5d.open(group, field), file_id) for field in FIELDS]
    if len({len(column) for column in columns}) != 1:
        raise DataError(f"{[len(column) for column in columns]} values of {[field.decode() for field in FIELDS]}")
    return _of_table(name, np.stack(columns, axis=1))


def _of_table(name: str, table: np.ndarray) -> HouseNumber:
    """`FIELDS` of each digit (n, 5), checked and in reading order."""
    labels, boxes = table[:, 0], table[:, 1:]
    for label, box in zip(labels, boxes, strict=True):
        if label not in range(1, 11) or not (np.abs(box) < MAX_PX).all():
            raise DataError(f"a digit with label {label:g} and box {box.tolist()}")
    order = reading_order(boxes)
    return HouseNumber(name, tuple((labels[order].astype(int) % 10).tolist()), boxes[order])


def _column(dataset: h5d.DatasetID, file_id: h5py.h5f.FileID) -> np.ndarray:
    """One field of all digits of a picture."""
    if dataset.get_type().get_class() != h5t.REFERENCE:
        return _read(dataset, np.float64, 1)
    references = _read(dataset, h5py.ref_dtype, MAX_DIGITS)
    return np.concatenate([_read(_open(reference, file_id), np.float64, 1) for reference in references])


def _open(reference: h5py.Reference, file_id: h5py.h5f.FileID):
    if not reference:
        raise DataError("an object reference points nowhere")
    return h5r.dereference(reference, file_id)


def _read(dataset: h5d.DatasetID, dtype: np.dtype | type, most: int) -> np.ndarray:
    size = dataset.get_space().get_simple_extent_npoints()
    if not 0 < size <= most:
        raise DataError(f"{size} values where 1 to {most} are expected")
    values = np.empty(dataset.shape, dtype=dtype)
    dataset.read(h5s.ALL, h5s.ALL, values)
    return values.ravel()
