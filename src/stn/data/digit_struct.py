"""digitStruct.mat of the full SVHN numbers: a MATLAB 7.3 (HDF5) struct array, as one record per picture.

digitStruct/name and digitStruct/bbox hold one object reference per picture: to its name (UTF-16 in uint16), and to
a group with height, label, left, top, width. Each of these five is a double where the picture has one digit, else an
array of references to doubles: half a million objects in train/, which h5py opens one by one in a minute or more.
So the doubles and names are read with numpy: HDF5 itself gives the address of each object's header, and the header
says where its bytes lie. Where a header is not of the one plain form known here, h5py reads the whole file instead.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from h5py import h5d, h5r, h5s, h5t

from stn.data.errors import DataError

log = logging.getLogger(__name__)

FIELDS = ("height", "label", "left", "top", "width")
KEYS = tuple(field.encode() for field in FIELDS)
MAX_NAME = 64  # characters; more is damage
MAX_DIGITS = 64  # in one picture; more is damage
_FIXED_POINT, _FLOAT, _REFERENCE = 0, 1, 7  # classes of the datatype message
_ITEM_BYTES = {_FIXED_POINT: 2, _FLOAT: 8, _REFERENCE: 8}


class HouseNumber(NamedTuple):
    """One picture's number.

    labels: its digits 0..9 in reading order (0 is stored as 10). boxes: (n, 4) float64, one row per digit:
    left, top, width, height in px, as stored: left and top count from 0 (SVHN's see_bboxes.m adds 1).
    """

    name: str
    labels: tuple[int, ...]
    boxes: np.ndarray


def read_digit_struct(path: str | Path) -> list[HouseNumber]:
    """All records, in file order. Source: the format of ufldl.stanford.edu/housenumbers (format 1).

    Raises: DataError, one line naming the file, when it is missing, damaged or of another form.
    """
    path = Path(path)
    try:
        with h5py.File(path, "r") as file:
            try:
                table = _read_by_address(file, path)
            except _UnusualHeader:
                log.warning("%s: of a layout that only h5py knows; reading it may take minutes", path)
                table = _read_by_reference(file)
        return _records(*table)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing") from error
    # What h5py raises depends on which byte is wrong; the file is at fault in each case.
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError, OverflowError) as error:
        message = " ".join(str(error).split())
        raise DataError(f"{path} is truncated, corrupt or no MATLAB 7.3 digitStruct ({message})") from error


def _records(names: list[str], counts: np.ndarray, values: dict[str, np.ndarray]) -> list[HouseNumber]:
    """counts: (N,) digits per picture. values: each field of all digits, one after another."""
    boxes = np.stack([values[field] for field in ("left", "top", "width", "height")], axis=1)
    labels = values["label"]
    digits = np.where(np.isin(labels, np.arange(1, 11)), labels, -1).astype(np.int64) % 10
    wrong = ~(np.isfinite(boxes).all(axis=1) & (np.abs(boxes) < 1e6).all(axis=1) & np.isin(labels, np.arange(1, 11)))
    ends = np.cumsum(counts)
    if wrong.any():
        first = int(np.argmax(wrong))
        picture = names[int(np.searchsorted(ends, first, side="right"))]
        raise DataError(f"{picture!r} has a digit with label {labels[first]:g} and box {boxes[first].tolist()}")
    if len(set(names)) < len(names):
        raise DataError("the same picture is named twice")
    plain = digits.tolist()
    starts = (ends - counts).tolist()
    return [
        HouseNumber(name, tuple(plain[a:b]), boxes[a:b])
        for name, a, b in zip(names, starts, ends.tolist(), strict=True)
    ]


def _top_level(file: h5py.File) -> tuple[np.ndarray, np.ndarray]:
    """References to the names and to the groups of boxes, (N,) each."""
    names, boxes = (file["digitStruct"][field] for field in ("name", "bbox"))
    for dataset in (names, boxes):
        if not isinstance(dataset, h5py.Dataset) or h5py.check_ref_dtype(dataset.dtype) is not h5py.Reference:
            raise DataError("digitStruct/name and digitStruct/bbox are not arrays of object references")
    if names.size != boxes.size or names.size * 8 > names.file.id.get_filesize():
        raise DataError(f"{names.size} names for {boxes.size} groups of boxes")
    return names[()].ravel(), boxes[()].ravel()


def _checked(name: str) -> str:
    if not (0 < len(name) <= MAX_NAME and name.isprintable()) or "/" in name or "\\" in name or name.startswith("."):
        raise DataError(f"a picture is named {name[:MAX_NAME]!r}")
    return name


# By reference: any layout HDF5 knows


def _read_by_reference(file: h5py.File) -> tuple[list[str], np.ndarray, dict[str, np.ndarray]]:
    names, counts, rows = [], [], []
    for name, box in zip(*_top_level(file), strict=True):
        codes = _read(_open(name, file.id), np.uint16, MAX_NAME)
        names.append(_checked(codes.astype("<u2").tobytes().decode("utf-16le")))
        group = _open(box, file.id)
        columns = [_field(h5d.open(group, key), file.id) for key in KEYS]
        if len({len(column) for column in columns}) != 1:
            raise DataError(f"{names[-1]!r} has {[len(c) for c in columns]} values of {FIELDS}")
        counts.append(len(columns[0]))
        rows.append(np.stack(columns))
    joined = np.concatenate(rows, axis=1) if rows else np.zeros((len(FIELDS), 0))
    return names, np.array(counts, dtype=np.int64), dict(zip(FIELDS, joined, strict=True))


def _field(dataset: h5d.DatasetID, file_id: h5py.h5f.FileID) -> np.ndarray:
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


# By address: headers of version 1 whose data lie in one piece


class _UnusualHeader(Exception):
    pass


class _Bytes:
    """A file's bytes and little-endian integers at any offsets. Units: byte offsets from the file's start."""

    def __init__(self, path: Path, base: int) -> None:
        content = np.memmap(path, dtype=np.uint8, mode="r")
        self.base = base  # what HDF5's own addresses count from: the end of MATLAB's 512-byte block
        self.size = len(content)
        self._views = {
            kind: np.ndarray((max(self.size - np.dtype(kind).itemsize + 1, 0),), kind, content, strides=(1,))
            for kind in ("u1", "<u2", "<u4", "<u8", "<f8")
        }

    def at(self, offsets: np.ndarray, kind: str) -> np.ndarray:
        view = self._views[kind]
        if len(offsets) and (offsets.min() < 0 or offsets.max() >= len(view)):
            raise _UnusualHeader
        return view[offsets]

    def offset(self, addresses: np.ndarray) -> np.ndarray:
        if len(addresses) and addresses.max() >= self.size:
            raise _UnusualHeader
        return addresses.astype(np.int64) + self.base


class _Pieces(NamedTuple):
    """Where the data of some objects lie: offsets, counts of items and class of items, (n,) each."""

    starts: np.ndarray
    counts: np.ndarray
    classes: np.ndarray


def _locate(content: _Bytes, addresses: np.ndarray) -> _Pieces:
    """Walks all object headers at once (HDF5 File Format Specification 3.0, IV.A.1.a, IV.A.2.d, IV.A.2.i)."""
    header = content.offset(addresses)
    if (content.at(header, "u1") != 1).any():
        raise _UnusualHeader
    end = header + 16 + content.at(header + 8, "<u4")
    cursor, where = header + 16, {3: np.zeros_like(header), 8: np.zeros_like(header)}
    for _ in range(16):
        walking = np.flatnonzero((cursor < end) & ((where[3] == 0) | (where[8] == 0)))
        if len(walking) == 0:
            break
        place = cursor[walking]
        kinds = content.at(place, "<u2")
        for kind, found in where.items():
            found[walking[kinds == kind]] = place[kinds == kind] + 8
        cursor[walking] = place + 8 + content.at(place + 2, "<u2")
    datatype, layout = where[3], where[8]
    if (datatype == 0).any() or (layout == 0).any() or not np.isin(content.at(layout, "u1"), (3, 4)).all():
        raise _UnusualHeader
    classes = content.at(datatype, "u1") & 15
    item = content.at(datatype + 4, "<u4").astype(np.int64)
    big_endian = (content.at(datatype + 1, "u1") & 1 == 1) & (classes != _REFERENCE)
    if big_endian.any() or any((item[classes == c] != _ITEM_BYTES.get(c, -1)).any() for c in np.unique(classes)):
        raise _UnusualHeader
    compact = content.at(layout + 1, "u1") == 0
    if not (compact | (content.at(layout + 1, "u1") == 1)).all():
        raise _UnusualHeader
    starts, sizes = layout + 4, content.at(layout + 2, "<u2").astype(np.int64)
    apart = ~compact
    starts[apart] = content.offset(content.at(layout[apart] + 2, "<u8"))
    sizes[apart] = np.minimum(content.at(layout[apart] + 10, "<u8"), 1 << 32)
    return _Pieces(starts, sizes // item, classes)


def _gather(content: _Bytes, pieces: _Pieces, kind: str) -> np.ndarray:
    """The items of all pieces, one after another."""
    first = np.cumsum(pieces.counts) - pieces.counts
    within = np.arange(pieces.counts.sum()) - np.repeat(first, pieces.counts)
    return content.at(np.repeat(pieces.starts, pieces.counts) + within * np.dtype(kind).itemsize, kind)


def _read_by_address(file: h5py.File, path: Path) -> tuple[list[str], np.ndarray, dict[str, np.ndarray]]:
    content = _Bytes(path, file.userblock_size)
    name_references, box_references = _top_level(file)
    addresses = np.empty(len(name_references), dtype="<u8")
    names_id = file["digitStruct/name"].id
    names_id.read(h5s.ALL, names_id.get_space(), addresses.reshape(names_id.shape), mtype=h5t.STD_REF_OBJ)
    names = list(_names(content, addresses))
    datasets = np.empty((len(FIELDS), len(box_references)), dtype="<u8")
    for i, reference in enumerate(box_references):
        group = _open(reference, file.id)  # the links do not keep it open
        datasets[:, i] = [group.links.get_info(key).u for key in KEYS]
    values, counts = {}, None
    for field, addresses in zip(FIELDS, datasets, strict=True):
        field_counts, values[field] = _numbers(content, addresses)
        if counts is not None and (counts != field_counts).any():
            raise _UnusualHeader
        counts = field_counts
    return names, counts, values


def _names(content: _Bytes, addresses: np.ndarray) -> Iterator[str]:
    pieces = _locate(content, addresses)
    if (pieces.classes != _FIXED_POINT).any() or (pieces.counts < 1).any() or (pieces.counts > MAX_NAME).any():
        raise _UnusualHeader
    text = _gather(content, pieces, "<u2").tobytes()
    ends = 2 * np.cumsum(pieces.counts)
    for a, b in zip((ends - 2 * pieces.counts).tolist(), ends.tolist(), strict=True):
        yield _checked(text[a:b].decode("utf-16le"))


def _numbers(content: _Bytes, addresses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many digits each picture has, (N,), and the numbers of all, where `addresses` are one field's datasets."""
    pieces = _locate(content, addresses)
    single = pieces.classes == _FLOAT
    if (pieces.counts < 1).any() or (pieces.counts > MAX_DIGITS).any() or (pieces.counts[single] != 1).any():
        raise _UnusualHeader
    if not (single | (pieces.classes == _REFERENCE)).all():
        raise _UnusualHeader
    first = np.cumsum(pieces.counts) - pieces.counts
    values = np.empty(pieces.counts.sum())
    values[first[single]] = content.at(pieces.starts[single], "<f8")
    targets = _locate(content, _gather(content, _Pieces(*(part[~single] for part in pieces)), "<u8"))
    if (targets.classes != _FLOAT).any() or (targets.counts != 1).any():
        raise _UnusualHeader
    values[np.repeat(~single, pieces.counts)] = content.at(targets.starts, "<f8")
    return pieces.counts, values
