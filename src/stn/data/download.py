"""Archives of data sets: resumed and checked downloads, extraction that cannot leave its folder.

What lies under its final name is always whole: a download grows in a `.part` file beside the target and is renamed
once its size and md5 are right; an archive is unpacked into a temporary folder, renamed once it holds everything.
"""

import fcntl
import gzip
import hashlib
import http.client
import json
import logging
import os
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rich.progress import DownloadColumn, TransferSpeedColumn

from stn.data.errors import DataError, one_line
from stn.data.staging import new_folder
from stn.progress import Bar

log = logging.getLogger(__name__)

MARKER = ".extracted.json"
TIMEOUT_S = 30.0
RETRY_WAIT_S = 1.0
MAX_STALLS = 3  # requests in a row that bring not one byte
MAX_REQUESTS = 100
CHUNK_BYTES = 1 << 20


def fetch(urls: Sequence[str], target: Path, md5: str, size: int | None = None) -> Path:
    """The verified file `target`: the one already there, else downloaded from the first of `urls` that gives it.

    An interrupted download goes on where it stopped (HTTP Range), in this call or the next one. Two processes take
    turns. A file already there that is wrong is named, never used and never replaced.
    Units: size in bytes; None when it is not known beforehand.
    Raises: DataError, one line.
    """
    if target.is_file():
        return verify(target, md5, size)
    failures = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(target.name + ".part")) as file:
            if target.is_file():  # another process was faster
                return verify(target, md5, size)
            for url in urls:
                try:
                    _download_verified(url, file, target.name, md5, size)
                except DataError as error:
                    log.warning("%s: %s: %s", target.name, url, error)
                    failures.append(f"{url}: {error}")
                else:
                    os.replace(file.name, target)
                    log.info("%s from %s", target, url)
                    return target
    except OSError as error:
        raise DataError(f"{target.name}: cannot write to {target.parent}: {one_line(error)}") from error
    shown = f"md5 {md5}" if size is None else f"{size} bytes, md5 {md5}"
    tried = "; ".join(failures) or "no address given"
    raise DataError(f"{target.name}: no source gives it; put it at {target} ({shown}) [tried {tried}]")


def verify(path: Path, md5: str, size: int | None = None) -> Path:
    """`path` itself, when its size in bytes and its md5 are those given. Raises: DataError naming it."""
    try:
        wrong = _mismatch(path, md5, size)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error
    if wrong:
        raise DataError(f"{path} is truncated, corrupt or not the right file ({wrong}): delete or replace it")
    return path


def extract_tar(archive: Path, folder: Path, root: str) -> Path:
    """Unpacks the folder `root` of a verified .tar.gz as `folder`; returns at once when that has been done before.

    Raises: DataError, one line, naming the archive (and then no `folder` is made), or a `folder` that is there
    without having been extracted whole.
    """
    if is_extracted(folder):
        return folder
    if folder.exists():
        raise DataError(f"{folder} was not extracted whole from {archive.name}: delete it or move it away")
    try:
        with new_folder(folder, ".extracting-", lambda: is_extracted(folder)) as fresh:
            unpacked = fresh.with_name("unpacked")
            with tarfile.open(archive, "r:gz") as tar:
                tar.extractall(unpacked, filter="data")
            if not (unpacked / root).is_dir():
                raise DataError(f"{archive} has no files under {root}/")
            os.rename(unpacked / root, fresh)
            marker = dict(zip(("files", "bytes"), _count(fresh), strict=True))
            (fresh / MARKER).write_text(json.dumps({"archive": archive.name, **marker}) + "\n", encoding="utf-8")
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
        raise DataError(
            f"{archive} is truncated, corrupt or not a .tar.gz ({one_line(error)}): delete or replace it"
        ) from error
    except OSError as error:
        raise DataError(f"{archive} cannot be extracted into {folder}: {one_line(error)}") from error
    return folder


def is_extracted(folder: Path) -> bool:
    """Whether `folder` was extracted whole by `extract_tar` and still has as many files and bytes."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return _count(folder) == (marker["files"], marker["bytes"])
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _count(folder: Path) -> tuple[int, int]:
    """Files and bytes below a folder, its marker left out."""
    paths = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    sizes = [path.stat().st_size for path in paths if path != folder / MARKER]
    return len(sizes), sum(sizes)


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """`part` opened for appending by this process alone; removed at the end when nothing is in it."""
    while True:
        with open(part, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not part.exists() or not os.path.samestat(os.fstat(file.fileno()), part.stat()):
                continue  # renamed or removed by the process that held it
            try:
                yield file
            finally:
                if part.exists() and part.stat().st_size == 0:
                    part.unlink()
            return


class _WrongFile(DataError):
    """What came is another file, as opposed to an incomplete one."""


def _download_verified(url: str, file: BinaryIO, name: str, md5: str, size: int | None) -> None:
    for resumed in (file.seek(0, os.SEEK_END) > 0, False):
        try:
            _download(url, file, name, size)
            file.flush()
            wrong = _mismatch(Path(file.name), md5, size)
        except _WrongFile as error:
            wrong = str(error)
        if not wrong:
            return
        file.truncate(0)
        if not resumed:  # else once more: what was resumed may have been another file's beginning
            raise DataError(f"gave another file ({wrong})")


def _download(url: str, file: BinaryIO, name: str, size: int | None) -> None:
    """Appends to `file` what is missing, with as many requests as the connection needs."""
    stalls = 0
    with Bar(size, name, DownloadColumn(), TransferSpeedColumn()) as bar:
        for _ in range(MAX_REQUESTS):
            before = file.seek(0, os.SEEK_END)
            if size is not None and before == size:
                return
            try:
                return _append(url, file, size, bar)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and before:
                    raise _WrongFile(f"no byte after the first {before}") from error
                if error.code < 500:
                    raise DataError(f"HTTP {error.code} {error.reason}") from error
                reason = f"HTTP {error.code}"
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = one_line(error)
            file.flush()
            stalls = stalls + 1 if file.tell() <= before else 0
            if stalls >= MAX_STALLS:
                break
            time.sleep(RETRY_WAIT_S * stalls)
    raise DataError(f"stopped at {file.seek(0, os.SEEK_END)} bytes ({reason})")


def _append(url: str, file: BinaryIO, size: int | None, bar: Bar) -> None:
    have = file.tell()
    headers = {"User-Agent": "stn-replication"}  # some sites refuse that of Python
    request = urllib.request.Request(url, headers=headers | ({"Range": f"bytes={have}-"} if have else {}))
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
        if have and not reply.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            file.truncate(0)  # the server sends the file from its beginning
            if reply.status == http.HTTPStatus.PARTIAL_CONTENT:
                raise OSError(f"asked for bytes from {have}, got {reply.headers.get('Content-Range')}")
            file.seek(0)
        length = reply.headers.get("Content-Length")
        end = size if length is None else file.tell() + int(length)
        if size is not None and end > size:
            raise _WrongFile(f"{end} bytes announced, expected {size}")
        while chunk := reply.read(CHUNK_BYTES):
            file.write(chunk)
            bar.update(file.tell())
            if size is not None and file.tell() > size:
                raise _WrongFile(f"more than {size} bytes")
    if end is not None and file.tell() < end:
        raise OSError(f"connection closed at {file.tell()} of {end} bytes")


def _mismatch(path: Path, md5: str, size: int | None) -> str:
    got_size = path.stat().st_size
    if size is not None and got_size != size:
        return f"{got_size} bytes, expected {size}"
    with open(path, "rb") as file:
        got = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return "" if got == md5 else f"md5 {got}, expected {md5}"
