"""Many runs: stacks of them, as jobs of workers here, of Slurm or of Ray, and what becomes of each."""

from functools import partial

from experiments.progress import Bar, console
from stn.settings import RunSettings
from stn.train.stopped import Busy, OutOfTime


def train_all(
    todo: list[RunSettings], wanted: dict, deadline: float | None, listed: dict[str, str | None]
) -> tuple[list[str], int]:
    """Trains, longest runs first, under a progress bar; a line per run that raised, and how many the deadline left.

    `wanted`: stack, device, launcher and workers. `listed`: as in `train_stack`.
    """
    from stn.families import prepare
    from stn.many.cost import run_cost
    from stn.many.executors import launch
    from stn.many.grouping import stacked, stacks
    from stn.many.pool import Finished, train_stack

    for run in todo:
        prepare(run)
    costs = {run.key: run_cost(run) for run in todo}
    longest_first = sorted(todo, key=lambda run: (run.seed, -costs[run.key]))
    jobs = stacks(longest_first, stacked(wanted["stack"], wanted["device"], wanted["launcher"]))
    share = [sum(costs[run.key] for run in job) / job[0].recipe["steps"] for job in jobs]
    steps, failures, finished, late = [0] * len(jobs), [], 0, 0
    with Bar(sum(costs.values())) as bar:
        train = partial(train_stack, listed=listed)
        for event in launch(jobs, wanted["workers"], deadline, wanted["launcher"], train):
            job = jobs[event.index]
            now = job[0].recipe["steps"]
            if not isinstance(event, Finished):
                now = event.steps
            elif isinstance(event.error, OutOfTime):
                late += len(job)
                now = steps[event.index]
                console.print(f"  {_names(job)}: {event.error}")
            else:
                finished += len(job)
                failures += _report(event, job)
            steps[event.index] = now
            done = sum(part * of_job for part, of_job in zip(share, steps, strict=True))
            bar.update(done, f"{finished}/{len(todo)} runs")
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
