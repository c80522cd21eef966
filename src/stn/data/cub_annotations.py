"""The text files of CUB-200-2011, read, cross-checked and turned into arrays.

Format (README of the data set): one record a line, fields separated by blanks, ids counted from 1; see `FORMS`.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stn.data.errors import DataError
from stn.data.standin import STANDIN_MARK

FORMS = {
    "images.txt": "<image_id> <file>",
    "image_class_labels.txt": "<image_id> <class_id>",
    "train_test_split.txt": "<image_id> <is_train>",
    "bounding_boxes.txt": "<image_id> <x> <y> <width> <height>",
    "classes.txt": "<class_id> <name>",
    "parts/parts.txt": "<part_id> <name>",
    "parts/part_locs.txt": "<image_id> <part_id> <x> <y> <visible>",
}
# Of the official release: classes, images, training images, parts.
OFFICIAL_COUNTS = (200, 11_788, 5_994, 15)
# Lies beside images.txt of a listed part of the real birds, and names its photographs: the official lists name all.
PART_MARK = "part.md5"
MAX_PX = 1e5  # no photograph is larger
# What each field can be, where it is not text: whole numbers, or pixels.
WHOLE, PIXELS = {"is_train": (0, 1), "visible": (0, 1)}, ("x", "y", "width", "height")


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
    source: str  # "real", "subset" or "standin", as in a run's record
    sha256: str  # of the text files and of the names and byte counts of the images


def read_annotations(root: Path) -> Annotations:
    """The annotations in `root`, the folder that holds images.txt. Opens no image.

    Of a listed part (`PART_MARK`) the images in it, with its classes alone.
    Raises: DataError, one line naming the file (and its line), for a file that is missing or malformed, ids that are
    not 1..N, a class folder that is not the image's class, a box without area, an image that is not there, and numbers
    of images, classes or parts that are not the official ones, unless it is a stand-in.
    """
    content = {name: _read(root / name) for name in FORMS}
    classes = tuple(_table(root, content, "classes.txt", None)["name"])
    part_names = tuple(_table(root, content, "parts/parts.txt", None)["name"])
    files = _table(root, content, "images.txt", None)["file"]
    n = len(files)
    labels = _table(root, content, "image_class_labels.txt", n)["class_id"].astype(np.int64) - 1
    is_train = _table(root, content, "train_test_split.txt", n)["is_train"] == 1
    boxes = np.stack([*map(_table(root, content, "bounding_boxes.txt", n).get, PIXELS)], axis=1)
    located = _table(root, content, "parts/part_locs.txt", n * len(part_names))
    parts = np.stack([located[name] for name in ("x", "y", "visible")], axis=1).reshape(n, len(part_names), 3)
    _check(root, files, labels, classes, boxes)
    boxes[:, 2:] += boxes[:, :2]
    source = _source(root, (len(classes), n, int(is_train.sum()), len(part_names)))
    chosen = np.arange(n)
    if source == "subset":
        listed = {line.split("  images/", 1)[-1] for line in _read(root / PART_MARK).splitlines()}
        chosen = np.flatnonzero([file in listed for file in files])
        kept, labels = np.unique(labels[chosen], return_inverse=True)
        classes = tuple(classes[k] for k in kept)
    files = tuple(files[i] for i in chosen)
    byte_counts = _byte_counts(root / "images", files)
    digest = hashlib.sha256(json.dumps([content, byte_counts], sort_keys=True).encode())
    return Annotations(
        root=root,
        image_files=files,
        labels=labels,
        is_train=is_train[chosen],
        boxes_px=boxes[chosen].astype(np.float32),
        parts=(parts * parts[..., 2:])[chosen].astype(np.float32),
        classes=classes,
        part_names=part_names,
        source=source,
        sha256=digest.hexdigest(),
    )


def _table(root: Path, content: dict[str, str], name: str, n: int | None) -> dict[str, np.ndarray | list[str]]:
    """The columns of a file, its lines in the order of their ids, which must be all of 1..n, or 1..the number of lines.

    part_locs.txt has two ids, of the image and of the part.
    """
    path, fields = root / name, re.findall("<(.+?)>", FORMS[name])
    lines = [(k, line) for k, line in enumerate(content[name].split("\n"), start=1) if line.strip()]
    rows = [line.split(maxsplit=len(fields) - 1) for _, line in lines]

    def refuse(i: int, why: str = "") -> None:
        raise DataError(f"{path}, line {lines[i][0]}: expected {FORMS[name]}, got {_short(lines[i][1])}{why}")

    if not rows:
        raise DataError(f"{path} holds no line {FORMS[name]}")
    for i, row in enumerate(rows):
        if len(row) != len(fields):
            refuse(i)
    columns = {}
    for field, texts in zip(fields, zip(*rows, strict=True), strict=True):
        if field in ("name", "file"):
            columns[field] = [text.strip() for text in texts]
            continue
        columns[field] = np.array([_number(text) for text in texts])
        low, high = (-MAX_PX, MAX_PX) if field in PIXELS else WHOLE.get(field, (1, 1e9))
        valid = (low <= columns[field]) & (columns[field] <= high)
        if field not in PIXELS:
            valid &= columns[field] % 1 == 0
        if not valid.all():
            i = int(np.argmin(valid))
            refuse(i, f" ({texts[i].strip()[:20]!r} is no {field})")
    ids = columns[fields[0]]
    if "part_id" in columns and fields[0] != "part_id":
        last = columns["part_id"].max()
        ids = (ids - 1) * last + columns["part_id"]
    n = n or len(rows)
    order = np.argsort(ids, kind="stable")
    if len(rows) != n or (ids[order] != np.arange(1, n + 1)).any():
        absent = [*np.setdiff1d(np.arange(1, n + 1), ids)[:1].astype(int), "none"][0]
        raise DataError(f"{path}: {len(rows)} lines, whose ids are not each of 1..{n} once (not there: {absent})")
    return {name: [v[i] for i in order] if isinstance(v, list) else v[order] for name, v in columns.items()}


def _check(root: Path, files: list[str], labels: np.ndarray, classes: tuple[str, ...], boxes: np.ndarray) -> None:
    """Raises: DataError for an image whose box has no area, or that does not lie in the folder of its class."""
    for i, (file, label, box) in enumerate(zip(files, labels, boxes, strict=True), start=1):
        if not (box[2:] > 0).all():
            raise DataError(f"{root / 'bounding_boxes.txt'}: the box of image {i} has no area")
        if label >= len(classes):
            raise DataError(f"{root / 'image_class_labels.txt'}: image {i} is of class {label + 1}, of {len(classes)}")
        if not re.fullmatch(r"(?!\.\.?/)[^/\\]+/[^/\\]+", file):
            raise DataError(f"{root / 'images.txt'}: image {i} is {_short(file)}, not a file in a class folder")
        if file.split("/")[0] != classes[label]:
            raise DataError(
                f"{root / 'images.txt'}: image {i} is {_short(file)}, but by image_class_labels.txt it is of class "
                f"{label + 1}, {_short(classes[label])}"
            )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file ({error.reason} at byte {error.start})") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path} is missing: the folder is not, or not all of, CUB-200-2011") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _byte_counts(folder: Path, files: tuple[str, ...]) -> list[int]:
    """Of every image: by listing the class folders once, not by asking for each file."""
    try:
        images = (path for path in folder.glob("*/*") if path.is_file())
        listed = {f"{path.parent.name}/{path.name}": path.stat().st_size for path in images}
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error}") from error
    missing = [file for file in files if file not in listed]
    if missing:
        raise DataError(f"{folder / missing[0]} is missing ({len(missing)} of the {len(files)} listed images are)")
    return [listed[file] for file in files]


def _source(root: Path, counts: tuple[int, int, int, int]) -> str:
    if (root / STANDIN_MARK).is_file():
        return "standin"
    if counts != OFFICIAL_COUNTS:
        raise DataError(
            f"{root}: (classes, images, training images, parts) are {counts}, of CUB-200-2011 they are "
            f"{OFFICIAL_COUNTS}: unpack the archive anew"
        )
    return "subset" if (root / PART_MARK).is_file() else "real"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
