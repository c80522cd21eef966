"""The images of CUB-200-2011, decoded once: uint8 RGB, shorter side `size_px`, one flat file that is memory-mapped.

A cache (`stn.data.cache`) has `pixels.u8`, all images one after the other, each height x width x RGB, and `index.npz`:
where each begins, its size, its label and split, boxes and parts in its pixels.
"""

import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from stn.data.cache import make_cache
from stn.data.cub_annotations import Annotations
from stn.data.errors import DataError, one_line

FORMAT = 2  # to be raised when what a cache holds changes: older ones are then made anew
PIXELS, INDEX = "pixels.u8", "index.npz"
IMAGES_AT_ONCE = 256
UNREADABLE = (OSError, EOFError, ValueError, KeyError, NotImplementedError, zipfile.BadZipFile)  # a damaged index
# Boxes of the data set stick out of their images here and there; they are clipped, unless most of a box is outside.
MIN_BOX_INSIDE = 0.5
# Sides and side ratio beyond which a file is no photograph.
MAX_SIDE_PX, MAX_SIDE_RATIO = 20_000, 16


def cache_images(annotations: Annotations, folder: Path, size_px: int, workers: int | None = None) -> Path:
    """The cache `folder` of these images, made first when it is not there, stale, or its checksums are wrong.

    Deviation: the paper says 256xS, not how it was resized; here bicubic, anti-aliased (Pillow).
    Raises: DataError naming an image that cannot be read or whose box is outside it, or the folder when it cannot be
    written.
    """
    source = images_source(annotations, size_px)
    return make_cache(folder, (PIXELS, INDEX), source, lambda fresh: _write(fresh, annotations, size_px, workers))


def images_source(annotations: Annotations, size_px: int) -> dict[str, Any]:
    """What a cache of images is made from."""
    return {"format": FORMAT, "size_px": size_px, "annotations_sha256": annotations.sha256}


def open_cache(folder: Path) -> tuple[Tensor, dict[str, np.ndarray]]:
    """The pixels, mapped, not read, and the arrays of the index. Shapes: pixels (B,) uint8.

    index: offsets (N,) int64, sizes_px (N, 2) int64 as (height, width), labels (N,) int64, is_train (N,) bool,
    boxes_px (N, 4) and parts (N, P, 3) float32 in pixels of the cached image.
    Raises: one of UNREADABLE where they are damaged.
    """
    n_bytes = (folder / PIXELS).stat().st_size
    pixels = torch.from_file(str(folder / PIXELS), shared=False, size=n_bytes, dtype=torch.uint8)
    with np.load(folder / INDEX, allow_pickle=False) as index:
        return pixels, dict(index)


def _write(folder: Path, annotations: Annotations, size_px: int, workers: int | None) -> dict[str, Any]:
    offsets, sizes_px, scales, n_bytes = [], [], [], 0
    boxes_px, parts = annotations.boxes_px.copy(), annotations.parts.copy()
    paths = [annotations.root / "images" / name for name in annotations.image_files]
    workers = workers or len(os.sched_getaffinity(0))
    with open(folder / PIXELS, "wb") as sink, ThreadPoolExecutor(workers) as executor:
        for first in range(0, len(paths), IMAGES_AT_ONCE):
            chosen = range(first, min(first + IMAGES_AT_ONCE, len(paths)))
            decoded = executor.map(lambda i: _decode(paths[i], size_px), chosen)
            for i, (image, (height, width)) in zip(chosen, decoded, strict=True):
                boxes_px[i] = _clip_box(boxes_px[i], width, height, annotations, i)
                parts[i] = _drop_outside(parts[i], width, height)
                data = image.tobytes()
                sink.write(data)
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
    return {"n_images": len(paths), "pillow": PIL.__version__}


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
        raise DataError(f"{path} is not a readable image ({one_line(error)}): replace it") from error


def _clip_box(box_px: np.ndarray, width: int, height: int, annotations: Annotations, i: int) -> np.ndarray:
    clipped = box_px.clip(0, [width, height, width, height])
    area, inside = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box_px, clipped))
    if not inside >= MIN_BOX_INSIDE * area > 0:
        raise DataError(
            f"{annotations.root / 'bounding_boxes.txt'}: the box of {annotations.image_files[i]}, "
            f"x {box_px[0]:g} to {box_px[2]:g}, y {box_px[1]:g} to {box_px[3]:g}, is not in the image of "
            f"{width} x {height} px"
        )
    return clipped


def _drop_outside(parts: np.ndarray, width: int, height: int) -> np.ndarray:
    """Parts said to be visible outside the image (the data set has some) are not visible."""
    x, y = parts[:, 0], parts[:, 1]
    return np.where(((x >= 0) & (y >= 0) & (x <= width) & (y <= height))[:, None], parts, 0)
