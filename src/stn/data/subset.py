"""data=subset: a part of a data set's official files, listed with their md5 (conf/subset), found and put in place.

Whoever has the official archives, an unpacked folder, or just these files in the official layout gets the same folder,
and so the same runs.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from stn.data.errors import DataError
from stn.data.staging import new_folder
from stn.progress import Bar

SOURCES_VARIABLE = "STN_DATA"  # folders to look in, separated as in PATH
NEARBY = Path("../shared/data")
LISTS = Path(__file__).parents[3] / "conf" / "subset"


@dataclass(frozen=True)
class Part:
    """`files`: md5 by name in the official folder. `checksums` are of what else the part's runs depend on."""

    name: str
    files: dict[str, str]
    checksums: dict[str, str]


def read_part(name: str, folder: Path = LISTS) -> Part:
    """The part `folder`/<name>.yaml, whose list of files is in the format of md5sum. Raises: DataError, one line."""
    path = folder / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        lines = (path.parent / content.pop("files")).read_text(encoding="utf-8").splitlines()
        files = {file: md5 for md5, file in (line.split("  ", 1) for line in lines)}
        return Part(name, files, content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise DataError(f"{path} is no list of a part ({' '.join(str(error).split())})") from error


def source_folders(data_dir: Path) -> list[Path]:
    """Where the files of a part are looked for."""
    named = [Path(folder) for folder in os.environ.get(SOURCES_VARIABLE, "").split(os.pathsep) if folder]
    return [data_dir, *named, NEARBY]


def place_part(part: Part, roots: Sequence[Path], folder: Path, complete: Callable[[Path], object]) -> Path:
    """`folder` with exactly the files of the part, copied from the first of `roots` that has each, unless it is there.

    `complete` is called with the new folder before it gets its name, to add what belongs to it.
    Raises: DataError naming a file that is missing, changed, or one too many.
    """
    if not folder.exists():
        places = {name: next((root / name for root in roots if (root / name).is_file()), None) for name in part.files}
        if missing := [name for name, place in places.items() if place is None]:
            raise DataError(
                f"data=subset: {missing[0]} ({len(missing)} of the {len(places)} files of {part.name}) is in none of "
                f"{', '.join(map(str, roots))}: put the official archives or files there, or their folder into the "
                f"environment variable {SOURCES_VARIABLE}"
            )
        with new_folder(folder, ".part-", folder.exists) as tree, Bar(len(places), f"copying {part.name}") as bar:
            for k, (name, place) in enumerate(places.items(), start=1):
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(place, tree / name)
                _check(part, name, tree / name, shown=place)
                bar.update(k)
            complete(tree)
    return folder


def check_part(part: Part, folder: Path, besides: Sequence[str], within: Sequence[str] = (".",)) -> None:
    """Raises: DataError when `folder` does not hold exactly the part's files and all those named `besides`.

    `within`: the folders in it that are looked at.
    """
    paths = (path for place in within for path in (folder / place).rglob("*"))
    present = {str(path.relative_to(folder)) for path in paths if path.is_file()}
    advice = f"delete {folder}, and it is made anew"
    if missing := sorted((part.files.keys() | set(besides)) - present):
        raise DataError(f"data=subset: {folder / missing[0]} is missing: {advice}")
    if extra := sorted(present - part.files.keys() - set(besides)):
        raise DataError(f"data=subset: {folder / extra[0]} is not of the part {part.name}: {advice}")
    for name in part.files:
        _check(part, name, folder / name, advice=advice)


def _check(part: Part, name: str, path: Path, shown: Path | None = None, advice: str = "replace it") -> None:
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if md5 != part.files[name]:
        raise DataError(
            f"data=subset: {shown or path} is not the official file (md5 {md5}, not {part.files[name]}): {advice}"
        )
