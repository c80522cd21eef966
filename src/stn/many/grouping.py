"""Which runs train together as one program, side by side."""

from collections.abc import Sequence

from stn.families import family
from stn.settings import RunSettings
from stn.train.provenance import uses_cuda

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


def stack_key(run: RunSettings) -> tuple | None:
    """Runs with the same key can train as one stack; None for a run that trains alone.

    They must take equally many steps, on the same device; network, task and all else may differ. Runs that W&B tracks,
    and those of several processes, train alone.
    """
    alone = run.wandb.mode != "disabled" or run.loggers or run.processes > 1
    if alone or not family(run).STACKS:
        return None
    return run.recipe["steps"], run.device, run.threads


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
