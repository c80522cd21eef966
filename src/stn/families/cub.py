"""CUB-200-2011, birds of 200 species: Table 3 (Sect. 4.3, App. A.6)."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from stn.data.cub import Birds, expect_cub, fetch_cub, load_cub, prepare_cub, prepare_cub_part
from stn.data.cub_standin import write_standin
from stn.data.cub_stream import BirdStream
from stn.data.errors import DataError
from stn.data.subset import read_part
from stn.families import Built, DataSet, Network, seeded_network
from stn.nets.backbones import IMAGENET, imagenet_weights, load_weights
from stn.nets.cub import MultiStreamTransformer
from stn.results.records import RunKey, config_hash
from stn.saved import load
from stn.settings import Experiment, ModelSettings, RunSettings, TaskSettings
from stn.tasks.birds import BirdClassification, WindowStatistics
from stn.tasks.recipe import ClassificationRecipe, Padding, Share
from stn.validation import Checked

DATA = ("real", "subset", "standin")
PART, PART_CLASSES = "cub", 12  # of conf/subset
HELDOUT, STACKS = True, False
RUNS = (("cub_224", "cub_cnn"), ("cub_448", "cub_cnn"), ("cub_coloc", "coloc_st"))  # each has pictures of its own size
DATA_SET = DataSet("CUB-200-2011", fetch_cub, RUNS)
CLASSES = 200
HELDOUT_EVERY = 6  # evaluate=heldout: every sixth training bird
PRETRAINING = ("cub_pretrain", "cub_cnn")  # task and model of the run whose weights `pretrained: cub_pretrain` takes


class Task(TaskSettings):
    """`input_scale` 2 (448 px in the paper) shows images of twice the size of a crop."""

    input_scale: Literal[1, 2]
    standin_seed: NonNegativeInt = 0


class Model(ModelSettings):
    windows: NonNegativeInt


class Small(Checked):
    """`width`: filters of the first layer."""

    name: Literal["small"]
    width: PositiveInt


class Published(Checked):
    name: Literal["googlenet", "efficientnet_lite0"]


class Recipe(ClassificationRecipe):
    """`crop_px` of a stream, from images with a shorter side of `shorter_side_px`: 224 and 256 in the paper.

    `pretrained`: null, "imagenet" (the weights that a package carries), a file, sought in data_dir, or "cub_pretrain",
    a run of this protocol on other species of the stand-in. `standin_…`: the species, birds of each (half of them for
    training) and longer side, in px, of the stand-in.
    """

    backbone: Annotated[Small | Published, Field(discriminator="name")]
    pretrained: str | None
    crop_px: PositiveInt
    shorter_side_px: PositiveInt
    window_scale: Share
    dropout: float = Field(ge=0, lt=1)
    padding: Padding
    antialias: bool
    standin_classes: PositiveInt
    standin_birds: PositiveInt
    standin_px: PositiveInt

    @model_validator(mode="after")
    def _crops_fit(self) -> "Recipe":
        if self.shorter_side_px < self.crop_px:
            raise ValueError(f"shorter_side_px must be crop_px or more, got {self.shorter_side_px}")
        return self


class Standin(NamedTuple):
    """What the birds of a stand-in depend on; each has a folder of its own."""

    classes: int
    birds: int  # of each class
    seed: int
    px: int

    def folder(self, run: RunSettings) -> Path:
        """The data folder of a run: the stand-in's, where the run's data are drawn."""
        name = f"cub_{self.classes}x{self.birds}_{self.px}px"
        return run.data_folder(PART, f"{name}_seed{self.seed}" if self.seed else name)

    def prepare(self, run: RunSettings, shorter_side_px: int) -> None:
        """Makes the stand-in, or caches the images of the real birds, or of a part, which must be in place or near."""
        folder = self.folder(run)
        if run.data == "standin":
            write_standin(folder, *self)
        elif run.data == "subset":
            prepare_cub_part(read_part(PART), run.data_dir)
        else:
            expect_cub(folder)
        prepare_cub(folder, shorter_side_px, run.data)

    def load(self, run: RunSettings, split: str, shorter_side_px: int) -> Birds:
        """A split of the run's birds. Raises: DataError when they are not there, or of another kind."""
        birds = load_cub(self.folder(run), split, shorter_side_px)
        if birds.source != run.data:
            raise DataError(f"data={run.data}: the birds in {self.folder(run)} are {birds.source}")
        return birds


def prepare(run: RunSettings) -> None:
    *_, recipe = read(run)
    if recipe.pretrained != PRETRAINING[0]:  # a run that may come only after the preparations
        _check_weights(run, recipe)
    standin(run).prepare(run, _shorter_side_px(run))


def needs(run: RunSettings) -> list[RunKey]:
    *_, recipe = read(run)
    of_itself = run.task.name == PRETRAINING[0]
    return [pretraining(run)] if recipe.pretrained == PRETRAINING[0] and not of_itself else []


def pretraining(run: RunSettings) -> RunKey:
    """The run of this protocol that trains on drawn birds of other species."""
    return RunKey(*PRETRAINING, run.protocol, 0)


def network(experiment: Experiment) -> Network:
    task, model, recipe = read(experiment)
    image_px = task.input_scale * recipe.crop_px
    net = MultiStreamTransformer(
        recipe.backbone.name,
        model.windows,
        {"real": CLASSES, "subset": PART_CLASSES, "standin": recipe.standin_classes}[experiment.data],
        image_px=image_px,
        crop_px=recipe.crop_px,
        scale=recipe.window_scale,
        dropout=recipe.dropout,
        padding=recipe.padding,
        antialias=recipe.antialias,
        **recipe.backbone.model_dump(exclude={"name"}),
    )
    return Network(net, {"descriptor": net.classifier.in_features}, (3, image_px, image_px))


def build(run: RunSettings) -> Built:
    *_, recipe = read(run)
    if run.data == "standin":
        prepare(run)
    _check_weights(run, recipe)
    net, widths, (_, image_px, _) = seeded_network(run)
    checksums = _load_pretrained(net, run, recipe)
    train, test = splits(run)
    stream = BirdStream(train, test, image_px)
    statistics = partial(WindowStatistics, train.part_names, image_px, net.scale) if net.n_windows else None
    checksums = {"annotations_sha256": train.sha256, **checksums}
    return Built(BirdClassification(net, stream, recipe, run.seed, statistics), widths, checksums)


def splits(run: RunSettings) -> tuple[Birds, Birds]:
    """Training and test birds; with evaluate=heldout the test is a held-out part of the training birds."""
    birds, size_px = standin(run), _shorter_side_px(run)
    train = birds.load(run, "train", size_px)
    if run.evaluate == "heldout":
        heldout = torch.arange(len(train)) % HELDOUT_EVERY == 0
        return train.take((~heldout).nonzero()[:, 0]), train.take(heldout.nonzero()[:, 0])
    return train, birds.load(run, "test", size_px)


def standin(run: RunSettings) -> Standin:
    task, _, recipe = read(run)
    return Standin(recipe.standin_classes, recipe.standin_birds, task.standin_seed, recipe.standin_px)


def read(experiment: Experiment) -> tuple[Task, Model, Recipe]:
    """Raises: ValueError for settings that do not fit, and for real birds where the protocol knows only drawn ones."""
    task, model, recipe = experiment.read(Task, Model, Recipe)
    if PRETRAINING[0] in (recipe.pretrained, task.name) and experiment.data != "standin":
        raise ValueError(
            f"data={experiment.data}: this protocol pre-trains on drawn birds; give data=standin, or protocol=part for "
            "data=subset, or protocol=fast or paper after `make data-cub`"
        )
    return task, model, recipe


def _shorter_side_px(run: RunSettings) -> int:
    return run.task.input_scale * run.recipe["shorter_side_px"]


def _weights_file(run: RunSettings, recipe: Recipe) -> Path | None:
    """The pretrained weights; None for random ones."""
    if recipe.pretrained is None or run.task.name == PRETRAINING[0]:
        return None
    if recipe.pretrained == IMAGENET:
        return imagenet_weights(recipe.backbone.name)
    if recipe.pretrained == PRETRAINING[0]:
        return run.folder_of(pretraining(run)) / "weights.pt"
    return run.data_dir / recipe.pretrained


def _check_weights(run: RunSettings, recipe: Recipe) -> None:
    """Raises: DataError when the pretrained weights are not there."""
    file = _weights_file(run, recipe)
    if file is None or file.is_file():
        return
    if recipe.pretrained == PRETRAINING[0]:
        raise DataError(f"{file} is not there; make it: {run.command(pretraining(run))}")
    raise DataError(
        f"{file} is not there: put {file.name} from https://download.pytorch.org/models/ there, or set "
        "protocol.cub.pretrained=null"
    )


def _load_pretrained(net: MultiStreamTransformer, run: RunSettings, recipe: Recipe) -> dict[str, str]:
    """Puts the pretrained weights into every stream and the localisation net; returns what identifies them.

    Those of another run are identified by its settings, not by their bytes, which differ from machine to machine.
    """
    file = _weights_file(run, recipe)
    if file is None:
        return {}
    backbones = [*net.streams, *([net.localisation[0]] if net.n_windows else [])]
    if recipe.pretrained == PRETRAINING[0]:
        trained = load(file)
        weights = {name: value for name, value in trained.items() if name.startswith("streams.0.")}
        for features in backbones:
            features.load_state_dict({name.removeprefix("streams.0."): value for name, value in weights.items()})
        task, model = ({"name": name} for name in PRETRAINING)
        return {"pretraining": config_hash(run.config | {"task": task, "model": model, "evaluate": "test"})}
    for features in backbones:
        load_weights(features, recipe.backbone.name, file)
    return {"backbone_sha256": net.streams[0].weights_sha256}
