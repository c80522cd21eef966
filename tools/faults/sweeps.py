"""A search that is killed again and again: every finished trial has its record, and every record its numbers."""

import json
import random
from pathlib import Path

from kills import numbers, small_run
from zygote import Child, command

from stn.results.records import read_record

TRIALS = 3


def sweep(digits: Path) -> None:
    """A search of `TRIALS` short runs, one after the other."""
    cell = small_run(digits, "fcn", steps=100)
    command(digits, "experiments.sweep", "sweep=localiser", f"sweep.trials={TRIALS}", "sweep.pruner=none", *cell)


def check_trials(folder: Path) -> int:
    """How many trials are complete. Raises: AssertionError for one whose value is not that of a record of its own."""
    import optuna

    from stn.many.search import flat

    storage = folder / "outputs" / "sweeps.db"
    if not storage.exists():
        return 0
    studies = optuna.get_all_study_names(f"sqlite:///{storage}")
    found = [optuna.load_study(study_name=name, storage=f"sqlite:///{storage}").trials for name in studies]
    complete = [trial for trials in found for trial in trials if trial.state.name == "COMPLETE"]
    records = [read_record(path) for path in sorted((folder / "results").rglob("seed*.json"))]
    by_recipe = {}
    for record in records:
        recipe = {name: flat(record["config"]["recipe"])[name] for name in complete[0].params} if complete else {}
        by_recipe[json.dumps(recipe, sort_keys=True)] = record
    for trial in complete:
        record = by_recipe[json.dumps(trial.params, sort_keys=True)]
        assert trial.value == record["metrics"]["test/error_pct"]
    assert len({json.dumps(trial.params, sort_keys=True) for trial in complete}) == len(complete), "doubled"
    return len(complete)


def train_again(digits: Path, records: list[Path]) -> None:
    """The runs of these records, each from its config alone, without interruption."""
    from zygote import take_for_mnist

    from experiments.config import compose_run
    from stn.train.run import train

    take_for_mnist(digits)
    for path in records:
        recipe = read_record(path)["config"]["recipe"]
        run = compose_run([*small_run(digits, "fcn"), "evaluate=heldout", "progress=false"])
        train([run.changed(recipe=recipe).variant(of=run)])


def harass_sweep(folder: Path, digits: Path, kills: int, chance: random.Random) -> tuple[int, int]:
    """Kills and calls to the end. Raises: AssertionError for a trial that is lost, doubled or has other numbers."""
    whole = Child(folder / "whole", sweep, digits).wait()
    assert whole.status == 0, whole.said
    assert check_trials(folder / "whole") == TRIALS
    killed = ends = 0
    while killed < kills:
        place = folder / f"place{ends}"
        while True:
            child = Child(place, sweep, digits)
            if killed == kills or not child.kill_after(chance.uniform(0, whole.wall_s)):
                break
            killed += 1
            assert check_trials(place) <= TRIALS
        last = child.wait()
        assert last.status == 0, last.said
        assert check_trials(place) == TRIALS
        whole, ends = last, ends + 1
        records = sorted((place / "results").rglob("seed*.json"))
        again = Child(place / "again", train_again, digits, records).wait()
        assert again.status == 0, again.said
        for path in records:
            twin = place / "again" / path.relative_to(place)
            assert numbers(read_record(path)) == numbers(read_record(twin))
    return killed, ends
