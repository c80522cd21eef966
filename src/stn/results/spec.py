"""The YAML of a table, conf/table/<name>.yaml: rows, columns, the paper's numbers and its claims."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

NAME = r"table[a-z0-9]*"  # no underscore: files are called <name>_<protocol>


class TableError(ValueError):
    """A table file that says something impossible; one line that names the file and the key."""


@dataclass(frozen=True)
class Column:
    """A column is a task."""

    task: str
    label: str


@dataclass(frozen=True)
class Row:
    """A row is a model or, where one run fills several rows (co-localisation: one a digit), a metric of it."""

    model: str
    label: str
    name: str  # what `reference` calls the row; the model, unless given
    metric: str


@dataclass(frozen=True)
class TableSpec:
    """A table of the paper. A cell exists if and only if `reference` names it; None where the paper has no number."""

    name: str
    title: str
    metric: str
    unit: str
    lower_is_better: bool
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    reference: Mapping[str, Mapping[str, float | None]]  # row name -> task -> the paper's number
    cited: Mapping[str, Mapping[str, float]]  # label -> task -> number of others, never run here
    claims: tuple[Mapping[str, Any], ...]
    path: Path

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(column.task for column in self.columns)

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.model for row in self.rows))

    def without_paper(self) -> "TableSpec":
        """The same cells without a number of the paper's or of others': for data that are not theirs."""
        reference = {row: dict.fromkeys(cells) for row, cells in self.reference.items()}
        return replace(self, reference=reference, cited={})

    def cells(self) -> list[tuple[Row, Column, float | None]]:
        """Every cell with the paper's number, or None, row by row."""
        return [
            (row, column, self.reference[row.name][column.task])
            for row in self.rows
            for column in self.columns
            if column.task in self.reference[row.name]
        ]

    def has_cell(self, model: str, task: str) -> bool:
        return any(row.model == model and column.task == task for row, column, _ in self.cells())


def read_spec(path: str | Path) -> TableSpec:
    """Read and check a table, but for the arguments of its claims (`claims.check_claims`).

    Raises: TableError, one line, naming file and key.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise TableError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    required = {"title": str, "metric": str, "unit": str, "lower_is_better": bool}
    required |= {"name": str, "columns": list, "rows": list, "reference": dict}
    _check(path, "", raw, required, {"cited": dict, "claims": list})
    if raw["name"] != path.stem or not re.fullmatch(NAME, raw["name"]):
        raise TableError(f"{path}: name is {raw['name']!r}, but must be the file's and match {NAME}")
    for index, column in enumerate(raw["columns"]):
        _check(path, f"columns[{index}].", column, {"task": str, "label": str}, {})
    for index, row in enumerate(raw["rows"]):
        _check(path, f"rows[{index}].", row, {"model": str, "label": str}, {"name": str, "metric": str})
    for index, claim in enumerate(raw.get("claims", [])):
        _check(path, f"claims[{index}].", claim, {"id": str, "statement": str, "kind": str}, None)

    columns = tuple(Column(**column) for column in raw["columns"])
    rows = tuple(Row(**{"name": row["model"], "metric": raw["metric"]} | row) for row in raw["rows"])
    _unique(path, "columns", [column.task for column in columns])
    _unique(path, "rows", [row.name for row in rows])
    _unique(path, "claims", [claim["id"] for claim in raw.get("claims", [])])
    tasks = [column.task for column in columns]
    reference = _numbers(path, "reference", raw["reference"], tasks, nullable=True)
    for name in {row.name for row in rows} ^ reference.keys():
        raise TableError(f"{path}: {name!r} must be both in rows and in reference")
    return TableSpec(
        **{name: raw[name] for name in ("name", "title", "metric", "unit", "lower_is_better")},
        columns=columns,
        rows=rows,
        reference=reference,
        cited=_numbers(path, "cited", raw.get("cited", {}), tasks),
        claims=tuple(raw.get("claims", [])),
        path=path,
    )


def _check(
    path: Path, where: str, raw: Any, required: Mapping[str, type], optional: Mapping[str, type] | None = None
) -> None:
    """Refuse a missing key, a wrong type and, unless `optional` is None, a key that is neither."""
    if not isinstance(raw, dict):
        raise TableError(f"{path}: {where.rstrip('.') or 'the file'} must be a mapping, given {raw!r}")
    known = dict(required) | dict(optional or {})
    for name in required:
        if name not in raw:
            raise TableError(f"{path}: missing key {where}{name}")
    for name, value in raw.items():
        if name not in known:
            if optional is None:
                continue
            raise TableError(f"{path}: unknown key {where}{name}, allowed: {', '.join(known)}")
        if not isinstance(value, known[name]):
            raise TableError(f"{path}: {where}{name} must be {known[name].__name__}, given {value!r}")


def _unique(path: Path, key: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise TableError(f"{path}: {key} has {name!r} twice")
        seen.add(name)


def _numbers(
    path: Path, key: str, raw: Mapping[str, Any], tasks: list[str], nullable: bool = False
) -> dict[str, dict[str, float | None]]:
    """row -> task -> number, with every task a column; `nullable`: None is allowed in place of a number."""
    for row, cells in raw.items():
        if not isinstance(cells, dict):
            raise TableError(f"{path}: {key}.{row} must map tasks to numbers, given {cells!r}")
        for task, number in cells.items():
            if task not in tasks:
                raise TableError(f"{path}: {key}.{row} has {task!r}, which is no column")
            if number is None and nullable:
                continue
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise TableError(f"{path}: {key}.{row}.{task} must be a number, given {number!r}")
    return {
        row: {task: None if number is None else float(number) for task, number in cells.items()}
        for row, cells in raw.items()
    }
