"""Keeps what the spatial transformers of a run make of the same test images, at a few steps of its training."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from stn.saved import replace
from stn.tasks.looks import Look
from stn.tasks.training import Training

FILE = "snapshots.npz"
SNAPSHOTS = 12  # per run, the start and the end among them; the closer together, the earlier
EXAMPLES = 128  # the first test images, about a dozen of each digit
MAX_NUMBERS = 2**22  # of all examples together, or fewer of them: volumes and photographs are large


class Snapshots(Callback):
    """Writes theta, at `SNAPSHOTS` steps, of the first test images to `FILE` in the folder of each run.

    `runs`: folder -> module; those without a spatial transformer get no file. The file holds `step` (S,) and, for
    transformer k of the network, `theta_k` (S, EXAMPLES or fewer, *its shape). A checkpoint carries what was kept so
    far: this callback must come before the one that saves it. The network is left as it was: no random number is drawn.
    """

    def __init__(self, runs: Mapping[Path, Training]) -> None:
        self.runs = {folder: module for folder, module in runs.items() if getattr(module, "statistics", None)}
        self.steps: list[int] = []
        self.thetas: list[list[list[Tensor]]] = []  # by step, run and transformer
        self.images: list[Tensor] | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.runs and module.steps_done == 0:
            self._keep(0)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        chunks = len(module.train_dataloader())
        if self.runs and -(-module.steps_done * chunks // module.recipe.steps) in _chosen(chunks):
            self._keep(module.steps_done)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for (folder, replica), thetas in zip(self.runs.items(), zip(*self.thetas, strict=True), strict=False):
            if replica.diverged:
                continue
            by_transformer = [torch.stack(column).numpy() for column in zip(*thetas, strict=True)]
            if by_transformer:
                named = {f"theta_{k}": theta for k, theta in enumerate(by_transformer)}
                packed = io.BytesIO()
                np.savez_compressed(packed, step=np.array(self.steps), **named)
                replace(folder / FILE, packed.getbuffer())

    def state_dict(self) -> dict:
        return {"steps": self.steps, "thetas": self.thetas}

    def load_state_dict(self, state: dict) -> None:
        self.steps, self.thetas = state["steps"], state["thetas"]

    def _keep(self, step: int) -> None:
        if self.images is None:
            batches = [module.stream.test_batch(draw=0, start=0) for module in self.runs.values()]
            self.images = [_examples(batch.images).clone() for batch in batches]
        self.steps.append(step)
        nets = [module.net for module in self.runs.values()]
        self.thetas.append([_thetas(net, images) for net, images in zip(nets, self.images, strict=True)])


def _examples(images: Tensor) -> Tensor:
    return images[: max(4, min(EXAMPLES, MAX_NUMBERS // images[0].numel()))]


def _chosen(chunks: int) -> set[int]:
    """After which chunks to look: early ones change most."""
    return {round(chunks * (i / (SNAPSHOTS - 1)) ** 2) for i in range(1, SNAPSHOTS)} - {0}


@torch.no_grad()
def _thetas(net: torch.nn.Module, images: Tensor) -> Sequence[Tensor]:
    """Theta of each transformer as the test would see it."""
    with evaluating(net):
        _, warps = net.observe(images.to(next(net.parameters())))
    return [warped.theta.cpu() for warped in warps]


@torch.no_grad()
def looked_at(module: Training) -> Look | None:
    """What the module shows of itself, as the test would see it; it is left as it was."""
    with evaluating(module.net):
        return module.look()


@contextmanager
def evaluating(net: torch.nn.Module) -> Iterator[None]:
    """The net in evaluation mode; afterwards every layer's own mode is put back."""
    training = {layer: layer.training for layer in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for layer, mode in training.items():
            layer.training = mode
