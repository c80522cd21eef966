"""Replica stacking: several runs of one architecture train as one program, each as if it were alone.

Every replica keeps its own network, stream of images, optimiser, schedule, curve and record. What they share is the
forward and backward pass, which is vectorised over a leading replica dimension (`torch.func`).
"""

import json
import time
from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from stn.families import family, network
from stn.tasks.classification import Classification, cross_entropy
from stn.tasks.training import Diverged, computing
from stn.train.settings import STACK, processes

# In these, runs of one stack may differ: they change numbers, not the program.
FREE = (
    *("lr", "momentum", "nesterov", "weight_decay", "localiser_lr_multiplier", "optimiser", "schedule"),
    *("lr_step_every", "lr_step_factor", "lr_milestones", "warmup_fraction", "test_draws"),
)

# More replicas in one program save nothing: the device is busy by then.
MAX_REPLICAS = 12


def stacked(wanted: dict) -> bool:
    """Whether runs train together where they can: by themselves on CUDA; on the CPU that is measured to be slower.

    Raises: ValueError for a setting `stack` that says neither.
    """
    if wanted["stack"] not in STACK:
        raise ValueError(f"stack must be one of auto, True, False, got {wanted['stack']!r}")
    if wanted["stack"] != "auto":
        return wanted["stack"]
    return wanted["device"] != "cpu" and _launched_on_cuda(wanted.get("launcher") or {"name": "local"})


def _launched_on_cuda(launcher: dict) -> bool:
    """Whether there is a GPU where the launcher's jobs run; for another machine, whether they ask for one."""
    if launcher["name"] == "local":
        return torch.cuda.is_available()
    asked = launcher.get("resources") or launcher.get("parameters") or {}
    return any(value for name, value in asked.items() if "gpu" in name or "gres" in name)


def stack_key(settings: dict) -> str | None:
    """Runs with the same key can train as one stack; None for a run that trains alone.

    The network and its input's shape must be the same, and the recipe but for `FREE`; seed and distortion may differ.
    Runs that W&B tracks, those of several processes, and those in bf16 train alone: `vmap` takes convolutions apart
    before autocast sees them, so that in a stack most of a bf16 run would be computed in float32.
    """
    if settings["task"]["family"] not in ("mnist", "addition") or settings["wandb"]["mode"] != "disabled":
        return None
    if processes(settings) > 1 or settings["precision"] == "bf16":
        return None
    model = {name: value for name, value in settings["model"].items() if name != "name"}
    recipe = {name: value for name, value in settings["recipe"].items() if name not in FREE}
    family(settings)  # imported before the next line, where a module's own tensors would have no data
    with torch.device("meta"):
        _, widths, in_shape = network(settings)
    same = [model, recipe, widths, in_shape, settings["task"]["classes"]]
    same += [settings[name] for name in ("precision", "device", "threads")]
    return json.dumps(same, sort_keys=True)


def stacks(all_settings: Sequence[dict], wanted: bool) -> list[list[dict]]:
    """The runs in groups that train together, in the order of their first members; each alone unless `wanted`."""
    groups: dict[object, list[list[dict]]] = {}
    for i, settings in enumerate(all_settings):
        key = stack_key(settings) if wanted else None
        found = groups.setdefault(i if key is None else key, [[]])
        if len(found[-1]) == MAX_REPLICAS:
            found.append([])
        found[-1].append(settings)
    return [group for found in groups.values() for group in found]


class Stack(pl.LightningModule):
    """Trains `replicas`, runs of the same `stack_key`, step by step together.

    A replica whose loss is no longer finite has the reason in `diverged`; the others do not notice. `train_s` of a
    replica is its share, 1/R, of the time that the stack took.
    Raises: ValueError for replicas whose networks or numbers of steps differ.
    """

    def __init__(self, replicas: Sequence[Classification]) -> None:
        super().__init__()
        self.automatic_optimization = False
        shapes = {tuple((n, tuple(p.shape)) for n, p in replica.net.named_parameters()) for replica in replicas}
        lengths = {(r.recipe.steps, r.recipe.batch_size, r.chunk_steps) for r in replicas}
        if len(shapes) != 1 or len(lengths) != 1:
            raise ValueError("the runs of a stack must have the same network, steps and batch size")
        self.replicas = nn.ModuleList(replicas)
        self.diverged: dict[int, str] = {}
        self.config_hash = ""  # as of a single run
        self.recipe = replicas[0].recipe

    @property
    def steps_done(self) -> int:
        return self.replicas[0].steps_done

    def configure_optimizers(self):
        pairs = [replica.recipe.optimiser_of(replica.net) for replica in self.replicas]
        return [optimiser for optimiser, _ in pairs], [schedule for _, schedule in pairs]

    def train_dataloader(self) -> range:
        return self.replicas[0].train_dataloader()

    def setup(self, stage: str) -> None:
        for replica in self.replicas:
            replica.setup(stage)

    def on_train_start(self) -> None:
        self._stop_when_done()

    def _stop_when_done(self) -> None:
        if self.steps_done == self.recipe.steps:
            self.trainer.should_stop = True

    def forward(self, images: Tensor) -> Tensor:
        """images (R, N, C, H, W) -> logits (R, N, classes), each replica with its own weights."""
        nets = [dict(replica.net.named_parameters()) for replica in self.replicas]
        # Stacking copies a megabyte per replica and step; its gradient arrives at each replica's own parameters.
        weights = {name: torch.stack([net[name] for net in nets]) for name in nets[0]}
        net = self.replicas[0].net
        return vmap(lambda weights, images: functional_call(net, weights, (images,)))(weights, images)

    def training_step(self, _: int, batch_idx: int) -> None:
        started = time.perf_counter()
        optimisers, schedules = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        (steps,) = {replica.begin_chunk() for replica in self.replicas}
        losses, outcomes = zip(*(self.step(optimisers, schedules) for _ in range(steps)), strict=True)
        self._end_chunk(torch.stack(losses), outcomes)
        for replica in self.replicas:
            replica.train_s += (time.perf_counter() - started) / len(self.replicas)
        self._stop_when_done()

    def step(self, optimisers: Sequence[Optimizer], schedules: Sequence[LRScheduler]) -> tuple[Tensor, list]:
        """One training step of every replica: their losses (R,), and logits and labels of each."""
        batches = [replica.draw_batch() for replica in self.replicas]
        with computing(self.replicas[0].precision, self.device):
            logits = self(torch.stack([batch.images for batch in batches]))
            loss = torch.stack([cross_entropy(y, batch.labels) for y, batch in zip(logits, batches, strict=True)])
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.sum().backward()
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            optimiser.step()
            schedule.step()
        return loss.detach(), [(y, batch.labels) for y, batch in zip(logits.detach(), batches, strict=True)]

    def _end_chunk(self, losses: Tensor, outcomes: list) -> None:
        for i, replica in enumerate(self.replicas):
            try:
                replica.end_chunk(losses[:, i], [outcome[i] for outcome in outcomes])
            except Diverged as error:
                self.diverged.setdefault(i, str(error))

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["config_hash"] = self.config_hash
        checkpoint["diverged"] = self.diverged
        checkpoint["replicas"] = [{} for _ in self.replicas]
        for replica, entry in zip(self.replicas, checkpoint["replicas"], strict=True):
            replica.on_save_checkpoint(entry)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.diverged = checkpoint["diverged"]
        for replica, entry in zip(self.replicas, checkpoint["replicas"], strict=True):
            replica.on_load_checkpoint(entry)
