"""Co-localisation of birds (App. A.2, CUB-200-2011): the photographs of one species at a time, a localiser for each."""

from typing import Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import nn

from stn.data.cub import Birds, center_crop
from stn.data.errors import DataError
from stn.families import Built, Network, seeded_network
from stn.families.coloc import Model, encoder_weights
from stn.families.cub import PRETRAINING, Standin, pretraining
from stn.nets.backbones import IMAGENET, backbone
from stn.nets.bird_encoder import BackboneActivations, SpeciesActivations
from stn.nets.colocalisation import Localisers
from stn.results.records import RunKey
from stn.settings import Experiment, RunSettings, TaskSettings
from stn.tasks.birds import BirdColocalisation
from stn.tasks.colocalisation import ColocalisationRecipe, Scenes

DATA = ("real", "subset", "standin")
HELDOUT, STACKS = False, False
BACKBONE = "efficientnet_lite0"  # of the encoder "imagenet"
SMALLEST_CROP_PX = {IMAGENET: 32, PRETRAINING[0]: 16}  # that an encoder takes: its stride
STANDIN_SEED = 2  # other species than those of Table 3


Task = TaskSettings


class Recipe(ColocalisationRecipe):
    """`species`: how many, spread over all. `image_px`: the middle of each photograph, square, with its shorter side.
    `encoder`: "imagenet", or "cub_pretrain" for the cub_cnn that this protocol trained on other drawn species.

    `standin_…` as in `stn.families.cub`.
    """

    species: int = Field(ge=2)
    images_per_species: PositiveInt
    image_px: PositiveInt
    encoder: Literal["imagenet", "cub_pretrain"]
    standin_birds: PositiveInt
    standin_px: PositiveInt

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        if self.images_per_species < self.batch_size:
            raise ValueError(f"images_per_species must be batch_size or more, got {self.images_per_species}")
        if self.crop_px < (least := SMALLEST_CROP_PX[self.encoder]):
            raise ValueError(f"crop_px must be {least} or more for the encoder {self.encoder}, got {self.crop_px}")
        return self


def prepare(run: RunSettings) -> None:
    standin(run).prepare(run, read(run).image_px)


def needs(run: RunSettings) -> list[RunKey]:
    return [pretraining(run)] if read(run).encoder == PRETRAINING[0] else []


def network(experiment: Experiment) -> Network:
    recipe = read(experiment)
    in_shape = (3, recipe.image_px, recipe.image_px)
    net = Localisers(recipe.species, in_shape, recipe.bounds(), recipe.crop_px)
    return Network(net, {}, (recipe.species, *in_shape))


def build(run: RunSettings) -> Built:
    recipe = read(run)
    if run.data == "standin":
        prepare(run)
    train, unseen = (standin(run).load(run, split, recipe.image_px) for split in ("train", "test"))
    if recipe.species > (there := len(train.classes)):
        raise DataError(f"protocol.cub_coloc.species is {recipe.species}, but these birds are of {there} species")
    chosen = torch.linspace(0, len(train.classes) - 1, recipe.species).long().tolist()
    names = [train.classes[k].replace(".", "_") for k in chosen]
    encoder, encoder_checksum = load_encoder(run)
    net, widths, _ = seeded_network(run)
    n = recipe.images_per_species
    shown = scenes(train, chosen, n, recipe.image_px)
    fewest = min(int((unseen.labels == k).sum()) for k in chosen)
    hidden = scenes(unseen, chosen, min(n, fewest), recipe.image_px)
    net.standardise(shown.images)
    module = BirdColocalisation(net, encoder, shown, hidden, names, recipe, run.seed)
    return Built(module, widths, {"annotations_sha256": train.sha256, **encoder_checksum})


def load_encoder(run: RunSettings) -> tuple[nn.Module, dict[str, str]]:
    """The frozen encoder and the checksum of its weights.

    Raises: DataError, with the command that makes it, when it is not there.
    """
    if read(run).encoder == IMAGENET:
        features = backbone(BACKBONE, IMAGENET)
        return BackboneActivations(features), {"encoder_sha256": features.weights_sha256}
    weights, checksum = encoder_weights(run, *needs(run))
    return SpeciesActivations.from_weights(weights), checksum


def scenes(birds: Birds, species: list[int], n: int, image_px: int) -> Scenes:
    """The first n photographs of each species, with the birds' boxes.

    Deviation: windows, boxes and baselines are of the square middle of a photograph (a localiser takes pictures of one
    size); of a box only the part in it counts, and a bird outside of it counts as missed.
    Raises: DataError for a species with fewer than n.
    """
    images, boxes_px = [], []
    for k in species:
        index = (birds.labels == k).nonzero()[:n, 0]
        if len(index) < n:
            raise DataError(
                f"{birds.classes[k]} has {len(index)} training photographs, "
                f"but protocol.cub_coloc.images_per_species is {n}"
            )
        crops = center_crop(birds, index, image_px)
        images.append(crops.images.contiguous().float() / 255)
        boxes_px.append(crops.boxes_px)
    return Scenes(torch.stack(images, dim=1), torch.stack(boxes_px, dim=1))


def standin(run: RunSettings) -> Standin:
    recipe = read(run)
    return Standin(recipe.species, recipe.standin_birds, STANDIN_SEED, recipe.standin_px)


def read(experiment: Experiment) -> Recipe:
    """Raises: ValueError for settings that do not fit, and for real birds where the encoder knows only drawn ones."""
    *_, recipe = experiment.read(Task, Model, Recipe)
    if recipe.encoder != IMAGENET and experiment.data != "standin":
        raise ValueError(
            f"data={experiment.data}: this protocol compares crops by a net trained on drawn birds; give data=standin, "
            "or protocol=part for data=subset, or protocol=fast or paper after `make data-cub`"
        )
    return recipe
