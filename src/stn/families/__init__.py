"""One module per family of tasks: how the settings of a run become a network, its data and a LightningModule.

Each has `network(settings) -> Network`, cheap and without data; `prepare(settings)`, which sees to it that the data are
there; `build(settings) -> Built`; and `DATA`, the kinds of data it has. One whose runs begin with the weights of others
has `needs(settings)`.
"""

import importlib
from types import ModuleType
from typing import NamedTuple

from torch import nn

from stn.tasks.training import Training

FAMILIES = ("addition", "coloc", "cub", "cub_coloc", "mnist", "mnist3d", "svhn")

# Addition is distorted MNIST with a recipe of its own.
SAME_MODULE = {"addition": "mnist"}


class Network(NamedTuple):
    """An untrained network, the layer widths that a record states, and the shape (C, *size) of one image."""

    net: nn.Module
    widths: dict[str, int]
    in_shape: tuple[int, ...]


class Built(NamedTuple):
    """A run that is ready to train; the checksums are those of its data's sources, by file name."""

    module: Training
    widths: dict[str, int]
    data_checksums: dict[str, str]


def family(settings: dict) -> ModuleType:
    """The module that a run's task belongs to. Raises: ValueError for an unknown family."""
    name = settings["task"]["family"]
    if name not in FAMILIES:
        raise ValueError(f"task.family must be one of {FAMILIES}, got {name!r}")
    return importlib.import_module(f"stn.families.{SAME_MODULE.get(name, name)}")


def prepare(settings: dict) -> None:
    """Fetches or makes the data of a run, unless they are there. Raises: DataError saying what to put where."""
    family(settings).prepare(settings)


def needs(settings: dict) -> list[tuple[str, str]]:
    """Task and model of the runs whose weights this run begins with, of its protocol and kind of data and seed 0."""
    of_family = getattr(family(settings), "needs", None)
    return of_family(settings) if of_family else []


def network(settings: dict) -> Network:
    """The untrained network of a run; torch's random numbers decide its weights.

    Raises: ValueError for settings that make none.
    """
    try:
        return family(settings).network(settings)
    except (TypeError, LookupError, ArithmeticError, RuntimeError) as error:  # of a value that nothing else refused
        raise _unusable(settings, error) from error


def build(settings: dict) -> Built:
    """The LightningModule of a run, with its data.

    Raises: ValueError for settings that do not fit together, DataError when the data are not there.
    """
    module = family(settings)
    if settings["data"] not in module.DATA:
        raise ValueError(f"data={settings['data']}: {settings['task']['name']} has only data={', '.join(module.DATA)}")
    try:
        return module.build(settings)
    except (TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise _unusable(settings, error) from error


def _unusable(settings: dict, error: Exception) -> ValueError:
    names, told = [settings[group]["name"] for group in ("task", "model")], " ".join(str(error).split())[:200]
    return ValueError(f"{' and '.join(names)} cannot be built with these settings ({type(error).__name__}: {told})")
