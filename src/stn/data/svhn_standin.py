"""A stand-in for SVHN in its very format (format 1): drawn house numbers, never to be mixed with the real ones.

For machines that cannot reach the official archives. A split folder holds 1.png … n.png and digitStruct.mat as the
real one does, and the mark of a stand-in, by which every reader can tell.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from stn.data.digit_struct import FIELDS, HouseNumber
from stn.data.standin import make_standin
from stn.data.svhn_standin_drawing import draw_number
from stn.progress import Bar

VERSION = 1  # of the drawing: raise it when the same seed gives other pictures
# Pictures of SVHN's train/ by number of digits, and its 73 257 digits by kind. Its one number of six
# digits is left out.
PICTURES_BY_LENGTH = {1: 5137, 2: 18130, 3: 8691, 4: 1434, 5: 9}
DIGIT_COUNTS = (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659)


def write_standin(folder: Path, n: int, seed: int) -> Path:
    """The split folder with `n` drawn pictures; what is already there for the same `n`, seed and version is kept.

    Picture i depends on the seed and i alone. Lengths and digits follow SVHN's train/; a number has no leading 0.
    Raises: DataError when `folder` holds anything else: it is never replaced.
    """

    def draw(split: Path) -> None:
        numbers = []
        with Bar(n, f"drawing {folder.name}") as bar:
            for i in range(n):
                numbers.append(_write_picture(split, i, seed))
                bar.update(i + 1)
        write_digit_struct(split / "digitStruct.mat", numbers)

    return make_standin(folder, {"standin": "svhn", "version": VERSION, "n": n, "seed": seed}, draw)


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


def write_digit_struct(path: Path, numbers: Sequence[HouseNumber]) -> None:
    """`numbers` in the layout that stn.data.digit_struct describes, behind MATLAB's 512-byte user block."""
    with h5py.File(path, "w", userblock_size=512, libver="earliest") as file:
        refs, pictures = file.create_group("#refs#"), file.create_group("digitStruct")
        keys = map(str, itertools.count())

        def put(parent: h5py.Group, key: str, values: np.ndarray, kind: str) -> h5py.Reference:
            dataset = parent.create_dataset(key, data=values)
            dataset.attrs["MATLAB_class"] = np.bytes_(kind)
            return dataset.ref

        def put_references(parent: h5py.Group, key: str, references: list[h5py.Reference]) -> None:
            put(parent, key, np.array([[r] for r in references], dtype=h5py.ref_dtype), "cell")

        names, boxes = [], []
        for number in numbers:
            codes = np.frombuffer(number.name.encode("utf-16le"), dtype="<u2")[:, None]
            names.append(put(refs, next(keys), codes, "char"))
            group = refs.create_group(next(keys))
            boxes.append(group.ref)
            labels = np.where(np.array(number.labels) == 0, 10, number.labels)
            for field, column in zip(FIELDS, [labels, *np.transpose(number.boxes)], strict=True):
                doubles = [np.full((1, 1), value, dtype="<f8") for value in column]
                if len(doubles) == 1:
                    put(group, field.decode(), doubles[0], "double")
                else:
                    references = [put(refs, next(keys), value, "double") for value in doubles]
                    put_references(group, field.decode(), references)
        put_references(pictures, "name", names)
        put_references(pictures, "bbox", boxes)
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Oct  3 00:00:00 2011 HDF5 schema 1.00 ."
    with open(path, "r+b") as file:  # version 0x0200, byte order "IM" at the end of its first 128 bytes
        file.write(header.ljust(116) + bytes(8) + b"\x00\x02IM")
