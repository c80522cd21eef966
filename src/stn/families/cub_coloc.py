"""Co-localisation of birds (App. A.2, CUB-200-2011): the photographs of one species at a time, a localiser for each."""

from dataclasses import dataclass
from pathlib import Path

import torch

from stn.data.cub import Birds, center_crop, load_cub, prepare_cub
from stn.data.cub_standin import write_standin
from stn.data.errors import DataError
from stn.data.seeds import stream_seed
from stn.families import Built, Network
from stn.nets.backbones import IMAGENET, backbone
from stn.nets.bird_encoder import BackboneActivations
from stn.nets.colocalisation import Localisers, WindowBounds
from stn.tasks.birds import BirdColocalisation
from stn.tasks.colocalisation import Scenes
from stn.tasks.recipe import Recipe
from stn.train.settings import from_settings

DATA = ("real", "standin")
ENCODER = "efficientnet_lite0"
STANDIN_SEED = 2  # other species than those of Table 3


@dataclass(frozen=True, kw_only=True)
class CubColocRecipe(Recipe):
    """`species`: how many, spread over all. `image_px`: the middle of each photograph, square, with its shorter side.

    `standin_…` as in `CubRecipe`; the others: see `Colocalisation` and `WindowBounds`.
    """

    species: int
    images_per_species: int
    image_px: int
    alpha: float
    crop_distance: float
    crop_px: int
    scale_min: float
    scale_max: float
    initial_scale: float
    max_shift: float
    antialias: bool
    standin_birds: int
    standin_px: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.must_be_at_least(2, "species")
        self.must_be_at_least(2, "batch_size")  # the loss compares images with each other
        self.must_be_at_least(self.batch_size, "images_per_species")
        self.must_be_at_least(32, "crop_px")  # the encoder's stride
        self.bounds()

    def bounds(self) -> WindowBounds:
        return WindowBounds(self.scale_min, self.scale_max, self.initial_scale, self.max_shift)


def prepare(settings: dict) -> None:
    """Makes the stand-in, or caches the images of the real birds, which the user must have put in place."""
    recipe, folder = _recipe(settings), data_folder(settings)
    if settings["data"] == "standin":
        write_standin(folder, recipe.species, recipe.standin_birds, STANDIN_SEED, recipe.standin_px)
    elif not any((folder / name).exists() for name in ("images.txt", "CUB_200_2011", "CUB_200_2011.tgz")):
        raise DataError(f"CUB-200-2011 is not in {folder}: run `make data-cub` (1.2 GB), or use data=standin")
    prepare_cub(folder, (recipe.image_px,))


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
    features = backbone(ENCODER, IMAGENET)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "weights"))
        net, widths, _ = network(settings)
    shown, hidden = (scenes(birds, chosen, recipe.images_per_species, recipe.image_px) for birds in (train, unseen))
    net.standardise(shown.images)
    module = BirdColocalisation(net, BackboneActivations(features), shown, hidden, names, recipe, seed)
    checksums = {"annotations_sha256": train.sha256, "encoder_sha256": features.weights_sha256}
    return Built(module, widths, checksums)


def scenes(birds: Birds, species: list[int], n: int, image_px: int) -> Scenes:
    """The first n photographs of each species, with the birds' boxes.

    Raises: DataError for a species with fewer than n.
    """
    images, boxes_px = [], []
    for k in species:
        index = (birds.labels == k).nonzero()[:n, 0]
        if len(index) < n:
            raise DataError(f"{birds.classes[k]} has {len(index)} photographs, but recipe.images_per_species is {n}")
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
    return from_settings(CubColocRecipe, settings["recipe"], "the recipe")
