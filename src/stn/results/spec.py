"""The YAML of a table, conf/table/<name>.yaml: rows, columns, the paper's numbers and its claims."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, PositiveFloat, ValidationError, model_validator

from stn.validation import Checked, problem

NAME = r"table[a-z0-9]*"  # no underscore: files are called <name>_<protocol>


class TableError(ValueError):
    """An invalid table file; one line that names the file and the key."""


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


Item = TypeVar("Item")
Listed = Annotated[tuple[Item, ...], Field(strict=False)]  # a list in YAML
Some = Annotated[tuple[Item, ...], Field(strict=False, min_length=1)]


class Claim(Checked):
    """What every kind of claim has; `stn.results.claims` says what a kind means."""

    id: str
    statement: str
    tasks: Some[str]


class Improves(Claim):
    """`pairs`: each a model and its baseline."""

    kind: Literal["improves"]
    pairs: Some[Annotated[tuple[str, str], Field(strict=False)]]

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(model for pair in self.pairs for model in pair)


class WithinMargin(Improves):
    kind: Literal["equivalent", "no_worse"]
    margin_pp: PositiveFloat


class BestOf(Claim):
    kind: Literal["best_of"]
    models: Some[str]
    among: Some[str]


class MetricBelow(Claim):
    """`metric` is below `share` of the metric `below`."""

    kind: Literal["metric_below"]
    models: Some[str]
    metric: str
    below: str
    share: PositiveFloat = 1


class MetricAtLeast(Claim):
    kind: Literal["metric_at_least"]
    models: Some[str]
    metric: str
    at_least: float


AnyClaim = Annotated[Improves | WithinMargin | BestOf | MetricBelow | MetricAtLeast, Field(discriminator="kind")]


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
    cited: dict[str, dict[str, float]] = Field(default_factory=dict)  # label -> task -> number of others, never run
    claims: Listed[AnyClaim] = ()
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
        _once([claim.id for claim in self.claims], "claims")
        for claim in self.claims:
            models = (*claim.models, *(claim.among if isinstance(claim, BestOf) else ()))
            for names, allowed in ((models, self.models), (claim.tasks, self.tasks)):
                if unknown := [name for name in names if name not in allowed]:
                    raise ValueError(f"claim {claim.id!r} has {unknown[0]!r}, allowed: {', '.join(allowed)}")
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


def read_spec(path: Path) -> TableSpec:
    """Read and check a table. Raises: TableError, one line, naming file and key."""
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
