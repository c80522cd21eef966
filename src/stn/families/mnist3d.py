"""MNIST digits in three dimensions (App. A.3)."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt

from stn.data.mnist import MNIST_MD5
from stn.data.volumes import ExtrudedDigits, check_fits
from stn.families import Built, Network, mnist, seeded_network
from stn.nets.budget import build_within_budget
from stn.nets.volumes import volume_network
from stn.settings import Experiment, ModelSettings, RunSettings, TaskSettings
from stn.tasks.classification import Classification
from stn.tasks.recipe import ClassificationRecipe
from stn.tasks.volume_statistics import VolumeStatistics
from stn.validation import Checked

DATA = ("real",)
HELDOUT, STACKS = True, False
prepare = mnist.prepare


class Volume(Checked):
    digit_voxels: PositiveInt
    thickness_voxels: PositiveInt
    rotation_deg: Annotated[list[NonNegativeFloat], Field(min_length=3, max_length=3)]  # about x, y and z


class Task(TaskSettings):
    """`budget`: parameters of every network."""

    budget: PositiveInt
    volume: Volume


class Model(ModelSettings):
    projection: bool
    transformation: str | None


class Recipe(ClassificationRecipe):
    """`budget_fraction`: as of Table 1; `size_voxels`: the volume's side."""

    budget_fraction: float = Field(gt=0, le=1)
    size_voxels: PositiveInt
    test_draws: PositiveInt


def network(experiment: Experiment) -> Network:
    """Raises: ValueError for settings that do not fit."""
    task, model, recipe = experiment.read(Task, Model, Recipe)
    check_fits(recipe.size_voxels, task.volume.digit_voxels, task.volume.thickness_voxels)
    build = volume_network(model.projection, model.transformation)
    budget = round(task.budget * recipe.budget_fraction)
    in_shape = (ExtrudedDigits.channels, *(recipe.size_voxels,) * 3)
    net, widths = build_within_budget(lambda widths: build(in_shape, widths, ExtrudedDigits.classes), budget)
    return Network(net, dict(zip(("layer1", "layer2"), widths, strict=True)), in_shape)


def build(run: RunSettings) -> Built:
    task, _, recipe = run.read(Task, Model, Recipe)
    stream = ExtrudedDigits(*mnist.splits(run), recipe.size_voxels, **task.volume.model_dump())
    net, widths, _ = seeded_network(run)
    module = Classification(net, stream, recipe, run.seed, VolumeStatistics, recipe.test_draws)
    return Built(module, widths, dict(MNIST_MD5))
