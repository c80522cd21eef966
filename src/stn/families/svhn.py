"""House numbers, SVHN: Table 2 (Sect. 4.2, App. A.5)."""

from dataclasses import dataclass
from pathlib import Path

import torch

from stn.data.seeds import stream_seed
from stn.data.svhn import NumberCrops, check_official, crop_checksums, holdout, load_svhn
from stn.data.svhn_standin import write_standin
from stn.data.svhn_stream import NumberStream
from stn.families import Built, Network
from stn.nets.svhn import CHANNELS, Architecture
from stn.tasks.classification import Classification
from stn.tasks.recipe import Recipe
from stn.tasks.warp_statistics import WarpStatistics
from stn.train.settings import from_settings
from stn.transform.sampling import PADDINGS

DATA = ("real", "standin")
HELDOUT = 5000  # pictures of train, or a quarter of a smaller train
STANDIN_SEEDS = {"train": 20153, "test": 20154}


@dataclass(frozen=True, kw_only=True)
class SvhnRecipe(Recipe):
    """`width` multiplies the networks' filters and units; `dropout` is that of all layers but the first."""

    width: float
    dropout: float
    padding: str
    antialias: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self.must_be_one_of("padding", PADDINGS)
        if not 0 < self.width <= 4:
            raise ValueError(f"recipe.width must be above 0, 4 at most, got {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"recipe.dropout must be 0 or more and below 1, got {self.dropout}")
        if self.test_draws != 1:
            raise ValueError(f"recipe.test_draws must be 1, for house numbers are not distorted, got {self.test_draws}")


def prepare(settings: dict) -> None:
    """Draws the stand-ins unless they are there, and cuts out the numbers.

    Raises: DataError, one line, when real pictures are not there: they are 2.6 GB, so nothing fetches them by surprise.
    """
    if settings["data"] == "standin":
        folder = data_folder(settings)
        for split, n in settings["task"]["standin"].items():
            write_standin(folder / "SVHN" / split, n, STANDIN_SEEDS[split])
    for split in (*train_splits(settings), "test"):
        _load(settings, split, checksums=False)


def network(settings: dict) -> Network:
    recipe = from_settings(SvhnRecipe, settings["recipe"], "the recipe")
    model = {name: value for name, value in settings["model"].items() if name != "name"}
    crop_px = settings["task"]["crop_px"]
    options = {name: getattr(recipe, name) for name in ("width", "dropout", "padding", "antialias")}
    net = from_settings(Architecture, model, "the model").build(crop_px, **options)
    widths = {"first_conv": net.convolutions[0][0].out_channels, "fc": net.heads.in_features}
    return Network(net, widths, (CHANNELS, crop_px, crop_px))


def build(settings: dict) -> Built:
    seed, crop_px, folder = settings["seed"], settings["task"]["crop_px"], data_folder(settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "weights"))
        net, widths, _ = network(settings)
    stream = NumberStream(*splits(settings))
    recipe = SvhnRecipe(**settings["recipe"])
    checksums = {}
    for split in (*train_splits(settings), "test"):
        checksums |= crop_checksums(folder, split, crop_px)
    return Built(Classification(net, stream, recipe, seed, WarpStatistics), widths, checksums)


def splits(settings: dict) -> tuple[list[NumberCrops], NumberCrops]:
    """Training numbers, of train and, in SVHN itself, extra, and test numbers.

    With evaluate=heldout the test is the end of train, which is then not trained on.
    """
    train, *extra = (_load(settings, split) for split in train_splits(settings))
    if settings["evaluate"] == "heldout":
        train, test = holdout(train, min(HELDOUT, len(train) // 4))
    else:
        test = _load(settings, "test")
    return [train, *extra], test


def train_splits(settings: dict) -> tuple[str, ...]:
    return ("train", "extra") if settings["data"] == "real" else ("train",)


def _load(settings: dict, split: str, checksums: bool = True) -> NumberCrops:
    crops = load_svhn(data_folder(settings), split, settings["task"]["crop_px"], checksums)
    if settings["data"] == "real":
        check_official(crops, split)
    return crops


def data_folder(settings: dict) -> Path:
    """Stand-ins have a folder of their own, one for each number of pictures."""
    folder = Path(settings["data_dir"])
    if settings["data"] == "real":
        return folder
    sizes = settings["task"]["standin"]
    return folder / "standin" / f"svhn_{sizes['train']}_{sizes['test']}"
