"""Run records: one validated JSON per run, `runs/<task>/<model>/<protocol>/seed<k>.json`.

A record is checked when it is written and again when it is read, and the path must say what the record
says, so that two records of one run cannot exist. A bad record is an error, never a gap.
"""

import base64
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import AfterValidator, Field, JsonValue, NonNegativeInt, ValidationError, model_validator

from stn.validation import Checked, problem

SCHEMA = 2
DATA_KINDS = ("real", "subset", "standin")  # subset: a listed part of the real data (conf/subset)
DATA_NOTES = {"real": "", "subset": ", part of the real data", "standin": ", stand-in data"}  # behind a title
# What a record's settings name only where it is another: most records are older than these settings.
USUAL = {"data": "real", "precision": "float32"}
USUAL_RECIPE = {"label_smoothing": 0.0, "distortion_ramp": 0.0}
WRONG_ENCODING = "base64 of zlib of numpy.packbits, shape (draws, n_test)"
CHECKSUM = "checksum"  # the last key of a file: of all others

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


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


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested settings, by dotted names. A range of a search, {low, high, …}, is a leaf."""
    leaves = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping) and not {"low", "high"} & value.keys()
        leaves |= flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return leaves


def write_records(records: Mapping[Path, Mapping[str, Any]]) -> None:
    """Validate, then write by rename: a reader sees the old file or the new one, never half of it. All are on the disk
    before the first gets its name.

    Raises: RecordError naming the offending key or, where there is no room, OSError; nothing is written then.
    """
    texts = {}
    for path, record in records.items():
        check_record(path, record)
        ordered = {name: record[name] for name in KEYS if name in record}
        try:
            texts[path] = _to_json({**ordered, CHECKSUM: config_hash(ordered, without=())}) + "\n"
        except TypeError as error:  # a number of numpy's
            raise RecordError(f"{path}: {error}") from error
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


def read_record(path: Path) -> dict[str, Any]:
    """Read and validate one record.

    Raises: RecordError, one line, for a torn or changed file, a missing or unknown key, an invalid value, or a key
    that disagrees with the path.
    """
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
    if checksum != config_hash(record, without=()):
        raise RecordError(f"{path}: its checksum is wrong, so something in it was changed")
    return record


def read_records(results_dir: str | Path) -> list[dict[str, Any]]:
    """All records below `results_dir/runs`, sorted by key. Leftover temporary files (`*.tmp`) are no records."""
    runs = Path(results_dir) / "runs"
    return sorted((read_record(path) for path in sorted(runs.rglob("*.json"))), key=run_key)


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
    """Raises: RecordError, one line, for an invalid record, or one that its path does not name."""
    try:
        Record.model_validate(record)
    except ValidationError as error:
        raise RecordError(f"{path}: {problem(error, record, 'record')}".replace("record.", "", 1)) from error
    key = run_key(record)
    if path.absolute().parts[-5:] != record_path("", key).parts:
        raise RecordError(f"{path}: the path disagrees with the key of the record, {key}")


def _one_line(reason: str) -> str:
    if len(reason.splitlines()) > 1:
        raise ValueError(f"must be one line, got {reason!r}")
    return reason


def _utc(time: str) -> str:
    try:
        utc = datetime.fromisoformat(time).utcoffset() == timedelta(0)
    except ValueError:
        utc = False
    if not utc:
        raise ValueError(f"must be an ISO time in UTC, got {time!r}")
    return time


Positive = Annotated[int, Field(ge=1)]
Hex = Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")]


class _Git(Checked):
    revision: str | None
    dirty: bool | None


class Record(Checked):
    """Every key of a record, in the order in which it is written. What a run that ended early may not know is null."""

    schema_: Literal[2] = Field(alias="schema")
    status: Literal["ok", "failed", "diverged", "collapsed"]
    reason: Annotated[str, AfterValidator(_one_line)] | None
    task: Name
    model: Name
    protocol: Name
    seed: NonNegativeInt
    data: Literal["real", "subset", "standin"]
    config: dict[str, JsonValue]
    config_hash: Hex
    n_params: NonNegativeInt | None
    widths: dict[str, int] | None
    metrics: dict[str, float | None] | None
    per_draw: dict[str, list[float]] | None
    n_test: Positive | None
    test_draws: Positive | None
    test_wrong: dict[str, JsonValue] | None
    curve: dict[str, list[float | None]] | None
    steps: NonNegativeInt | None
    wall_s: float | None
    images_per_s: float | None
    device: str | None
    threads: int | None
    versions: dict[str, str]
    git: _Git
    data_checksums: dict[str, str] | None
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None  # older records have none
    finished_at: Annotated[str, AfterValidator(_utc)]

    @model_validator(mode="after")
    def _fits_together(self) -> "Record":
        if self.status != "ok" and not self.reason:
            raise ValueError(f"status is {self.status!r} and the reason is missing")
        if self.status == "ok":
            if unknown := [name for name in MEASURED if getattr(self, name) is None]:
                raise ValueError(f"{unknown[0]} is None in an ok run")
            if not self.metrics:
                raise ValueError("metrics are empty in an ok run")
            for name, draws in self.per_draw.items():
                if len(draws) != self.test_draws:
                    raise ValueError(f"per_draw.{name} is not one number per draw ({self.test_draws})")
        lengths = {name: len(points) for name, points in (self.curve or {}).items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the lists of curve differ in length: {lengths}")
        if self.test_wrong is not None:
            try:
                shape = unpack_wrong(self.test_wrong).shape
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"test_wrong cannot be unpacked ({error})") from error
            if shape != (self.test_draws, self.n_test):
                raise ValueError(
                    f"test_wrong has shape {shape}, but (test_draws, n_test) is {(self.test_draws, self.n_test)}"
                )
        return self


KEYS = tuple(field.alias or name for name, field in Record.model_fields.items())
MEASURED = ("n_params", "widths", "metrics", "per_draw", "n_test", "test_draws", "curve", "steps", "wall_s", "device")
MEASURED += ("data_checksums",)
