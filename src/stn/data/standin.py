"""Folders of drawn pictures in a real data set's format, marked, so that no reader takes them for the real ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stn.data.errors import DataError
from stn.data.staging import new_folder

STANDIN_MARK = "standin.json"


def make_standin(folder: Path, mark: dict[str, Any], draw: Callable[[Path], None]) -> Path:
    """`folder`, filled by `draw` and marked; what is there already with the same mark is kept.

    Raises: DataError when something else is there (it is never replaced) or the folder cannot be written.
    """
    if folder.exists():
        return _check(folder, mark)
    try:
        with new_folder(folder, ".standin-", lambda: _check(folder, mark)) as fresh:
            draw(fresh)
            (fresh / STANDIN_MARK).write_text(json.dumps(mark) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def read_mark(folder: Path) -> dict[str, Any] | None:
    """Which stand-in a folder holds; None where it holds none."""
    try:
        mark = json.loads((folder / STANDIN_MARK).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / STANDIN_MARK} cannot be read: {error}") from error
    return mark if isinstance(mark, dict) else {}


def _check(folder: Path, mark: dict[str, Any]) -> Path:
    its = read_mark(folder) if folder.is_dir() else None
    if its != mark:
        raise DataError(f"{folder} holds {its or 'something else'}, not the stand-in {mark}: delete it or move it away")
    return folder
