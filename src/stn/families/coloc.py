"""Co-localisation of digits, Table 5 (App. A.2): ten classes of images, a localiser for each."""

from typing import Literal

import torch
from pydantic import JsonValue, PositiveInt, model_validator
from torch import Tensor

from stn.data.clutter import Clutter
from stn.data.errors import DataError
from stn.data.mnist import MNIST_MD5, Digits, prepare_mnist
from stn.data.seeds import TEST_SEED, stream_seed
from stn.families import Built, Network, seeded_network
from stn.families.mnist import splits
from stn.nets.colocalisation import CnnActivations, Localisers
from stn.results.records import RunKey
from stn.saved import load, weights_sha256
from stn.settings import Experiment, ModelSettings, RunSettings, TaskSettings, made
from stn.tasks.colocalisation import Colocalisation, ColocalisationRecipe, Scenes
from stn.validation import Checked

DATA = ("real",)
HELDOUT, STACKS = False, False  # the encoder was trained on all training digits
CLASSES = 10
CHUNK_STEPS = 10  # a step takes half a second
# Other digits that the patches of one class's images are cut from.
PATCH_DONORS = 1000


class Encoder(Checked):
    """Of which run the CNN is the encoder; its protocol is the recipe's `encoder_protocol`."""

    task: str
    model: str


class Task(TaskSettings):
    clutter: dict[str, JsonValue]
    encoder: Encoder


class Model(ModelSettings):
    """The localisers of App. A.2, the only ones there are."""

    name: Literal["coloc_st"]


class Recipe(ColocalisationRecipe):
    """`encoder_protocol`: the protocol of the run whose CNN is the encoder. `crop_px` is the side of what it sees."""

    images_per_class: PositiveInt
    encoder_protocol: str

    @model_validator(mode="after")
    def _a_batch_of_each_class(self) -> "Recipe":
        if self.images_per_class < self.batch_size:
            raise ValueError(f"images_per_class must be batch_size or more, got {self.images_per_class}")
        return self


def prepare(run: RunSettings) -> None:
    prepare_mnist(run.data_dir)


def needs(run: RunSettings) -> list[RunKey]:
    task, _, recipe = run.read(Task, Model, Recipe)
    return [RunKey(task.encoder.task, task.encoder.model, recipe.encoder_protocol, 0)]


def network(experiment: Experiment) -> Network:
    task, _, recipe = experiment.read(Task, Model, Recipe)
    in_shape = (1, *made(Clutter, task.clutter, "task.clutter").canvas)
    net = Localisers(CLASSES, in_shape, recipe.bounds(), recipe.crop_px)
    return Network(net, {}, (CLASSES, *in_shape))


def build(run: RunSettings) -> Built:
    task, _, recipe = run.read(Task, Model, Recipe)
    weights, checksum = encoder_weights(run, *needs(run))
    encoder = CnnActivations.from_weights(weights, (1, recipe.crop_px, recipe.crop_px))
    train_digits, test_digits = splits(run)
    clutter = made(Clutter, task.clutter, "task.clutter")
    train = scenes(train_digits, recipe.images_per_class, clutter, run.seed)
    unseen = scenes(test_digits, recipe.images_per_class, clutter, TEST_SEED)
    net, widths, _ = seeded_network(run)
    net.standardise(train.images)
    names = [f"digit{k}" for k in range(CLASSES)]
    module = Colocalisation(net, encoder, train, unseen, names, recipe, run.seed, CHUNK_STEPS)
    return Built(module, widths, MNIST_MD5 | checksum)


def scenes(digits: Digits, n: int, clutter: Clutter, seed: int) -> Scenes:
    """n images of every class with their true boxes; which digits, and where, depends on the seed alone.

    Raises: DataError for a class with fewer than n digits.
    """
    images, boxes = [], []
    for k in range(CLASSES):
        generator = torch.Generator().manual_seed(stream_seed(seed, "scenes", k))
        of_class = (digits.labels == k).nonzero()[:, 0]
        if len(of_class) < n:
            raise DataError(f"digit {k} has {len(of_class)} images, but protocol.coloc.images_per_class is {n}")
        chosen = of_class[torch.randperm(len(of_class), generator=generator)[:n]]
        donors = torch.randint(len(digits), (PATCH_DONORS,), generator=generator)
        batch = digits.images[torch.cat([chosen, donors])]
        parameters = clutter.sample(batch, generator)
        images.append(clutter.apply(batch, parameters)[:n])
        boxes.append(clutter.box_px(parameters)[:n])
    return Scenes(torch.stack(images, dim=1), torch.stack(boxes, dim=1))


def encoder_weights(run: RunSettings, encoder: RunKey) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights that the run `encoder` left, and its key with their sha256.

    Raises: DataError, with the command that makes them, when they are not there, or are damaged.
    """
    path = run.folder_of(encoder) / "weights.pt"
    if not path.exists():
        raise DataError(f"the encoder {path} is not there; make it: {run.command(encoder)}")
    weights = load(path)
    return weights, {f"encoder {encoder}": weights_sha256(weights)}
