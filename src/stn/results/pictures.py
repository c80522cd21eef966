"""Picture files as parts of a page that loads nothing: data URIs with size and words, a still for what moves."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image

TYPES = {".png": "image/png", ".gif": "image/gif", ".webp": "image/webp", ".jpg": "image/jpeg"}
CAPTIONS = {
    "gallery": "what the network sees of test images, and where its transformers look",
    "training": "the sampling grid on the same test images through the training, above the transformer's output",
    "windows": "windows on the same images through the co-localisation, true boxes beside them",
    "distortions": "test digits and their distortions, each canvas with its size",
}


class Picture(NamedTuple):
    """A picture; `still` is the last frame of one that moves, None for one that does not."""

    stem: str
    uri: str
    still: str | None
    width_px: int
    height_px: int
    caption: str


def picture(path: Path, caption: str) -> Picture:
    """Raises: OSError for a file that is no picture."""
    with Image.open(path) as image:
        still = None
        if getattr(image, "is_animated", False):
            image.seek(image.n_frames - 1)
            frame = io.BytesIO()
            image.convert("RGB").quantize(64).save(frame, "PNG", optimize=True)
            still = _uri(frame.getvalue(), TYPES[".png"])
        return Picture(path.stem, _uri(path.read_bytes(), TYPES[path.suffix]), still, *image.size, caption)


def pictures_of(folder: Path) -> tuple[list[Picture], list[str]]:
    """All pictures of a folder but those that a report draws anew, and a line for each file that is none."""
    found, problems = [], []
    for path in sorted(folder.glob("*")):
        kind, _, subject = path.stem.partition("_")
        if path.suffix not in TYPES or kind == "curves" or kind.startswith("table"):
            continue
        try:
            said = CAPTIONS.get(kind, kind)
            found.append(picture(path, f"{subject}: {said}" if subject else said))
        except OSError as error:
            problems.append(f"{path}: no picture ({' '.join(str(error).split())})")
    return found, problems


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
