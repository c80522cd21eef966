"""The YAML of a table, conf/table/<name>.yaml: rows, columns, the paper's numbers and its claims."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from stn.validation import Checked, checked, problem

NAME = r"table[a-z0-9]*"  # no underscore: files are called <name>_<protocol>


class TableError(ValueError):
    """A table file that says something impossible; one line that names the file and the key."""


class Column(Checked):
    """A column is a task."""

    task: str
    label: str


class Row(Checked):
    """A row is a model or, where one run fills several rows (co-localisation: one a digit), a metric of it.

    `name`: what `reference` calls the row.
    """

    model: str
    label: str
    name: str
    metric: str


class Claim(Checked, extra="allow"):
    """What else it has is for its kind to read (`claims.check_claims`)."""

    id: str
    statement: str
    kind: str


Item = TypeVar("Item")
Listed = Annotated[tuple[Item, ...], Field(strict=False)]  # a list in YAML


def _once(names: list[str], what: str) -> None:
    if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"{what} has {repeated[0]!r} twice")


class TableSpec(Checked):
    """A table of the paper. A cell exists if and only if `reference` names it; None where the paper has no number."""

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    title: str
    metric: str
    unit: str
    lower_is_better: bool
    part: str | None = None  # with data=subset: how much of the data set it is
    only: Literal["real", "subset", "standin"] | None = None  # the kind of data that the table is about
    columns: Listed[Column]
    rows: Listed[Row]
    reference: dict[str, dict[str, float | None]]  # row name -> task -> the paper's number
    cited: dict[str, dict[str, float]] = Field(
        default_factory=dict
    )  # label -> task -> number of others, never run here
    claims: Listed[dict[str, Any]] = ()
    path: Path

    @model_validator(mode="before")
    @classmethod
    def _usual_names(cls, raw: Any) -> Any:
        """A row is called after its model and has the table's metric, unless it says so."""
        if isinstance(raw, dict) and isinstance(raw.get("rows"), list | tuple):
            usual = {"metric": raw.get("metric")}
            rows = [usual | {"name": row.get("model")} | row if isinstance(row, dict) else row for row in raw["rows"]]
            raw = raw | {"rows": rows}
        return raw

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _once([column.task for column in self.columns], "columns")
        _once([row.name for row in self.rows], "rows")
        claims = [checked(Claim, claim, f"claims[{i}]") for i, claim in enumerate(self.claims)]
        _once([claim.id for claim in claims], "claims")
        for key, numbers in (("reference", self.reference), ("cited", self.cited)):
            for row, cells in numbers.items():
                if unknown := [task for task in cells if task not in self.tasks]:
                    raise ValueError(f"{key}.{row} has {unknown[0]!r}, which is no column")
        for name in {row.name for row in self.rows} ^ self.reference.keys():
            raise ValueError(f"{name!r} must be both in rows and in reference")
        return self

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(column.task for column in self.columns)

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.model for row in self.rows))

    def without_paper(self) -> "TableSpec":
        """The same cells without a number of the paper's or of others': for data that are not theirs."""
        reference = {row: dict.fromkeys(cells) for row, cells in self.reference.items()}
        return self.model_copy(update={"reference": reference, "cited": {}})

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
    if not isinstance(raw, dict):
        raise TableError(f"{path}: the file must be a mapping, given {raw!r}")
    try:
        spec = TableSpec.model_validate({**raw, "path": path})
    except ValidationError as error:
        raise TableError(f"{path}: {problem(error, raw)}") from error
    if spec.name != path.stem:
        raise TableError(f"{path}: name is {spec.name!r}, but must be the file's")
    return spec
