"""What resolved settings (conf/train.yaml) say about a run. Imports no torch."""

import re
from collections.abc import Callable
from pathlib import Path

from stn.results.records import DATA_KINDS, RunKey, config_hash, record_path, records_root, sweeps_dir

STACK = ("auto", True, False)
PRECISIONS = ("float32", "tf32", "bf16")
# What a record's settings name only where it is another: most records are older than these settings.
USUAL = {"data": "real", "precision": "float32"}


def science(settings: dict) -> dict:
    """The part of the settings that decides a run's numbers: what its record states and its hash covers."""
    return {
        "task": settings["task"],
        "model": settings["model"],
        "recipe": settings["recipe"],
        "evaluate": settings["evaluate"],
        "protocol_note": settings["note"],
        "seed": settings["seed"],
        **{name: settings[name] for name, usual in USUAL.items() if settings[name] != usual},
    }


def run_key(settings: dict) -> RunKey:
    """Which run these settings are."""
    return RunKey(settings["task"]["name"], settings["model"]["name"], settings["protocol"]["name"], settings["seed"])


def record_file(settings: dict) -> Path:
    """Where the record of this run lives; those of stand-in data have a root of their own."""
    return record_path(records_root(settings["results_dir"], settings["data"]), run_key(settings))


def run_folder(settings: dict) -> Path:
    """Where a run leaves its checkpoint, weights and W&B files."""
    key = run_key(settings)
    root = records_root(settings["output_dir"], settings["data"])
    return root / "runs" / key.task / key.model / key.protocol / f"seed{key.seed}"


def processes(settings: dict) -> int:
    """How many processes train the run together: how fast, not what, so records do not depend on it."""
    return settings["trainer"]["devices"] * settings["trainer"]["num_nodes"]


def variant(settings: dict) -> dict:
    """The same run under a protocol name and in a results folder of its own, so that it slips into no table.

    Its records go to results_dir/sweeps, and its protocol is called <protocol>-<hash of the settings>.
    """
    renamed = {**settings["protocol"], "name": f"{settings['protocol']['name']}-{config_hash(science(settings))[:8]}"}
    return {**settings, "protocol": renamed, "results_dir": str(sweeps_dir(settings["results_dir"]))}


def check(settings: dict) -> None:
    """Raises: ValueError for a missing group, a seed, threads, device, data, precision, evaluate, stack or wandb.mode
    that no run can have.
    """
    needed = {"trainer": {"devices", "num_nodes"}, "wandb": {"mode", "project", "entity", "group"}}
    for name in ("task", "model", "protocol", "recipe", *needed):
        if not isinstance(settings.get(name), dict):
            raise ValueError(f"{name} must be a group of settings, got {settings.get(name)!r}")
        if missing := needed.get(name, set()) - settings[name].keys():
            raise ValueError(f"{name} lacks {', '.join(sorted(missing))}, got {settings[name]!r}")
    for name in ("task", "model", "protocol"):
        given = settings[name].get("name")
        if not isinstance(given, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", given):
            raise ValueError(f"{name}.name must be letters, digits, _ and -, got {given!r}")
    for name in ("data_dir", "results_dir", "output_dir"):
        if not isinstance(settings[name], str) or "\0" in settings[name]:
            raise ValueError(f"{name} must be a folder, got {settings[name]!r}")
    for name, least in (("seed", 0), ("threads", 1)):
        value = settings[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer, {least} or more, got {value!r}")
    for name, value in settings["trainer"].items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"trainer.{name} must be an integer, 1 or more, got {value!r}")
    _check_budget(settings)
    choices = {
        "device": (settings["device"], ("auto", "cpu", "cuda")),
        "data": (settings["data"], DATA_KINDS),
        "precision": (settings["precision"], PRECISIONS),
        "evaluate": (settings["evaluate"], ("test", "heldout")),
        "stack": (settings["stack"], STACK),
        "wandb.mode": (settings["wandb"]["mode"], ("disabled", "offline", "online")),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def check_batch(settings: dict) -> None:
    """Raises: ValueError for seeds, workers, time_budget_s or stack that no command which trains many runs can have."""
    for name in ("seeds", "workers"):
        value = settings[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be an integer, 1 or more, got {value!r}")
    _check_budget(settings)
    if settings["stack"] not in STACK:
        raise ValueError(f"stack must be one of {', '.join(map(str, STACK))}, got {settings['stack']!r}")


def _check_budget(settings: dict) -> None:
    budget_s = settings["time_budget_s"]
    if budget_s is not None and (isinstance(budget_s, bool) or not isinstance(budget_s, int | float)):
        raise ValueError(f"time_budget_s must be a number of seconds or null, got {budget_s!r}")


def from_settings(make: Callable, settings: dict, what: str):
    """make(**settings). Raises: ValueError, one line, for a setting that `make` does not have, or lacks."""
    try:
        return make(**settings)
    except TypeError as error:
        raise ValueError(f"{what}: {error}") from error
