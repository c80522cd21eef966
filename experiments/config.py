"""Composes the settings of one run from conf/, without starting it."""

import functools
import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from stn.results.records import flat
from stn.settings import RunSettings, run_settings

OF_THE_COMMAND = ("launcher", "workers", "sweep", "storage")  # how many runs are trained, and where
NAMED = ("task", "model", "protocol", "table")  # groups whose options' names stand in records
CONF = Path(__file__).resolve().parents[1] / "conf"


def compose_run(overrides: list[str]) -> RunSettings:
    """What `python -m experiments.train <overrides>` would run.

    Raises: hydra's and omegaconf's errors for an unknown group, option or key; ValueError for an invalid value.
    """
    return run_settings(of_run(compose_config("train", overrides)))


def run_of(config: DictConfig) -> RunSettings:
    """The run of a composed conf/train.yaml.

    One that departs from its protocol gets a protocol name and a results folder of its own (`RunSettings.variant`), so
    that it never overwrites, or slips into, the records that the tables are made from.
    A number that equals the plain one is the plain one: 0 for 0.0 is no other run.
    Raises: ValueError for a setting of the protocol that was changed and that this run does not read.
    """
    run = run_settings(of_run(config))
    plain = as_it_stands(run)
    named = run_settings(of_run(plain))
    run = run_settings(_as_written(of_run(config), of_run(plain)))
    refuse_unread(config, plain, run, same=run.hash == named.hash)
    return run if run.hash == named.hash else run.variant(of=named)


def _as_written(given: object, plain: object) -> object:
    """`given`, with `plain`'s values where they are equal numbers."""
    if isinstance(given, dict) and isinstance(plain, dict):
        return {key: _as_written(value, plain.get(key)) for key, value in given.items()}
    if isinstance(given, list) and isinstance(plain, list) and len(given) == len(plain):
        return [_as_written(*pair) for pair in zip(given, plain, strict=True)]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (given, plain))
    return plain if numbers and given == plain else given


def as_it_stands(run: RunSettings) -> DictConfig:
    """The settings of the run's task, model and protocol, for its seed and kind of data, with nothing changed."""
    groups = [f"task={run.task.name}", f"model={run.model.name}", f"protocol={run.protocol}"]
    return compose_config("train", [*groups, f"seed={run.seed}", f"data={run.data}"])


def of_run(config: DictConfig) -> dict:
    """The keys of conf/train.yaml, or of one that builds on it, that concern each run, resolved."""
    return {name: value for name, value in resolved(config).items() if name not in OF_THE_COMMAND}


def refuse_unread(config: DictConfig, plain: DictConfig, run: RunSettings, same: bool = False) -> None:
    """Raises: ValueError where the protocol differs from `plain` in something that does not concern this run.

    Compared as written, before interpolation: what a setting changes by way of another is not counted. `same`: the run
    is the one of `plain`, so that whatever differs is not read.
    """
    family, classifier = run.task.family, getattr(run.model, "classifier", None)
    shared = {"steps_of": [run.task.name, run.model.name], "batch_of": [classifier], "optimiser_of": [classifier]}
    written = str(OmegaConf.to_container(plain.protocol[family]))
    its = [[name, *part] for name, part in shared.items() if f"protocol.{name}." in written]
    its += [[family], ["notes", family]]
    changed, usual = (flat(OmegaConf.to_container(settings.protocol)) for settings in (config, plain))
    for path in (name.split(".") for name in changed | usual if changed.get(name) != usual.get(name)):
        concerns = any(path[: len(own)] == own[: len(path)] for own in its)
        if not concerns or (same and path[0] != "notes"):
            raise ValueError(f"protocol.{'.'.join(path)}: {run.key} does not read it; it reads protocol.{family}")


def compose_config(name: str, overrides: list[str]) -> DictConfig:
    """conf/<name>.yaml with overrides."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(name, overrides)
    for group, _, option in (override.partition("=") for override in overrides):
        path = CONF / group / f"{option}.yaml"
        if group in NAMED and path.exists() and (its_name := _name_in(path)) != option:
            raise ValueError(f"conf/{group}/{option}.yaml: its name must be {option}, as the file's, got {its_name!r}")
    return config


@functools.cache
def _name_in(path: Path) -> str | None:
    return OmegaConf.load(path).get("name")


def resolved(config: DictConfig) -> dict:
    """Plain nested dicts, every interpolation carried out."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def options(group: str) -> list[str]:
    """The names that a group of conf/ offers."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def keys(name: str) -> dict:
    """The settings of conf/<name>.yaml and of those it builds on, outside its groups, with their usual values."""
    content = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    builds_on = [entry for entry in content.pop("defaults", []) if isinstance(entry, str) and entry != "_self_"]
    content.pop("hydra", None)
    return {key: value for entry in builds_on for key, value in keys(entry).items()} | content


def quoted(value: str) -> str:
    """A text as hydra's grammar reads it whole, whatever signs are in it."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{trailing * chr(92)}'"
