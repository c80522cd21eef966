"""Search for settings on held-out training data: python -m experiments.sweep sweep=localiser [workers=4 ...]

An interrupted search goes on with the same command; one with more sweep.trials, too.
"""

import json
from pathlib import Path

from omegaconf import DictConfig

from experiments.cli import main
from experiments.config import as_it_stands, of_run, refuse_unread, resolved
from experiments.jobs import Load, carry_out
from experiments.progress import console, deadline_of, leave
from stn.results.records import config_hash, flat
from stn.settings import RunSettings, check_batch, run_settings
from stn.train.claim import held_file


def sweep(config: DictConfig) -> None:
    """The whole verb."""
    settings = resolved(config)
    check_batch(settings)
    from stn.many.executors import extra

    extra("optuna", "sweeps")
    from stn.families import network, prepare
    from stn.many import search as searching

    search = _search(config)
    searching.check(search)
    network(search.run)  # raises when the settings do not fit together
    prepare(search.run)
    lock = Path(settings["output_dir"]) / "sweeps" / f"{search.study}.lock"
    with held_file(lock, f"{search.study}: another process searches"):
        study = searching.open_study(search)
        trials = settings["sweep"]["trials"]
        missing = max(trials - searching.resume(study), 0)
        console.print(f"{search.study}: {missing} of {trials} trials to do")
        failures, late = _train(search, study, missing, settings) if missing else ([], 0)
        _render(study, search)
    leave(failures, late)


def _search(config: DictConfig):
    """The study that this conf/sweep.yaml asks for: its name tells it from all that would give other numbers."""
    from stn.many.grouping import stacked
    from stn.many.search import Search

    settings, run = resolved(config), run_settings(of_run(config))
    plain = as_it_stands(run)
    refuse_unread(config, plain, run)
    chosen = settings["sweep"]
    if run.processes > 1:
        raise ValueError("trainer.devices: a trial trains in one process, workers=… trains several at once; allowed: 1")
    trials, space = chosen["trials"], chosen["space"]
    if not isinstance(trials, int) or isinstance(trials, bool) or trials < 1:
        raise ValueError(f"sweep.trials must be an integer, 1 or more, got {trials!r}")
    if not isinstance(space, dict):
        raise ValueError(f"sweep.space must name settings of the protocol, got {space!r}")
    if "://" not in settings["storage"]:
        raise ValueError(f"storage must be a database's URL, as sqlite:///sweeps.db, got {settings['storage']!r}")
    space = flat(space)
    numbers = run.config | {"protocol": run.protocol, "space": space}
    names = [chosen["name"], run.task.name, run.model.name, run.protocol]
    study = "-".join([*names, config_hash(numbers, without=["protocol_note"])[:8]])
    together = stacked(run.stack, run.device, settings["launcher"])
    usual = run_settings(of_run(plain))
    return Search(settings["storage"], study, run, usual, space, chosen["sampler"], chosen["pruner"], together)


def _train(search, study, missing: int, settings: dict) -> tuple[list[str], int]:
    """Trains so many trials; one line for each that raised, and how many the time budget ended."""
    from stn.data.seeds import stream_seed
    from stn.many.grouping import MAX_REPLICAS, stack_key
    from stn.many.search import Job, run_trials

    together = search.stack and "steps" not in search.space and stack_key(search.run) is not None
    at_once = MAX_REPLICAS if together else 1
    sizes = [min(at_once, missing - first) for first in range(0, missing, at_once)]
    earlier = len(study.trials)  # an interrupted search does not repeat itself
    seeds = [stream_seed(search.run.seed, "search", earlier + i) for i in range(len(sizes))]
    steps = search.run.recipe["steps"]
    loads = [
        Load(Job(search, n, seed % 2**32), n, n, steps, f"{n} trials") for n, seed in zip(sizes, seeds, strict=True)
    ]
    failures, late = carry_out(loads, "trials", run_trials, settings, deadline_of(settings["time_budget_s"]), _report)
    if late:
        console.print("the time budget is used up; the same command goes on with the trials that are not over")
    return failures, late


def _report(event, _) -> list[str]:
    """Prints how the trials of a job ended; returns a line when they raised."""
    if event.error is not None:
        line = f"a trial failed: {type(event.error).__name__}: {' '.join(str(event.error).split())}"
        console.print(f"  {line}")
        return [line]
    for trial in event.records:
        params = ", ".join(f"{name} {_short(value)}" for name, value in trial["params"].items())
        ended = "pruned" if trial["value"] is None else f"{trial['value']:.2f} % held-out error"
        console.print(f"  trial {trial['number']}: {ended} ({params})", soft_wrap=True)
    return []


def _render(study, search) -> None:
    """Writes table and plots; says how to train the best settings for a table of its own."""
    from stn.many.search import best
    from stn.results.search import write_study

    trial = best(study)
    if trial is None:
        console.print("no trial is complete yet, so no table")
        return
    command = _command(search, trial.params)
    folder = search.run.results_dir / "sweeps" / "studies" / search.study
    for path in write_study(study, folder, command):
        console.print(f"wrote {path}", soft_wrap=True)
    console.print(f"best: trial {trial.number}, {trial.value:.2f} % held-out error; to test it:")
    console.print(f"  {command}", soft_wrap=True)


def _command(search, params: dict) -> str:
    """What trains settings of this search for the test set: all that is not as in their task, model and protocol."""
    from stn.many.search import changed_recipe

    def settings(run: RunSettings, recipe: dict) -> dict:
        groups = {"task": run.task.model_dump(), "model": run.model.model_dump(), "precision": run.precision}
        return flat(groups | {"protocol": {run.task.family: recipe}})

    run = search.run
    plain, chosen = settings(search.usual, search.usual.recipe), settings(run, changed_recipe(run.recipe, params))
    changed = [f"{name}={_written(value)}" for name, value in chosen.items() if name in plain and plain[name] != value]
    changed += [f"+{name}={_written(value)}" for name, value in chosen.items() if name not in plain]
    changed += [f"~{name}" for name in plain if name not in chosen]
    return " ".join([run.command(run.key), *changed])


def _written(value) -> str:
    """As a command line has it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _short(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main(sweep)
