"""What a run is: an object, checked once, that knows its key, folder, record file and hash. Imports no torch."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, JsonValue, NonNegativeInt, PlainValidator, PositiveInt, model_validator

from stn.results.records import (
    USUAL,
    USUAL_RECIPE,
    Name,
    RunKey,
    config_hash,
    flat,
    read_record,
    record_path,
    records_root,
    sweeps_dir,
)
from stn.validation import Checked, checked

Stack = Literal["auto", True, False]


def _folder(given: Any) -> Path:
    if not isinstance(given, str | Path) or "\0" in str(given):
        raise ValueError(f"must be a folder, got {given!r}")
    return Path(given)


Folder = Annotated[Path, PlainValidator(_folder)]
Group = TypeVar("Group", bound=Checked)


class WrongModel(ValueError):
    """A model that its task's family cannot read; `kind` is what it reads."""

    def __init__(self, message: str, kind: type[Checked]) -> None:
        super().__init__(message)
        self.kind = kind


class ModelSettings(Checked):
    """A row of a table, conf/model/<name>.yaml; a family adds the keys that it reads."""

    name: Name


class TaskSettings(Checked):
    """A column of a table, conf/task/<name>.yaml; a family adds the keys that it reads."""

    name: Name
    family: Name


class AnyModel(ModelSettings, extra="allow"):
    """As it is before its family reads it."""


class AnyTask(TaskSettings, extra="allow"):
    """As it is before its family reads it."""


class Experiment(Checked):
    """What decides the numbers of a run: what its record states as its config."""

    task: AnyTask
    model: AnyModel
    recipe: dict[str, JsonValue]
    evaluate: Literal["test", "heldout"]
    protocol_note: str
    seed: NonNegativeInt
    data: Literal["real", "subset", "standin"] = "real"
    precision: Literal["float32", "tf32", "bf16"] = "float32"

    @property
    def config(self) -> dict[str, JsonValue]:
        """As it stands in the record."""
        stated = self.model_dump(include=set(Experiment.model_fields))
        return unusual(stated, USUAL) | {"recipe": unusual(self.recipe, USUAL_RECIPE)}

    @property
    def hash(self) -> str:
        """Of the config: the same for every seed of one cell, and for every note."""
        return config_hash(self.config)

    def read(self, task: type[Group], model: type[Group], recipe: type[Group]) -> tuple[Group, Group, Group]:
        """Task, model and recipe as a family reads them.

        Raises: ValueError for a key that it does not read, WrongModel where it is the model's; one of the recipe is
        named as the command line names it.
        """
        of_task = checked(task, self.task.model_dump(), "task")
        try:
            of_model = checked(model, self.model.model_dump(), "model")
        except ValueError as error:
            message = f"model={self.model.name} is no model of {self.task.name}: {error}"
            raise WrongModel(message, model) from error
        return of_task, of_model, checked(recipe, self.recipe, f"protocol.{self.task.family}")


class Processes(Checked):
    """How many train a run together, on how many machines (Lightning's DDP)."""

    devices: PositiveInt
    num_nodes: PositiveInt


class Wandb(Checked):
    """Where a run is tracked."""

    mode: Literal["disabled", "offline", "online"]
    project: str
    entity: str | None
    group: str | None
    artifacts: bool = False
    config: dict[str, JsonValue] = Field(default_factory=dict)


class RunSettings(Experiment):
    """A run: an experiment under the name of its protocol, and where and how it trains (conf/train.yaml)."""

    protocol: Name
    data_dir: Folder
    results_dir: Folder
    output_dir: Folder
    device: Literal["auto", "cpu", "cuda"]
    threads: PositiveInt
    trainer: Processes
    stack: Stack
    time_budget_s: float | None
    progress: bool
    wandb: Wandb
    loggers: list[Literal["csv", "tensorboard"]] = Field(default_factory=list)
    force: bool = False

    @property
    def key(self) -> RunKey:
        return RunKey(self.task.name, self.model.name, self.protocol, self.seed)

    @property
    def record_file(self) -> Path:
        """Where the record lives; those of stand-in data have a root of their own."""
        return record_path(records_root(self.results_dir, self.data), self.key)

    @property
    def folder(self) -> Path:
        """Where the run leaves its checkpoint, weights and W&B files."""
        return self.folder_of(self.key)

    def folder_of(self, key: RunKey) -> Path:
        """As `folder`, of another run on the same kind of data, such as one whose weights this one needs."""
        return record_path(records_root(self.output_dir, self.data), key).with_suffix("")

    def data_folder(self, part: str, standin: str) -> Path:
        """Where the data are; a listed part of the real ones, and each stand-in, have folders of their own."""
        places = {"real": "", "subset": f"subset/{part}", "standin": f"standin/{standin}"}
        return self.data_dir / places[self.data]

    def recorded(self) -> dict[str, Any] | None:
        """The record of this very run (same hash), where there is one."""
        record = read_record(self.record_file) if self.record_file.exists() else None
        return record if record and record["config_hash"] == self.hash else None

    def command(self, key: RunKey) -> str:
        """What makes the run of this key, on the same kind of data."""
        named = zip(("task", "model", "protocol"), key, strict=False)
        data = [] if self.data == "real" else [f"data={self.data}"]
        words = ["python -m experiments.train", *(f"{group}={name}" for group, name in named), *data]
        return " ".join([*words, f"seed={key.seed}"])

    @property
    def processes(self) -> int:
        """How many processes train the run together: how fast, not what, so records do not depend on it."""
        return self.trainer.devices * self.trainer.num_nodes

    def changed(self, **changes: Any) -> Self:
        """The same run but for these settings. Raises: ValueError, one line, for invalid ones."""
        return checked(type(self), self.model_dump() | changes)

    def variant(self, of: Experiment) -> Self:
        """The same run under a protocol name and in a results folder of its own, to keep it out of every table.

        Its record goes to results_dir/sweeps, its protocol is called <protocol>-<hash of the settings>, and its note
        ends with what is not as in `of`, the run that it departs from.
        """
        own, usual = flat(self.config), flat(of.config)
        here = ", ".join(
            f"{name.removeprefix('recipe.')}={own.get(name)}"
            for name in own | usual
            if own.get(name) != usual.get(name) and name not in ("seed", "protocol_note")
        )
        return self.changed(
            protocol=f"{self.protocol}-{self.hash[:8]}",
            results_dir=sweeps_dir(self.results_dir),
            protocol_note="; but ".join(filter(None, (of.protocol_note, here))),
        )


def unusual(settings: dict[str, JsonValue], usual: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Those of the settings that differ from what `usual` says of them."""
    return {name: value for name, value in settings.items() if name not in usual or usual[name] != value}


def run_settings(composed: dict[str, Any]) -> RunSettings:
    """The run that conf/train.yaml, resolved, describes. Raises: ValueError, one line, for an invalid one."""
    protocol = composed.get("protocol")
    name = protocol.get("name") if isinstance(protocol, dict) else protocol
    return checked(RunSettings, {**composed, "protocol": name})


class Batch(Checked):
    """What every command that trains many runs is told."""

    workers: PositiveInt
    seeds: PositiveInt = 1
    stack: Stack
    time_budget_s: float | None
    retry: bool = False
    force: bool = False
    dry_run: bool = False

    @model_validator(mode="after")
    def _goes_on(self) -> Self:
        if self.force and self.time_budget_s is not None:
            raise ValueError("force=true begins anew each time, so with time_budget_s it would never end; give one")
        return self


def check_batch(composed: dict[str, Any]) -> None:
    """Raises: ValueError, one line, for what a `Batch` cannot be."""
    checked(Batch, {name: composed[name] for name in Batch.model_fields if name in composed})


def made(make, settings: dict[str, Any], what: str):
    """make(**settings). Raises: ValueError, one line, for a setting that `make` does not know, or that is missing."""
    try:
        return make(**settings)
    except TypeError as error:
        raise ValueError(f"{what}: {error}") from error
