"""CUB-200-2011, birds of 200 species: Table 3 (Sect. 4.3, App. A.6)."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from stn.data.cub import Birds, expect_cub, load_cub, prepare_cub
from stn.data.cub_standin import write_standin
from stn.data.cub_stream import BirdStream
from stn.data.errors import DataError
from stn.data.seeds import stream_seed
from stn.families import Built, Network
from stn.nets.backbones import BACKBONES, IMAGENET, imagenet_weights, load_weights
from stn.nets.cub import MultiStreamTransformer
from stn.results.records import config_hash
from stn.tasks.birds import BirdClassification, WindowStatistics
from stn.tasks.recipe import Recipe
from stn.train.saved import load
from stn.train.settings import from_settings, run_folder, science
from stn.transform.sampling import PADDINGS

DATA = ("real", "standin")
CLASSES = 200
HELDOUT_EVERY = 6  # evaluate=heldout: every sixth training bird
PRETRAINING = ("cub_pretrain", "cub_cnn")  # task and model of the run whose weights `pretrained: cub_pretrain` takes


@dataclass(frozen=True, kw_only=True)
class CubRecipe(Recipe):
    """`crop_px` of a stream, from images with a shorter side of `shorter_side_px`: 224 and 256 in the paper. A task
    with `input_scale` 2 (448 px) shows images of twice that size.

    `pretrained`: null, "imagenet" (the weights that a package carries), a file, sought in data_dir, or "cub_pretrain",
    a run of this protocol on other species of the stand-in. `width`: filters of the backbone "small". `standin_…`: the
    species, birds of each (half of them for training) and longer side, in px, of the stand-in.
    """

    backbone: str
    pretrained: str | None
    width: int
    crop_px: int
    shorter_side_px: int
    window_scale: float
    dropout: float
    padding: str
    antialias: bool
    standin_classes: int
    standin_birds: int
    standin_px: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.must_be_one_of("backbone", BACKBONES)
        self.must_be_one_of("padding", PADDINGS)
        for name in ("width", "crop_px"):
            self.must_be_at_least(1, name)
        self.must_be_at_least(self.crop_px, "shorter_side_px")
        for name, below in (("window_scale", 1), ("dropout", 0.999)):
            if not 0 <= getattr(self, name) <= below:
                raise ValueError(f"recipe.{name} must be 0 to {below}, got {getattr(self, name)}")
        if self.test_draws != 1:
            raise ValueError(f"recipe.test_draws must be 1 for birds, whose test is not random; got {self.test_draws}")


def prepare(settings: dict) -> None:
    """Makes the stand-in, or caches the images of the real birds, which the user must have put in place."""
    recipe = _recipe(settings)
    if recipe.pretrained != PRETRAINING[0]:  # a run that may come only after the preparations
        _check_weights(settings, recipe)
    folder = data_folder(settings, recipe)
    if settings["data"] == "standin":
        seed = settings["task"].get("standin_seed", 0)
        write_standin(folder, recipe.standin_classes, recipe.standin_birds, seed, recipe.standin_px)
    else:
        expect_cub(folder)
    prepare_cub(folder, (_shorter_side_px(settings, recipe),), settings["data"])


def needs(settings: dict) -> list[tuple[str, str]]:
    recipe = _recipe(settings)
    of_itself = settings["task"]["name"] == PRETRAINING[0]
    return [PRETRAINING] if recipe.pretrained == PRETRAINING[0] and not of_itself else []


def network(settings: dict) -> Network:
    return _network(settings, _recipe(settings))


def build(settings: dict) -> Built:
    recipe, seed = _recipe(settings), settings["seed"]
    if settings["data"] == "standin":
        prepare(settings)
    _check_weights(settings, recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "weights"))
        net, widths, (_, image_px, _) = _network(settings, recipe)
    checksums = _load_pretrained(net, settings, recipe)
    train, test = splits(settings)
    stream = BirdStream(train, test, image_px)
    statistics = partial(WindowStatistics, train.part_names, image_px, net.scale) if net.n_windows else None
    checksums = {"annotations_sha256": train.sha256, **checksums}
    return Built(BirdClassification(net, stream, recipe, seed, statistics), widths, checksums)


def splits(settings: dict) -> tuple[Birds, Birds]:
    """Training and test birds; with evaluate=heldout the test is a held-out part of the training birds."""
    recipe = _recipe(settings)
    folder, size_px = data_folder(settings, recipe), _shorter_side_px(settings, recipe)
    train = load_cub(folder, "train", size_px)
    if train.source != settings["data"]:
        raise DataError(f"data={settings['data']}: the birds in {folder} are {train.source}")
    if settings["evaluate"] == "heldout":
        heldout = torch.arange(len(train)) % HELDOUT_EVERY == 0
        return train.take((~heldout).nonzero()[:, 0]), train.take(heldout.nonzero()[:, 0])
    return train, load_cub(folder, "test", size_px)


def data_folder(settings: dict, recipe: CubRecipe) -> Path:
    """Where the birds are; each size of stand-in has a folder of its own."""
    folder = Path(settings["data_dir"])
    if settings["data"] == "real":
        return folder
    name = f"cub_{recipe.standin_classes}x{recipe.standin_birds}_{recipe.standin_px}px"
    seed = settings["task"].get("standin_seed", 0)
    return folder / "standin" / (f"{name}_seed{seed}" if seed else name)


def _recipe(settings: dict) -> CubRecipe:
    """Raises: ValueError for settings that are none, and for real birds where only drawn ones are to be had."""
    recipe = from_settings(CubRecipe, settings["recipe"], "the recipe")
    drawn_only = recipe.pretrained == PRETRAINING[0] or settings["task"]["name"] == PRETRAINING[0]
    if drawn_only and settings.get("data") == "real":
        raise ValueError(
            f"data=real: protocol {settings['protocol']['name']} pre-trains on drawn birds; give data=standin, or "
            "protocol=fast or paper after `make data-cub`"
        )
    return recipe


def _network(settings: dict, recipe: CubRecipe) -> Network:
    task, model = settings["task"], settings["model"]
    if "windows" not in model:
        raise ValueError(f"model={model['name']}: {task['name']} needs a model with `windows`, such as cub_st2")
    image_px = task["input_scale"] * recipe.crop_px
    net = MultiStreamTransformer(
        recipe.backbone,
        model["windows"],
        recipe.standin_classes if settings.get("data") == "standin" else CLASSES,
        image_px=image_px,
        crop_px=recipe.crop_px,
        scale=recipe.window_scale,
        dropout=recipe.dropout,
        width=recipe.width,
        padding=recipe.padding,
        antialias=recipe.antialias,
    )
    return Network(net, {"descriptor": net.classifier.in_features}, (3, image_px, image_px))


def _shorter_side_px(settings: dict, recipe: CubRecipe) -> int:
    return settings["task"]["input_scale"] * recipe.shorter_side_px


def _pretraining(settings: dict) -> dict:
    """The settings of the run that pre-trains; those of its task and model are not composed, only named."""
    task, model = PRETRAINING
    return {**settings, "task": {"name": task}, "model": {"name": model}, "seed": 0, "evaluate": "test"}


def _weights_file(settings: dict, recipe: CubRecipe) -> Path | None:
    """The pretrained weights; None for random ones."""
    if recipe.pretrained is None or settings["task"]["name"] == PRETRAINING[0]:
        return None
    if recipe.pretrained == IMAGENET:
        return imagenet_weights(recipe.backbone)
    if recipe.pretrained == PRETRAINING[0]:
        return run_folder(_pretraining(settings)) / "weights.pt"
    return Path(settings["data_dir"]) / recipe.pretrained


def _check_weights(settings: dict, recipe: CubRecipe) -> None:
    """Raises: DataError when the pretrained weights are not there."""
    file = _weights_file(settings, recipe)
    if file is None or file.is_file():
        return
    if recipe.pretrained == PRETRAINING[0]:
        task, model = PRETRAINING
        protocol = settings["protocol"]["name"]
        raise DataError(
            f"{file} is not there: run `python -m experiments.train task={task} model={model} protocol={protocol} "
            f"data={settings['data']}` first"
        )
    raise DataError(
        f"{file} is not there: put {file.name} from https://download.pytorch.org/models/ there, or set "
        "protocol.cub.pretrained=null"
    )


def _load_pretrained(net: MultiStreamTransformer, settings: dict, recipe: CubRecipe) -> dict[str, str]:
    """Puts the pretrained weights into every stream and the localisation net; returns what identifies them.

    Those of another run are identified by its settings, not by their bytes, which differ from machine to machine.
    """
    file = _weights_file(settings, recipe)
    if file is None:
        return {}
    backbones = [*net.streams, *([net.localisation[0]] if net.n_windows else [])]
    if recipe.pretrained == PRETRAINING[0]:
        trained = load(file)
        weights = {name: value for name, value in trained.items() if name.startswith("streams.0.")}
        for features in backbones:
            features.load_state_dict({name.removeprefix("streams.0."): value for name, value in weights.items()})
        return {"pretraining": config_hash(science(_pretraining(settings)))}
    for features in backbones:
        load_weights(features, recipe.backbone, file)
    return {"backbone_sha256": net.streams[0].weights_sha256}
