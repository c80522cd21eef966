"""From settings to one record per run: build, train, test, write. Interrupted runs resume."""

import logging
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, LambdaCallback

from stn.families import Built, build, network
from stn.results.records import write_records
from stn.saved import save
from stn.settings import RunSettings
from stn.tasks.training import Training
from stn.train.checkpoints import Checkpoints, checkpoint_file, forget, name_members, usable
from stn.train.claim import claimed
from stn.train.memory import keep_freed_memory
from stn.train.outcome import outcome
from stn.train.parallel import check_parallel, slice_of, trainer_options
from stn.train.provenance import arithmetic, check_device, code_state, cost_of_bf16, device_name, uses_cuda, versions
from stn.train.stack import Stack
from stn.train.stopped import Interrupted, Stopped
from stn.watch.snapshots import Snapshots
from stn.watch.tracking import Tracked, tracking

log = logging.getLogger(__name__)
logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)  # hardware lines, adverts

# These say nothing about a run: it is not over, or the disk or the GPU is full.
PASSING = (Stopped, OSError, torch.OutOfMemoryError, torch.AcceleratorError)

Record = dict[str, Any]


def train(
    runs: Sequence[RunSettings],
    progress: Callable[[int], None] | None = None,
    deadline: float | None = None,
    callbacks: Sequence[Callback] = (),
    done: Callable[[RunSettings], Record | None] = lambda run: None,
) -> list[Record]:
    """Trains and tests runs, together where there are several (of one `stack_key`); writes and returns their records.

    `progress` is called with the number of steps done, now and then. `deadline`: a time.time() at which to stop.
    `callbacks`: of Lightning; one may end the training by raising a `Stopped`. `done` is asked once this process
    holds the runs: one whose record it knows is not trained.
    Raises: ValueError or DataError for settings or data that cannot be run; nothing is recorded then. Busy when another
    process trains one of the runs. OutOfTime at the deadline; nothing is recorded either, and the next call goes on,
    as after an OSError or an error of the device, and after an Interrupted: what is around training and test failed, a
    logger or the terminal. An error of training or test is recorded with status "failed", unless the run has a record
    already, and raised again; but not where several processes train the run: it may be that one of them was lost.
    """
    code_state()  # before another commit is checked out
    for run in runs:
        network(run)  # what cannot be built is refused before a file is made
    writes = slice_of(runs[0]).rank == 0  # of the processes that train a run together, the first
    with claimed(runs if writes else []):
        records = {run.record_file: done(run) for run in runs}
        todo = [run for run in runs if records[run.record_file] is None]
        if not todo:
            return list(records.values())
        keep_freed_memory()
        builts = [_built(run) for run in todo]
        modules = [built.module for built in builts]
        program = modules[0] if len(modules) == 1 else Stack(modules)
        program.config_hash = "+".join(run.hash for run in todo)
        checkpoint = checkpoint_file(todo)
        name_members(todo)
        kept = Snapshots({run.folder: built.module for run, built in zip(todo, builts, strict=True) if writes})
        saving = [LambdaCallback(on_train_start=_note_place), kept, Checkpoints(checkpoint, deadline)]
        if progress:
            saving.append(LambdaCallback(on_train_batch_end=lambda _, module, *__: progress(module.steps_done)))
        provenance = {"versions": versions(), "data_checksums": builts[0].data_checksums}
        with tracking(todo[0], provenance, writes) as tracked, quiet():
            trainer = _trainer(todo[0], checkpoint.parent, tracked.loggers, [*saving, *callbacks, *tracked.callbacks])
            device = trainer.strategy.root_device
            if "bf16" in {run.precision for run in todo} and (warning := cost_of_bf16(device)):
                log.warning(warning)
            with _recorded(todo, builts, tracked) as ended:
                trainer.fit(program, ckpt_path=usable(checkpoint, program.config_hash), weights_only=True)
                for module in modules:
                    module.arithmetic = arithmetic(module.net)
                    if not module.diverged:
                        trainer.test(module, verbose=False)
            if writes:
                forget(todo)
    return list((records | ended).values())


def _note_place(trainer: pl.Trainer, program: Training | Stack) -> None:
    """A run that was begun elsewhere, or by other code, says so in its record."""
    for module in getattr(program, "replicas", [program]):
        device = device_name(trainer.strategy.root_device, module.slice.count)
        to_be_trained = module.steps_done < module.recipe.steps or not module.devices
        for places, here in ((module.devices, device), (module.code, code_state())):
            if to_be_trained and places[-1:] != [here]:
                places.append(here)


def _built(run: RunSettings) -> Built:
    """The run with its network and data. Raises: ValueError, DataError."""
    check_device(run.device)
    if run.precision == "tf32" and not uses_cuda(run.device):
        raise ValueError("precision=tf32: only CUDA computes in it; allowed here: float32, bf16")
    torch.set_num_threads(run.threads)
    built = build(run)
    built.module.precision, built.module.slice = run.precision, slice_of(run)
    check_parallel(run, built.module)
    run.record_file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=run.record_file.parent):  # a folder that cannot be written is noticed now
        pass
    return built


@contextmanager
def _recorded(runs: Sequence[RunSettings], builts: Sequence[Built], tracked: Tracked) -> Iterator[dict[Path, Record]]:
    """Training and test happen inside; when they end, or an error ends them, weights and records are written."""
    ours, records, error = builts[0].module.slice, {}, None
    try:
        yield records
    except SystemExit as stop:  # what Lightning makes of Ctrl+C
        raise KeyboardInterrupt from stop
    except PASSING:
        raise
    except Exception as raised:
        if ours.count > 1:
            raise  # most likely another process was lost, which says nothing about the run
        if not _began_in_the_run(raised):
            told = " ".join(f"{type(raised).__name__}: {raised}".split())[:500]
            raise Interrupted(
                f"{told}; nothing is recorded, the same command goes on from the last checkpoint"
            ) from raised
        error = raised
    for run, built in zip(runs, builts, strict=True):
        record = records[run.record_file] = outcome(run, built, error)
        if ours.rank == 0 and record["status"] in ("ok", "collapsed"):
            save(built.module.net.state_dict(), run.folder / "weights.pt")
    if ours.rank == 0:
        # Together: a stack that lost some of its runs to a full disk could not go on from its checkpoint.
        write_records({run.record_file: records[run.record_file] for run in runs if not error or not run.recorded()})
        for run in runs:
            tracked.tell(run, records[run.record_file])
    if error is not None:
        raise error


def _began_in_the_run(error: Exception) -> bool:
    """Whether it was raised in a step of training or test: what is around them says nothing about the run."""
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename)
        if file.parent.name == "watch":
            return False
        if file.parent.name == "tasks" or file.name == "stack.py":
            return True
    return False


def _trainer(run: RunSettings, folder: Path, loggers: list, callbacks: list[Callback]) -> pl.Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    return pl.Trainer(
        **trainer_options(run),
        max_epochs=-1,  # the module stops the Trainer after its last step
        logger=loggers or False,
        callbacks=callbacks,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,  # `progress` tells
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's advice about what is intended."""
    with warnings.catch_warnings():
        for about in ("does not have many workers", "`srun` command is available", "LeafSpec"):
            warnings.filterwarnings("ignore", message=f".*{about}.*")
        warnings.filterwarnings("ignore", message=".*resuming from a checkpoint that ended before the epoch.*")
        yield
