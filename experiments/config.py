"""Composes the settings of one run from conf/, without starting it."""

import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).resolve().parents[1] / "conf"


def compose_run(overrides: list[str]) -> dict:
    """What `python -m experiments.train <overrides>` would run, resolved.

    Raises: hydra's and omegaconf's errors for an unknown group, option or key.
    """
    return resolved(compose_config("train", overrides))


def compose_config(name: str, overrides: list[str]) -> DictConfig:
    """conf/<name>.yaml with overrides; can also be called inside a `hydra.main` job."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(name, overrides)
    finally:
        GlobalHydra.instance().hydra = running


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
