"""Replica stacking: several runs of one architecture train as one program, each as if it were alone.

Every replica keeps its own network, stream of images, optimiser, schedule, curve and record. What they share is the
forward and backward pass, which is vectorised over a leading replica dimension (`torch.func`).
"""

import time
from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from stn.tasks.classification import Classification, cross_entropy
from stn.tasks.training import computing


class Stack(pl.LightningModule):
    """Trains `replicas`, runs of the same `stack_key`, step by step together.

    When one diverges the others do not notice. `train_s` of a replica is its share, 1/R, of the time that the stack
    took.
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
        self.config_hash = ""  # as of a single run
        self.recipe, self.slice = replicas[0].recipe, replicas[0].slice

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
        if self.steps_done == self.recipe.steps or all(replica.diverged for replica in self.replicas):
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
        for i, replica in enumerate(self.replicas):
            replica.end_chunk(torch.stack(losses)[:, i], [outcome[i] for outcome in outcomes])
            replica.train_s += (time.perf_counter() - started) / len(self.replicas)
        self._stop_when_done()

    def step(self, optimisers: Sequence[Optimizer], schedules: Sequence[LRScheduler]) -> tuple[Tensor, list]:
        """One training step of every replica: their losses (R,), and logits and labels of each."""
        batches = [replica.draw_batch() for replica in self.replicas]
        with computing(self.replicas[0].precision, self.device):
            logits = self(torch.stack([batch.images for batch in batches]))
            smoothing = [replica.label_smoothing for replica in self.replicas]
            labels = [batch.labels for batch in batches]
            loss = torch.stack([cross_entropy(*each) for each in zip(logits, labels, smoothing, strict=True)])
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.sum().backward()
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            optimiser.step()
            schedule.step()
        return loss.detach(), [(y, batch.labels) for y, batch in zip(logits.detach(), batches, strict=True)]

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["config_hash"] = self.config_hash
        checkpoint["replicas"] = [{} for _ in self.replicas]
        for replica, entry in zip(self.replicas, checkpoint["replicas"], strict=True):
            replica.on_save_checkpoint(entry)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        for replica, entry in zip(self.replicas, checkpoint["replicas"], strict=True):
            replica.on_load_checkpoint(entry)
