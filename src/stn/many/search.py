"""A search for settings with Optuna: every trial is a run with a record, measured on held-out training data.

The study lives in a database, which the workers share: whatever is killed, its trials are there.
"""

import copy
import functools
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from pytorch_lightning.callbacks import Callback

from stn.families import family
from stn.many.grouping import stacks
from stn.results.records import flat
from stn.settings import RunSettings
from stn.train.checkpoints import forget
from stn.train.run import train
from stn.train.stopped import OutOfTime, Pruned

METRIC = "heldout/error_pct"
LOOKS = 20  # how often in a run the pruner is asked; its unit of time, whatever the number of steps
SAMPLERS = ("tpe", "random")
PRUNERS = {
    "none": optuna.pruners.NopPruner(),
    "median": optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=LOOKS // 4),
    "hyperband": optuna.pruners.HyperbandPruner(min_resource=LOOKS // 10, max_resource=LOOKS),
}
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


class Search(NamedTuple):
    """One study: a run in whose recipe the trials change what `space` names, `optimiser.lr` -> its values or range.

    `usual`: that run with its task, model and protocol as they stand.
    """

    storage: str
    study: str
    run: RunSettings
    usual: RunSettings
    space: dict[str, Any]
    sampler: str
    pruner: str
    stack: bool


class Job(NamedTuple):
    """So many trials of a search, for one worker; they train together where they can. `seed`: of the sampler."""

    search: Search
    trials: int
    seed: int


def check(search: Search) -> None:
    """Raises: ValueError, one line, for a search that is measured on the test set, or has an invalid space."""
    run = search.run
    if run.evaluate != "heldout":
        raise ValueError(f"a search never sees the test set: evaluate must be heldout, got {run.evaluate!r}")
    family(run)  # has held-out data
    for name, allowed in (("sampler", SAMPLERS), ("pruner", tuple(PRUNERS))):
        if getattr(search, name) not in allowed:
            raise ValueError(f"sweep.{name} must be one of {', '.join(allowed)}, got {getattr(search, name)!r}")
    settings = flat(run.recipe)
    for name, values in search.space.items():
        if name not in settings:
            allowed = ", ".join(sorted(settings))
            raise ValueError(f"sweep.space.{name}: no such setting in the protocol; allowed: {allowed}")
        if not (isinstance(values, list) and values) and not _is_range(values):
            raise ValueError(
                f"sweep.space.{name} must be a list of values or {{low, high, log}} with low < high, got {values!r}"
            )
    if not search.space:
        raise ValueError("sweep.space is empty: name a setting of the protocol and its range")


def _is_range(values: Any) -> bool:
    if not isinstance(values, dict) or not {"low", "high"} <= values.keys() <= {"low", "high", "log"}:
        return False
    numbers = all(isinstance(values[end], int | float) for end in ("low", "high"))
    return numbers and values["low"] < values["high"] and (values["low"] > 0 or not values.get("log"))


def open_study(search: Search, seed: int | None = None) -> optuna.Study:
    """The study in its database, made when it is not there."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sqlite = search.storage.removeprefix("sqlite:///")
    options = {}
    if sqlite != search.storage:
        Path(sqlite).parent.mkdir(parents=True, exist_ok=True)
        options = {"connect_args": {"timeout": 60}}  # workers wait for each other
    if search.sampler == "tpe":
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)  # workers try different places
    else:
        sampler = optuna.samplers.RandomSampler(seed=seed)
    return optuna.create_study(
        storage=optuna.storages.RDBStorage(search.storage, engine_kwargs=options),
        study_name=search.study,
        sampler=sampler,
        pruner=PRUNERS[search.pruner],
        load_if_exists=True,
    )


def resume(study: optuna.Study) -> int:
    """Puts the trials that an earlier call left unfinished back into the queue; how many trials are done.

    They go on from their checkpoints, since equal settings make the same run.
    """
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if trial.params:  # first: a kill in between makes two trials of one run, not none
            study.enqueue_trial(trial.params)
        study.tell(trial.number, state=TrialState.FAIL)
    return len(study.get_trials(states=DONE))


def run_trials(job: Job, deadline: float | None, progress) -> list[dict]:
    """Asks for the trials of a job and trains them; one dict per trial: number, state, value and params.

    Raises: what a run raises; its trials have failed then. At the deadline they are left for `resume`.
    """
    search = job.search
    study = open_study(search, job.seed)
    asked: dict[Path, tuple[RunSettings, list[Trial]]] = {}  # trials of equal settings are one run
    for trial in [study.ask() for _ in range(job.trials)]:
        run = run_of(search, _suggested(trial, search))
        stated = run.wandb.config | {"study": search.study, "trial": trial.number}
        run = run.changed(wandb=run.wandb.model_dump() | {"config": stated})
        asked.setdefault(run.record_file, (run, []))[1].append(trial)
    ended = []
    for stack in stacks([run for run, _ in asked.values()], search.stack):
        trials = [asked[run.record_file][1] for run in stack]
        for record, same in zip(_records(study, stack, trials, deadline, progress), trials, strict=True):
            value = None if record is None else record["metrics"].get(METRIC)
            # A diverged trial counts as pruned before its first look, the worst for a sampler; no number is made up.
            state = TrialState.PRUNED if value is None else TrialState.COMPLETE
            for trial in same:
                study.tell(trial, value, state)
                ended.append({"number": trial.number, "state": state.name, "value": value, "params": trial.params})
    return ended


def run_of(search: Search, chosen: dict[str, Any]) -> RunSettings:
    """A trial's run, with a protocol name and results folder of its own."""
    return search.run.changed(recipe=changed_recipe(search.run.recipe, chosen)).variant(of=search.usual)


def changed_recipe(recipe: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """The recipe with other values of the settings with these dotted names."""
    recipe = copy.deepcopy(recipe)
    for name, value in chosen.items():
        *groups, last = name.split(".")
        functools.reduce(dict.__getitem__, groups, recipe)[last] = value
    return recipe


def _suggested(trial: Trial, search: Search) -> dict[str, Any]:
    chosen, settings = {}, flat(search.run.recipe)
    for name, values in search.space.items():
        if isinstance(values, list):
            chosen[name] = trial.suggest_categorical(name, values)
        elif all(isinstance(number, int) for number in (settings[name], values["low"], values["high"])):
            chosen[name] = trial.suggest_int(name, **values)
        else:
            chosen[name] = trial.suggest_float(name, **values)
    return chosen


def _records(study, stack: list[RunSettings], trials: list[list[Trial]], deadline, progress) -> list[dict | None]:
    """The records of a stack's runs, trained unless they are there; None where they were pruned."""
    missing = [(run, same) for run, same in zip(stack, trials, strict=True) if _done(run) is None]
    try:
        callbacks = [_Pruning(study.study_name, [same for _, same in missing])]
        return train(stack, progress, deadline, callbacks, done=_done)
    except Pruned:
        forget([run for run, _ in missing])
        return [_done(run) for run in stack]
    except OutOfTime:
        raise
    except Exception:
        for same in trials:
            for trial in same:
                study.tell(trial, state=TrialState.FAIL)
        raise


def _done(run: RunSettings) -> dict | None:
    record = run.recorded()
    return record if record and record["status"] != "failed" else None


class _Pruning(Callback):
    """Shows the pruner the training error (or loss) `LOOKS` times; ends the training when it gives up every trial."""

    def __init__(self, study: str, trials: list[list[Trial]]) -> None:
        self.study, self.trials, self.looks = study, trials, 0

    def on_train_batch_end(self, trainer, module, *_) -> None:
        looks = LOOKS * module.steps_done // module.recipe.steps
        if looks == self.looks or looks == LOOKS:  # the end is for the test to judge
            return
        self.looks = looks
        for replica, same in zip(getattr(module, "replicas", [module]), self.trials, strict=True):
            curve = replica.curve.get("train/error_pct", replica.curve["train/loss"])
            for trial in same if curve else ():  # empty: diverged at once
                trial.report(curve[-1], looks)
        if all(trial.should_prune() for same in self.trials for trial in same):
            raise Pruned(f"by the pruner of {self.study}, after step {module.steps_done}")


def best(study: optuna.Study) -> FrozenTrial | None:
    """The trial with the smallest held-out error; None when none is complete."""
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    return min(complete, key=lambda trial: trial.value) if complete else None
