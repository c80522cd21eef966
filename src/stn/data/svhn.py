"""SVHN's whole numbers (format 1): official archives to split folders to cached crops of 64 or 128 px, as tensors.

    SVHN/train.tar.gz → SVHN/train/{1.png, …, digitStruct.mat} → SVHN/crops/train_64/{images,labels,lengths}.npy

Each arrow makes its result beside its final name and renames it, so what has its name is whole. The same for "extra".
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stn.data.cache import cache_problem, read_manifest
from stn.data.digit_struct import HouseNumber, read_box_table, read_digit_struct
from stn.data.download import MARKER, extract_tar, fetch, is_extracted, verify
from stn.data.errors import DataError
from stn.data.subset import Part, check_part, place_part, source_folders
from stn.data.svhn_crops import ARRAYS, build_crops, crops_source, numbers_of
from stn.data.svhn_standin import write_digit_struct

log = logging.getLogger(__name__)

SITE = "http://ufldl.stanford.edu/housenumbers/"
ARCHIVES = {  # size in bytes, md5
    "train": (404141560, "a649f4cb15c35520e8a8c342d4c0005a"),
    "test": (276555967, "790d9c8d42f1fcbd219b59956c853a81"),
    "extra": (1955489752, "606f41243d71ca4d5fe66dbaf1f02bee"),
}
PICTURES = {"train": 33402, "test": 13068, "extra": 202353}


@dataclass(frozen=True)
class NumberCrops:
    """House numbers cut out and resized.

    Shapes: images (N, size_px, size_px, 3) uint8, RGB, mapped from disk until copied; labels (N, 5) int64: digits 0..9
    from the left, then 10 = none, or all -100 where there are more than five; lengths (N,) int64, their number;
    boxes_px (N, 5, 4) float32: x0, y0, x1, y1 of each digit in px of the crop, 0 for none. standin: drawn pictures, not
    SVHN. source_pictures: their number, counting those that were skipped.
    """

    images: Tensor
    labels: Tensor
    lengths: Tensor
    boxes_px: Tensor
    standin: bool
    source_pictures: int

    def __len__(self) -> int:
        return len(self.labels)


def prepare_svhn(data_dir: Path, splits: Sequence[str] = ("train", "test", "extra")) -> dict[str, Path]:
    """The folder of each split, {"train": …}: what lies in `data_dir`/SVHN or `data_dir`, else from the archive there,
    else from the official site.

    A split folder that somebody else unpacked is taken as it is; what it lacks is found when it is cropped.
    Raises: DataError, one line, naming what is wrong or what to put where.
    """
    folders = {}
    for split in splits:
        folder = _split_folder(data_dir, split)
        if folder is None:
            _check_labels_are_there(data_dir, split)
            name, (size, md5) = f"{split}.tar.gz", ARCHIVES[split]
            places = [data_dir / "SVHN" / name, data_dir / name]
            archive = fetch([SITE + name], next((p for p in places if p.is_file()), places[0]), md5, size)
            folder = extract_tar(archive, data_dir / "SVHN" / split, root=split)
        elif (folder / MARKER).exists() and not is_extracted(folder):
            raise DataError(f"{folder} is not whole any more: delete it, and it is extracted anew")
        folders[split] = folder
    return folders


def prepare_svhn_part(part: Part, data_dir: Path) -> Path:
    """`data_dir`/subset/<part>, a data folder whose SVHN/train and SVHN/test hold the pictures of a listed part.

    Their digitStruct.mat is written anew, from the official one or from tables of all boxes, <split>_…csv.gz.
    Raises: DataError, one line, naming what is missing, changed or one too many.
    """
    folder, splits = data_dir / "subset" / part.name, ("train", "test")
    roots = [source / place for source in source_folders(data_dir) for place in ("SVHN", "svhn", ".")]

    def write_boxes(tree: Path) -> None:
        for split in splits:
            names = [name.split("/")[1] for name in part.files if name.startswith(f"{split}/")]
            write_digit_struct(tree / split / "digitStruct.mat", _boxes_of(names, split, roots))

    for root, split in ((root, split) for root in roots for split in splits):
        archive = root / f"{split}.tar.gz"
        if archive.is_file() and not any((place / split).is_dir() for place in (folder / "SVHN", *roots)):
            size, md5 = ARCHIVES[split]
            extract_tar(verify(archive, md5, size), data_dir / "SVHN" / split, root=split)
    place_part(part, roots, folder / "SVHN", write_boxes)
    check_part(part, folder / "SVHN", [f"{split}/digitStruct.mat" for split in splits], splits)
    sha256 = _boxes_sha256({split: numbers_of(folder / "SVHN" / split, folder / "SVHN" / "crops") for split in splits})
    if sha256 != part.checksums["boxes_sha256"]:
        raise DataError(
            f"data=subset: the boxes in {folder / 'SVHN'} are not the official ones (sha256 {sha256}): delete "
            "it, and it is made anew"
        )
    return folder


def _boxes_sha256(numbers: dict[str, list[HouseNumber]]) -> str:
    """Of lines <split>/<name>: <digit> <left> <top> <width> <height>, …, in the order of the list."""
    digest = hashlib.sha256()
    for split, of_split in numbers.items():
        for number in of_split:
            rows = zip(number.labels, number.boxes, strict=True)
            digits = [" ".join([str(label), *(f"{value:g}" for value in box)]) for label, box in rows]
            digest.update(f"{split}/{number.name}: {', '.join(digits)}\n".encode())
    return digest.hexdigest()


def _boxes_of(names: Sequence[str], split: str, roots: Sequence[Path]) -> list[HouseNumber]:
    """The official boxes of these pictures, from the first place that has them."""
    for root in roots:
        if (root / split / "digitStruct.mat").is_file():
            numbers = {number.name: number for number in read_digit_struct(root / split / "digitStruct.mat")}
        elif (root / f"{split}_digitStruct_full.csv.gz").is_file():
            numbers = read_box_table(root / f"{split}_digitStruct_full.csv.gz")
        else:
            continue
        if missing := [name for name in names if name not in numbers]:
            raise DataError(f"data=subset: {root} has no boxes of {split}/{missing[0]}")
        return [numbers[name] for name in names]
    raise DataError(f"data=subset: no {split}/digitStruct.mat in any of {', '.join(map(str, roots))}")


def load_svhn(data_dir: Path, split: str, size_px: int, checksums: bool = True) -> NumberCrops:
    """The crops of a split ("train", "test", "extra") at 64 or 128 px, in file order. Downloads nothing.

    The first call builds the cache in `data_dir`/SVHN/crops, which is enough from then on: the pictures may go.
    Raises: DataError when the split has not been prepared or is not what it should be.
    """
    cache = data_dir / "SVHN" / "crops" / f"{split}_{size_px}"
    folder = _split_folder(data_dir, split)
    if folder is not None:
        build_crops(folder, size_px, cache, checksums)
    elif problem := cache_problem(cache, crops_source(size_px), checksums):
        _check_labels_are_there(data_dir, split)
        raise DataError(
            f"SVHN {split} is not in {data_dir} ({cache} {problem}): `make data-svhn`, or "
            "`python -m experiments.prepare dataset=svhn`, fetches it (2.6 GB); with data=subset it "
            "places a part, with data=standin draws pictures instead"
        )
    manifest = read_manifest(cache)
    # Copy on write: torch wants writable memory, and the file must stay as it is.
    images, labels, lengths, boxes_px = (torch.from_numpy(np.load(cache / name, mmap_mode="c")) for name in ARRAYS)
    n = manifest["pictures"] + len(manifest["skipped"])
    return NumberCrops(images, labels.long(), lengths.long(), boxes_px, manifest["source"]["standin"] is not None, n)


def check_real(crops: NumberCrops, split: str) -> None:
    """Raises: DataError when the crops are not all of SVHN's split: drawn ones, or some of it."""
    if crops.standin:
        raise DataError(f"data=real: the SVHN {split} that is there is drawn; give data=standin, or delete it")
    if crops.source_pictures != PICTURES[split]:
        raise DataError(
            f"data=real: the SVHN {split} that is there has {crops.source_pictures} pictures instead of "
            f"{PICTURES[split]}: delete it, and it is extracted anew"
        )


def crop_checksums(data_dir: Path, split: str, size_px: int) -> dict[str, str]:
    """sha256 of a split's pictures and labels, by file name, as `load_svhn` checked them."""
    folder = f"{split}_{size_px}"
    manifest = read_manifest(data_dir / "SVHN" / "crops" / folder)
    return {f"{folder}/{name}": manifest["files"][name]["sha256"] for name in ARRAYS[:2]}


def holdout(train: NumberCrops, n: int = 5000) -> tuple[NumberCrops, NumberCrops]:
    """Training numbers without their last `n`, and those `n`, for choosing models in place of the test set.

    Deviation: which 5k images the paper held out of train + extra is not stated; here the end of train, in file order.
    """
    if not 0 < n < len(train):
        raise ValueError(f"holdout: n must be in 1..{len(train) - 1}, got {n}")

    names, parts = ("images", "labels", "lengths", "boxes_px"), (slice(None, -n), slice(-n, None))
    kept, held_out = (replace(train, **{name: getattr(train, name)[part] for name in names}) for part in parts)
    return kept, held_out


def _split_folder(data_dir: Path, split: str) -> Path | None:
    if split not in ARCHIVES:
        raise ValueError(f"split must be one of {tuple(ARCHIVES)}, got {split!r}")
    places = (data_dir / "SVHN" / split, data_dir / split)
    return next((place for place in places if (place / "digitStruct.mat").is_file()), None)


def _check_labels_are_there(data_dir: Path, split: str) -> None:
    """Raises: DataError when the split's folder in SVHN/ has pictures, but no digitStruct.mat."""
    folder = data_dir / "SVHN" / split
    if any(folder.glob("*.png")) and not (folder / "digitStruct.mat").is_file():
        raise DataError(f"{folder}/digitStruct.mat is missing: put it back, or delete the folder to start anew")
