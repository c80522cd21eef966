"""Folders that are derived from something else, once: whole under their name, made again when stale or damaged."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stn.data.errors import DataError
from stn.data.staging import new_folder

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


def make_cache(
    folder: Path,
    names: Sequence[str],
    source: dict[str, Any],
    write: Callable[[Path], dict[str, Any]],
    checksums: bool = True,
) -> Path:
    """`folder`, made by `write` unless it is there, made from the same `source`, and whole.

    `write` fills an empty folder with files of these names and returns what else goes into manifest.json.
    `checksums=False` compares only the sizes of the files that are there.
    Raises: DataError when something else has the folder's name, or it cannot be written.
    """
    problem = cache_problem(folder, source, checksums)
    if problem is None:
        return folder
    others = {path.name for path in folder.iterdir()} - {*names, MANIFEST} if folder.is_dir() else set()
    if others or folder.is_file():
        named = f", with {min(others)}" if others else ""
        raise DataError(f"{folder} is no cache, but in its place{named}: move it away")
    log.info("%s %s: made anew", folder, problem)
    try:
        with new_folder(folder, ".cache-", lambda: not cache_problem(folder, source, checksums=False)) as fresh:
            manifest = {"source": source, **write(fresh)}
            paths = sorted(fresh.iterdir())
            files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths}
            (fresh / MANIFEST).write_text(json.dumps({**manifest, "files": files}, indent=1) + "\n", encoding="utf-8")
            with suppress(FileNotFoundError):
                os.rename(folder, fresh.with_name("old"))
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def cache_problem(folder: Path, source: dict[str, Any], checksums: bool) -> str | None:
    """Why a cache cannot be used, or None. `source` may be a part of what it was made from."""
    try:
        manifest = read_manifest(folder)
        if any(manifest["source"][name] != value for name, value in source.items()):
            return "was made from other files"
        for name, expected in manifest["files"].items():
            if (folder / name).stat().st_size != expected["bytes"]:
                return f"has a {name} of another size than when it was made"
            if checksums and sha256(folder / name) != expected["sha256"]:
                return f"has a {name} of another checksum than when it was made"
    except FileNotFoundError:
        return "is not there, or not all of it"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"cannot be read ({' '.join(str(error).split())})"
    return None


def read_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
