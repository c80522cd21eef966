"""The images of CUB-200-2011, decoded once: uint8 RGB, shorter side `size_px`, one flat file that is memory-mapped.

A cache is a folder: `pixels.u8` (all images one after the other, each height x width x RGB), `index.npz` (where each
begins, its size, its label and split, boxes and parts in its pixels) and `manifest.json` (what it was made from, and
checksums). It is made in a temporary folder and then renamed: under its own name it is whole.
"""

import hashlib
import json
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from stn.data.cub_annotations import Annotations
from stn.data.errors import DataError
from stn.data.staging import staging

log = logging.getLogger(__name__)

FORMAT = 1  # to be raised when what a cache holds changes: older ones are then made anew
PIXELS, INDEX, MANIFEST = "pixels.u8", "index.npz", "manifest.json"
IMAGES_AT_ONCE = 256
# Boxes of the data set stick out of their images here and there; they are clipped, unless most of a box is outside.
MIN_BOX_INSIDE = 0.5
# Sides and side ratio beyond which a file is no photograph.
MAX_SIDE_PX, MAX_SIDE_RATIO = 20_000, 16


def make_cache(annotations: Annotations, folder: Path, size_px: int, workers: int | None = None) -> Path:
    """The cache `folder` of these images, made first when it is not there, stale, or its checksums are wrong.

    Deviation: the paper says 256xS, not how it was resized; here bicubic, anti-aliased (Pillow).
    Raises: DataError naming an image that cannot be read or whose box is outside it, or the folder when it cannot be
    written.
    """
    problem = find_problem(folder, annotations, size_px, checksums=True)
    if problem is None:
        return folder
    log.info("CUB: %s %s: decoding %d images", folder, problem, len(annotations))
    try:
        with staging(folder.parent, ".cache-") as temporary:
            fresh = temporary / "fresh"
            fresh.mkdir()
            _write(fresh, annotations, size_px, workers)
            _put_in_place(fresh, folder, temporary / "stale", annotations, size_px)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def find_problem(folder: Path, annotations: Annotations, size_px: int, checksums: bool) -> str | None:
    """What is wrong with a cache, or None; `checksums` reads all its pixels."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        wanted = {"format": FORMAT, "size_px": size_px, "annotations_sha256": annotations.sha256}
        if any(manifest[key] != value for key, value in wanted.items()):
            return "was made from other files"
        if (folder / PIXELS).stat().st_size != manifest["pixels_bytes"]:
            return "is truncated"
        if _sha256(folder / INDEX) != manifest["index_sha256"]:
            return "has a wrong checksum"
        if checksums and _sha256(folder / PIXELS) != manifest["pixels_sha256"]:
            return "has a wrong checksum"
    except FileNotFoundError:
        return "is not there, or not all of it"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"cannot be read ({' '.join(str(error).split())})"
    return None


def open_cache(folder: Path) -> tuple[Tensor, dict[str, np.ndarray]]:
    """The pixels, mapped, not read, and the arrays of the index. Shapes: pixels (B,) uint8.

    index: offsets (N,) int64, sizes_px (N, 2) int64 as (height, width), labels (N,) int64, is_train (N,) bool,
    boxes_px (N, 4) and parts (N, P, 3) float32 in pixels of the cached image.
    """
    n_bytes = (folder / PIXELS).stat().st_size
    pixels = torch.from_file(str(folder / PIXELS), shared=False, size=n_bytes, dtype=torch.uint8)
    with np.load(folder / INDEX, allow_pickle=False) as index:
        return pixels, dict(index)


def _put_in_place(fresh: Path, folder: Path, stale: Path, annotations: Annotations, size_px: int) -> None:
    for _ in range(3):
        try:
            os.replace(fresh, folder)  # only onto nothing or an empty folder
        except OSError:
            if find_problem(folder, annotations, size_px, checksums=True) is None:
                return  # another process was faster
            try:
                os.replace(folder, stale)
            except FileNotFoundError:
                continue
            except OSError:
                shutil.rmtree(stale, ignore_errors=True)
        else:
            return
    raise DataError(f"cannot write {folder}: something else is in its place")


def _write(folder: Path, annotations: Annotations, size_px: int, workers: int | None) -> None:
    digest, offsets, sizes_px, scales, n_bytes = hashlib.sha256(), [], [], [], 0
    boxes_px, parts = annotations.boxes_px.copy(), annotations.parts.copy()
    paths = [annotations.root / "images" / name for name in annotations.image_files]
    workers = workers or len(os.sched_getaffinity(0))
    with open(folder / PIXELS, "wb") as sink, ThreadPoolExecutor(workers) as executor:
        for first in range(0, len(paths), IMAGES_AT_ONCE):
            chosen = range(first, min(first + IMAGES_AT_ONCE, len(paths)))
            for i, (image, (height, width)) in zip(
                chosen, executor.map(lambda i: _decode(paths[i], size_px), chosen), strict=True
            ):
                boxes_px[i] = _clip_box(boxes_px[i], width, height, annotations, i)
                parts[i] = _drop_outside(parts[i], width, height)
                data = image.tobytes()
                sink.write(data)
                digest.update(data)
                offsets.append(n_bytes)
                sizes_px.append(image.shape[:2])
                scales.append((image.shape[1] / width, image.shape[0] / height))
                n_bytes += len(data)
    scales = np.array(scales, dtype=np.float32)
    boxes_px *= np.tile(scales, 2)
    parts[..., :2] *= scales[:, None]
    np.savez(
        folder / INDEX,
        offsets=np.array(offsets, dtype=np.int64),
        sizes_px=np.array(sizes_px, dtype=np.int64),
        labels=annotations.labels,
        is_train=annotations.is_train,
        boxes_px=boxes_px,
        parts=parts,
    )
    manifest = {
        "format": FORMAT,
        "size_px": size_px,
        "n_images": len(paths),
        "annotations_sha256": annotations.sha256,
        "pixels_bytes": n_bytes,
        "pixels_sha256": digest.hexdigest(),
        "index_sha256": _sha256(folder / INDEX),
        "pillow": PIL.__version__,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _decode(path: Path, size_px: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The image with its shorter side at `size_px`, (height, width, 3) uint8, and the (height, width) of its file."""
    try:
        with Image.open(path) as file:
            width, height = file.size
            if max(width, height) > MAX_SIDE_PX or max(width, height) > MAX_SIDE_RATIO * min(width, height):
                raise ValueError(f"{width} x {height} pixels")
            image = file.convert("RGB")
        scale = size_px / min(width, height)
        image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
        return np.asarray(image), (height, width)
    except Exception as error:  # decoders of broken files raise whatever comes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is not a readable image ({reason}): replace it") from error


def _clip_box(box_px: np.ndarray, width: int, height: int, annotations: Annotations, i: int) -> np.ndarray:
    clipped = box_px.clip(0, [width, height, width, height])
    area, inside = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box_px, clipped))
    if not inside >= MIN_BOX_INSIDE * area > 0:
        raise DataError(
            f"{annotations.root / 'bounding_boxes.txt'}: the box of image {i + 1}, {annotations.image_files[i]}, "
            f"x {box_px[0]:g} to {box_px[2]:g}, y {box_px[1]:g} to {box_px[3]:g}, is not in the image of "
            f"{width} x {height} px"
        )
    return clipped


def _drop_outside(parts: np.ndarray, width: int, height: int) -> np.ndarray:
    """Parts said to be visible outside the image (the data set has some) are not visible."""
    x, y = parts[:, 0], parts[:, 1]
    return np.where(((x >= 0) & (y >= 0) & (x <= width) & (y <= height))[:, None], parts, 0)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
