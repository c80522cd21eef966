"""hydra/launcher=stack, the usual one: where the jobs of `experiments.train --multirun` run.

hydra imports every module of this namespace when it starts, so what is slow is imported where it is used.
"""

from collections.abc import Callable, Sequence

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from omegaconf import open_dict

ConfigStore.instance().store(
    group="hydra/launcher",
    name="stack",
    node={"_target_": "hydra_plugins.stack_launcher.StackLauncher"},
    provider="stn-replication",
)


class StackLauncher(BasicLauncher):
    """hydra's own launcher, one job after the other in this process; but jobs that can share a stack train together
    where the setting `stack` says so (by itself on CUDA), when the first of them is due.
    """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        usual, together, returned = self.task_function, self._together(job_overrides), []
        for i, overrides in enumerate(job_overrides):
            self.task_function = together.get(i, usual)
            returned += super().launch([overrides], initial_job_idx + i)
        self.task_function = usual
        return returned

    def _together(self, job_overrides: Sequence[Sequence[str]]) -> dict[int, Callable]:
        """What to call for the jobs that share a stack, by their place in `job_overrides`."""
        from experiments.config import run_of
        from stn.many.grouping import stack_key, stacked, stacks

        if not stacked(self.config.stack, self.config.device):
            return {}
        runs = {}
        for i, overrides in enumerate(job_overrides):
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                del config["hydra"]
            try:
                run = run_of(config)
                if stack_key(run):
                    runs[i] = run
            except Exception:  # on its own turn it says what is wrong with it
                continue
        place = {id(run): i for i, run in runs.items()}
        groups = [_Together(stack) for stack in stacks(list(runs.values()), True) if len(stack) > 1]
        return {place[id(run)]: group.job(run) for group in groups for run in group.stack}


class _Together:
    """Runs that train when the record of one of them is asked for."""

    def __init__(self, stack: list) -> None:
        self.stack = stack
        self.records: list[dict] | None = None
        self.error: Exception | None = None

    def job(self, run) -> Callable:
        """For this run, what `experiments.train.train` is for one that trains alone."""
        from experiments.cli import job
        from experiments.train import going_on, heldout_error, in_words
        from stn.train.stopped import OutOfTime

        def ended(config) -> float | None:
            try:
                record = self._record(run)
            except OutOfTime as stopped:
                print(going_on(run, stopped))
                return None
            print(in_words(record))
            return heldout_error(record)

        return job(ended)

    def _record(self, run) -> dict:
        from experiments.train import deadline_of
        from stn.many.pool import train_stack

        if self.records is None and self.error is None:
            try:
                self.records = train_stack(self.stack, deadline_of(run), progress=None)
            except Exception as error:
                self.error = error
        if self.error is not None:
            raise self.error
        return self.records[self.stack.index(run)]
