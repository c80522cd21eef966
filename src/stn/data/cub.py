"""CUB-200-2011, birds of 200 species (Sect. 4.3, App. A.6): source, cached images, crops.

The archive is taken from the user's folder or from the official record, checked against its md5 and unpacked.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from stn.data.cache import cache_problem
from stn.data.cub_annotations import PART_MARK, read_annotations
from stn.data.cub_images import UNREADABLE, cache_images, images_source, open_cache
from stn.data.download import extract_tar, fetch, verify
from stn.data.errors import DataError, one_line
from stn.data.subset import Part, check_part, place_part, source_folders

ARCHIVE = "CUB_200_2011.tgz"
ARCHIVE_MD5 = "97eceeb196236b17998738112f37df78"
ARCHIVE_BYTES = 1_150_585_339
ARCHIVE_URLS = (f"https://data.caltech.edu/records/65de6-vp158/files/{ARCHIVE}?download=1",)
ROOT = "CUB_200_2011"  # the folder in the archive
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Birds:
    """The N images of a split, in file order, on the CPU.

    Shapes: pixels (B,) uint8, memory-mapped: image i is the height·width·3 bytes from offsets[i]; offsets (N,) and
    sizes_px (N, 2), as (height, width), int64; labels (N,) int64; boxes_px (N, 4) float32 as
    (x0, y0, x1, y1), clipped to the image; parts (N, P, 3) float32 as (x, y, visible).
    Units: pixels of the cached image, counted from its top left corner.
    """

    pixels: Tensor
    offsets: Tensor
    sizes_px: Tensor
    labels: Tensor
    boxes_px: Tensor
    parts: Tensor
    classes: tuple[str, ...]
    part_names: tuple[str, ...]
    size_px: int
    source: str  # "real", "subset" or "standin", as in a run's record
    sha256: str  # of the annotations, for a run's record

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, i: int) -> Tensor:
        """A view of image i. Shapes: (height, width, 3) uint8."""
        height, width = self.sizes_px[i].tolist()
        start = int(self.offsets[i])
        return self.pixels[start : start + height * width * 3].view(height, width, 3)

    def take(self, index: Tensor) -> "Birds":
        """Those images alone, in this order."""
        names = ("offsets", "sizes_px", "labels", "boxes_px", "parts")
        return replace(self, **{name: getattr(self, name)[index] for name in names})


@dataclass(frozen=True)
class Crops:
    """Square crops of a batch.

    Shapes: images (N, 3, crop_px, crop_px) uint8, channels last in memory; boxes_px (N, 4) clipped to the crop, without
    area where the bird is not in it; parts (N, P, 3), (0, 0, 0) where a part is not in it.
    Units: pixels of the crop, counted from its top left corner.
    """

    images: Tensor
    boxes_px: Tensor
    parts: Tensor


def fetch_cub(data_dir: Path) -> Path:
    """The folder that holds images.txt, as `prepare_cub` finds or fetches it; nothing is decoded. Raises: DataError."""
    root = _root(data_dir)
    if root is None:
        archive = fetch(ARCHIVE_URLS, data_dir / ARCHIVE, ARCHIVE_MD5, ARCHIVE_BYTES)
        root = extract_tar(archive, data_dir / ROOT, ROOT)
    return root


def expect_cub(data_dir: Path) -> None:
    """Raises: DataError when `prepare_cub` would have to download."""
    if _root(data_dir) is None and not (data_dir / ARCHIVE).is_file():
        raise DataError(
            f"CUB-200-2011 is not in {data_dir}: run `make data-cub` (1.2 GB), or put {ARCHIVE} there, or use "
            "data=standin for drawn birds"
        )


def prepare_cub(data_dir: Path, size_px: int, source: str | None = None) -> Path:
    """The folder that holds images.txt, fetched first where it is missing; its images are cached at this shorter side.

    It is `data_dir` itself, or CUB_200_2011 in it, or comes from `data_dir`/CUB_200_2011.tgz, or is downloaded. The
    caches, 3 GB at 256 px and 12 GB at 512 px, are beside it: `data_dir`/cub_256px. `source`, "real", "subset" or
    "standin", is what the birds must be; by default any.
    Raises: DataError when it cannot be had or is not what it should be; see `read_annotations` and `cache_images`.
    """
    root = fetch_cub(data_dir)
    annotations = read_annotations(root)
    if source not in (None, annotations.source):
        raise DataError(f"data={source}: the birds in {root} are {annotations.source}")
    cache_images(annotations, _cache(data_dir, size_px), size_px)
    return root


def prepare_cub_part(part: Part, data_dir: Path) -> Path:
    """`data_dir`/subset/<part>, a data folder whose CUB_200_2011 holds the official lists and the listed photographs.

    Raises: DataError, one line, naming what is missing, changed or one too many.
    """
    folder = data_dir / "subset" / part.name
    roots = [source / place for source in source_folders(data_dir) for place in (ROOT, f"cub/{ROOT}", ".")]
    archive = next((root / ARCHIVE for root in roots if (root / ARCHIVE).is_file()), None)
    if archive and not any((place / "images.txt").is_file() for place in (folder / ROOT, *roots)):
        extract_tar(verify(archive, ARCHIVE_MD5, ARCHIVE_BYTES), data_dir / ROOT, ROOT)
    mark = "".join(f"{md5}  {name}\n" for name, md5 in part.files.items())
    place_part(part, roots, folder / ROOT, lambda tree: (tree / PART_MARK).write_text(mark, encoding="utf-8"))
    check_part(part, folder / ROOT, [PART_MARK])
    if (folder / ROOT / PART_MARK).read_text(encoding="utf-8") != mark:
        raise DataError(f"data=subset: {folder / ROOT} is of another list: delete {folder}, and it is made anew")
    return folder


def load_cub(data_dir: Path, split: str, size_px: int) -> Birds:
    """The official training (5 994) or test (5 794) images of `prepare_cub`, which reads all pixels to check them; here
    their number is checked. Downloads and decodes nothing.

    Raises: DataError when a file is missing, or the cache is not there, stale or damaged.
    """
    if split not in SPLITS:
        raise ValueError(f"load_cub: split must be one of {SPLITS}, got {split!r}")
    root = _root(data_dir)
    if root is None:
        raise DataError(
            f"CUB-200-2011 is not in {data_dir}: run `python -m experiments.prepare dataset=cub` first; "
            "with data=subset it places a part"
        )
    annotations = read_annotations(root)
    folder = _cache(data_dir, size_px)
    advice = "run `python -m experiments.prepare dataset=cub protocol=…`, this run's, first"
    if problem := cache_problem(folder, images_source(annotations, size_px), checksums=False):
        raise DataError(f"{folder} {problem}: {advice}")
    try:
        pixels, index = open_cache(folder)
    except UNREADABLE as error:
        raise DataError(f"{folder} is damaged ({one_line(error)}): {advice}") from error
    chosen = torch.from_numpy(index.pop("is_train") == (split == "train"))
    return Birds(
        pixels=pixels,
        **{name: torch.from_numpy(values)[chosen] for name, values in index.items()},
        classes=annotations.classes,
        part_names=annotations.part_names,
        size_px=size_px,
        source=annotations.source,
        sha256=annotations.sha256,
    )


def random_crop_flip(birds: Birds, index: Tensor, crop_px: int, generator: torch.Generator) -> Crops:
    """Crops at uniformly random places, each mirrored with probability one half (App. A.6).

    Shapes: index (N,), which images. The numbers are drawn on the generator's device.
    Raises: ValueError when the crop is larger than the shorter side.
    """
    n = len(index)
    place, coin = (
        torch.rand(shape, generator=generator, device=generator.device).cpu().double() for shape in ((n, 2), (n,))
    )
    room = _room(birds, index, crop_px)
    corner = (place * (room + 1)).long().minimum(room)
    return _crop(birds, index, crop_px, corner, coin < 0.5)


def center_crop(birds: Birds, index: Tensor, crop_px: int) -> Crops:
    """The crop in the middle, as at test time. Shapes and errors: see `random_crop_flip`."""
    corner = _room(birds, index, crop_px) // 2
    return _crop(birds, index, crop_px, corner, torch.zeros(len(index), dtype=torch.bool))


def _root(data_dir: Path) -> Path | None:
    """A folder of the archive's name is taken even where files are missing in it: reading it names them."""
    if (data_dir / ROOT).is_dir():
        return data_dir / ROOT
    return data_dir if (data_dir / "images.txt").is_file() else None


def _cache(data_dir: Path, size_px: int) -> Path:
    return data_dir / f"cub_{size_px}px"


def _room(birds: Birds, index: Tensor, crop_px: int) -> Tensor:
    """How far the corner (x, y) of a crop can move: (N, 2) int64."""
    if not 0 < crop_px <= birds.size_px:
        raise ValueError(f"crop_px must be in 1..{birds.size_px}, the images' shorter side, got {crop_px}")
    return birds.sizes_px[index].flip(1) - crop_px


def _crop(birds: Birds, index: Tensor, crop_px: int, corner: Tensor, mirrored: Tensor) -> Crops:
    """Shapes: corner (N, 2) int64 as (x, y) and mirrored (N,) bool."""
    images = torch.empty(len(index), crop_px, crop_px, 3, dtype=torch.uint8)
    for out, i, (x, y), mirror in zip(images, index.tolist(), corner.tolist(), mirrored.tolist(), strict=True):
        crop = birds.image(i)[y : y + crop_px, x : x + crop_px]
        out.copy_(crop.flip(1) if mirror else crop)
    boxes_px = (birds.boxes_px[index] - corner.repeat(1, 2)).clamp(0, crop_px)
    flipped = torch.stack([crop_px - boxes_px[:, 2], boxes_px[:, 1], crop_px - boxes_px[:, 0], boxes_px[:, 3]], dim=1)
    return Crops(
        images.permute(0, 3, 1, 2),
        torch.where(mirrored[:, None], flipped, boxes_px),
        _crop_parts(birds.parts[index], crop_px, corner, mirrored, birds.part_names),
    )


def _crop_parts(parts: Tensor, crop_px: int, corner: Tensor, mirrored: Tensor, names: tuple[str, ...]) -> Tensor:
    xy, visible = parts[..., :2] - corner[:, None], parts[..., 2:]
    visible = visible * ((xy >= 0) & (xy <= crop_px)).all(-1, keepdim=True)
    shifted = torch.cat([xy, visible], dim=-1) * visible
    # In the mirror a bird's left eye is its right one.
    swapped = {"left": "right", "right": "left"}
    others = [" ".join(swapped.get(word, word) for word in name.split()) for name in names]
    order = [names.index(other) if other in names else i for i, other in enumerate(others)]
    flipped = shifted[:, order].clone()
    flipped[..., 0] = (crop_px - flipped[..., 0]) * flipped[..., 2]
    return torch.where(mirrored[:, None, None], flipped, shifted)
