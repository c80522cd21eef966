"""Search for settings on held-out training data: python -m experiments.sweep sweep=localiser [workers=4 ...]

An interrupted search goes on with the same command; one with more sweep.trials, too.
"""

import sys
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.cli import job, main
from experiments.config import compose_run, resolved
from stn.results.records import config_hash
from stn.train.claim import held_file
from stn.train.settings import check, processes, science

console = Console(highlight=False)


@hydra.main(config_path="../conf", config_name="sweep", version_base="1.3")
@job
def sweep(config: DictConfig) -> None:
    """The whole verb."""
    wanted = resolved(config)
    check(wanted)
    if processes(wanted) > 1:
        raise ValueError("trainer.devices: a trial trains in one process, workers=… trains several at once; allowed: 1")
    from stn.train.executors import extra

    extra("optuna", "sweeps")
    from stn.families import network, prepare
    from stn.train import search as searching

    search = _search(wanted)
    searching.check(search)
    network(search.settings)  # raises when the settings do not fit together
    prepare(search.settings)
    lock = Path(wanted["output_dir"]) / "sweeps" / f"{search.study}.lock"
    with held_file(lock, f"{search.study}: another process searches"):
        study = searching.open_study(search)
        left = wanted["sweep"]["trials"] - searching.resume(study)
        console.print(f"{search.study}: {max(left, 0)} of {wanted['sweep']['trials']} trials to do")
        failures = _train(search, study, left, wanted) if left > 0 else []
        _render(study, search)
    if failures:
        sys.exit("\n".join(failures))


def _search(wanted: dict):
    """The study these settings ask for: its name tells it from all that would give other numbers."""
    from stn.train.search import Search
    from stn.train.stack import stacked

    chosen = wanted["sweep"]
    settings = {name: value for name, value in wanted.items() if name not in ("sweep", "launcher", "workers")}
    numbers = {**science(settings), "protocol": settings["protocol"]["name"], "space": chosen["space"]}
    names = [chosen["name"], *(settings[group]["name"] for group in ("task", "model", "protocol"))]
    study = "-".join([*names, config_hash(numbers, without=["protocol_note"])[:8]])
    return Search(
        wanted["storage"], study, settings, chosen["space"], chosen["sampler"], chosen["pruner"], stacked(wanted)
    )


def _train(search, study, left: int, wanted: dict) -> list[str]:
    """Trains `left` trials; one line for each that raised."""
    from stn.data.seeds import stream_seed
    from stn.train.executors import launch
    from stn.train.pool import Finished
    from stn.train.run import OutOfTime
    from stn.train.search import Job, run_trials
    from stn.train.stack import FREE, MAX_REPLICAS, stack_key

    together = search.stack and stack_key(search.settings) is not None and search.space.keys() <= set(FREE)
    at_once = MAX_REPLICAS if together else 1
    sizes = [min(at_once, left - first) for first in range(0, left, at_once)]
    earlier = len(study.trials)  # an interrupted search does not repeat itself
    seeds = [stream_seed(search.settings["seed"], "search", earlier + i) for i in range(len(sizes))]
    jobs = [Job(search, size, seed % 2**32) for size, seed in zip(sizes, seeds, strict=True)]
    budget_s, steps = wanted["time_budget_s"], search.settings["recipe"]["steps"]
    deadline = None if budget_s is None else time.time() + budget_s
    failures, late, seen = [], False, [0.0] * len(jobs)
    columns = (TextColumn("trials"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, speed_estimate_period=300) as bar:
        task = bar.add_task("", total=left)
        for event in launch(jobs, wanted["workers"], deadline, wanted["launcher"], run_trials):
            if not isinstance(event, Finished):
                done = sizes[event.index] * min(1.0, event.steps / steps)
            elif isinstance(event.error, OutOfTime):
                done, late = seen[event.index], True
            else:
                done = sizes[event.index]
                failures += _report(event, study)
            bar.update(task, advance=done - seen[event.index])
            seen[event.index] = done
    if late:
        console.print("the time budget is used up; the same command goes on with the trials that are left")
    return failures


def _report(event, study) -> list[str]:
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
    from stn.results.search import write_study
    from stn.train.search import best

    found = best(study)
    if found is None:
        console.print("no trial is complete yet, so no table")
        return
    command = _command(search.settings, found.params)
    folder = Path(search.settings["results_dir"]) / "sweeps" / "studies" / search.study
    for path in write_study(study, folder, command):
        console.print(f"wrote {path}", soft_wrap=True)
    console.print(f"best: trial {found.number}, {found.value:.2f} % held-out error; to test it:")
    console.print(f"  {command}", soft_wrap=True)


def _command(settings: dict, params: dict) -> str:
    """What trains settings of this search for the test set: all that is not as in their protocol."""
    groups = [f"{group}={settings[group]['name']}" for group in ("task", "model", "protocol")]
    plain, family = compose_run(groups)["recipe"], settings["task"]["family"]
    recipe = {**settings["recipe"], **params}
    changed = [f"protocol.{family}.{name}={value}" for name, value in recipe.items() if value != plain[name]]
    return " ".join(["python -m experiments.train", *groups, f"seed={settings['seed']}", *changed])


def _short(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main(sweep)
