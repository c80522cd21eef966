"""Train and test one model: python -m experiments.train task=mnist_rts model=st_cnn_tps protocol=fast seed=0"""

import time

import hydra
from omegaconf import DictConfig

from experiments.cli import job, main
from experiments.config import run_of
from stn.settings import RunSettings
from stn.train.stopped import OutOfTime


@hydra.main(config_path="../conf", config_name="train", version_base="1.3")
@job
def train(config: DictConfig) -> float | None:
    """One run; returns the error that a sweeper of hydra's may minimise, which is never the test error."""
    run = run_of(config)
    from stn.train import run as running  # torch and Lightning take seconds to import: not for --help or a typo
    from stn.train.parallel import part_of

    tell = print if part_of(run).rank == 0 else lambda *_: None  # of the processes that train the run together
    try:
        (record,) = running.train([run], deadline=deadline_of(run))
    except OutOfTime as stopped:
        tell(going_on(run, stopped))
        return None
    tell(in_words(record))
    return heldout_error(record)


def deadline_of(run: RunSettings) -> float | None:
    """When the time budget of a run that starts now is used up, as time.time()."""
    return None if run.time_budget_s is None else time.time() + run.time_budget_s


def going_on(run: RunSettings, stopped: OutOfTime) -> str:
    return f"{run.key}: {stopped}; the same command goes on from there"


def in_words(record: dict) -> str:
    """How a run ended, and its metrics."""
    lines = [f"{record['task']} {record['model']} {record['protocol']} seed {record['seed']}: {record['status']}"]
    lines += [f"  {record['reason']}"] if record["reason"] else []
    lines += [f"  {name:28} {value:.4g}" for name, value in record["metrics"].items() if "theta" not in name]
    return "\n".join(lines)


def heldout_error(record: dict) -> float | None:
    """What a sweeper of hydra's may minimise."""
    return record["metrics"].get("test/error_pct") if record["config"]["evaluate"] == "heldout" else None


if __name__ == "__main__":
    main(train)
