"""How a training step's cost grows with the canvas and the batch, beside the arithmetic."""

import statistics

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stn.bench.step import plain_net, time_s
from stn.nets.frequency import direct_convolutions
from stn.nets.mnist import Cnn
from stn.train.memory import keep_freed_memory

FILTERS = 64
CANVASES = (28, 42, 60, 84)  # px
BATCHES = (16, 32, 64, 128, 256)
# What stays as it is while the other grows.
CANVAS, BATCH = 28, 128


def growth(repeats: int) -> dict[str, list[dict]]:
    """Forward and backward pass of the CNN with 64 filters in both layers, on the CPU, in float32.

    Returns: by "canvas" and "batch", for each size `ms` in the frequency domain where it pays, `direct_ms` and `gflop`,
    of the direct way. Medians of `repeats`, in turn.
    """
    keep_freed_memory()
    return {
        "canvas": [{"size": size, **_cost(size, BATCH, repeats)} for size in CANVASES],
        "batch": [{"size": size, **_cost(CANVAS, size, repeats)} for size in BATCHES],
    }


def _cost(canvas: int, batch: int, repeats: int) -> dict[str, float]:
    net, images = _net(canvas), torch.rand(batch, 1, canvas, canvas)

    def step() -> None:
        net(images).square().mean().backward()

    def direct() -> None:
        with direct_convolutions():
            step()

    turns = [(time_s(step, 1, images.device), time_s(direct, 1, images.device)) for _ in range(repeats)]
    ms, direct_ms = (1000 * statistics.median(times) for times in zip(*turns, strict=True))
    return {"ms": ms, "direct_ms": direct_ms, "gflop": _gflop(net, images)}


def _net(canvas: int) -> nn.Module:
    return Cnn((1, canvas, canvas), (FILTERS, FILTERS)).to(memory_format=torch.channels_last)


def _gflop(net: nn.Module, images: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        plain_net(net)(images).square().mean().backward()
    return counter.get_total_flops() / 1e9
