"""What CUDA graphs and stacks save: the steps of a run one by one, as graphs, and beside those of other runs."""

import statistics
import time
from collections.abc import Callable

import torch

from stn.bench.networks import wait_for
from stn.families import build
from stn.settings import RunSettings
from stn.tasks.training import CHUNK_STEPS


def stacks(settings: RunSettings, replicas: tuple[int, ...], chunks: int, repeats: int) -> dict[str, dict[str, float]]:
    """Training steps on CUDA "one by one", "graphed", and in each "stack of n" that are graphed; in all of them images
    are drawn for many steps at once.

    In turn `repeats` times, `chunks` chunks each, after three that do not count (the kernels are chosen, the graph is
    captured). Returns of each `ms`, per step and replica (median), and `ratio`, how many times the steps per second of
    "one by one" (median of the ratios within a turn).
    """
    if 3 + chunks * repeats > settings.recipe["steps"] // CHUNK_STEPS:
        raise ValueError(f"chunks={chunks}, repeats={repeats} are more steps than protocol={settings.protocol} has")
    torch.backends.cudnn.benchmark = True  # as the Trainer has it
    ways = {"one by one": _training(settings, 1, graphs=False), "graphed": _training(settings, 1)}
    ways |= {f"stack of {n}": _training(settings, n) for n in replicas}
    for train in ways.values():
        train(3)
    turns = [{name: train(chunks) for name, train in ways.items()} for _ in range(repeats)]
    return {
        name: {
            "ms": 1000 * statistics.median(turn[name] for turn in turns),
            "ratio": statistics.median(turn["one by one"] / turn[name] for turn in turns),
        }
        for name in ways
    }


def _training(settings: RunSettings, replicas: int, graphs: bool = True) -> Callable[[int], float]:
    """A function of a number of chunks that trains so many: seconds per step and replica."""
    device = torch.device("cuda", torch.cuda.current_device())
    modules = [build(settings.changed(seed=seed)).module.to(device) for seed in range(replicas)]
    for module in modules:
        module.setup("fit")
    runs = [(module, module.series, module.recipe.optimiser_of(module.net)) for module in modules]

    def train(chunks: int) -> float:
        wait_for(device)
        started = time.perf_counter()
        for _ in range(chunks):
            taken = []
            for _, series, pair in runs:
                series.warm &= graphs
                taken.append(series.train_chunk(*pair))
            for (module, series, _), chunk in zip(runs, taken, strict=True):
                series.wait()
                module.end_chunk(*chunk)
        wait_for(device)
        return (time.perf_counter() - started) / (chunks * modules[0].chunk_steps * replicas)

    return train
