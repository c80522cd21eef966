"""MNIST digits in three dimensions (App. A.3)."""

from dataclasses import dataclass

import torch

from stn.data.mnist import MNIST_MD5
from stn.data.seeds import stream_seed
from stn.data.volumes import ExtrudedDigits
from stn.families import Built, Network, mnist
from stn.nets.volumes import VolumeArchitecture, build_within_budget
from stn.tasks.classification import Classification
from stn.tasks.recipe import Recipe
from stn.tasks.volume_statistics import VolumeStatistics
from stn.train.settings import from_settings

DATA = ("real",)
prepare = mnist.prepare


@dataclass(frozen=True, kw_only=True)
class Mnist3dRecipe(Recipe):
    """`budget_fraction`: as of Table 1; `size_voxels`: the volume's side."""

    budget_fraction: float
    size_voxels: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.must_be_a_fraction("budget_fraction")
        self.must_be_at_least(1, "size_voxels")


def network(settings: dict) -> Network:
    recipe = from_settings(Mnist3dRecipe, settings["recipe"], "the recipe")
    model = dict(settings["model"])
    name = model.pop("name")
    if "projection" not in model:
        raise ValueError(f"model={name}: mnist3d needs a model with `projection`, such as st3d_cnn")
    architecture = from_settings(VolumeArchitecture, model, "the model")
    budget = mnist.parameter_budget(settings["task"], recipe.budget_fraction)
    in_shape = (ExtrudedDigits.channels, *(recipe.size_voxels,) * 3)
    net, widths = build_within_budget(architecture, in_shape, ExtrudedDigits.classes, budget)
    return Network(net, dict(zip(("layer1", "layer2"), widths, strict=True)), in_shape)


def build(settings: dict) -> Built:
    recipe, seed = from_settings(Mnist3dRecipe, settings["recipe"], "the recipe"), settings["seed"]
    train, test = mnist.splits(settings)

    def volumes(**shape) -> ExtrudedDigits:
        return ExtrudedDigits(train, test, recipe.size_voxels, **shape)

    stream = from_settings(volumes, settings["task"]["volume"], "the volume")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "weights"))
        net, widths, _ = network(settings)
    return Built(Classification(net, stream, recipe, seed, VolumeStatistics), widths, dict(MNIST_MD5))
