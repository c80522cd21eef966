"""Many runs: stacks of them, as jobs of workers here, of Slurm or of Ray, and what becomes of each."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from experiments.progress import console
from stn.progress import Bar
from stn.settings import RunSettings
from stn.train.stopped import Busy, OutOfTime


def train_all(
    todo: list[RunSettings], settings: dict, deadline: float | None, listed: dict[str, str | None]
) -> tuple[list[str], int]:
    """Trains, longest runs first, under a progress bar; a line per run that raised, and how many are not over at the
    deadline.

    `settings`: stack, device, launcher and workers. `listed`: as in `train_stack`.
    """
    from stn.families import prepare
    from stn.many.cost import run_cost
    from stn.many.grouping import stacked, stacks
    from stn.many.pool import train_stack
    from stn.train.provenance import uses_cuda

    for run in todo:
        prepare(run)
    costs = {run.key: run_cost(run, on_cpu=not uses_cuda(settings["device"])) for run in todo}
    longest_first = sorted(todo, key=lambda run: (run.seed, -costs[run.key]))
    together = stacked(settings["stack"], settings["device"], settings["launcher"])
    jobs = stacks(longest_first, together, settings["workers"], lambda run: costs[run.key])
    loads = [
        Load(job, len(job), sum(costs[run.key] for run in job), job[0].recipe["steps"], _names(job)) for job in jobs
    ]
    return carry_out(loads, "runs", partial(train_stack, listed=listed), settings, deadline, _report)


class Load(NamedTuple):
    """A job: how many runs or trials are in it, how much arithmetic, its training steps, what it is called."""

    job: Any
    n: int
    cost: float
    steps: int
    name: str


def carry_out(
    loads: Sequence[Load], what: str, function: Callable, settings: dict, deadline: float | None, report: Callable
) -> tuple[list[str], int]:
    """Carries out jobs, as `launch` does, under a progress bar: a line per failure, and how many of `what` are not over
    at the deadline.

    `report(event, job)` prints how a job ended, and returns the lines of its failures.
    """
    from stn.many.executors import launch
    from stn.many.pool import Finished

    total, done, failures, finished, late = sum(load.n for load in loads), [0.0] * len(loads), [], 0, 0
    with Bar(sum(load.cost for load in loads), console=console) as bar:
        jobs = [load.job for load in loads]
        for event in launch(jobs, settings["workers"], deadline, settings["launcher"], function):
            load = loads[event.index]
            if not isinstance(event, Finished):
                done[event.index] = load.cost * min(1.0, event.steps / load.steps)
            elif isinstance(event.error, OutOfTime):
                late += load.n
                console.print(f"  {load.name}: {event.error}")
            else:
                done[event.index] = load.cost
                finished += load.n
                failures += report(event, load.job)
            bar.update(sum(done), f"{finished}/{total} {what}")
    return failures, late


def _report(event, job: list[RunSettings]) -> list[str]:
    """Prints how the runs of a job ended; returns a line when they raised."""
    if event.error is not None:
        line = " ".join(str(event.error).split())
        if not isinstance(event.error, Busy):
            line = f"{_names(job)}: {type(event.error).__name__}: {line}"
        console.print(f"  {line}", soft_wrap=True)
        return [line]
    for record, run in zip(event.records, job, strict=True):
        error = f"{record['metrics'][f'{run.evaluate}/error_pct']:.2f} % error" if record["metrics"] else ""
        console.print(f"  {run.key}: {record['status']} {error} {record['reason'] or ''}".rstrip())
    return []


def _names(job: list[RunSettings]) -> str:
    return ", ".join(str(run.key) for run in job)
