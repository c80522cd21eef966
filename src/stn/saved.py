"""Files of tensors that appear whole, and are read only when every bit is as it was written."""

import hashlib
import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stn.data.errors import DataError


def save(content: Any, path: Path) -> None:
    """As torch.save, but under its name the file is always whole. Raises: OSError when it cannot be written."""
    packed = io.BytesIO()  # torch's own writer ends in a RuntimeError when the disk is full
    torch.save(content, packed)
    replace(path, packed.getbuffer())


def replace(path: Path, content: bytes | memoryview) -> None:
    """Puts a file in the place of the one at `path`, if there is one, at once; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load(path: Path) -> Any:
    """What `save`, or Lightning, wrote to `path`, on the CPU. Code in the file is never run.

    Raises: DataError, one line, for a file that is torn, has a wrong checksum, which torch does not look at, or holds
    more than tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if (member := file.testzip()) is not None:
                raise zipfile.BadZipFile(f"{member} has a wrong checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes zipfile and torch raise
        reason = " ".join(str(error).split())[:100] or "torn"
        raise DataError(
            f"{path} is damaged, or no file of tensors ({type(error).__name__}: {reason}): delete it"
        ) from error


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """Of the numbers alone, name by name: torch's file format may change, they do not."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
