"""Distorted MNIST: Table 1 and MNIST addition, Table 4 (Sect. 4.1, App. A.1)."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, PositiveInt

from stn.data.distortions import distortion
from stn.data.mnist import MNIST_MD5, Digits, holdout, load_mnist, prepare_mnist
from stn.data.streams import STREAMS
from stn.families import Built, DataSet, Network, seeded_network
from stn.nets.budget import build_within_budget
from stn.nets.mnist import Architecture
from stn.settings import Experiment, ModelSettings, RunSettings, TaskSettings, made
from stn.tasks.classification import Classification
from stn.tasks.recipe import AdamW, ClassificationRecipe, MuonAdamW, Padding, Sgd, Share
from stn.tasks.warp_statistics import WarpStatistics

DATA = ("real",)
HELDOUT, STACKS = True, True
DATA_SET = DataSet("MNIST", prepare_mnist, (("mnist_r", "fcn"),))


class Task(TaskSettings):
    """`budget`: parameters of every network; `st_output_pool`: average-pooling of the STs' output."""

    budget: PositiveInt
    distortion: dict[str, JsonValue]
    st_output_pool: PositiveInt
    stream: Literal["distorted", "added"] = "distorted"


class Model(ModelSettings):
    classifier: str
    transformation: str | None
    localisation: str | None
    transformers: PositiveInt = 1


class Recipe(ClassificationRecipe):
    """`budget_fraction`: how much of the task's parameter budget every network has; 1 but in the short protocols.

    `label_smoothing`: the share of a label that is spread over all classes in training (Szegedy et al. 2016, Sect. 7).
    `distortion_ramp`: the share of the training in which the distortion grows from none to its full strength.
    """

    optimiser: Annotated[Sgd | AdamW | MuonAdamW, Field(discriminator="name")]
    budget_fraction: float = Field(gt=0, le=1)
    padding: Padding
    antialias: bool
    test_draws: PositiveInt
    label_smoothing: Share = 0.0
    distortion_ramp: Share = 0.0


def prepare(run: RunSettings) -> None:
    prepare_mnist(run.data_dir)


def network(experiment: Experiment) -> Network:
    """Deviation: the paper's "around 400k" parameters are beyond its own ranges of widths on 28x28 inputs."""
    task, model, recipe = experiment.read(Task, Model, Recipe)
    options = {"padding": recipe.padding, "antialias": recipe.antialias}
    architecture = Architecture(**model.model_dump(exclude={"name"}), **options)
    stream, budget = STREAMS[task.stream], round(task.budget * recipe.budget_fraction)
    in_shape = (stream.channels, *made(distortion, task.distortion, "task.distortion").canvas)
    net, widths = build_within_budget(
        lambda widths: architecture.build(in_shape, widths, stream.classes, task.st_output_pool), budget
    )
    return Network(net, dict(zip(("layer1", "layer2"), widths, strict=True)), in_shape)


def build(run: RunSettings) -> Built:
    task, _, recipe = run.read(Task, Model, Recipe)
    net, widths, _ = seeded_network(run)
    stream = STREAMS[task.stream](distortion(**task.distortion), *splits(run), recipe.distortion_ramp)
    smoothing = recipe.label_smoothing
    module = Classification(net, stream, recipe, run.seed, WarpStatistics, recipe.test_draws, smoothing)
    return Built(module, widths, dict(MNIST_MD5))


def splits(run: RunSettings) -> tuple[Digits, Digits]:
    """Training and test digits; with evaluate=heldout the test is a held-out part of the training digits."""
    train = load_mnist(run.data_dir, "train")
    if run.evaluate == "heldout":
        return holdout(train)
    return train, load_mnist(run.data_dir, "test")
