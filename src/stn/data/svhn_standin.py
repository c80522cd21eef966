"""A stand-in for SVHN in its very format (format 1): drawn house numbers, never to be mixed with the real ones.

For machines that cannot reach the official archives. A split folder holds 1.png … n.png and digitStruct.mat as the
real one does, and STANDIN_MARK, by which every reader can tell.
"""

import itertools
import json
import os
import string
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5o, h5p, h5s, h5t

from stn.data.digit_struct import HouseNumber
from stn.data.download import progress_bar
from stn.data.errors import DataError
from stn.data.staging import staging
from stn.data.svhn_standin_drawing import draw_number

STANDIN_MARK = "standin.json"
VERSION = 1  # of the drawing: raise it when the same seed gives other pictures
# Pictures of SVHN's train/ by number of digits, and its 73 257 digits by kind: as commonly reported, from memory of
# public counts, not re-counted here. The one number of six digits is left out.
PICTURES_BY_LENGTH = {1: 5137, 2: 18130, 3: 8691, 4: 1434, 5: 9}
DIGIT_COUNTS = (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659)


def write_standin(folder: str | Path, n: int, seed: int) -> Path:
    """The split folder with `n` drawn pictures; what is already there for the same `n`, seed and version is kept.

    Picture i depends on the seed and i alone. Lengths and digits follow SVHN's train/; a number has no leading 0.
    Raises: DataError when `folder` holds anything else: it is never replaced.
    """
    folder = Path(folder)
    mark = {"standin": "svhn", "version": VERSION, "n": n, "seed": seed}
    if folder.exists():
        if read_mark(folder) == mark:
            return folder
        raise DataError(f"{folder} holds something other than the SVHN stand-in {mark}: delete it or move it away")
    with staging(folder.parent, ".standin-") as temporary:
        split = temporary / "split"
        split.mkdir()
        numbers = []
        with progress_bar(f"drawing {folder.name}", n) as set_done:
            for i in range(n):
                numbers.append(_write_picture(split, i, seed))
                set_done(i + 1)
        write_digit_struct(split / "digitStruct.mat", numbers)
        (split / STANDIN_MARK).write_text(json.dumps(mark) + "\n", encoding="utf-8")
        try:
            os.rename(split, folder)
        except OSError:
            if read_mark(folder) != mark:  # else another process was faster
                raise
    return folder


def read_mark(folder: Path) -> dict | None:
    """What stand-in a split folder holds; None where it is not one."""
    try:
        mark = json.loads((folder / STANDIN_MARK).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / STANDIN_MARK} cannot be read: {error}") from error
    return mark if isinstance(mark, dict) else {}


def write_archive(folder: Path, archive: Path) -> Path:
    """The .tar.gz of a split folder, its members under the folder's name as in the official archives."""
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(folder, folder.name)
    return archive


def _write_picture(folder: Path, i: int, seed: int) -> HouseNumber:
    rng = np.random.default_rng((seed, i))
    shares = np.array(list(PICTURES_BY_LENGTH.values()), dtype=float)
    length = int(rng.choice(list(PICTURES_BY_LENGTH), p=shares / shares.sum()))
    counts = np.array(DIGIT_COUNTS, dtype=float)
    first = int(rng.choice(9, p=counts[1:] / counts[1:].sum())) + 1
    digits = (first, *rng.choice(10, size=length - 1, p=counts / counts.sum()).tolist())
    picture, boxes = draw_number(digits, rng)
    name = f"{i + 1}.png"
    picture.save(folder / name, compress_level=1)
    return HouseNumber(name, digits, boxes)


# digitStruct.mat


def write_digit_struct(path: Path, numbers: Sequence[HouseNumber]) -> None:
    """`numbers` in the layout that stn.data.digit_struct describes, behind MATLAB's 512-byte user block."""
    with h5py.File(path, "w", userblock_size=512, libver="earliest") as file:
        put = _Writer()
        pictures, names = file.create_group("digitStruct"), _reference_names()
        refs = file.create_group("#refs#").id
        name_addresses, box_addresses = [], []
        for number in numbers:
            codes = np.frombuffer(number.name.encode("utf-16le"), dtype="<u2")[:, None]
            name_addresses.append(put.dataset(refs, next(names), codes, b"char"))
            group = h5g.create(refs, next(names))
            put.matlab_class(group, b"struct")
            box_addresses.append(h5o.get_info(group).addr)
            labels = np.where(np.array(number.labels) == 0, 10, number.labels)
            left, top, width, height = np.asarray(number.boxes, dtype="<f8").T
            columns = {b"height": height, b"label": labels, b"left": left, b"top": top, b"width": width}
            for field, column in columns.items():
                doubles = [np.full((1, 1), value, dtype="<f8") for value in column]
                if len(doubles) == 1:
                    put.dataset(group, field, doubles[0], b"double")
                else:
                    put.references(group, field, [put.dataset(refs, next(names), x, b"double") for x in doubles])
        put.references(pictures.id, b"bbox", box_addresses)
        put.references(pictures.id, b"name", name_addresses)
        put.matlab_class(pictures.id, b"struct")
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Oct  3 00:00:00 2011 HDF5 schema 1.00 ."
    with open(path, "r+b") as file:  # version 0x0200, byte order "IM" at the end of its first 128 bytes
        file.write(header.ljust(116) + bytes(8) + b"\x00\x02IM")


class _Writer:
    """Small datasets by h5py's low-level calls; HDF5's references are the addresses that `dataset` returns."""

    def __init__(self) -> None:
        self._spaces: dict[tuple[int, ...], h5s.SpaceID] = {}
        self._timeless = h5p.create(h5p.DATASET_CREATE)
        self._timeless.set_obj_track_times(False)  # the same numbers give the same bytes
        self._texts: dict[bytes, tuple[h5t.TypeID, h5s.SpaceID, np.ndarray]] = {}

    def dataset(self, parent, name: bytes, values: np.ndarray, kind: bytes, file_type: h5t.TypeID | None = None) -> int:
        if values.shape not in self._spaces:
            self._spaces[values.shape] = h5s.create_simple(values.shape)
        if file_type is None:
            file_type = h5t.IEEE_F64LE if values.dtype == "<f8" else h5t.STD_U16LE
        dataset = h5d.create(parent, name, file_type, self._spaces[values.shape], self._timeless)
        dataset.write(h5s.ALL, h5s.ALL, values, mtype=file_type)
        self.matlab_class(dataset, kind)
        return h5o.get_info(dataset).addr

    def references(self, parent, name: bytes, addresses: list[int]) -> int:
        return self.dataset(parent, name, np.array(addresses, dtype="<u8")[:, None], b"cell", h5t.STD_REF_OBJ)

    def matlab_class(self, item, kind: bytes) -> None:
        if kind not in self._texts:
            text = h5t.C_S1.copy()
            text.set_size(len(kind))
            self._texts[kind] = (text, h5s.create(h5s.SCALAR), np.array(kind, dtype=f"S{len(kind)}"))
        text, scalar, value = self._texts[kind]
        h5a.create(item, b"MATLAB_class", text, scalar).write(value, mtype=text)


def _reference_names() -> Iterator[bytes]:
    """a, b, …, Z, aa, ba, …: as MATLAB names what lies in #refs#."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_lowercase + string.ascii_uppercase, repeat=length):
            yield "".join(reversed(letters)).encode()
