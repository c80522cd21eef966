"""Co-localisation of digits, Table 5 (App. A.2): ten classes of images, a localiser for each."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from stn.data.clutter import Clutter
from stn.data.errors import DataError
from stn.data.mnist import MNIST_MD5, Digits, prepare_mnist
from stn.data.seeds import TEST_SEED, stream_seed
from stn.families import Built, Network
from stn.families.mnist import splits
from stn.nets.colocalisation import CnnActivations, Localisers
from stn.tasks.colocalisation import Colocalisation, ColocalisationRecipe, Scenes
from stn.train.saved import load
from stn.train.settings import from_settings, run_folder, run_key

DATA = ("real",)
CLASSES = 10
CHUNK_STEPS = 10  # a step takes half a second
# Other digits that the patches of one class's images are cut from.
PATCH_DONORS = 1000


@dataclass(frozen=True, kw_only=True)
class ColocRecipe(ColocalisationRecipe):
    """`encoder_protocol`: the protocol of the run whose CNN is the encoder. `crop_px` is the side of what it sees."""

    images_per_class: int
    encoder_protocol: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.must_be_at_least(self.batch_size, "images_per_class")


def prepare(settings: dict) -> None:
    prepare_mnist(settings["data_dir"])


def needs(settings: dict) -> list[tuple[str, str]]:
    encoder = settings["task"]["encoder"]
    return [(encoder["task"], encoder["model"])]


def network(settings: dict) -> Network:
    recipe = from_settings(ColocRecipe, settings["recipe"], "the recipe")
    in_shape = (1, *from_settings(Clutter, settings["task"]["clutter"], "the clutter").canvas)
    net = Localisers(CLASSES, in_shape, recipe.bounds(), recipe.crop_px)
    return Network(net, {}, (CLASSES, *in_shape))


def build(settings: dict) -> Built:
    recipe, seed = from_settings(ColocRecipe, settings["recipe"], "the recipe"), settings["seed"]
    encoder, checksum = load_encoder(settings)
    train_digits, test_digits = splits(settings)
    clutter = Clutter(**settings["task"]["clutter"])
    train = scenes(train_digits, recipe.images_per_class, clutter, seed)
    unseen = scenes(test_digits, recipe.images_per_class, clutter, TEST_SEED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "weights"))
        net, widths, _ = network(settings)
    net.standardise(train.images)
    names = [f"digit{k}" for k in range(CLASSES)]
    module = Colocalisation(net, encoder, train, unseen, names, recipe, seed, recipe.search(), CHUNK_STEPS)
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
            raise DataError(f"digit {k} has {len(of_class)} images, but recipe.images_per_class is {n}")
        chosen = of_class[torch.randperm(len(of_class), generator=generator)[:n]]
        donors = torch.randint(len(digits), (PATCH_DONORS,), generator=generator)
        batch = digits.images[torch.cat([chosen, donors])]
        parameters = clutter.sample(batch, generator)
        images.append(clutter.apply(batch, parameters)[:n])
        boxes.append(clutter.box_px(parameters)[:n])
    return Scenes(torch.stack(images, dim=1), torch.stack(boxes, dim=1))


def load_encoder(settings: dict) -> tuple[CnnActivations, dict[str, str]]:
    """The frozen encoder and the checksum of its weights. Raises: DataError, as `encoder_weights`."""
    weights, checksum = encoder_weights(encoder_settings(settings))
    crop_px = settings["recipe"]["crop_px"]
    return CnnActivations.from_weights(weights, (1, crop_px, crop_px)), checksum


def encoder_weights(of_encoder: dict) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights that a run left, and its key with their sha256.

    Raises: DataError, with the command that makes them, when they are not there, or are damaged.
    """
    key, path = run_key(of_encoder), run_folder(of_encoder) / "weights.pt"
    if not path.exists():
        data = "" if of_encoder["data"] == "real" else f" data={of_encoder['data']}"
        command = f"task={key.task} model={key.model} protocol={key.protocol}{data} seed={key.seed}"
        raise DataError(f"the encoder {path} is not there; make it: python -m experiments.train {command}")
    weights = load(path)
    return weights, {f"encoder {key}": weights_sha256(weights)}


def encoder_settings(settings: dict) -> dict:
    """What names the run of the encoder: always seed 0."""
    encoder = settings["task"]["encoder"]
    protocol = {"name": settings["recipe"]["encoder_protocol"]}
    names = {"task": {"name": encoder["task"]}, "model": {"name": encoder["model"]}}
    return {**settings, **names, "protocol": protocol, "seed": 0}


def weights_sha256(weights: dict[str, Tensor]) -> str:
    """Of the numbers alone, name by name: torch's file format may change, they do not."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
