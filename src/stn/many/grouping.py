"""Which runs train together as one program, side by side."""

import math
from collections.abc import Callable, Sequence

from stn.families import family
from stn.settings import RunSettings
from stn.train.checkpoints import begun_stacks
from stn.train.provenance import uses_cuda

# With so many in one program the device is busy (results/bench).
MAX_REPLICAS = 12


def stacked(stack: bool | str, device: str, launcher: dict) -> bool:
    """Whether runs train together where they can: by themselves on CUDA; on the CPU they would only take turns.

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


def stacks(
    runs: Sequence[RunSettings], together: bool, workers: int = 1, cost: Callable[[RunSettings], float] = lambda run: 1
) -> list[list[RunSettings]]:
    """The runs in groups that train together, in the order of their first members; each alone unless `together`.

    Of those that may, every one of the `workers` gets a group where there are as many; each run, in the order in which
    they are given, joins the group that costs least so far. A stack that was interrupted is formed again first: its
    checkpoint is one of all its runs.
    """
    begun = _begun(runs) if together else []
    taken = [run.record_file for group in begun for run in group]
    alike: dict[object, list[RunSettings]] = {}
    for i, run in enumerate(runs):
        if run.record_file not in taken:
            key = stack_key(run) if together else None
            alike.setdefault(i if key is None else key, []).append(run)
    groups = begun + [group for same in alike.values() for group in _shared_out(same, workers, cost)]
    return sorted(groups, key=lambda group: runs.index(group[0]))


def _begun(runs: Sequence[RunSettings]) -> list[list[RunSettings]]:
    """The interrupted stacks whose runs are all among these, and can still train together; no run is in two."""
    left, found = {str(run.record_file): run for run in runs}, []
    for members in [members for folder in {run.output_dir for run in runs} for members in begun_stacks(folder)]:
        if set(members) <= left.keys() and len({stack_key(left[name]) for name in members} | {None}) == 2:
            found.append([left.pop(name) for name in members])
    return found


def _shared_out(runs: list[RunSettings], workers: int, cost: Callable[[RunSettings], float]) -> list[list[RunSettings]]:
    groups = [[] for _ in range(min(len(runs), max(workers, math.ceil(len(runs) / MAX_REPLICAS))))]
    loads = [0.0] * len(groups)
    for run in runs:
        free = [i for i, group in enumerate(groups) if len(group) < MAX_REPLICAS]
        least = min(free, key=lambda i: loads[i])
        groups[least].append(run)
        loads[least] += cost(run)
    return groups
