"""A search for settings with Optuna: every trial is a run with a record, measured on held-out training data.

The study lives in a database, which the workers share: whatever is killed, its trials are there.
"""

from pathlib import Path
from typing import NamedTuple

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from pytorch_lightning.callbacks import Callback

from stn.results.records import config_hash, read_record
from stn.train.claim import claimed
from stn.train.run import OutOfTime, Stopped, run_stack
from stn.train.settings import record_file, run_folder, science, variant
from stn.train.stack import stacks

METRIC = "test/error_pct"  # of the held-out images, which take the test's place in a run with evaluate=heldout
LOOKS = 20  # how often in a run the pruner is asked; its unit of time, whatever the number of steps
HELDOUT_FAMILIES = ("mnist", "addition", "mnist3d", "svhn", "cub", "coloc")
SAMPLERS = ("tpe", "random")
PRUNERS = {
    "none": optuna.pruners.NopPruner(),
    "median": optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=LOOKS // 4),
    "hyperband": optuna.pruners.HyperbandPruner(min_resource=LOOKS // 10, max_resource=LOOKS),
}
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


class Search(NamedTuple):
    """One study: `settings` (conf/train.yaml, resolved) in whose recipe the trials change what `space` names."""

    storage: str
    study: str
    settings: dict
    space: dict
    sampler: str
    pruner: str
    stack: bool


class Job(NamedTuple):
    """So many trials of a search, for one worker; they train together where they can. `seed`: of the sampler."""

    search: Search
    trials: int
    seed: int


class _Pruned(Stopped):
    """The pruner gave up all trials of a stack."""


def check(search: Search) -> None:
    """Raises: ValueError, one line, for a search that is measured on the test set, or whose space cannot be."""
    settings, recipe = search.settings, search.settings["recipe"]
    if settings["evaluate"] != "heldout":
        raise ValueError(f"a search never sees the test set: evaluate must be heldout, got {settings['evaluate']!r}")
    if settings["task"]["family"] not in HELDOUT_FAMILIES:
        raise ValueError(f"{settings['task']['name']} has no held-out data; allowed: {', '.join(HELDOUT_FAMILIES)}")
    for name, allowed in (("sampler", SAMPLERS), ("pruner", tuple(PRUNERS))):
        if getattr(search, name) not in allowed:
            raise ValueError(f"sweep.{name} must be one of {', '.join(allowed)}, got {getattr(search, name)!r}")
    for name, found in search.space.items():
        if name not in recipe:
            allowed = ", ".join(sorted(recipe))
            raise ValueError(f"sweep.space.{name}: no such setting in the protocol; allowed: {allowed}")
        if not (isinstance(found, list) and found) and not _is_range(found):
            raise ValueError(
                f"sweep.space.{name} must be a list of values or {{low, high, log}} with low < high, got {found!r}"
            )
    if not search.space:
        raise ValueError("sweep.space is empty: name a setting of the protocol and its range")


def _is_range(found) -> bool:
    if not isinstance(found, dict) or not {"low", "high"} <= found.keys() <= {"low", "high", "log"}:
        return False
    numbers = all(isinstance(found[end], int | float) for end in ("low", "high"))
    return numbers and found["low"] < found["high"] and (found["low"] > 0 or not found.get("log"))


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
    runs: dict[Path, tuple[dict, list[Trial]]] = {}  # trials of equal settings are one run
    for trial in [study.ask() for _ in range(job.trials)]:
        settings = settings_of(search, _suggested(trial, search))
        runs.setdefault(record_file(settings), (settings, []))[1].append(trial)
    ended = []
    for stack in stacks([settings for settings, _ in runs.values()], search.stack):
        trials = [runs[record_file(settings)][1] for settings in stack]
        for record, same in zip(_records(study, stack, trials, deadline, progress), trials, strict=True):
            value = None if record is None else record["metrics"].get(METRIC)
            # Diverged counts as pruned before it was seen: the worst, for a sampler, and no number is made up.
            state = TrialState.PRUNED if value is None else TrialState.COMPLETE
            for trial in same:
                study.tell(trial, value, state)
                ended.append({"number": trial.number, "state": state.name, "value": value, "params": trial.params})
    return ended


def settings_of(search: Search, chosen: dict) -> dict:
    """The settings of a trial's run, with a protocol name and results folder of their own."""
    return variant({**search.settings, "recipe": {**search.settings["recipe"], **chosen}})


def _suggested(trial: Trial, search: Search) -> dict:
    chosen = {}
    for name, found in search.space.items():
        if isinstance(found, list):
            chosen[name] = trial.suggest_categorical(name, found)
        elif isinstance(search.settings["recipe"][name], int):
            chosen[name] = trial.suggest_int(name, **found)
        else:
            chosen[name] = trial.suggest_float(name, **found)
    return chosen


def _records(study, stack: list[dict], trials: list[list[Trial]], deadline, progress) -> list[dict | None]:
    """The records of a stack's runs, trained unless they are there; None each when they were pruned."""
    try:
        with claimed(stack):
            found = [_done(settings) for settings in stack]
            if None in found:
                found = run_stack(stack, progress, deadline, [_Pruning(trials)])
            return found
    except _Pruned:
        for settings in stack:
            (run_folder(settings) / "last.ckpt").unlink(missing_ok=True)
        return [None] * len(stack)
    except OutOfTime:
        raise
    except Exception:
        for same in trials:
            for trial in same:
                study.tell(trial, state=TrialState.FAIL)
        raise


def _done(settings: dict) -> dict | None:
    path = record_file(settings)
    record = read_record(path) if path.exists() else None
    same = record and record["status"] != "failed" and record["config_hash"] == config_hash(science(settings))
    return record if same else None


class _Pruning(Callback):
    """Shows the pruner the training error (or loss) `LOOKS` times; ends the training when it gives up every trial."""

    def __init__(self, trials: list[list[Trial]]) -> None:
        self.trials, self.looks = trials, 0

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
            raise _Pruned


def best(study: optuna.Study) -> FrozenTrial | None:
    """The trial with the smallest held-out error; None when none is complete."""
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    return min(complete, key=lambda trial: trial.value) if complete else None
