"""The text files of CUB-200-2011, read, cross-checked and turned into arrays.

Format (README of the data set): one record a line, fields separated by blanks, ids counted from 1; see `FORMS`.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stn.data.errors import DataError

FORMS = {
    "images.txt": "<image_id> <class folder>/<file>",
    "image_class_labels.txt": "<image_id> <class_id>",
    "train_test_split.txt": "<image_id> <1 train, 0 test>",
    "bounding_boxes.txt": "<image_id> <x> <y> <width> <height>",
    "classes.txt": "<class_id> <name>",
    "parts/parts.txt": "<part_id> <name>",
    "parts/part_locs.txt": "<image_id> <part_id> <x> <y> <visible>",
}
# Of the official release: classes, images, training images, parts.
OFFICIAL_COUNTS = (200, 11_788, 5_994, 15)
# Lies beside images.txt of a stand-in: a folder that has it is never taken for the real birds.
STANDIN_MARK = "standin.json"
# No photograph is larger; bounds what a nonsensical file can make us allocate.
MAX_PX = 1e5


@dataclass(frozen=True)
class Annotations:
    """What is known of N images, in the order of their ids.

    Shapes: image_files N names below images/; labels (N,) int64 from 0; is_train (N,) bool; boxes_px (N, 4) float32 as
    (x0, y0, x1, y1); parts (N, P, 3) float32 as (x, y, visible), (0, 0, 0) where a part is not visible.
    Units: pixels of the image file, counted from its top left corner.
    """

    root: Path
    image_files: tuple[str, ...]
    labels: np.ndarray
    is_train: np.ndarray
    boxes_px: np.ndarray
    parts: np.ndarray
    classes: tuple[str, ...]
    part_names: tuple[str, ...]
    source: str  # "real" or "standin", as in a run's record
    sha256: str  # of the text files and of the names and byte counts of the images

    def __len__(self) -> int:
        return len(self.image_files)


def read_annotations(root: str | Path) -> Annotations:
    """The annotations in `root`, the folder that holds images.txt. Opens no image.

    Raises: DataError, one line naming the file (and its line), for a file that is missing or malformed, ids that are
    not 1..N or differ between files, a class folder that is not the image's class, a box without area, an image that is
    not there, and numbers of images, classes or parts that are not the official ones, unless it is a stand-in.
    """
    tables = _Tables(Path(root))
    classes = tables.by_id("classes.txt", _name)
    part_names = tables.by_id("parts/parts.txt", _name)
    files = tables.by_id("images.txt", _image_file)
    labels = tables.by_id("image_class_labels.txt", lambda text: _integer(text, 1, len(classes)), like=files)
    split = tables.by_id("train_test_split.txt", lambda text: _integer(text, 0, 1), like=files)
    boxes = tables.by_id("bounding_boxes.txt", _box, like=files)
    parts = tables.part_locations(len(files), len(part_names))
    for i, (file, label) in enumerate(zip(files, labels, strict=True), start=1):
        if file.split("/")[0] != classes[label - 1]:
            raise DataError(
                f"{tables.root / 'images.txt'}: image {i} is {_short(file)}, but by image_class_labels.txt it is of "
                f"class {label}, {_short(classes[label - 1])}"
            )
    byte_counts = _byte_counts(tables.root / "images", files)
    digest = hashlib.sha256(json.dumps([tables.content, byte_counts], sort_keys=True).encode())
    return Annotations(
        root=tables.root,
        image_files=files,
        labels=np.array(labels, dtype=np.int64) - 1,
        is_train=np.array(split, dtype=bool),
        boxes_px=np.array(boxes, dtype=np.float32),
        parts=parts,
        classes=classes,
        part_names=part_names,
        source=_source(tables.root, (len(classes), len(files), sum(split), len(part_names))),
        sha256=digest.hexdigest(),
    )


class _Tables:
    """The text files under a root, each read once, and what their lines say."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.content = {name: _read(root / name) for name in FORMS}

    def records(self, name: str, convert: Callable[[list[str]], Any]) -> list[tuple[int, Any]]:
        """(line number, converted fields) of every line; `convert` refuses a line with a ValueError."""
        n_fields = FORMS[name].count(" <") + 1
        records = []
        for number, line in enumerate(self.content[name].split("\n"), start=1):
            if not line.strip():
                continue
            try:
                fields = line.split(maxsplit=n_fields - 1)
                if len(fields) != n_fields:
                    raise ValueError
                records.append((number, convert(fields)))
            except ValueError as error:
                reason = f" ({error})" if str(error) else ""
                raise DataError(
                    f"{self.root / name}, line {number}: expected {FORMS[name]}, got {_short(line)}{reason}"
                ) from None
        if not records:
            raise DataError(f"{self.root / name} holds no line {FORMS[name]}")
        return records

    def by_id(self, name: str, convert: Callable[[str], Any], like: tuple | None = None) -> tuple:
        """The values of a file `<id> <value>` in the order of ids 1..N; with `like`, N is its length."""
        records = self.records(name, lambda fields: (_integer(fields[0]), convert(" ".join(fields[1:]))))
        n = len(records) if like is None else len(like)
        values = {}
        for number, (key, value) in records:
            if not 1 <= key <= n or key in values:
                problem = "is there twice" if key in values else f"is not in 1..{n}"
                origin = "" if like is None else ", the ids of images.txt"
                raise DataError(f"{self.root / name}, line {number}: id {key} {problem}{origin}")
            values[key] = value
        if len(values) != n:
            missing = next(key for key in range(1, n + 1) if key not in values)
            raise DataError(f"{self.root / name}: image {missing} of images.txt is not in it")
        return tuple(values[key] for key in range(1, n + 1))

    def part_locations(self, n_images: int, n_parts: int) -> np.ndarray:
        name = "parts/part_locs.txt"
        parts = np.full((n_images, n_parts, 3), np.nan, dtype=np.float32)
        for number, (image, part, location) in self.records(name, _part):
            if not (1 <= image <= n_images and 1 <= part <= n_parts):
                raise DataError(
                    f"{self.root / name}, line {number}: image {image}, part {part}: images.txt has {n_images} images, "
                    f"parts.txt {n_parts} parts"
                )
            if not np.isnan(parts[image - 1, part - 1, 2]):
                raise DataError(f"{self.root / name}, line {number}: part {part} of image {image} is there twice")
            parts[image - 1, part - 1] = location
        if np.isnan(parts).any():
            image, part = np.argwhere(np.isnan(parts[..., 2]))[0] + 1
            raise DataError(f"{self.root / name}: part {part} of image {image} is not in it")
        return parts


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file ({error.reason} at byte {error.start})") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path} is missing: the folder is not, or not all of, CUB-200-2011") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _integer(text: str, low: int | None = None, high: int | None = None) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"{_short(text)} is not a whole number")
    if low is not None and not low <= int(text) <= high:
        raise ValueError(f"{text} is not in {low}..{high}")
    return int(text)


def _pixels(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or abs(value) > MAX_PX:
        raise ValueError(f"{_short(text)} is not a number of pixels")
    return value


def _name(text: str) -> str:
    return text.strip()


def _image_file(text: str) -> str:
    name = text.strip()
    folder, _, file = name.partition("/")
    if not folder or not file or "/" in file or folder in (".", "..") or "\\" in name:
        raise ValueError("not a file in a class folder")
    return name


def _box(text: str) -> tuple[float, float, float, float]:
    x, y, width, height = map(_pixels, text.split())
    if width <= 0 or height <= 0:
        raise ValueError("a box must have a positive width and height")
    return x, y, x + width, y + height


def _part(fields: list[str]) -> tuple[int, int, tuple[float, float, float]]:
    visible = _integer(fields[4].strip(), 0, 1)
    x, y = _pixels(fields[2]), _pixels(fields[3])
    return _integer(fields[0]), _integer(fields[1]), (x, y, 1.0) if visible else (0.0, 0.0, 0.0)


def _byte_counts(folder: Path, files: tuple[str, ...]) -> list[int]:
    """Of every image: by listing the class folders once, not by asking for each file."""
    try:
        listed = {}
        for class_folder in sorted({file.split("/")[0] for file in files}):
            if (folder / class_folder).is_dir():
                with os.scandir(folder / class_folder) as entries:
                    listed.update({f"{class_folder}/{e.name}": e.stat().st_size for e in entries if e.is_file()})
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {folder}: {error}") from error
    missing = [file for file in files if file not in listed]
    if missing:
        raise DataError(
            f"{folder / missing[0]} is missing ({len(missing)} of the {len(files)} images in images.txt are)"
        )
    return [listed[file] for file in files]


def _source(root: Path, counts: tuple[int, int, int, int]) -> str:
    if (root / STANDIN_MARK).is_file():
        return "standin"
    if counts != OFFICIAL_COUNTS:
        raise DataError(
            f"{root}: (classes, images, training images, parts) are {counts}, of CUB-200-2011 they are "
            f"{OFFICIAL_COUNTS}: unpack the archive anew"
        )
    return "real"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
