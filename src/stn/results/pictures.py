"""Picture files as parts of a self-contained page: data URIs with size and caption, and a still of each animation."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image

TYPES = {".png": "image/png", ".gif": "image/gif", ".webp": "image/webp", ".jpg": "image/jpeg"}
CAPTIONS = {
    "gallery": "what the network sees of test images, and where its transformers look",
    "training": "the sampling grid on the same test images through the training, above the transformer's output",
    "upright": "turned test digits of one class, and what each transformer makes of them",
    "turning": "turned test digits of one class through the training, above the transformer's output",
    "windows": "windows on the same images through the co-localisation, true boxes beside them",
    "distortions": "test digits and their distortions, each canvas with its size",
}


class Picture(NamedTuple):
    """A picture; `still` is the last frame of an animation, None for anything else."""

    stem: str
    uri: str
    still: str | None
    width_px: int
    height_px: int
    caption: str


def picture(path: Path, caption: str) -> Picture:
    """A file as a picture. Raises: OSError for one that is not an image."""
    with Image.open(path) as image:
        still = None
        if getattr(image, "is_animated", False):
            image.seek(image.n_frames - 1)
            frame = io.BytesIO()
            image.convert("RGB").quantize(64).save(frame, "PNG", optimize=True)
            still = _uri(frame.getvalue(), TYPES[".png"])
        return Picture(path.stem, _uri(path.read_bytes(), TYPES[path.suffix]), still, *image.size, caption)


def pictures_of(folder: Path, problems: list[str]) -> list[Picture]:
    """All pictures of a folder except those that a report draws anew; a line in `problems` for each damaged file."""
    pictures = []
    for path in sorted(folder.glob("*")):
        kind, _, subject = path.stem.partition("_")
        if path.suffix not in TYPES or kind == "curves" or kind.startswith("table"):
            continue
        try:
            caption = CAPTIONS.get(kind, kind)
            pictures.append(picture(path, f"{subject}: {caption}" if subject else caption))
        except OSError as error:
            problems.append(f"{path}: not an image ({' '.join(str(error).split())})")
    return pictures


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
