"""House numbers, SVHN: Table 2 (Sect. 4.2, App. A.5)."""

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from stn.data.augmentation import Augmentation
from stn.data.subset import read_part
from stn.data.svhn import NumberCrops, check_real, crop_checksums, holdout, load_svhn, prepare_svhn, prepare_svhn_part
from stn.data.svhn_standin import write_standin
from stn.data.svhn_stream import NumberStream
from stn.families import Built, DataSet, Network, seeded_network
from stn.nets.svhn import CHANNELS, NumberReader
from stn.settings import Experiment, ModelSettings, RunSettings, TaskSettings
from stn.tasks.classification import Classification
from stn.tasks.number_boxes import NumberStatistics
from stn.tasks.recipe import ClassificationRecipe, Padding, Share
from stn.validation import Checked

DATA = ("real", "subset", "standin")
PART = "svhn"  # of conf/subset
HELDOUT, STACKS = True, False
DATA_SET = DataSet("SVHN", prepare_svhn, (("svhn_64", "svhn_cnn"), ("svhn_128", "svhn_cnn")))
HELDOUT_PICTURES = 5000  # of train, or a quarter of a smaller train
STANDIN_SEEDS = {"train": 20153, "test": 20154}


class Standin(Checked):
    """How many pictures are drawn."""

    train: PositiveInt
    test: PositiveInt


class Task(TaskSettings):
    """`train_on`: the numbers of `data`, or drawn ones, or both, about half of the batches' numbers each."""

    crop_px: PositiveInt
    standin: Standin
    train_on: Literal["own", "drawn", "both"] = "own"


class Model(ModelSettings):
    transformers: NonNegativeInt
    localisation: str | None


class Augmented(Checked):
    """How training crops are changed, as `stn.data.augmentation.Augmentation` says."""

    shift: Share
    zoom: float = Field(ge=0, lt=1)
    contrast: Share
    inverted: Share


class Recipe(ClassificationRecipe):
    """`width` multiplies the networks' filters and units; `dropout` is that of all layers but the first."""

    width: float = Field(gt=0, le=4)
    dropout: float = Field(ge=0, lt=1)
    padding: Padding
    antialias: bool
    augmentation: Augmented | None = None


def prepare(run: RunSettings) -> None:
    """Draws the stand-ins, or puts the listed part together, unless they are there, and cuts out the numbers.

    Raises: DataError, one line, when real pictures are not there: they are 2.6 GB, so nothing fetches them by surprise.
    """
    task, *_ = run.read(Task, Model, Recipe)
    if run.data == "standin" or task.train_on != "own":
        for split, n in task.standin.model_dump().items():
            write_standin(standin_folder(run) / "SVHN" / split, n, STANDIN_SEEDS[split])
    if run.data == "subset":
        prepare_svhn_part(read_part(PART), run.data_dir)
    for split in (*train_splits(run), "test"):
        _load(run, split, checksums=False)
    if task.train_on != "own":
        load_svhn(standin_folder(run), "train", task.crop_px, checksums=False)


def network(experiment: Experiment) -> Network:
    """Raises: ValueError for settings that do not fit: drawn numbers beside themselves are no experiment."""
    task, model, recipe = experiment.read(Task, Model, Recipe)
    if experiment.data == "standin" and task.train_on != "own":
        raise ValueError(f"data=standin: {task.name} trains on drawn numbers to test on others; allowed: real, subset")
    options = {name: getattr(recipe, name) for name in ("width", "dropout", "padding", "antialias")}
    net = NumberReader(task.crop_px, model.transformers, model.localisation, **options)
    widths = {"first_conv": net.convolutions[0][0].out_channels, "fc": net.heads.in_features}
    return Network(net, widths, (CHANNELS, task.crop_px, task.crop_px))


def build(run: RunSettings) -> Built:
    task, _, recipe = run.read(Task, Model, Recipe)
    net, widths, _ = seeded_network(run)
    augmentation = Augmentation(**recipe.augmentation.model_dump()) if recipe.augmentation else None
    stream = NumberStream(*splits(run), augmentation)
    checksums = {}
    for split in (*train_splits(run), "test"):
        checksums |= crop_checksums(data_folder(run), split, task.crop_px)
    if task.train_on != "own":
        drawn = crop_checksums(standin_folder(run), "train", task.crop_px)
        checksums |= {f"drawn/{name}": digest for name, digest in drawn.items()}
    return Built(Classification(net, stream, recipe, run.seed, NumberStatistics), widths, checksums)


def splits(run: RunSettings) -> tuple[list[NumberCrops], NumberCrops]:
    """Training numbers, of train and, in SVHN itself, extra, or drawn ones, and test numbers.

    With evaluate=heldout the test is the end of train, which is then not trained on.
    """
    task, *_ = run.read(Task, Model, Recipe)
    train, *extra = (_load(run, split) for split in train_splits(run))
    if run.evaluate == "heldout":
        train, test = holdout(train, min(HELDOUT_PICTURES, len(train) // 4))
    else:
        test = _load(run, "test")
    own = [train, *extra]
    if task.train_on == "own":
        return own, test
    drawn = load_svhn(standin_folder(run), "train", task.crop_px)
    if task.train_on == "drawn":
        return [drawn], test
    ratio = len(drawn) / sum(map(len, own))
    return [drawn] * max(1, round(1 / ratio)) + own * max(1, round(ratio)), test


def train_splits(run: RunSettings) -> tuple[str, ...]:
    return ("train", "extra") if run.data == "real" else ("train",)


def _load(run: RunSettings, split: str, checksums: bool = True) -> NumberCrops:
    crops = load_svhn(data_folder(run), split, run.task.crop_px, checksums)
    if run.data == "real":
        check_real(crops, split)
    return crops


def data_folder(run: RunSettings) -> Path:
    """A stand-in for each number of pictures."""
    return run.data_folder(PART, "svhn_{train}_{test}".format(**run.task.standin))


def standin_folder(run: RunSettings) -> Path:
    """Of the drawn numbers, whatever the run's kind of data."""
    return data_folder(run.changed(data="standin"))
