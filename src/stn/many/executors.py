"""Where runs train: in worker processes here, as jobs of Slurm through submitit, or as tasks of Ray.

All yield what `stn.many.pool.run_all` does. Away from this process only the end of a job is known, not its progress;
records arrive as files.
"""

import functools
import importlib
import math
import os
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Protocol

from stn.many import pool
from stn.many.pool import Finished, Progress, in_time, train_stack

POLL_S = 0.5

# What a job came to: what it returned, or the error that ended it.
Outcome = tuple[list[dict] | None, BaseException | None]


class Engine(Protocol):
    """What carries a function call to another process; a lost process is an outcome, too."""

    def start(self, function: Callable, *arguments) -> object: ...
    def outcome(self, job) -> Outcome | None: ...
    def cancel(self, job) -> None: ...
    def close(self) -> None: ...


def launch(
    stacks: list, workers: int, deadline: float | None, launcher: dict, job: Callable = train_stack
) -> Iterator[Progress | Finished]:
    """As `run_all`, through the `launcher` (conf/launcher): where its jobs run, and what they need.

    Raises: ValueError, one line, for a launcher that is not there or not installed.
    """
    if launcher["name"] == "local":
        return pool.run_all(stacks, workers, deadline, job)
    if launcher["name"] not in ENGINES:
        raise ValueError(f"launcher must be one of local, {', '.join(ENGINES)}, got {launcher['name']!r}")
    return _drive(ENGINES[launcher["name"]](launcher, workers), stacks, workers, deadline, job)


def extra(package: str, name: str) -> ModuleType:
    """A package that only the extra `name` brings. Raises: ValueError, one line, when it is not installed."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ValueError(f"{package} is not installed: .venv/bin/python -m pip install -e '.[{name}]'") from error


def _drive(engine: Engine, stacks: list, workers: int, deadline: float | None, job: Callable) -> Iterator[Finished]:
    waiting, running = list(enumerate(stacks)), {}
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                index, stack = waiting.pop(0)
                running[index] = engine.start(_away, job, stack, deadline, os.getcwd())
            for index, handle in list(running.items()):
                if (outcome := engine.outcome(handle)) is not None:
                    del running[index]
                    yield Finished(index, *outcome)
            time.sleep(POLL_S)
    finally:
        for handle in running.values():
            engine.cancel(handle)
        engine.close()


def _away(job: Callable, stack: list, deadline: float | None, folder: str) -> Outcome:
    """In the other process, in the same `folder`: errors travel as values, so that every engine keeps their type."""
    try:
        os.chdir(folder)
        return in_time(job, stack, deadline, None), None
    except Exception as error:
        return None, error


class _Submitit:
    """Slurm, or processes of this machine, through submitit. Slurm needs accounting to tell that a job was killed."""

    def __init__(self, launcher: dict, workers: int) -> None:
        submitit = extra("submitit", "sweeps")
        if launcher["cluster"] not in (None, "slurm", "local"):
            raise ValueError(f"launcher.cluster must be null, slurm or local, got {launcher['cluster']!r}")
        try:
            self.executor = submitit.AutoExecutor(launcher["folder"], cluster=launcher["cluster"])
        except RuntimeError as error:  # no Slurm here
            raise ValueError(f"launcher.cluster={launcher['cluster']}: {' '.join(str(error).split())}") from error
        try:
            self.executor.update_parameters(**launcher["parameters"])
        except (NameError, TypeError, ValueError, AssertionError) as error:  # of submitit
            raise ValueError(f"launcher.parameters: {' '.join(str(error).split())}") from error

    def start(self, function: Callable, *arguments):
        return self.executor.submit(_Requeued(function), *arguments)

    def outcome(self, job) -> Outcome | None:
        if not job.done():
            return None
        if job.exception() is not None:
            return None, RuntimeError(f"job {job.job_id} ended without a result ({job.state}), see {job.paths.stderr}")
        return job.result()

    def cancel(self, job) -> None:
        job.cancel(check=False)

    def close(self) -> None:
        pass


class _Requeued(functools.partial):
    """A call that submitit puts into the queue again when its job is preempted or out of time; the run goes on from
    its checkpoint.
    """

    def checkpoint(self, *arguments):
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


class _Ray:
    """Tasks of a Ray cluster, or of a Ray of this machine."""

    def __init__(self, launcher: dict, workers: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self.ray = extra("ray", "ray")
        needs = launcher["resources"]
        here = {}
        if launcher["address"] is None:  # Ray starts no task when it has fewer than it asks for
            here = {"num_cpus": max(1, math.ceil(workers * needs["num_cpus"])), "include_dashboard": False}
        self.ray.init(launcher["address"], log_to_driver=False, logging_level="ERROR", **here)
        self.task = self.ray.remote(max_retries=0, **needs)(_call)

    def start(self, function: Callable, *arguments):
        return self.task.remote(function, *arguments)

    def outcome(self, job) -> Outcome | None:
        if not self.ray.wait([job], timeout=0)[0]:
            return None
        try:
            return self.ray.get(job)
        except self.ray.exceptions.RayError as error:  # the worker or its machine is gone
            return None, RuntimeError(f"the Ray task was lost: {type(error).__name__}")

    def cancel(self, job) -> None:
        self.ray.cancel(job, force=True)

    def close(self) -> None:
        self.ray.shutdown()


def _call(function: Callable, *arguments) -> Outcome:
    return function(*arguments)


ENGINES: dict[str, Callable[[dict, int], Engine]] = {"submitit": _Submitit, "ray": _Ray}
