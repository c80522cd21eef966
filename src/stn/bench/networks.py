"""How long networks take for a training step, forward and backward, compared with each other in the same minutes."""

import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def step_ratios(nets: Mapping[str, nn.Module], images: Tensor, repeats: int) -> dict[str, dict]:
    """Milliseconds of a step of each net, and as a multiple of the first one's.

    The nets take turns, after one step each that does not count; a ratio is the median of those turn by turn, since
    machines are shared and noisy. On the CPU in channels_last format, as runs have it.
    Returns: by name `ms` (median), `ratio`, `ratios`.
    """
    on_cpu = images.device.type == "cpu"
    for net in nets.values():
        net.train().to(images.device, memory_format=torch.channels_last if on_cpu else torch.preserve_format)
    turns = [{name: _step_s(net, images) for name, net in nets.items()} for _ in range(repeats + 1)][1:]
    first = next(iter(nets))
    rows = {}
    for name in nets:
        ratios = [turn[name] / turn[first] for turn in turns]
        ms = 1000 * statistics.median(turn[name] for turn in turns)
        rows[name] = {"ms": ms, "ratio": statistics.median(ratios), "ratios": ratios}
    return rows


def _step_s(net: nn.Module, images: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    net.zero_grad()
    wait_for(images.device)
    started = time.perf_counter()
    net(images).square().mean().backward()
    wait_for(images.device)
    return time.perf_counter() - started


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
