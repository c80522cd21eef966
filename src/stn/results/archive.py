"""Records in one archive: what borrowed hardware sends home."""

import io
import re
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from stn.results.records import (
    DATA_KINDS,
    RecordError,
    parse_record,
    read_record,
    read_records,
    record_path,
    records_root,
    run_key,
    sweeps_dir,
    write_records,
)

MEMBER = re.compile(r"(sweeps/)?((standin|subset)/)?runs/[\w.-]+/[\w.-]+/[\w.-]+/seed\d+\.json")
MAX_MEMBER_BYTES = 16 << 20  # a record of ten draws on 10 000 images is 200 kB


class Merged(NamedTuple):
    """The record files that a merge wrote, and those that were there already with the same content."""

    new: list[Path]
    known: list[Path]


def pack(results_dir: Path, archive: Path) -> int:
    """Writes every record below `results_dir`, those of sweeps among them, into a gzipped tar; how many they are.

    Raises: RecordError for a record that cannot be trusted, or when there is none.
    """
    roots = [records_root(folder, data) for folder in (results_dir, sweeps_dir(results_dir)) for data in DATA_KINDS]
    paths = [record_path(root, run_key(record)) for root in roots for record in read_records(root)]
    if not paths:
        raise RecordError(f"{results_dir}: no records to pack")
    with tarfile.open(archive, "w:gz") as tar:
        for path in paths:
            content = path.read_bytes()
            member = tarfile.TarInfo(PurePosixPath(path.relative_to(results_dir)).as_posix())
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return len(paths)


def merge(archive: Path, results_dir: Path) -> Merged:
    """Adds the records of an archive that `pack` made to `results_dir`: all of them, or none.

    Raises: RecordError naming a member that is no record, is damaged, or differs from the record that is there.
    """
    incoming: dict[Path, dict] = {}
    known, conflicts = [], []
    for name, content in _members(archive):
        member, path = Path(archive, name), results_dir / name
        record = parse_record(member, content)
        folders = (results_dir, sweeps_dir(results_dir))
        if path not in [record_path(records_root(folder, record["data"]), run_key(record)) for folder in folders]:
            raise RecordError(f"{member}: a record of {record['data']} data in the wrong folder")
        if path in incoming and incoming[path] != record:
            conflicts.append(f"{name} (twice in the archive)")
        elif not path.exists():
            incoming[path] = record
        elif read_record(path) == record:
            known.append(path)
        else:
            conflicts.append(name)
    if conflicts:
        raise RecordError(
            f"{archive}: nothing merged, {len(conflicts)} differ from the records that are there: "
            f"{', '.join(sorted(conflicts)[:3])}{', …' if len(conflicts) > 3 else ''}; move those away first"
        )
    write_records(incoming)
    return Merged(list(incoming), known)


def _members(archive: Path):
    """(name, content) of the archive's files; nothing is extracted, so no path of its can leave a folder."""
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                if not member.isreg() or not MEMBER.fullmatch(member.name) or ".." in member.name:
                    raise RecordError(f"{archive}: {member.name!r} is no run record")
                if member.size > MAX_MEMBER_BYTES:
                    raise RecordError(f"{archive}: {member.name} has {member.size} bytes, too many for a record")
                yield member.name, tar.extractfile(member).read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise RecordError(f"{archive}: cannot be read ({error})") from error
