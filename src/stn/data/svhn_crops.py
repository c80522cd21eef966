"""SVHN's crops: a split folder's pictures, cut out by their boxes and resized, as arrays that are mapped from disk."""

import itertools
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from stn.data.cache import MANIFEST, make_cache, sha256
from stn.data.digit_struct import HouseNumber, cached_digit_struct
from stn.data.errors import DataError
from stn.data.standin import read_mark
from stn.progress import Bar

log = logging.getLogger(__name__)

MAX_DIGITS = 5
NONE = 10  # the label of a place without a digit
UNREADABLE = -100  # of all places of a number with more digits: no class, so never right, and no part of a loss
# Crop's side over the union box's: Goodfellow et al. 2014 grow it by 30 %, the paper's 128 px set shows twice that.
EXTENT = {64: 1.3, 128: 2.6}
# How far a box may lie beyond the picture, in px, before the crop is widened to hold it: boxes are of whole pixels.
ROUNDING_PX = 1.0
CACHE_VERSION = 2
ARRAYS = ("images.npy", "labels.npy", "lengths.npy", "boxes.npy")


def build_crops(split_dir: Path, size_px: int, out_dir: Path, checksums: bool = True) -> Path:
    """The folder `out_dir` with the crops of a split's pictures, built unless it is there and whole.

    Files: those of `NumberCrops` as .npy, and manifest.json with counts, checksums, the source and what was skipped and
    why. A cache of another source, size or version, or with a wrong file, is replaced. `checksums=False` compares sizes
    only. Of a test split no picture is skipped, whatever its boxes: its number counts in the error.
    Deviation: what a crop would show beyond the picture's border is cut off before resizing (not stated), unless a
    digit's box reaches there, so near a border the number is off the crop's centre. Resizing is Pillow's bilinear
    filter, widened when shrinking.
    Raises: DataError naming a file that is missing or damaged; ValueError for another size.
    """
    source = crops_source(size_px) | _files_of(split_dir)

    def write(folder: Path) -> dict[str, Any]:
        return _write_crops(split_dir, numbers_of(split_dir, out_dir.parent), size_px, folder)

    return make_cache(out_dir, ARRAYS, source, write, checksums)


def crops_source(size_px: int) -> dict[str, Any]:
    """What crops depend on besides the pictures. Raises: ValueError for an unknown size."""
    if size_px not in EXTENT:
        raise ValueError(f"SVHN: size_px must be one of {tuple(EXTENT)}, got {size_px!r}")
    return {"version": CACHE_VERSION, "size_px": size_px, "extent": EXTENT[size_px]}


def numbers_of(split_dir: Path, folder: Path) -> list[HouseNumber]:
    """What digitStruct.mat of a split says, read once and then kept in `folder`."""
    return cached_digit_struct(split_dir / "digitStruct.mat", folder / f"{split_dir.name}_numbers.npz")


class Crop(NamedTuple):
    """image: (size_px, size_px, 3) uint8; boxes_px: (n, 4) the digits' x0, y0, x1, y1 in it."""

    image: np.ndarray
    boxes_px: np.ndarray


def crop_number(picture: Image.Image, boxes: np.ndarray, size_px: int) -> Crop | None:
    """One crop; None when a box has no area, or less than a pixel of all boxes lies in the picture.

    boxes: (n, 4), left, top, width, height in px of the picture. Where the digits themselves reach beyond the picture,
    so does the crop, and shows the border's pixels there: cut off, it would be stretched the more, the less is in it.
    """
    low, high = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    if (boxes[:, 2:] <= 0).any() or (np.minimum(high, picture.size) - np.maximum(low, 0) < 1).any():
        return None
    centre, half = (low + high) / 2, (high - low) / 2 * EXTENT[size_px]
    beyond = np.maximum([*-low, *(high - picture.size)], 0)
    beyond = np.where(beyond > ROUNDING_PX, beyond, 0)
    region = (np.maximum(centre - half, -beyond[:2]), np.minimum(centre + half, picture.size + beyond[2:]))
    return _resized(picture, *region, boxes, size_px)


def _resized(picture: Image.Image, low: np.ndarray, high: np.ndarray, boxes: np.ndarray, size_px: int) -> Crop:
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    boxes_px = (corners - np.tile(low, 2)) * (size_px / np.tile(high - low, 2))
    margin = int(np.ceil(max(0, *-low, *(high - picture.size))))
    if margin:
        picture = Image.fromarray(np.pad(np.asarray(picture), ((margin, margin), (margin, margin), (0, 0)), "edge"))
    box = (*(low + margin), *(high + margin))
    return Crop(np.asarray(picture.resize((size_px, size_px), Image.Resampling.BILINEAR, box=box)), boxes_px)


def _files_of(split_dir: Path) -> dict[str, Any]:
    """What tells one split folder from another in a second, without reading its pictures."""
    try:
        digest = sha256(split_dir / "digitStruct.mat")
        sizes = [entry.stat().st_size for entry in os.scandir(split_dir) if entry.name.endswith(".png")]
    except OSError as error:
        raise DataError(f"{split_dir} is no split of SVHN: {error}") from error
    return {
        "digit_struct_sha256": digest,
        "pictures": len(sizes),
        "picture_bytes": sum(sizes),
        "standin": read_mark(split_dir),
    }


def _write_crops(split_dir: Path, numbers: list[HouseNumber], size_px: int, folder: Path) -> dict[str, Any]:
    is_test = split_dir.name == "test"
    skipped, kept, boxes_px = [], [], []
    with open(folder / "images.npy", "w+b") as file:
        _npy_header(file, len(numbers), size_px)
        for number, crop in _crops(split_dir, numbers, size_px, is_test):
            if isinstance(crop, str):
                skipped.append({"name": number.name, "reason": crop})
            else:
                kept.append(number)
                boxes_px.append(np.zeros((MAX_DIGITS, 4), dtype=np.float32))
                boxes_px[-1][: len(crop.boxes_px)] = crop.boxes_px[:MAX_DIGITS]
                file.write(crop.image.tobytes())
        file.seek(0)
        _npy_header(file, len(kept), size_px)
    if not kept:
        raise DataError(f"{split_dir} has no picture with 1 to {MAX_DIGITS} digits")
    lengths = np.array([len(number.labels) for number in kept], dtype=np.int8)
    labels = np.full((len(kept), MAX_DIGITS), NONE, dtype=np.int8)
    for row, number in zip(labels, kept, strict=True):
        row[: len(number.labels)] = number.labels if len(number.labels) <= MAX_DIGITS else UNREADABLE
    np.save(folder / "labels.npy", labels)
    np.save(folder / "lengths.npy", lengths)
    np.save(folder / "boxes.npy", np.stack(boxes_px))
    if skipped:
        log.warning("%s: %d of %d pictures skipped, see %s", split_dir, len(skipped), len(numbers), MANIFEST)
    by_length = {str(k): int((lengths == k).sum()) for k in np.unique(lengths)}
    return {"pictures": len(kept), "by_length": by_length, "skipped": skipped}


def _npy_header(file, n: int, size_px: int) -> None:
    """Of one length for every `n`: numpy leaves room for the first axis to grow."""
    shape = (n, size_px, size_px, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _crops(
    split_dir: Path, numbers: list[HouseNumber], size_px: int, is_test: bool
) -> Iterator[tuple[HouseNumber, Crop | str]]:
    """Each number with its crop, or with the reason why it has none."""

    def load(number: HouseNumber) -> Crop | str:
        path = split_dir / number.name
        if len(number.labels) > MAX_DIGITS and not is_test:
            return f"{len(number.labels)} digits, more than {MAX_DIGITS}"
        try:
            with Image.open(path) as file:
                picture = file.convert("RGB")
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing, though digitStruct.mat names it") from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} is truncated, corrupt or no picture ({' '.join(str(error).split())})") from error
        crop = crop_number(picture, number.boxes, size_px)
        if crop is None and is_test:
            return _resized(picture, np.zeros(2), np.array(picture.size), number.boxes, size_px)
        return crop or "its boxes lie outside of the picture, or have no area"

    todo, done = iter(numbers), 0
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,  # Pillow decodes and resizes without the interpreter lock
        Bar(len(numbers), f"cropping {split_dir.name} to {size_px} px") as bar,
    ):
        while chunk := list(itertools.islice(todo, 512)):  # bounds what waits in memory
            yield from zip(chunk, pool.map(load, chunk), strict=True)
            done += len(chunk)
            bar.update(done)
