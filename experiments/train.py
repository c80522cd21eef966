"""Train and test one model: python -m experiments.train task=mnist_rts model=st_cnn_tps protocol=fast seed=0"""

import time
from collections.abc import Callable

import hydra
from omegaconf import DictConfig

from experiments.cli import job, main
from experiments.config import compose_run, resolved
from stn.results.records import config_hash
from stn.train.claim import claimed
from stn.train.settings import check, run_key, science, variant


@hydra.main(config_path="../conf", config_name="train", version_base="1.3")
@job
def train(config: DictConfig) -> float | None:
    """One run; returns the error that a sweeper of hydra's may minimise, which is never the test error."""
    settings = as_variant(resolved(config))
    from stn.families import network  # torch and Lightning take seconds to import: not for --help or a typo
    from stn.train.parallel import part_of
    from stn.train.run import run

    first = part_of(settings).rank == 0  # of the processes that train the run together
    network(settings)  # what cannot be built is refused before a file is made

    def trained() -> dict:
        with claimed([settings] if first else []):
            return run(settings, deadline=deadline_of(settings))

    return ended(settings, trained, tell=first)


def deadline_of(settings: dict) -> float | None:
    """When the time budget of a run that starts now is used up, as time.time()."""
    budget_s = settings["time_budget_s"]
    return None if budget_s is None else time.time() + budget_s


def ended(settings: dict, trained: Callable[[], dict], tell: bool = True) -> float | None:
    """Prints how a run ended, `trained` being what makes its record; returns what `train` does."""
    from stn.train.run import OutOfTime

    try:
        record = trained()
    except OutOfTime as stopped:
        if tell:
            print(f"{run_key(settings)}: {stopped}; the same command goes on from there")
        return None
    if not tell:
        return None
    summary = {name: value for name, value in record["metrics"].items() if "theta" not in name}
    print(f"{record['task']} {record['model']} {record['protocol']} seed {record['seed']}: {record['status']}")
    if record["reason"]:
        print(f"  {record['reason']}")
    for name, value in summary.items():
        print(f"  {name:28} {value:.4g}")
    return record["metrics"].get("test/error_pct") if settings["evaluate"] == "heldout" else None


def as_variant(settings: dict) -> dict:
    """Settings that depart from their protocol get a protocol name and a results folder of their own (`variant`).

    So a sweep never overwrites, or slips into, the records that the tables are made from.
    """
    check(settings)
    task, model, protocol = (settings[group]["name"] for group in ("task", "model", "protocol"))
    same = [f"seed={settings['seed']}", f"data={settings['data']}"]
    plain = compose_run([f"task={task}", f"model={model}", f"protocol={protocol}", *same])
    return settings if config_hash(science(settings)) == config_hash(science(plain)) else variant(settings)


if __name__ == "__main__":
    main(train)
