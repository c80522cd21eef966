"""Co-localisation of birds (App. A.2, CUB-200-2011): the photographs of one species at a time, a localiser for each."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from stn.data.cub import Birds, center_crop, expect_cub, load_cub, prepare_cub
from stn.data.cub_standin import write_standin
from stn.data.errors import DataError
from stn.data.seeds import stream_seed
from stn.families import Built, Network
from stn.families.coloc import encoder_weights
from stn.families.cub import PRETRAINING
from stn.nets.backbones import IMAGENET, backbone
from stn.nets.bird_encoder import BackboneActivations, SpeciesActivations
from stn.nets.colocalisation import Localisers
from stn.tasks.birds import BirdColocalisation
from stn.tasks.colocalisation import ColocalisationRecipe, Scenes
from stn.train.settings import from_settings

DATA = ("real", "standin")
BACKBONE = "efficientnet_lite0"  # of the encoder "imagenet"
ENCODERS = {IMAGENET: 32, PRETRAINING[0]: 16}  # and the stride, the smallest crop they take
STANDIN_SEED = 2  # other species than those of Table 3


@dataclass(frozen=True, kw_only=True)
class CubColocRecipe(ColocalisationRecipe):
    """`species`: how many, spread over all. `image_px`: the middle of each photograph, square, with its shorter side.
    `encoder`: "imagenet", or "cub_pretrain" for the cub_cnn that this protocol trained on other drawn species.

    `standin_…` as in `CubRecipe`.
    """

    species: int
    images_per_species: int
    image_px: int
    encoder: str
    standin_birds: int
    standin_px: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.must_be_at_least(2, "species")
        self.must_be_at_least(self.batch_size, "images_per_species")
        self.must_be_one_of("encoder", ENCODERS)
        self.must_be_at_least(ENCODERS[self.encoder], "crop_px")


def prepare(settings: dict) -> None:
    """Makes the stand-in, or caches the images of the real birds, which the user must have put in place."""
    recipe, folder = _recipe(settings), data_folder(settings)
    if settings["data"] == "standin":
        write_standin(folder, recipe.species, recipe.standin_birds, STANDIN_SEED, recipe.standin_px)
    else:
        expect_cub(folder)
    prepare_cub(folder, (recipe.image_px,), settings["data"])


def needs(settings: dict) -> list[tuple[str, str]]:
    return [PRETRAINING] if _recipe(settings).encoder == PRETRAINING[0] else []


def network(settings: dict) -> Network:
    recipe = _recipe(settings)
    in_shape = (3, recipe.image_px, recipe.image_px)
    net = Localisers(recipe.species, in_shape, recipe.bounds(), recipe.crop_px)
    return Network(net, {}, (recipe.species, *in_shape))


def build(settings: dict) -> Built:
    recipe, seed = _recipe(settings), settings["seed"]
    if settings["data"] == "standin":
        prepare(settings)
    train, unseen = (load_cub(data_folder(settings), split, recipe.image_px) for split in ("train", "test"))
    if train.source != settings["data"]:
        raise DataError(f"data={settings['data']}: the birds in {data_folder(settings)} are {train.source}")
    chosen = torch.linspace(0, len(train.classes) - 1, recipe.species).long().tolist()
    names = [train.classes[k].replace(".", "_") for k in chosen]
    encoder, encoder_checksum = load_encoder(settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "weights"))
        net, widths, _ = network(settings)
    n = recipe.images_per_species
    shown = scenes(train, chosen, n, recipe.image_px)
    fewest = min(int((unseen.labels == k).sum()) for k in chosen)
    hidden = scenes(unseen, chosen, min(n, fewest), recipe.image_px)
    net.standardise(shown.images)
    module = BirdColocalisation(net, encoder, shown, hidden, names, recipe, seed, recipe.search())
    return Built(module, widths, {"annotations_sha256": train.sha256, **encoder_checksum})


def load_encoder(settings: dict) -> tuple[nn.Module, dict[str, str]]:
    """The frozen encoder and the checksum of its weights.

    Raises: DataError, with the command that makes it, when it is not there.
    """
    if _recipe(settings).encoder == IMAGENET:
        features = backbone(BACKBONE, IMAGENET)
        return BackboneActivations(features), {"encoder_sha256": features.weights_sha256}
    weights, checksum = encoder_weights(encoder_settings(settings))
    return SpeciesActivations.from_weights(weights), checksum


def encoder_settings(settings: dict) -> dict:
    """What names the run of the encoder "cub_pretrain": always seed 0."""
    task, model = PRETRAINING
    return {**settings, "task": {"name": task}, "model": {"name": model}, "seed": 0}


def scenes(birds: Birds, species: list[int], n: int, image_px: int) -> Scenes:
    """The first n photographs of each species, with the birds' boxes.

    Deviation: windows, boxes and baselines are of the square middle of a photograph (a localiser takes pictures of one
    size); a box is what of it lies there, and a bird outside of it counts as missed.
    Raises: DataError for a species with fewer than n.
    """
    images, boxes_px = [], []
    for k in species:
        index = (birds.labels == k).nonzero()[:n, 0]
        if len(index) < n:
            raise DataError(
                f"{birds.classes[k]} has {len(index)} training photographs, but recipe.images_per_species is {n}"
            )
        crops = center_crop(birds, index, image_px)
        images.append(crops.images.contiguous().float() / 255)
        boxes_px.append(crops.boxes_px)
    return Scenes(torch.stack(images, dim=1), torch.stack(boxes_px, dim=1))


def data_folder(settings: dict) -> Path:
    folder, recipe = Path(settings["data_dir"]), settings["recipe"]
    if settings["data"] == "real":
        return folder
    name = f"cub_{recipe['species']}x{recipe['standin_birds']}_{recipe['standin_px']}px_seed{STANDIN_SEED}"
    return folder / "standin" / name


def _recipe(settings: dict) -> CubColocRecipe:
    """Raises: ValueError for settings that are none, and for real birds where the encoder knows only drawn ones."""
    recipe = from_settings(CubColocRecipe, settings["recipe"], "the recipe")
    if recipe.encoder != IMAGENET and settings.get("data") == "real":
        raise ValueError(
            f"data=real: protocol {settings['protocol']['name']} compares crops by a net trained on drawn birds; give "
            "data=standin, or protocol=fast or paper after `make data-cub`"
        )
    return recipe
