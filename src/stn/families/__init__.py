"""One module per family of tasks: how the settings of a run become a network, its data and a LightningModule.

Each has `network(experiment) -> Network`, cheap and without data; `prepare(run)`, which sees to it that the data are
there; `build(run) -> Built`; `DATA`, the kinds of data it has; `HELDOUT`, whether a part of the training data can take
the test's place; `STACKS`, whether its runs can train side by side in one program. One whose runs begin with the
weights of others has `needs(run)`; one whose data are fetched by `experiments.prepare` has a `DATA_SET`.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import nn

from stn.data.errors import one_line
from stn.data.seeds import stream_seed
from stn.results.records import RunKey
from stn.settings import Experiment, RunSettings
from stn.tasks.recipe import Recipe
from stn.tasks.training import Training

# Family -> its module. Addition is distorted MNIST with a recipe of its own.
FAMILIES = {name: name for name in ("coloc", "cub", "cub_coloc", "mnist", "mnist3d", "svhn")} | {"addition": "mnist"}


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


class DataSet(NamedTuple):
    """A data set to be fetched: `fetch` sees to it that the real files lie in a folder; then each of `runs`, task and
    model, has its data prepared as the run itself would.
    """

    title: str
    fetch: Callable[[Path], object]
    runs: tuple[tuple[str, str], ...]


def data_sets() -> dict[str, DataSet]:
    """By the name of the family."""
    modules = {name: importlib.import_module(f"stn.families.{name}") for name in sorted(set(FAMILIES.values()))}
    return {name: module.DATA_SET for name, module in modules.items() if hasattr(module, "DATA_SET")}


def family(experiment: Experiment) -> ModuleType:
    """The module that a run's task belongs to. Raises: ValueError for an unknown family, or held-out data it lacks."""
    name = experiment.task.family
    if name not in FAMILIES:
        raise ValueError(f"task.family must be one of {', '.join(FAMILIES)}, got {name!r}")
    module = importlib.import_module(f"stn.families.{FAMILIES[name]}")
    if experiment.evaluate == "heldout" and not module.HELDOUT:
        raise ValueError(f"evaluate=heldout: {experiment.task.name} has no held-out data; allowed: test")
    return module


def prepare(run: RunSettings) -> None:
    """Fetches or makes the data of a run, unless they are there. Raises: DataError saying what to put where."""
    family(run).prepare(run)


def needs(run: RunSettings) -> list[RunKey]:
    """The runs whose weights this run begins with; they have its kind of data."""
    module = family(run)
    return module.needs(run) if hasattr(module, "needs") else []


def network(experiment: Experiment) -> Network:
    """The untrained network of a run; torch's random numbers decide its weights.

    Raises: ValueError for invalid settings, or ones that the family does not read.
    """
    try:
        return family(experiment).network(experiment)
    except (TypeError, LookupError, ArithmeticError, RuntimeError) as error:  # of a value that nothing else refused
        raise _unusable(experiment, error) from error


def recipe(experiment: Experiment) -> Recipe:
    """How a run is trained. Raises: ValueError, as `network` does."""
    module = family(experiment)
    return experiment.read(module.Task, module.Model, module.Recipe)[2]


def seeded_network(run: RunSettings) -> Network:
    """As `network`, with the weights that the run's seed gives, and torch's random numbers as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(run.seed, "weights"))
        return network(run)


def check_data(run: RunSettings) -> None:
    """Raises: ValueError for a kind of data that the run's task does not have."""
    if run.data not in (there := family(run).DATA):
        raise ValueError(f"data={run.data}: {run.task.name} has only data={', '.join(there)}")


def build(run: RunSettings) -> Built:
    """The LightningModule of a run, with its data.

    Raises: ValueError for settings that do not fit together, DataError when the data are not there.
    """
    check_data(run)
    try:
        return family(run).build(run)
    except (TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise _unusable(run, error) from error


def _unusable(experiment: Experiment, error: Exception) -> ValueError:
    names, told = f"{experiment.task.name} and {experiment.model.name}", one_line(error)[:200]
    return ValueError(f"{names} cannot be built with these settings ({type(error).__name__}: {told})")
