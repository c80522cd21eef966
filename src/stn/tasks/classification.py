"""Classification of digits distorted anew in every batch (Sect. 4.1, App. A.1), many steps per Lightning batch."""

import dataclasses
import math
import time
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from stn.data.seeds import stream_seed
from stn.data.streams import TEST_BATCH, Batch, DigitStream
from stn.tasks.warp_statistics import WarpStatistics
from stn.transform.sampling import PADDINGS

# Training steps per Lightning batch: Lightning's bookkeeping (about 1 ms) and every read-back are paid once per chunk.
CHUNK_STEPS = 50


@dataclass(frozen=True)
class Recipe:
    """Every training number of a run (conf/protocol/*.yaml says where each comes from)."""

    filters: int
    batch_size: int
    steps: int
    optimiser: str
    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float
    schedule: str
    lr_step_every: int
    lr_step_factor: float
    warmup_fraction: float
    localiser_lr_multiplier: float
    padding: str
    antialias: bool
    test_draws: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), field.type
            if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool) != (
                kind is bool
            ):
                raise ValueError(f"recipe.{field.name} must be of type {kind.__name__}, got {value!r}")
        choices = {"optimiser": ("sgd", "adamw"), "schedule": ("step", "one_cycle"), "padding": PADDINGS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"recipe.{name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name in ("filters", "batch_size", "steps", "test_draws", "lr_step_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"recipe.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "momentum", "weight_decay", "lr_step_factor", "localiser_lr_multiplier"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"recipe.{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.warmup_fraction <= 1:
            raise ValueError(f"recipe.warmup_fraction must be 0 to 1, got {self.warmup_fraction}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("recipe.nesterov must be false where recipe.momentum is 0")


class Diverged(Exception):
    """The training loss is no longer finite."""


class Classification(pl.LightningModule):
    """Trains `net` (N, C, H, W) -> logits (N, classes) on batches that `stream` makes anew in every step.

    One Lightning batch is a *chunk* of `CHUNK_STEPS` steps, with its own random stream: chunk c draws the same images
    whether the run was interrupted before it or not.
    """

    def __init__(self, net: nn.Module, stream: DigitStream, recipe: Recipe, seed: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = net
        self.stream = stream
        self.recipe = recipe
        self.seed = seed
        self.config_hash = ""  # of the run; a checkpoint carries it, so that it is not resumed under other settings
        self.steps_done = 0  # training steps; Lightning's own counter counts chunks
        self.train_s = 0.0  # seconds spent training, those before an interruption among them
        self.curve = {"step": [], "train/loss": [], "train/error_pct": []}

    # -- training ---------------------------------------------------------------------------------------------------

    def configure_optimizers(self):
        recipe = self.recipe
        localiser = [p for n, p in self.net.named_parameters() if n.startswith("transformers.")]
        others = [p for n, p in self.net.named_parameters() if not n.startswith("transformers.")]
        groups = [{"params": others, "lr": recipe.lr}]
        if localiser:
            groups.append({"params": localiser, "lr": recipe.lr * recipe.localiser_lr_multiplier})
        common = {"weight_decay": recipe.weight_decay, "fused": True}  # fused: one kernel for all parameters
        if recipe.optimiser == "sgd":
            optimiser = torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=recipe.nesterov, **common)
        else:
            optimiser = torch.optim.AdamW(groups, **common)
        if recipe.schedule == "step":
            schedule = torch.optim.lr_scheduler.StepLR(optimiser, recipe.lr_step_every, recipe.lr_step_factor)
        else:
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimiser,
                [group["lr"] for group in groups],
                total_steps=recipe.steps + 1,  # one more: the schedule is stepped after the last step, too
                pct_start=recipe.warmup_fraction,
                cycle_momentum=False,
            )
        return [optimiser], [schedule]

    def train_dataloader(self) -> range:
        return range(-(-self.recipe.steps // CHUNK_STEPS))

    def setup(self, stage: str) -> None:
        self.stream.to(self.device)
        self.generator = torch.Generator(self.device)
        if self.device.type == "cpu":  # 1.3-1.6 times faster there; the numbers agree to float rounding
            self.net.to(memory_format=torch.channels_last)

    def draw_batch(self) -> Batch:
        """The next training batch."""
        return self.stream.draw(self.recipe.batch_size, self.generator)

    def on_train_start(self) -> None:
        self._stop_when_done()  # resumed after the last step, with only the test to do

    def _stop_when_done(self) -> None:
        if self.steps_done == self.recipe.steps:
            self.trainer.should_stop = True

    def training_step(self, _: int, batch_idx: int) -> None:
        started = time.perf_counter()
        # The bare optimiser and loss.backward(): Lightning's wrappers would cost 0.4 ms a step.
        optimiser, schedule = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        done = self.steps_done
        self.generator.manual_seed(stream_seed(self.seed, "train", done // CHUNK_STEPS))
        losses, outcomes = [], []
        steps = min(CHUNK_STEPS, self.recipe.steps - done)
        for _ in range(steps):
            batch = self.draw_batch()
            logits = self.net(batch.images)
            loss = F.cross_entropy(logits, batch.labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.detach())
            outcomes.append((logits.detach(), batch.labels))
        loss = torch.stack(losses).mean().item()
        logits, labels = (torch.stack(column) for column in zip(*outcomes, strict=True))
        error_pct = 100 * (logits.argmax(-1) != labels).float().mean().item()
        self.train_s += time.perf_counter() - started
        self.steps_done = done + steps
        self._record_chunk(self.steps_done, loss, error_pct)
        self._stop_when_done()

    def _record_chunk(self, step: int, loss: float, error_pct: float) -> None:
        if not torch.tensor(loss).isfinite():
            raise Diverged(f"training loss {loss} in the {CHUNK_STEPS} steps before step {step}")
        for name, value in zip(self.curve, (step, loss, error_pct), strict=True):
            self.curve[name].append(value)
        self.log("step", float(step))  # the loggers' x axis; Lightning's own counts chunks
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/error_pct", error_pct, prog_bar=True)
        self.log("train/lr", self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"])

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["steps_done"] = self.steps_done
        checkpoint["curve"] = self.curve
        checkpoint["train_s"] = self.train_s
        checkpoint["config_hash"] = self.config_hash

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.steps_done = checkpoint["steps_done"]
        self.curve = checkpoint["curve"]
        self.train_s = checkpoint["train_s"]

    # -- test -------------------------------------------------------------------------------------------------------

    def test_dataloader(self) -> DataLoader:
        """(draw, first digit) of every test batch."""
        starts = range(0, self.stream.n_test, TEST_BATCH)
        return DataLoader(
            [(draw, start) for draw in range(self.recipe.test_draws) for start in starts], batch_size=None
        )

    def on_test_start(self) -> None:
        draws, n = self.recipe.test_draws, self.stream.n_test
        self.test_wrong = torch.zeros(draws, n, dtype=torch.bool)
        self.test_loss = 0.0
        self.warp_statistics = WarpStatistics()

    def test_batch_of(self, digit: int) -> tuple[int, int]:
        """The first digit of the test batch that holds test digit number `digit`, and its place in the batch."""
        place = digit % TEST_BATCH
        return digit - place, place

    def test_step(self, batch: tuple[int, int], batch_idx: int) -> None:
        draw, start = batch
        images, labels, digits, src_from_out = self.stream.test_batch(draw, start)
        if hasattr(self.net, "transformers"):
            warps = self.net.transformers.warps(images)
            logits = self.net.classify(torch.cat([warped.image for warped in warps], dim=1))
            self.warp_statistics.add(warps, digits, src_from_out)
        else:
            logits = self.net(images)
        self.test_loss += F.cross_entropy(logits, labels, reduction="sum").item()
        self.test_wrong[draw, start : start + len(labels)] = (logits.argmax(1) != labels).cpu()

    def on_test_end(self) -> None:
        self.per_draw = (100 * self.test_wrong.float().mean(dim=1)).tolist()
        self.metrics = {
            "test/error_pct": 100 * self.test_wrong.float().mean().item(),
            "test/loss": self.test_loss / self.test_wrong.numel(),
            **{f"test/{name}": value for name, value in self.warp_statistics.summary().items()},
        }
