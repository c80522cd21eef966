"""Which runs train together as one program: those of one architecture that differ in numbers alone."""

import json
from collections.abc import Sequence

import torch

from stn.families import family, network
from stn.settings import RunSettings
from stn.train.provenance import uses_cuda

# In these, recipes of one stack may differ: they change numbers, not the program.
FREE = ("optimiser", "schedule", "localiser_lr_multiplier", "label_smoothing", "distortion_ramp", "test_draws")

# More replicas in one program save nothing: the device is busy by then.
MAX_REPLICAS = 12


def stacked(stack: bool | str, device: str, launcher: dict) -> bool:
    """Whether runs train together where they can: by themselves on CUDA; on the CPU that is measured to be slower.

    On CUDA are jobs of this machine that has a GPU, and those that ask the launcher for one.
    """
    if stack != "auto" or device == "cpu":
        return stack is True
    if launcher["name"] == "local":
        return uses_cuda(device)
    asked = launcher.get("resources") or launcher.get("parameters") or {}
    return any(value for name, value in asked.items() if "gpu" in name or "gres" in name)


def stack_key(run: RunSettings) -> str | None:
    """Runs with the same key can train as one stack; None for a run that trains alone.

    The network and its input's shape must be the same, and the recipe but for `FREE`; seed and distortion may differ.
    Runs that W&B tracks, those of several processes, and those in bf16 train alone: `vmap` takes convolutions apart
    before autocast sees them, so that in a stack most of a bf16 run would be computed in float32.
    """
    alone = run.wandb.mode != "disabled" or run.loggers or run.processes > 1 or run.precision == "bf16"
    if alone or not family(run).STACKS:
        return None
    model = run.model.model_dump(exclude={"name"})
    recipe = {name: value for name, value in run.recipe.items() if name not in FREE}
    with torch.device("meta"):
        _, widths, in_shape = network(run)
    return json.dumps([model, recipe, widths, in_shape, run.precision, run.device, run.threads], sort_keys=True)


def stacks(runs: Sequence[RunSettings], together: bool) -> list[list[RunSettings]]:
    """The runs in groups that train together, in the order of their first members; each alone unless `together`."""
    groups: dict[object, list[list[RunSettings]]] = {}
    for i, run in enumerate(runs):
        key = stack_key(run) if together else None
        same = groups.setdefault(i if key is None else key, [[]])
        if len(same[-1]) == MAX_REPLICAS:
            same.append([])
        same[-1].append(run)
    return [group for same in groups.values() for group in same]
