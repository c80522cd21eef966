"""Train and test one model: python -m experiments.train task=mnist_rts model=st_cnn_tps protocol=fast seed=0

Values between commas make one run each (seed=0,1 protocol.mnist.optimiser.lr=0.005,0.01), `workers` at a time. A run
that has its record is not run again, unless force=true. Exit status 75: the time budget is used up; the same command
goes on.
"""

import sys

from experiments.cli import main
from experiments.config import compose_config, run_of
from experiments.grid import jobs_of, train_grid
from experiments.progress import OUT_OF_TIME, console, deadline_of
from stn.progress import Bar
from stn.settings import RunSettings
from stn.train.stopped import OutOfTime


def train(overrides: list[str]) -> None:
    """One run here; several as jobs."""
    jobs = jobs_of(overrides)
    config = compose_config("train", jobs[0])
    if len(jobs) > 1 or config.launcher.name != "local":
        train_grid(jobs)
        return
    run = run_of(config)
    if not run.force and (record := run.recorded()):
        print(f"{run.key}: {record['status']}, as its record says; force=true runs it again")
        return
    from stn.families import network, prepare  # torch and Lightning take seconds to import: not for --help or a typo
    from stn.train import run as running
    from stn.train.parallel import slice_of

    network(run)  # raises when the settings do not fit together, before any data are fetched
    prepare(run)
    tell = print if slice_of(run).rank == 0 else lambda *_: None  # of the processes that train the run together
    steps, deadline = run.recipe["steps"], deadline_of(run.time_budget_s)
    try:
        with Bar(steps, console=console, shown=run.progress and tell is print) as bar:
            (record,) = running.train([run], lambda done: bar.update(done, f"step {done} of {steps}"), deadline)
    except OutOfTime as stopped:
        tell(f"{run.key}: {stopped}; the same command goes on from there")
        sys.exit(OUT_OF_TIME)
    tell(in_words(record))
    tell(places(run))


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


if __name__ == "__main__":
    main(train)
