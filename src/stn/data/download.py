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
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from stn.data.errors import DataError
from stn.data.staging import staging

log = logging.getLogger(__name__)

MARKER = ".extracted.json"
TIMEOUT_S = 30.0
RETRY_WAIT_S = 1.0
MAX_STALLS = 3  # requests in a row that bring not one byte
MAX_REQUESTS = 100
CHUNK_BYTES = 1 << 20
# tarfile reads an extended header whole into memory, whatever length it claims; real ones have some hundred bytes.
MAX_SINGLE_READ_BYTES = 16 << 20


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


def extract_tar(archive: Path, folder: Path, max_bytes: int, max_members: int, root: str = "") -> Path:
    """Unpacks a .tar.gz into `folder`; returns at once when that has been done before.

    Only plain files and folders inside `folder` are made: no links, devices, absolute names or "..", nothing twice,
    no owners, modes or times. With `root`, the members under that top-level folder, without it; others are left out.
    Units: max_bytes, of all unpacked files together; max_members counts every entry of the archive.
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
            tree = temporary / "tree"
            tree.mkdir()
            n_files, n_bytes = _unpack(archive, tree, max_bytes, max_members, root)
            if n_files == 0:
                raise DataError(f"{archive} has no files" + (f" under {root}/" if root else ""))
            marker = {"archive": archive.name, "files": n_files, "bytes": n_bytes}
            (tree / MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")
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
        expected = (marker["files"], marker["bytes"])
        sizes = [
            os.stat(os.path.join(place, name)).st_size
            for place, _, names in os.walk(folder)
            for name in names
            if os.path.join(place, name) != str(folder / MARKER)
        ]
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return (len(sizes), sum(sizes)) == expected


@contextmanager
def progress_bar(description: str, total: int | None, *columns) -> Iterator:
    """Yields `set_done(n)`; the bar goes to standard error, and only to a terminal."""
    shown = (TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn())
    with Progress(*shown, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.update(task, completed=done)


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


class _BoundedGzip(gzip.GzipFile):
    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_SINGLE_READ_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _unpack(archive: Path, tree: Path, max_bytes: int, max_members: int, root: str) -> tuple[int, int]:
    """Files and bytes written, in one pass over the archive."""
    n_members = n_files = claimed = written = 0
    with _BoundedGzip(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # else some hundred bytes stay for each of 200 000 files
            n_members += 1
            claimed += member.size
            if n_members > max_members or claimed > max_bytes:
                raise tarfile.ReadError(f"more than {max_members} members or {max_bytes} bytes")
            path = _inside(member, root)
            if path is None or member.isdir():
                continue
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, open(target, "xb") as sink:
                shutil.copyfileobj(source, sink, CHUNK_BYTES)
            n_files += 1
            written += target.stat().st_size
        while stream.read(CHUNK_BYTES):  # to its end, where gzip keeps the checksum
            if stream.tell() > max_bytes + max_members * 4096:
                raise tarfile.ReadError(f"more than {max_bytes} bytes")
    return n_files, written


def _inside(member: tarfile.TarInfo, root: str) -> PurePosixPath | None:
    """The member's path below `root`; None for what lies elsewhere in the archive."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
        raise tarfile.ReadError(f"member {member.name!r} leaves its folder")
    if not (member.isreg() or member.isdir()):
        raise tarfile.ReadError(f"member {member.name!r} is neither a file nor a folder")
    if path == PurePosixPath(MARKER) or path == PurePosixPath(root, MARKER):
        raise tarfile.ReadError(f"member {member.name!r} has the name of our marker")
    if not root:
        return path
    return PurePosixPath(*path.parts[1:]) if path.parts[:1] == (root,) and len(path.parts) > 1 else None


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__
