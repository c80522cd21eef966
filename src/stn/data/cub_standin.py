"""Stand-in birds in the files, folders and line formats of CUB-200-2011, for where the real ones cannot be had.

A species is a head (crown, eye-ring, beak, throat) and a body (breast, wing bars, tail tip); several species share each
head and each body, so that no single spot of a bird tells its class. Plumage, pose, size, place, light, background and
clutter say nothing about the class.
"""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stn.data import cub_standin_drawing as drawing
from stn.data.cub import ROOT
from stn.data.cub_annotations import FORMS
from stn.data.standin import make_standin
from stn.progress import Bar

GREY_SHARE = 0.01  # of the images, saved without colour; CUB has a few
MAX_CLASSES = 200
VERSION = 2  # to be raised when the same arguments give other pictures
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Species:
    name: str
    head: drawing.HeadMarks
    body: drawing.BodyMarks


def species(n_classes: int, seed: int) -> list[Species]:
    """Class k has head k mod h and body k div h, with h = √n rounded up."""
    if not 2 <= n_classes <= MAX_CLASSES:
        raise ValueError(f"n_classes must be in 2..{MAX_CLASSES}, got {n_classes}")
    rng = np.random.default_rng((seed, 0))
    n_heads = math.ceil(math.sqrt(n_classes))
    heads = [drawing.HeadMarks(*marks) for marks in _product(*drawing.HEADS)]
    bodies = [drawing.BodyMarks(*marks) for marks in _product(*drawing.BODIES)]
    bodies = [body for body in bodies if drawing.BREASTS[body.breast] or body.breast_colour == 0]
    heads = _unlike(heads, n_heads, rng)
    bodies = _unlike(bodies, math.ceil(n_classes / n_heads), rng)
    return [
        Species(f"{k + 1:03d}.Standin_Bird_{k + 1:03d}", heads[k % n_heads], bodies[k // n_heads])
        for k in range(n_classes)
    ]


def write_standin(folder: Path, n_classes: int = 20, n_per_class: int = 60, seed: int = 0, size_px: int = 300) -> Path:
    """The stand-in's root, `folder`/CUB_200_2011, written unless it is there with the same arguments.

    Half of each class is for training. `size_px` is the longer side; the other is 65 to 100 % of it. The same arguments
    give the same pictures, byte for byte with the same Pillow.
    Raises: DataError when something else is there (it is never replaced) or the folder cannot be written.
    """
    if n_per_class < 2 or size_px < 32:
        raise ValueError(f"n_per_class must be at least 2 and size_px at least 32, got {n_per_class} and {size_px}")
    mark = {"version": VERSION, "n_classes": n_classes, "n_per_class": n_per_class, "seed": seed, "size_px": size_px}
    kinds = species(n_classes, seed)
    return make_standin(folder / ROOT, mark, lambda fresh: _write(fresh, kinds, n_per_class, seed, size_px))


def _write(root: Path, kinds: list[Species], n_per_class: int, seed: int, size_px: int) -> None:
    lines = {name: [] for name in FORMS}
    lines["classes.txt"] = [f"{k} {kind.name}" for k, kind in enumerate(kinds, start=1)]
    lines["parts/parts.txt"] = [f"{p} {name}" for p, name in enumerate(drawing.PART_NAMES, start=1)]
    with Bar(len(kinds) * n_per_class, f"drawing birds, {len(kinds)} species") as bar:
        for k, i in itertools.product(range(len(kinds)), range(n_per_class)):
            image_id, kind = k * n_per_class + i + 1, kinds[k]
            rng = np.random.default_rng((seed, 1, k, i))
            picture = drawing.draw_picture(kind.head, kind.body, _size(size_px, rng), rng)
            name = f"{kind.name}/{kind.name.split('.')[1]}_{i + 1:04d}_{image_id}.jpg"
            path = root / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(picture.image)
            (image.convert("L") if rng.random() < GREY_SHARE else image).save(path, quality=JPEG_QUALITY)
            lines["images.txt"].append(f"{image_id} {name}")
            lines["image_class_labels.txt"].append(f"{image_id} {k + 1}")
            lines["train_test_split.txt"].append(f"{image_id} {int(i % 2 == 0)}")
            lines["bounding_boxes.txt"].append(f"{image_id} " + " ".join(f"{v:.2f}" for v in picture.box_px))
            lines["parts/part_locs.txt"] += [
                f"{image_id} {p} {x:.2f} {y:.2f} {int(visible)}"
                for p, (x, y, visible) in enumerate(picture.parts, start=1)
            ]
            bar.update(image_id)
    for name, content in lines.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("\n".join(content) + "\n", encoding="utf-8")


def _size(size_px: int, rng: np.random.Generator) -> tuple[int, int]:
    """(width, height), mostly landscape, as in CUB."""
    shorter = round(size_px * rng.uniform(0.65, 1))
    return (size_px, shorter) if rng.random() < 0.75 else (shorter, size_px)


def _product(*choices: tuple) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(choice)) for choice in choices)))


def _unlike(kinds: list, n: int, rng: np.random.Generator) -> list:
    """`n` of them, each time the one that differs in most marks from those taken; ties by chance."""
    kinds = [kinds[i] for i in rng.permutation(len(kinds))]
    table = np.array(kinds)
    taken, distance = [0], np.full(len(kinds), np.inf)
    while len(taken) < n:
        distance = np.minimum(distance, (table != table[taken[-1]]).sum(1))
        taken.append(int(distance.argmax()))
    return [kinds[i] for i in taken]
