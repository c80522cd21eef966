"""SVHN's whole numbers (format 1): official archives to split folders to cached crops of 64 or 128 px, as tensors.

    SVHN/train.tar.gz → SVHN/train/{1.png, …, digitStruct.mat} → SVHN/crops/train_64/{images,labels,lengths}.npy

Each arrow makes its result beside its final name and renames it, so what has the name is whole. "extra" as "train".
"""

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stn.data.digit_struct import HouseNumber, read_digit_struct
from stn.data.download import MARKER, extract_tar, fetch, is_extracted, progress_bar
from stn.data.errors import DataError
from stn.data.staging import staging
from stn.data.svhn_standin import read_mark

__all__ = [
    *("HouseNumber", "NumberCrops", "build_crops", "check_official", "holdout", "load_svhn"),
    *("prepare_svhn", "read_digit_struct"),
]

log = logging.getLogger(__name__)

SITE = "http://ufldl.stanford.edu/housenumbers/"
ARCHIVES = {  # size in bytes, md5
    "train": (404141560, "a649f4cb15c35520e8a8c342d4c0005a"),
    "test": (276555967, "790d9c8d42f1fcbd219b59956c853a81"),
    "extra": (1955489752, "606f41243d71ca4d5fe66dbaf1f02bee"),
}
PICTURES = {"train": 33402, "test": 13068, "extra": 202353}
MAX_MEMBERS = 300_000
MAX_UNPACKED = (
    5,
    1 << 30,
)  # times the archive's size, plus bytes: the pictures hardly shrink in it, digitStruct.mat does
MAX_DIGITS = 5
NONE = 10  # the label of a place without a digit
# Crop's side over the union box's: Goodfellow et al. 2014 grow it by 30 %, the paper's 128 px set shows twice that.
EXTENT = {64: 1.3, 128: 2.6}
CACHE_VERSION = 1
MANIFEST = "manifest.json"
ARRAYS = ("images.npy", "labels.npy", "lengths.npy")


@dataclass(frozen=True)
class NumberCrops:
    """House numbers cut out and resized.

    Shapes: images (N, size_px, size_px, 3) uint8, RGB, mapped from disk until copied; labels (N, 5) int64: digits 0..9
    from the left, then 10 = none; lengths (N,) int64, 1..5. standin: drawn pictures, not SVHN. source_pictures: with
    those that were skipped.
    """

    images: Tensor
    labels: Tensor
    lengths: Tensor
    standin: bool
    source_pictures: int

    def __len__(self) -> int:
        return len(self.labels)


def prepare_svhn(data_dir: str | Path, splits: Sequence[str] = ("train", "test", "extra")) -> dict[str, Path]:
    """The folder of each split, {"train": …}: what lies in `data_dir`/SVHN or `data_dir`, else from the archive there,
    else from the official site.

    A split folder that somebody else unpacked is taken as it is; what it lacks is found when it is cropped.
    Raises: DataError, one line, naming what is wrong or what to put where.
    """
    data_dir = Path(data_dir)
    folders = {}
    for split in splits:
        _check_split("prepare_svhn", split)
        folder = _split_folder(data_dir, split)
        if folder is None:
            _check_labels_are_there(data_dir, split)
            name, (size, md5) = f"{split}.tar.gz", ARCHIVES[split]
            places = [data_dir / "SVHN" / name, data_dir / name]
            archive = fetch([SITE + name], next((p for p in places if p.is_file()), places[0]), md5, size)
            factor, extra = MAX_UNPACKED
            folder = extract_tar(archive, data_dir / "SVHN" / split, factor * size + extra, MAX_MEMBERS, root=split)
        elif (folder / MARKER).exists() and not is_extracted(folder):
            raise DataError(f"{folder} is not whole any more: delete it, and it is extracted anew")
        folders[split] = folder
    return folders


def load_svhn(data_dir: str | Path, split: str, size_px: int, checksums: bool = True) -> NumberCrops:
    """The crops of a split ("train", "test", "extra") at 64 or 128 px, in file order. Downloads nothing.

    The first call builds the cache in `data_dir`/SVHN/crops, which is enough from then on: the pictures may go.
    Raises: DataError when the split has not been prepared or is not what it should be.
    """
    _check_split("load_svhn", split)
    data_dir = Path(data_dir)
    cache = data_dir / "SVHN" / "crops" / f"{split}_{size_px}"
    folder = _split_folder(data_dir, split)
    if folder is not None:
        build_crops(folder, size_px, cache, checksums)
    elif reason := _fault(cache, _check_size(size_px), None, checksums):
        _check_labels_are_there(data_dir, split)
        raise DataError(
            f"SVHN {split} is not in {data_dir} ({reason if cache.exists() else f'no {cache}'}): `make data-svhn`, or "
            "`python -m experiments.prepare dataset=svhn`, fetches it (2.6 GB); data=standin draws pictures instead"
        )
    manifest = json.loads((cache / MANIFEST).read_text(encoding="utf-8"))
    # Copy on write: torch wants writable memory, and the file must stay as it is.
    images, labels, lengths = (torch.from_numpy(np.load(cache / name, mmap_mode="c")) for name in ARRAYS)
    n = manifest["pictures"] + len(manifest["skipped"])
    return NumberCrops(images, labels.long(), lengths.long(), manifest["source"]["standin"] is not None, n)


def check_official(crops: NumberCrops, split: str) -> None:
    """Raises: DataError when the crops are not all of SVHN's split: drawn ones, or some of it."""
    if crops.standin:
        raise DataError(f"data=real: the SVHN {split} that is there is drawn; give data=standin, or delete it")
    if crops.source_pictures != PICTURES[split]:
        raise DataError(
            f"data=real: the SVHN {split} that is there has {crops.source_pictures} pictures instead of "
            f"{PICTURES[split]}: delete it, and it is extracted anew"
        )


def crop_checksums(data_dir: str | Path, split: str, size_px: int) -> dict[str, str]:
    """sha256 of a split's pictures and labels, by file name, as `load_svhn` checked them."""
    folder = f"{split}_{size_px}"
    manifest = json.loads((Path(data_dir) / "SVHN" / "crops" / folder / MANIFEST).read_text(encoding="utf-8"))
    return {f"{folder}/{name}": manifest["files"][name]["sha256"] for name in ARRAYS[:2]}


def holdout(train: NumberCrops, n: int = 5000) -> tuple[NumberCrops, NumberCrops]:
    """Training numbers without their last `n`, and those `n`, for choosing models in place of the test set.

    Deviation: which 5k images the paper held out of train + extra is not stated; here the end of train, in file order.
    """
    if not 0 < n < len(train):
        raise ValueError(f"holdout: n must be in 1..{len(train) - 1}, got {n}")

    def part(span: slice) -> NumberCrops:
        return replace(train, images=train.images[span], labels=train.labels[span], lengths=train.lengths[span])

    return part(slice(None, -n)), part(slice(-n, None))


def build_crops(split_dir: str | Path, size_px: int, out_dir: str | Path, checksums: bool = True) -> Path:
    """The folder `out_dir` with the crops of every picture of up to five digits, built unless it is there and whole.

    Files: images.npy (N, size_px, size_px, 3) uint8, labels.npy (N, 5) int8, lengths.npy (N,) int8, and manifest.json
    with counts, checksums, the source and what was skipped and why. A cache of another source, size or version, or
    with a wrong file, is replaced. `checksums=False` compares sizes only.
    Deviation: what a crop would show beyond the picture's border is cut off before resizing (not stated), so near a
    border the number is off the crop's centre. Resizing is Pillow's bilinear filter, widened when shrinking.
    Raises: DataError naming a file that is missing or damaged; ValueError for another size.
    """
    split_dir, out_dir, size_px = Path(split_dir), Path(out_dir), _check_size(size_px)
    source = _source(split_dir)
    reason = _fault(out_dir, size_px, source, checksums)
    if not reason:
        return out_dir
    if out_dir.exists():
        others = sorted(p.name for p in out_dir.iterdir() if p.name not in (*ARRAYS, MANIFEST))
        if others:
            raise DataError(f"{out_dir} holds {others[0]}, which is not of a cache of crops: move it away")
        log.info("%s: built anew", reason)
    numbers = read_digit_struct(split_dir / "digitStruct.mat")
    try:
        with staging(out_dir.parent, ".crops-") as temporary:
            fresh = temporary / "crops"
            fresh.mkdir()
            _write_cache(split_dir, numbers, size_px, source, fresh)
            with suppress(FileNotFoundError):
                os.rename(out_dir, temporary / "old")
            try:
                os.rename(fresh, out_dir)
            except OSError:
                if _fault(out_dir, size_px, source, checksums=False):  # else another process was faster
                    raise
    except OSError as error:
        raise DataError(f"{out_dir} cannot be written: {error}") from error
    return out_dir


def crop_number(picture: Image.Image, boxes: np.ndarray, size_px: int) -> np.ndarray | None:
    """One crop, (size_px, size_px, 3) uint8; None when less than a pixel of it lies in the picture, or a box
    has no area.

    boxes: (n, 4), left, top, width, height in px of the picture.
    """
    if (boxes[:, 2:] <= 0).any():
        return None
    low, high = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    centre, half = (low + high) / 2, (high - low) / 2 * EXTENT[size_px]
    low, high = np.maximum(centre - half, 0), np.minimum(centre + half, picture.size)
    if (high - low < 1).any():
        return None
    return np.asarray(picture.resize((size_px, size_px), Image.Resampling.BILINEAR, box=(*low, *high)))


def _check_split(caller: str, split: str) -> None:
    if split not in ARCHIVES:
        raise ValueError(f"{caller}: split must be one of {tuple(ARCHIVES)}, got {split!r}")


def _check_size(size_px: int) -> int:
    if size_px not in EXTENT:
        raise ValueError(f"SVHN: size_px must be one of {tuple(EXTENT)}, got {size_px!r}")
    return size_px


def _split_folder(data_dir: Path, split: str) -> Path | None:
    places = (data_dir / "SVHN" / split, data_dir / split)
    return next((place for place in places if (place / "digitStruct.mat").is_file()), None)


def _check_labels_are_there(data_dir: Path, split: str) -> None:
    """Raises: DataError when the split's folder in SVHN/ has pictures, but no digitStruct.mat."""
    folder = data_dir / "SVHN" / split
    if any(folder.glob("*.png")) and not (folder / "digitStruct.mat").is_file():
        raise DataError(f"{folder}/digitStruct.mat is missing: put it back, or delete the folder to start anew")


def _source(split_dir: Path) -> dict:
    """What tells one split folder from another in a second, without reading its pictures."""
    try:
        digest = _sha256(split_dir / "digitStruct.mat")
        sizes = [entry.stat().st_size for entry in os.scandir(split_dir) if entry.name.endswith(".png")]
    except OSError as error:
        raise DataError(f"{split_dir} is no split of SVHN: {error}") from error
    return {
        "digit_struct_sha256": digest,
        "pictures": len(sizes),
        "picture_bytes": sum(sizes),
        "standin": read_mark(split_dir),
    }


def _fault(cache: Path, size_px: int, source: dict | None, checksums: bool) -> str:
    """Why the cache cannot be used; empty when it can. Without `source`, whatever source it is of."""
    try:
        manifest = json.loads((cache / MANIFEST).read_text(encoding="utf-8"))
        if (manifest["version"], manifest["size_px"]) != (CACHE_VERSION, size_px):
            return f"{cache} is of another version or size"
        if manifest["extent"] != EXTENT[size_px] or (source is not None and manifest["source"] != source):
            return f"{cache} is of other pictures"
        for name in ARRAYS:
            expected = manifest["files"][name]
            if (cache / name).stat().st_size != expected["bytes"]:
                return f"{cache / name} has another size than when it was written"
            if checksums and _sha256(cache / name) != expected["sha256"]:
                return f"{cache / name} has another checksum than when it was written"
        return "" if "standin" in manifest["source"] else f"{cache / MANIFEST} names no source"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{cache} is not whole ({type(error).__name__}: {error})"


def _write_cache(split_dir: Path, numbers: list[HouseNumber], size_px: int, source: dict, folder: Path) -> None:
    skipped = []
    fitting = [number for number in numbers if len(number.labels) <= MAX_DIGITS]
    for number in numbers:
        if len(number.labels) > MAX_DIGITS:
            skipped.append({"name": number.name, "reason": f"{len(number.labels)} digits, more than {MAX_DIGITS}"})
    kept = []
    with open(folder / "images.npy", "w+b") as file:
        _npy_header(file, len(fitting), size_px)
        for number, crop in _crops(split_dir, fitting, size_px):
            if crop is None:
                skipped.append({"name": number.name, "reason": "its boxes lie outside of the picture, or have no area"})
            else:
                kept.append(number)
                file.write(crop.tobytes())
        file.seek(0)
        _npy_header(file, len(kept), size_px)
    if not kept:
        raise DataError(f"{split_dir} has no picture with 1 to {MAX_DIGITS} digits")
    lengths = np.array([len(number.labels) for number in kept], dtype=np.int8)
    labels = np.full((len(kept), MAX_DIGITS), NONE, dtype=np.int8)
    for row, number in zip(labels, kept, strict=True):
        row[: len(number.labels)] = number.labels
    np.save(folder / "labels.npy", labels)
    np.save(folder / "lengths.npy", lengths)
    manifest = {
        "version": CACHE_VERSION,
        "size_px": size_px,
        "extent": EXTENT[size_px],
        "source": source,
        "pictures": len(kept),
        "by_length": {str(k): int((lengths == k).sum()) for k in range(1, MAX_DIGITS + 1)},
        "skipped": skipped,
        "files": {n: {"bytes": (folder / n).stat().st_size, "sha256": _sha256(folder / n)} for n in ARRAYS},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    if skipped:
        log.warning("%s: %d of %d pictures skipped, see %s", split_dir, len(skipped), len(numbers), MANIFEST)


def _npy_header(file, n: int, size_px: int) -> None:
    """As long for every `n`: numpy leaves room for the first axis to grow."""
    shape = (n, size_px, size_px, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _crops(
    split_dir: Path, numbers: list[HouseNumber], size_px: int
) -> Iterator[tuple[HouseNumber, np.ndarray | None]]:
    def load(number: HouseNumber) -> np.ndarray | None:
        path = split_dir / number.name
        try:
            with Image.open(path) as picture:
                return crop_number(picture.convert("RGB"), number.boxes, size_px)
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing, though digitStruct.mat names it") from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} is truncated, corrupt or no picture ({' '.join(str(error).split())})") from error

    todo, done = iter(numbers), 0
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,  # Pillow decodes and resizes without the interpreter lock
        progress_bar(f"cropping {split_dir.name} to {size_px} px", len(numbers)) as set_done,
    ):
        while chunk := list(itertools.islice(todo, 512)):  # bounds what waits in memory
            yield from zip(chunk, pool.map(load, chunk), strict=True)
            done += len(chunk)
            set_done(done)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
