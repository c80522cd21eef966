"""Run records: one validated JSON per run, `runs/<task>/<model>/<protocol>/seed<k>.json`.

A record is checked when it is written and again when it is read, and the path must say what the record
says, so that two records of one run cannot exist. A bad record is an error, never a gap.
"""

import base64
import hashlib
import json
import math
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SCHEMA = 1
STATUSES = ("ok", "failed", "diverged", "collapsed")
DATA_KINDS = ("real", "standin")
WRONG_ENCODING = "base64 of zlib of numpy.packbits, shape (draws, n_test)"

# Every key a record has, in the order in which it is written, with the JSON type of its value.
FIELDS: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "status": str,
    "reason": str,
    "task": str,
    "model": str,
    "protocol": str,
    "seed": int,
    "data": str,
    "config": dict,
    "config_hash": str,
    "n_params": int,
    "widths": dict,
    "metrics": dict,
    "per_draw": dict,
    "n_test": int,
    "test_draws": int,
    "test_wrong": dict,
    "curve": dict,
    "steps": int,
    "wall_s": (int, float),
    "images_per_s": (int, float),
    "device": str,
    "threads": int,
    "versions": dict,
    "git": dict,
    "data_checksums": dict,
    "finished_at": str,
}
# What a run that ended early may not know.
MEASURED = frozenset(FIELDS) - {
    *("schema", "status", "reason", "task", "model", "protocol", "seed", "data", "config", "config_hash"),
    *("versions", "git", "finished_at"),
}
CHECKSUM = "checksum"  # the last key of a file: of all others
NULLABLE = frozenset({"reason", "test_wrong", "images_per_s", "threads"})
_KINDS = {int: "an int", str: "a string", dict: "a dict", (int, float): "a number"}


class RecordError(ValueError):
    """A record that cannot be trusted; one line that names the file and what is wrong."""


class RunKey(NamedTuple):
    """The identity of a run."""

    task: str
    model: str
    protocol: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task}/{self.model}/{self.protocol}/seed{self.seed}"


def run_key(record: Mapping[str, Any]) -> RunKey:
    """The key a record states about itself."""
    return RunKey(record["task"], record["model"], record["protocol"], record["seed"])


def records_root(folder: str | Path, data: str) -> Path:
    """`folder` for real data, a folder in it for stand-in data: the two never mix."""
    return Path(folder) if data == "real" else Path(folder) / data


def sweeps_dir(results_dir: str | Path) -> Path:
    """Where runs of changed settings have their records: in no table."""
    return Path(results_dir) / "sweeps"


def record_path(results_dir: str | Path, key: RunKey) -> Path:
    """Where the record of a run lives."""
    return Path(results_dir) / "runs" / key.task / key.model / key.protocol / f"seed{key.seed}.json"


def config_hash(config: Mapping[str, Any], without: Iterable[str] = ("seed", "protocol_note")) -> str:
    """16 hex digits of SHA-256 over the resolved settings, the same for every seed of one cell; notes do not count."""
    dropped = set(without)
    kept = {name: value for name, value in config.items() if name not in dropped}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_record(path: str | Path, record: Mapping[str, Any]) -> None:
    """Validate, then write in one step: a reader sees the old file or the new one, never half of it.

    Raises: RecordError naming the offending key; nothing is written then.
    """
    write_records({Path(path): record})


def write_records(records: Mapping[Path, Mapping[str, Any]]) -> None:
    """As `write_record`, for several: all are on the disk before the first gets its name.

    Raises: RecordError or, where there is no room, OSError; nothing is written then.
    """
    texts = {}
    for path, record in records.items():
        check_record(path, record)
        ordered = {name: record[name] for name in FIELDS}
        texts[path] = _to_json({**ordered, CHECKSUM: config_hash(ordered, without=())}) + "\n"
    temporaries = {}
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporaries[path] = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporaries[path], 0o644)  # mkstemp gives 0600; records are shared
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    except BaseException:
        for temporary in temporaries.values():
            Path(temporary).unlink(missing_ok=True)
        raise


def read_record(path: str | Path) -> dict[str, Any]:
    """Read and validate one record.

    Raises: RecordError, one line, for a torn or changed file, a missing or unknown key, a value that cannot be, or a
    key that disagrees with the path.
    """
    path = Path(path)
    try:
        return parse_record(path, path.read_bytes())
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror})") from error
    except RecordError as error:
        raise RecordError(f"{error}; restore the file, or delete it to have the run trained again") from error


def parse_record(path: Path, content: bytes) -> dict[str, Any]:
    """The record in the content of a file that belongs at `path`. Raises: RecordError, as `read_record`."""
    try:
        record = json.loads(content.decode())
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise RecordError(f"{path}: not JSON, perhaps torn ({error})") from error
    checksum = record.pop(CHECKSUM, None) if isinstance(record, dict) else None
    check_record(path, record)
    if checksum not in (None, config_hash(record, without=())):  # None: records older than the checksum
        raise RecordError(f"{path}: its checksum is wrong, so something in it was changed")
    return record


def read_records(results_dir: str | Path) -> list[dict[str, Any]]:
    """All records below `results_dir/runs`, sorted by key. Leftover temporary files (`*.tmp`) are no records."""
    runs = Path(results_dir) / "runs"
    records = [read_record(path) for path in sorted(runs.rglob("*.json"))]
    check_unique(records)
    return sorted(records, key=run_key)


def check_unique(records: Iterable[Mapping[str, Any]]) -> None:
    """Raise RecordError when two records claim the same run."""
    seen: set[RunKey] = set()
    for key in map(run_key, records):
        if key in seen:
            raise RecordError(f"{key}: two records of one run")
        seen.add(key)


def pack_wrong(wrong: np.ndarray) -> dict[str, Any]:
    """Which test images were classified wrongly, bool (draws, n_test), as a compact JSON value."""
    wrong = np.asarray(wrong)
    if wrong.dtype != bool or wrong.ndim != 2:
        raise ValueError(f"wrong must be bool (draws, n_test), given {wrong.dtype} {wrong.shape}")
    data = base64.b64encode(zlib.compress(np.packbits(wrong).tobytes(), 9)).decode("ascii")
    return {"encoding": WRONG_ENCODING, "shape": list(wrong.shape), "data": data}


def unpack_wrong(packed: Mapping[str, Any]) -> np.ndarray:
    """The inverse of `pack_wrong`. Raises: ValueError when the data do not fill the stated shape."""
    if packed.get("encoding") != WRONG_ENCODING:
        raise ValueError(f"encoding is {packed.get('encoding')!r}, allowed: {WRONG_ENCODING!r}")
    draws, n_test = packed["shape"]
    try:
        raw = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"], validate=True)), np.uint8)
    except zlib.error as error:
        raise ValueError(f"data are torn ({error})") from error
    if raw.size != -(-draws * n_test // 8):
        raise ValueError(f"{raw.size} bytes do not fill shape {[draws, n_test]}")
    return np.unpackbits(raw, count=draws * n_test).astype(bool).reshape(draws, n_test)


def _to_json(value: Any, indent: str = "") -> str:
    """JSON with one dict entry a line and every list on one line: small diffs, no column of numbers."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    inner = indent + "  "
    lines = (f"{inner}{json.dumps(k, ensure_ascii=False)}: {_to_json(v, inner)}" for k, v in value.items())
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def check_record(path: Path, record: Any) -> None:
    """Raises: RecordError, one line, for a record that cannot be, or is not the one its path names."""
    problem = next(_problems(path, record), None)
    if problem:
        raise RecordError(f"{path}: {problem}")


def _problems(path: Path, record: Any) -> Iterator[str]:
    """What is wrong with a record, first things first (each check may rely on those before it)."""
    if not isinstance(record, Mapping):
        yield f"a record is a mapping, given {type(record).__name__}"
        return
    for name in FIELDS:
        if name not in record:
            yield f"missing key {name!r}"
    for name in record:
        if name not in FIELDS:
            yield f"unknown key {name!r}"
    yield from _not_json(dict(record), "")
    if record["status"] not in STATUSES:
        yield f"unknown status {record['status']!r}, allowed: {', '.join(STATUSES)}"
    nullable = NULLABLE if record["status"] == "ok" else NULLABLE | MEASURED
    for name, kind in FIELDS.items():
        value = record[name]
        if value is None and name in nullable:
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            yield f"{name} is {value!r}, which is not {_KINDS[kind]}"
    yield from _wrong_values(record)
    if record["status"] == "ok":
        yield from _unmeasured(record)
    yield from _uneven(record)
    key = run_key(record)
    if path.absolute().parts[-5:] != record_path("", key).parts:
        yield f"the path disagrees with the key of the record, {key}"


def _not_json(value: Any, where: str) -> Iterator[str]:
    """Values that strict JSON cannot hold, or would change on the way: NaN, numpy scalars, keys that are no strings."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                yield f"{where or 'record'} has the key {name!r}, which is not a string"
            yield from _not_json(item, f"{where}[{name!r}]" if where else str(name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _not_json(item, f"{where}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield f"{where} is {value}, which is not a finite number"
    elif value is not None and not isinstance(value, str | int):
        yield f"{where} is a {type(value).__name__}, which JSON cannot hold"


def _wrong_values(record: Mapping[str, Any]) -> Iterator[str]:
    if record["schema"] != SCHEMA:
        yield f"schema is {record['schema']}, this code reads {SCHEMA}"
    for name in ("task", "model", "protocol"):
        if not re.fullmatch(r"[A-Za-z0-9_-]+", record[name]):
            yield f"{name} is {record[name]!r}, which cannot be a folder name"
    if record["seed"] < 0:
        yield f"seed is {record['seed']}, allowed: 0, 1, 2, …"
    if record["data"] not in DATA_KINDS:
        yield f"data is {record['data']!r}, allowed: {', '.join(DATA_KINDS)}"
    if not re.fullmatch(r"[0-9a-f]{8,64}", record["config_hash"]):
        yield f"config_hash is {record['config_hash']!r}, which is not 8 to 64 hex digits"
    reason = record["reason"]
    if record["status"] != "ok" and not reason:
        yield f"status is {record['status']!r} and the reason is missing"
    if reason is not None and len(reason.splitlines()) > 1:
        yield "reason has more than one line"
    if not {"revision", "dirty"} <= record["git"].keys():
        yield "git lacks 'revision' or 'dirty'"
    try:
        utc = datetime.fromisoformat(record["finished_at"]).utcoffset() == timedelta(0)
    except ValueError:
        utc = False
    if not utc:
        yield f"finished_at is {record['finished_at']!r}, which is not an ISO time in UTC"


def _unmeasured(record: Mapping[str, Any]) -> Iterator[str]:
    """What a run that calls itself ok must have measured."""
    for name in ("n_test", "test_draws", "steps", "n_params"):
        if record[name] < (1 if name in ("n_test", "test_draws") else 0):
            yield f"{name} is {record[name]} in an ok run"
    if not record["metrics"]:
        yield "metrics are empty in an ok run"
    for name, draws in record["per_draw"].items():
        if not isinstance(draws, list) or len(draws) != record["test_draws"]:
            yield f"per_draw[{name!r}] is not a list of one number per draw ({record['test_draws']})"


def _uneven(record: Mapping[str, Any]) -> Iterator[str]:
    """Measurements that do not fit together."""
    for name, value in (record["metrics"] or {}).items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            yield f"metrics[{name!r}] is {value!r}, which is not a number"
    curve = record["curve"] or {}
    if not all(isinstance(points, list) for points in curve.values()):
        yield "curve holds something that is not a list"
    if len({len(points) for points in curve.values()}) > 1:
        yield f"the lists of curve differ in length: { {name: len(points) for name, points in curve.items()} }"
    if record["test_wrong"] is not None:
        expected = (record["test_draws"], record["n_test"])
        try:
            shape = unpack_wrong(record["test_wrong"]).shape
        except (ValueError, KeyError, TypeError) as error:
            yield f"test_wrong cannot be unpacked ({error})"
            return
        if shape != expected:
            yield f"test_wrong has shape {shape}, but (test_draws, n_test) is {expected}"
