"""What Lightning costs: the LightningModule's training loop against a bare PyTorch loop of the same steps."""

import statistics
import time

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn

from stn.bench.networks import wait_for
from stn.data.seeds import stream_seed
from stn.families import build
from stn.tasks.classification import Classification
from stn.tasks.training import CHUNK_STEPS


def loop_overhead(settings: dict, chunks: int, repeats: int) -> dict:
    """Milliseconds per step of both loops, in turn `repeats` times, and the median of the ratios pair by pair.

    Both draw, distort, train and update alike, without graphs, and end with the same weights (checked on the CPU; on
    CUDA the sampler's gradients are summed in no fixed order). Measured from the start of the first step to the end of
    the last, so without the Trainer's start-up, which a run pays once.
    Raises: ValueError for a protocol of fewer steps.
    Returns: `bare_ms`, `lightning_ms` (medians), `ratio` (median of lightning / bare), `ratios`.
    """
    if settings.recipe["steps"] < chunks * CHUNK_STEPS:
        raise ValueError(f"what=loop takes {chunks * CHUNK_STEPS} steps, this protocol has {settings.recipe['steps']}")
    pairs = []
    for _ in range(repeats):
        bare, lightning = (build(settings).module for _ in range(2))
        bare.stream.at_once = lightning.stream.at_once = False
        device = torch.device("cuda" if settings.device == "cuda" else "cpu")
        pairs.append((_bare_s(bare.to(device), chunks), _lightning_s(lightning, chunks, device)))
        if device.type == "cpu" and not _equal(bare.net, lightning.net):
            raise RuntimeError("the two loops did not compute the same steps")
    ratios = [lightning / bare for bare, lightning in pairs]
    bare_s, lightning_s = (statistics.median(times) for times in zip(*pairs, strict=True))
    per_step = 1000 / (chunks * CHUNK_STEPS)
    return {
        "bare_ms": bare_s * per_step,
        "lightning_ms": lightning_s * per_step,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def _equal(net: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def _bare_s(module: Classification, chunks: int) -> float:
    """The same steps without Lightning and without its hooks, seconds."""
    module.setup("fit")
    (optimiser,), (schedule,) = module.configure_optimizers()
    net, stream, batch_size = module.net, module.stream, module.recipe.batch_size
    generator = torch.Generator(module.device)
    wait_for(module.device)
    started = time.perf_counter()
    for chunk in range(chunks):
        generator.manual_seed(stream_seed(module.seed, "train", chunk))
        stream.progress = chunk * CHUNK_STEPS / module.recipe.steps
        for _ in range(CHUNK_STEPS):
            images, labels, *_ = stream.draw(batch_size, generator)
            loss = F.cross_entropy(net(images), labels, label_smoothing=module.label_smoothing)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    wait_for(module.device)
    return time.perf_counter() - started


def _lightning_s(module: Classification, chunks: int, device: torch.device) -> float:
    stopwatch = _Stopwatch()
    trainer = pl.Trainer(
        accelerator=device.type,
        devices=1,
        max_epochs=1,
        limit_train_batches=chunks,
        logger=False,
        callbacks=[stopwatch],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, weights_only=True)
    return stopwatch.stopped - stopwatch.started


class _Stopwatch(pl.Callback):
    def on_train_epoch_start(self, *_) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, *_) -> None:
        self.stopped = time.perf_counter()
