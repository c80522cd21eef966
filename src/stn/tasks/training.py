"""The training loop that all tasks share: many steps per Lightning batch, a curve, and all that a checkpoint needs."""

import math
import time

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stn.data.seeds import stream_seed
from stn.tasks.data_parallel import BatchSlice
from stn.tasks.looks import Look
from stn.tasks.precision import allow_tf32, computing
from stn.tasks.recipe import Recipe
from stn.tasks.series import Series

# Training steps per Lightning batch: Lightning's bookkeeping (about 1 ms) and every read-back are paid once per chunk.
CHUNK_STEPS = 50
CARRIED = ("steps_done", "diverged", "curve", "train_s", "devices", "code")  # by a checkpoint


class Training(pl.LightningModule):
    """Trains `net` as `recipe` says. A task says what the loss of a step is (`batch_loss`) and how the net is tested.

    One Lightning batch is a *chunk* of `chunk_steps` steps, with its own random stream: chunk c draws the same images
    whether the run was interrupted before it or not.
    After `trainer.test`: `metrics` ("test/…"), `per_draw` (name -> one number per test draw) and `test_wrong`, bool
    (draws, n_test), or None where there is no right or wrong per test image.
    """

    n_test: int
    test_draws: int = 1
    test_wrong: Tensor | None = None
    series: Series | None = None  # what takes the steps of a chunk, where that is not done one by one

    def __init__(self, net: nn.Module, recipe: Recipe, seed: int, chunk_steps: int = CHUNK_STEPS) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = net
        self.recipe = recipe
        self.seed = seed
        self.chunk_steps = chunk_steps
        self.precision = "float32"  # or "tf32", "bf16": of training
        self.slice = BatchSlice()  # of every batch, in data-parallel training
        self.config_hash = ""  # of the run; a checkpoint carries it, so that it is not resumed under other settings
        self.steps_done = 0  # training steps; Lightning's own counter counts chunks
        self.diverged: str | None = None  # the reason, once the training loss is no longer finite
        self.arithmetic: dict[str, str] = {}  # how the numbers of the training were computed
        self.train_s = 0.0  # seconds spent training, those before an interruption among them
        self.devices: list[str] = []  # that it was trained on, one after the other
        self.code: list[dict] = []  # the states of git that trained it, likewise
        self.curve = {"step": [], "train/loss": []}
        self.metrics: dict[str, float] = {}
        self.per_draw: dict[str, list[float]] = {}

    def batch_loss(self) -> tuple[Tensor, object]:
        """The loss () of the next training batch, drawn from `self.generator`, and what `chunk_metrics` needs of it."""
        raise NotImplementedError

    def chunk_metrics(self, outcomes: list) -> dict[str, float]:
        """What the curve shows of a chunk besides the loss, from what its steps returned ("train/…")."""
        return {}

    def collapse(self, loss: float) -> str | None:
        """Why a finished run with this final training loss has learned nothing; None when it has. Called after the
        test.
        """
        return None

    def look(self) -> Look | None:
        """What its spatial transformers do to a few images, as the test would see it; None without any.

        To be called in evaluation mode, without gradients; no random number is drawn.
        """
        return None

    def configure_optimizers(self):
        optimiser, schedule = self.recipe.optimiser_of(self.net)
        return [optimiser], [schedule]

    def train_dataloader(self) -> range:
        return range(math.ceil(self.recipe.steps / self.chunk_steps))

    def setup(self, stage: str) -> None:
        allow_tf32(False)  # a run before this one, in this process, may have left it on
        self.generator = torch.Generator(self.device)
        # 1.3-1.6 times faster there; the numbers agree to float rounding. Not a format for volumes.
        if self.device.type == "cpu" and all(p.dim() < 5 for p in self.net.parameters()):
            self.net.to(memory_format=torch.channels_last)

    def on_train_start(self) -> None:
        self._stop_when_done()  # resumed after the last step, with only the test to do

    def _stop_when_done(self) -> None:
        if self.diverged or self.steps_done == self.recipe.steps:
            self.trainer.should_stop = True

    def training_step(self, _: int, batch_idx: int) -> None:
        started = time.perf_counter()
        optimiser, schedule = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        if self.series:
            losses, outcomes = self.series.train_chunk(optimiser, schedule)
            self.series.wait()
        else:
            losses, outcomes = [], []
            for _ in range(self.begin_chunk()):
                with computing(self.precision, self.device), self.slice.batch_norm():
                    loss, outcome = self.batch_loss()
                self.update(optimiser, loss)
                schedule.step()
                losses.append(loss.detach())
                outcomes.append(outcome)
            losses = torch.stack(losses)
        metrics = self.end_chunk(losses, outcomes)
        self.train_s += time.perf_counter() - started
        if not self.diverged:
            self.log("step", float(self.steps_done))  # the loggers' x axis; Lightning's own counts chunks
            self.log_dict(metrics, prog_bar=True)
            self.log("train/lr", optimiser.param_groups[0]["lr"])
        self._stop_when_done()

    def update(self, optimiser: Optimizer, loss: Tensor) -> None:
        """Takes the optimiser's step against the gradients of the loss ().

        The bare optimiser and loss.backward(): Lightning's wrappers would cost 0.4 ms a step. With several processes
        Lightning's backward is what tells DDP, which sees one forward pass per chunk, to average the gradients.
        """
        optimiser.zero_grad()
        (Tensor.backward if self.slice.count == 1 else self.manual_backward)(loss)
        optimiser.step()

    def begin_chunk(self) -> int:
        """How many steps the next chunk has; `generator` is at the start of its random stream."""
        chunk = self.steps_done // self.chunk_steps
        self.generator.manual_seed(stream_seed(self.seed, "train", chunk))
        # Dropout knows only the global generator. Other masks in every process, since its images are others.
        purpose = f"dropout/{self.slice.rank}" if self.slice.rank else "dropout"
        torch.manual_seed(stream_seed(self.seed, purpose, chunk))
        return min(self.chunk_steps, self.recipe.steps - self.steps_done)

    def end_chunk(self, losses: Tensor, outcomes: list) -> dict[str, float]:
        """Counts a chunk's steps and adds it to the curve, unless it diverged: its mean loss and `chunk_metrics`."""
        metrics = self.slice.mean({"train/loss": losses.mean().item(), **self.chunk_metrics(outcomes)}, losses.device)
        self.steps_done += len(losses)
        loss = metrics["train/loss"]
        if not self.diverged and not math.isfinite(loss):
            self.diverged = f"training loss {loss} in the {self.chunk_steps} steps before step {self.steps_done}"
        if not self.diverged:
            for name, value in {"step": self.steps_done, **metrics}.items():
                self.curve.setdefault(name, []).append(value)
        return metrics

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        for name in (*CARRIED, "config_hash"):
            checkpoint[name] = getattr(self, name)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        for name in CARRIED:
            setattr(self, name, checkpoint.get(name, getattr(self, name)))  # an earlier version's may lack some
