"""Co-localisation (App. A.2): finding the object that images share, without a label, by comparing crops."""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor
from torch.utils.data import DataLoader

from stn.data.seeds import stream_seed
from stn.nets.colocalisation import Localisers, WindowBounds
from stn.nets.windows import window_boxes_px
from stn.tasks.looks import IMAGES, ROWS, Look, rows_of
from stn.tasks.recipe import Recipe
from stn.tasks.training import CHUNK_STEPS, Training
from stn.tasks.window_search import FIT_BATCH, RANDOM_CROPS, fit_windows, search_windows, squared_distances
from stn.transform import Warped, sample
from stn.transform.grids import attention_grid

CORRECT_IOU = 0.5
TRACED_IMAGES, TRACED_FIT, TRACED_STEPS = 8, 8, 16
# A class is lost when most of its windows miss the object's middle.
LOST_SHARE = 0.5


class ColocalisationRecipe(Recipe):
    """What every co-localisation is told: see `Colocalisation` and `WindowBounds`.

    How long the search is: `search_windows` random windows of each image, `search_prototypes` among them, `fit_steps`
    to fit the localisers, and half as many to choose their initialisation. With 0 of these the search is measured and
    not followed: the windows begin in the middle.
    """

    batch_size: int = Field(ge=2)  # the loss compares images with each other
    alpha: float
    crop_distance: float
    crop_px: PositiveInt
    scale_min: float
    scale_max: float
    initial_scale: float
    max_shift: float
    antialias: bool
    search_windows: int = Field(ge=RANDOM_CROPS)
    search_prototypes: PositiveInt
    fit_steps: NonNegativeInt

    @model_validator(mode="after")
    def _bounds_are_a_range(self) -> "ColocalisationRecipe":
        self.bounds()
        return self

    def bounds(self) -> WindowBounds:
        return WindowBounds(self.scale_min, self.scale_max, self.initial_scale, self.max_shift)


class Scenes(NamedTuple):
    """images (N, K, C, H, W) in [0, 1], N of each of K classes; boxes_px (N, K, 4), the true box of each image's object
    as left, top, right, bottom edge, for evaluation only.
    """

    images: Tensor
    boxes_px: Tensor


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4), pair by pair, 0 of two that have no area: (...)."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    both = (high - low).clamp(min=0).prod(-1)
    either = _area(a) + _area(b) - both
    return both / either.masked_fill(either == 0, 1)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)


def pair_loss(windows: Tensor, random: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """The hinge loss of App. A.2, mean over the pairs n≠m: max(0, ‖e_n - e_m‖² - ‖e_n - e_rand(n)‖² + alpha).

    Deviation: its gradient reaches e_n alone; e_m and the random crop are what it is compared with. With e_m moving too
    every crop is drawn to the mean of all, twice as hard as from the random ones, and the windows leave the objects for
    blank ground before enough of them agree on the object.
    Shapes: encoded crops, windows and random (..., N, F) -> the loss and the two mean distances (...).
    """
    between = squared_distances(windows, windows.detach())
    to_random = (windows - random.detach()).square().sum(-1)
    n = windows.shape[-2]
    others = ~torch.eye(n, dtype=torch.bool, device=between.device)
    hinge = (between - to_random[..., None] + alpha).clamp(min=0) * others
    loss, distance = (pairs.sum((-2, -1)) / (n * (n - 1)) for pairs in (hinge, between))
    return loss, distance, to_random.mean(-1)


def misses(windows: Tensor, boxes_px: Tensor, image_px: int) -> dict[str, Tensor]:
    """How windows go wrong, each a (N, K) bool, at most one of them true.

    "off": the object's middle is outside the window; else "loose", "tight": more than twice, less than half of the
    box's area; "shifted": none of these, and yet IoU 0.5 or less.
    """
    window_px = window_boxes_px(windows, image_px)
    middle = (boxes_px[..., :2] + boxes_px[..., 2:]) / 2
    wrong = iou(window_px, boxes_px) <= CORRECT_IOU
    off = wrong & ~((window_px[..., :2] <= middle) & (middle <= window_px[..., 2:])).all(-1)
    ratio = _area(window_px) / _area(boxes_px)
    loose, tight = wrong & ~off & (ratio > 2), wrong & ~off & (ratio < 0.5)
    return {"off": off, "loose": loose, "tight": tight, "shifted": wrong & ~(off | loose | tight)}


def crops(images: Tensor, windows: Tensor, crop_px: int, antialias: bool) -> Tensor:
    """images (N, K, C, H, W), windows (N, K, 3) -> (N·K, C, crop_px, crop_px)."""
    grid = attention_grid(windows.flatten(0, 1), (crop_px, crop_px))
    return sample(images.flatten(0, 1), grid, antialias=antialias)


class Colocalisation(Training):
    """Trains the localisers of K classes on `train`, whose images are also the test, as in the paper.

    `encoder`: crops (B, C, crop_px, crop_px) -> a list of feature tensors (B, ...); frozen. `names`: of the classes.
    The recipe's `batch_size` is that of each class.
    Metrics: percent of windows with IoU above 0.5 (CorLoc), by class and mean over classes, on the training images and
    on `unseen` ones; how the wrong ones go wrong (`misses`); and what was correct before the descent (`begin`).
    Deviation: the layers of e() are scaled so that two random crops are `crop_distance` apart (squared) in the mean,
    in equal parts. The paper concatenates activations as they are, but its alpha of 1 has no meaning in the units of a
    net that is not its own. The random crop of an image has the size of its window; the paper names none.
    """

    def __init__(
        self,
        net: Localisers,
        encoder: Callable[[Tensor], list[Tensor]],
        train: Scenes,
        unseen: Scenes,
        names: Sequence[str],
        recipe: ColocalisationRecipe,
        seed: int,
        chunk_steps: int = CHUNK_STEPS,
    ) -> None:
        super().__init__(net, recipe, seed, chunk_steps)
        self.encoders = [encoder]  # in a list: no part of the module's state
        self.scenes = {"train": train, "unseen": unseen}
        self.names = tuple(names)
        self.step = 0  # as `steps_done`, but within a chunk, too
        self.image_px = train.images.shape[-1]
        self.n_test = train.images.shape[0] * len(self.names)
        self.traced_steps = _evenly(-recipe.fit_steps, 0, TRACED_FIT)[:-1] + _evenly(0, recipe.steps, TRACED_STEPS)
        shown = min(TRACED_IMAGES, len(train.images))
        net.register_buffer("trace", torch.zeros(len(self.traced_steps), shown, len(self.names), 3))
        net.register_buffer("trace_noted", torch.zeros(len(self.traced_steps), dtype=torch.bool))
        net.register_buffer("has_begun", torch.tensor(False))  # the search is done, at most once per run
        # Of the search's windows, and of the nets fitted to them.
        net.register_buffer("begin_correct_pct", torch.zeros(2))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.scenes = {name: Scenes(*(x.to(self.device) for x in scene)) for name, scene in self.scenes.items()}
        if isinstance(self.encoders[0], torch.nn.Module):
            self.encoders[0].to(self.device)
        self.layer_scales = self._layer_scales()

    @torch.no_grad()
    def _layer_scales(self) -> list[float]:
        """What each layer of the encoder is multiplied by, from one random crop per image."""
        images, bounds = self.scenes["train"].images, self.net.bounds
        generator = torch.Generator(self.device).manual_seed(stream_seed(self.seed, "feature scale"))
        share = torch.rand(images.shape[:2], generator=generator, device=self.device)
        windows = bounds.at_random(bounds.scale_min + (bounds.scale_max - bounds.scale_min) * share, generator)
        layers = self.layers_of(images, windows)
        distances = [squared_distances(layer, layer).mean().item() for layer in layers]
        return [math.sqrt(self.recipe.crop_distance / len(layers) / max(distance, 1e-12)) for distance in distances]

    def layers_of(self, images: Tensor, windows: Tensor) -> list[Tensor]:
        """What each layer of the encoder says of the crops: (N·K, F)."""
        cut = crops(images, windows, self.recipe.crop_px, self.recipe.antialias)
        return [layer.flatten(1) for layer in self.encoders[0](cut)]

    def encode(self, images: Tensor, windows: Tensor) -> Tensor:
        """The scaled features of the crops, class by class: (K, N, F)."""
        scaled = [x * scale for x, scale in zip(self.layers_of(images, windows), self.layer_scales, strict=True)]
        return torch.cat(scaled, dim=1).unflatten(0, windows.shape[:2]).transpose(0, 1)

    def on_train_start(self) -> None:
        super().on_train_start()
        if not self.net.has_begun:
            started = time.perf_counter()
            self.begin()
            self.train_s += time.perf_counter() - started

    def begin(self) -> None:
        """Puts the windows where a search by the loss finds them (`search_windows`), class by class."""

        def encode(images: Tensor, windows: Tensor) -> Tensor:
            return self.encode(images[:, None], windows[:, None])[0]

        images, boxes_px = self.scenes["train"]
        how_many = self.recipe.search_windows, self.recipe.search_prototypes
        searched = []
        for k in range(len(self.names)):
            generator = torch.Generator(self.device).manual_seed(stream_seed(self.seed, "search", k))
            searched.append(search_windows(encode, images[:, k], self.net.bounds, generator, *how_many))
        searched, n = torch.stack(searched, dim=1), min(FIT_BATCH, self.recipe.batch_size)
        seed = stream_seed(self.seed, "fit")
        fit_windows(self.net, images, searched, self.recipe.fit_steps, n, seed, self._note_windows)
        with torch.no_grad():
            for i, windows in enumerate((searched, self.net(images))):
                overlap = iou(window_boxes_px(windows, self.image_px), boxes_px)
                self.net.begin_correct_pct[i] = 100 * (overlap > CORRECT_IOU).float().mean()
        self.net.has_begun.fill_(True)

    def batch_loss(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        self._note_windows(self.step)
        self.step += 1
        scenes, n = self.scenes["train"], self.recipe.batch_size
        chosen = torch.randperm(len(scenes.images), generator=self.generator, device=self.device)[:n]
        images = scenes.images[chosen]
        windows = self.net(images)
        with torch.no_grad():
            random = self.encode(images, self.net.bounds.at_random(windows[..., 0], self.generator))
        loss, between, to_random = pair_loss(self.encode(images, windows), random, self.recipe.alpha)
        overlap = iou(window_boxes_px(windows.detach(), self.image_px), scenes.boxes_px[chosen])
        return loss.mean(), (overlap, windows.detach()[..., 0], between.detach(), to_random.detach())

    def chunk_metrics(self, outcomes: list) -> dict[str, float]:
        overlap, scale, between, to_random = (torch.stack(column) for column in zip(*outcomes, strict=True))
        return {
            "train/error_pct": 100 * (overlap <= CORRECT_IOU).float().mean().item(),
            "train/iou": overlap.mean().item(),
            "train/scale": scale.mean().item(),
            "train/distance_between": between.mean().item(),
            "train/distance_to_random": to_random.mean().item(),
        }

    def begin_chunk(self) -> int:
        self.step = self.steps_done
        return super().begin_chunk()

    def end_chunk(self, losses: Tensor, outcomes: list) -> dict[str, float]:
        metrics = super().end_chunk(losses, outcomes)
        self._note_windows(self.steps_done)
        return metrics

    @torch.no_grad()
    def _note_windows(self, step: int) -> None:
        """Notes the windows of the first images at the steps of `traced_steps`; those of the fit count up to 0."""
        if step in self.traced_steps:
            place = self.traced_steps.index(step)
            self.net.trace[place] = self.net(self.scenes["train"].images[: self.net.trace.shape[1]])
            self.net.trace_noted[place] = True

    def trace(self) -> tuple[list[int], Tensor]:
        """The T steps at which windows were noted, and the windows then, on the first images: (T, n, K, 3)."""
        noted = self.net.trace_noted.tolist()
        return [step for step, there in zip(self.traced_steps, noted, strict=True) if there], self.net.trace[noted]

    def look(self) -> Look:
        """The first image of each of the first classes."""
        images, px = self.scenes["train"].images[:IMAGES], self.recipe.crop_px
        windows, statistics = self.net(images), {}
        for i, name in enumerate(("scale", "x", "y")):
            of_class = windows[..., i]
            statistics[f"theta_mean_{name}"] = of_class.mean().item()
            statistics[f"theta_std_{name}"] = of_class.std(0).mean().item()
        images, windows = images[:1, :ROWS], windows[:1, :ROWS]
        cut = crops(images, windows, px, self.recipe.antialias)
        warped = Warped(cut, windows[0], attention_grid(windows[0], (px, px)))
        rows = rows_of(images[0], [warped], self.names[:ROWS])
        return Look(rows, len(rows) // images.shape[1], statistics)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(list(self.scenes), batch_size=None)

    def on_test_start(self) -> None:
        self.metrics = {}

    def test_step(self, name: str, batch_idx: int) -> None:
        scenes, suffix = self.scenes[name], "" if name == "train" else "_unseen"
        windows = self.net(scenes.images)
        overlap = iou(window_boxes_px(windows, self.image_px), scenes.boxes_px)
        correct_pct = 100 * (overlap > CORRECT_IOU).float().mean(0)
        self.metrics[f"test/correct{suffix}_pct"] = correct_pct.mean().item()
        self.metrics[f"test/correct{suffix}_pct_worst"] = correct_pct.min().item()
        self.metrics[f"test/iou{suffix}"] = overlap.mean().item()
        for label, value in zip(self.names, correct_pct.tolist(), strict=True):
            self.metrics[f"test/correct{suffix}_pct_{label}"] = value
        if name == "train":
            missed = misses(windows, scenes.boxes_px, self.image_px)
            self.metrics |= {f"test/{kind}_pct": 100 * wrong.float().mean().item() for kind, wrong in missed.items()}
            self.metrics["test/lost_classes"] = (missed["off"].float().mean(0) > LOST_SHARE).sum().item()
            self.metrics["test/scale"] = windows[..., 0].mean().item()
            searched, fitted = self.net.begin_correct_pct.tolist()
            self.metrics |= {"test/correct_searched_pct": searched, "test/correct_fitted_pct": fitted}
            self.test_wrong = (overlap <= CORRECT_IOU).T.reshape(1, -1).cpu()  # class by class

    def on_test_end(self) -> None:
        error_pct = 100 * self.test_wrong.float().mean().item()
        self.metrics = {"test/error_pct": error_pct, **self.metrics}
        self.per_draw = {"test/error_pct": [error_pct]}

    def collapse(self, loss: float) -> str | None:
        lost = self.metrics["test/lost_classes"]
        if lost > LOST_SHARE * len(self.names):
            return f"the windows of {lost} of {len(self.names)} classes are not on their objects"
        return None


def _evenly(first: int, last: int, n: int) -> list[int]:
    """At most n different steps, evenly from first to last."""
    return sorted({round(first + (last - first) * i / (n - 1)) for i in range(n)})
