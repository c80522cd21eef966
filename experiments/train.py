"""Train and test one model: python -m experiments.train task=mnist_rts model=st_cnn_tps protocol=fast seed=0

With --multirun, values between commas make one run each (seed=0,1 protocol.mnist.optimiser.lr=0.005,0.01). A run that
has its record is not run again, unless force=true. Exit status 75: the time budget is used up; the same command goes
on.
"""

import sys
import time

from omegaconf import DictConfig

from experiments.cli import main
from experiments.config import run_of
from experiments.multirun import summarise
from experiments.progress import OUT_OF_TIME, Bar
from stn.settings import RunSettings
from stn.train.stopped import OutOfTime


def train(config: DictConfig) -> float | None:
    """One run; returns the error that a sweeper of hydra's may minimise, which is never the test error."""
    run = run_of(config)
    if not run.force and (record := run.recorded()):
        print(f"{run.key}: {record['status']}, as its record says; force=true runs it again")
        return heldout_error(record)
    from stn.train import run as running  # torch and Lightning take seconds to import: not for --help or a typo
    from stn.train.parallel import part_of

    tell = print if part_of(run).rank == 0 else lambda *_: None  # of the processes that train the run together
    steps = run.recipe["steps"]
    try:
        with Bar(steps, run.progress and tell is print) as bar:
            (record,) = running.train([run], lambda done: bar.update(done, f"step {done} of {steps}"), deadline_of(run))
    except OutOfTime as stopped:
        tell(going_on(run, stopped))
        if in_multirun():
            return None
        sys.exit(OUT_OF_TIME)
    tell(in_words(record))
    tell(places(run))
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


def places(run: RunSettings) -> str:
    """Where the files of a run that has ended are."""
    lines = [f"wrote {run.record_file}; weights are in {run.folder}"]
    if run.wandb.mode == "offline":
        lines.append(f"to show it on W&B: wandb sync '{run.folder / 'wandb'}'/offline-run-*")
    return "\n".join(lines)


def heldout_error(record: dict) -> float | None:
    """What a sweeper of hydra's may minimise."""
    return record["metrics"].get("test/error_pct") if record["config"]["evaluate"] == "heldout" else None


def in_multirun() -> bool:
    """Whether hydra runs this as one job of several."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


if __name__ == "__main__":
    main(train, after=summarise)
