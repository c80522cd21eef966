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
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from stn.data.errors import DataError
from stn.data.staging import staging

LINE_EVERY_S = 60.0  # of progress, where there is no terminal

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
    target = Path(target)
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
        raise DataError(f"{target.name}: cannot write to {target.parent}: {_one_line(error)}") from error
    shown = f"md5 {md5}" if size is None else f"{size} bytes, md5 {md5}"
    tried = "; ".join(failures) or "no address given"
    raise DataError(f"{target.name}: no source gives it; put it at {target} ({shown}) [tried {tried}]")


def verify(path: Path, md5: str, size: int | None = None) -> Path:
    """`path` itself, when its size in bytes and its md5 are those given. Raises: DataError naming it."""
    try:
        wrong = _mismatch(path, md5, size)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {_one_line(error)}") from error
    if wrong:
        raise DataError(f"{path} is truncated, corrupt or not the right file ({wrong}): delete or replace it")
    return path


def extract_tar(archive: Path, folder: Path, root: str) -> Path:
    """Unpacks the folder `root` of a verified .tar.gz as `folder`; returns at once when that has been done before.

    Raises: DataError, one line, naming the archive (and then no `folder` is made), or a `folder` that is there
    without having been extracted whole.
    """
    archive, folder = Path(archive), Path(folder)
    if is_extracted(folder):
        return folder
    if folder.exists():
        raise DataError(f"{folder} was not extracted whole from {archive.name}: delete it or move it away")
    try:
        with staging(folder.parent, ".extracting-") as temporary:
            with tarfile.open(archive, "r:gz") as tar:
                tar.extractall(temporary, filter="data")
            tree = temporary / root
            if not tree.is_dir():
                raise DataError(f"{archive} has no files under {root}/")
            marker = dict(zip(("files", "bytes"), _count(tree), strict=True))
            (tree / MARKER).write_text(json.dumps({"archive": archive.name, **marker}) + "\n", encoding="utf-8")
            try:
                os.rename(tree, folder)
            except OSError:
                if not is_extracted(folder):  # else another process was faster
                    raise
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
        raise DataError(
            f"{archive} is truncated, corrupt or not a .tar.gz ({_one_line(error)}): delete or replace it"
        ) from error
    except OSError as error:
        raise DataError(f"{archive} cannot be extracted into {folder}: {_one_line(error)}") from error
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
def progress_bar(description: str, total: int | None, *columns) -> Iterator:
    """Yields `set_done(n)`; the bar goes to standard error; where that is no terminal, a line a minute."""
    if not sys.stderr.isatty():
        yield _lines(description, total)
        return
    shown = (TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn())
    with Progress(*shown, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.update(task, completed=done)


def _lines(description: str, total: int | None) -> Callable[[int], None]:
    said_at = time.monotonic()

    def set_done(done: int) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= LINE_EVERY_S:
            said_at = time.monotonic()
            print(f"{description}: {done / total:.0%}" if total else f"{description}: {done}", file=sys.stderr)

    return set_done


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
    """What came is not the file, as against: did not come whole."""


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
    with progress_bar(name, size, DownloadColumn(), TransferSpeedColumn()) as set_done:
        for _ in range(MAX_REQUESTS):
            before = file.seek(0, os.SEEK_END)
            if size is not None and before == size:
                return
            try:
                return _append(url, file, size, set_done)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and before:
                    raise _WrongFile(f"no byte after the first {before}") from error
                if error.code < 500:
                    raise DataError(f"HTTP {error.code} {error.reason}") from error
                reason = f"HTTP {error.code}"
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = _one_line(error)
            file.flush()
            stalls = stalls + 1 if file.tell() <= before else 0
            if stalls >= MAX_STALLS:
                break
            time.sleep(RETRY_WAIT_S * stalls)
    raise DataError(f"stopped at {file.seek(0, os.SEEK_END)} bytes ({reason})")


def _append(url: str, file: BinaryIO, size: int | None, set_done) -> None:
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
            set_done(file.tell())
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


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__
