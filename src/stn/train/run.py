"""From resolved settings to one record per run: build, train, test, write. Interrupted runs resume."""

import hashlib
import logging
import math
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from stn.data.errors import DataError
from stn.families import Built, build
from stn.nets.budget import count_parameters
from stn.results.records import RunKey, config_hash, pack_wrong, write_record, write_records
from stn.tasks.training import Diverged, Training
from stn.train.memory import keep_freed_memory
from stn.train.parallel import check_parallel, part_of, trainer_options
from stn.train.provenance import arithmetic, device_name, git_state, versions
from stn.train.saved import load, save
from stn.train.settings import check, record_file, run_folder, run_key, science
from stn.train.snapshots import Snapshots
from stn.train.stack import Stack
from stn.train.tracking import log_outcome, tracking

CHECKPOINT_EVERY = timedelta(seconds=30)
CURVE_POINTS = 200

log = logging.getLogger(__name__)
logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)  # hardware lines, adverts


class Stopped(Exception):
    """Training was ended from outside before its last step; nothing is recorded."""


class OutOfTime(Stopped):
    """The time budget ended before the training did; the checkpoint is there for the next call."""


class _Progress(Callback):
    """Tells `progress` the number of steps done, after every chunk."""

    def __init__(self, progress) -> None:
        self.progress = progress

    def on_train_batch_end(self, trainer, module, *_) -> None:
        self.progress(module.steps_done)


class _Checkpoints(Callback):
    """Saves the run to `path` every `CHECKPOINT_EVERY` and at the deadline, when it stops it; the file is always whole.

    Lightning's ModelCheckpoint never saves by time under manual optimisation.
    """

    def __init__(self, path: Path, deadline: float | None) -> None:
        self.path, self.deadline, self.saved_at = path, deadline, time.monotonic()

    def on_train_batch_end(self, trainer, module, *_) -> None:
        over = self.deadline is not None and time.time() >= self.deadline and module.steps_done < module.recipe.steps
        due = over or time.monotonic() - self.saved_at >= CHECKPOINT_EVERY.total_seconds()
        over, due = trainer.strategy.broadcast((over, due))  # of several processes, the first one's clock counts
        if due:
            temporary = self.path.with_suffix(".tmp")
            try:
                trainer.save_checkpoint(temporary, weights_only=False)  # the optimiser, too
                if trainer.is_global_zero:
                    os.replace(temporary, self.path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            self.saved_at = time.monotonic()
        if over:
            raise OutOfTime(f"stopped by the time budget after step {module.steps_done} of {module.recipe.steps}")


class _Run:
    """One run on its way from settings to record."""

    def __init__(self, settings: dict) -> None:
        check(settings)
        if settings["device"] == "cuda" and not torch.cuda.is_available():
            raise ValueError("device=cuda: no CUDA device is here; allowed: auto, cpu")
        torch.set_num_threads(settings["threads"])
        self.settings, self.key = settings, run_key(settings)
        self.folder, self.path = run_folder(settings), record_file(settings)
        built = build(settings)
        self.module, self.record = built.module, _blank_record(settings, self.key, built)
        self.module.precision, self.module.part = settings["precision"], part_of(settings)
        check_parallel(settings, self.module)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.path.parent):  # a folder that takes no record is found now, not at the end
            pass

    @property
    def writes(self) -> bool:
        """Whether this process, of those that train the run together, writes its files."""
        return self.module.part.rank == 0

    def found(self, **values) -> None:
        self.record |= {**values, "finished_at": _now()}


def run(settings: dict, progress=None, deadline: float | None = None, callbacks: Sequence[Callback] = ()) -> dict:
    """Train and test what `settings` (conf/train.yaml, resolved) describe; write the record and return it.

    `progress` is called with the number of steps done, now and then. `deadline`: a time.time() at which to stop.
    `callbacks`: of Lightning; one may end the training by raising a `Stopped`.
    Raises: ValueError or DataError for settings or data that cannot be run; nothing is recorded then. OutOfTime at the
    deadline; nothing is recorded either, and the next call goes on, as after an OSError or an error of the device: a
    full disk or a full GPU says nothing about the run. Another error during training is recorded with status "failed"
    and raised again, but not where several processes train the run: it may be that one of them was lost.
    """
    return run_stack([settings], progress, deadline, callbacks)[0]


def run_stack(
    all_settings: list[dict], progress=None, deadline: float | None = None, callbacks: Sequence[Callback] = ()
) -> list[dict]:
    """As `run`, for several runs of one `stack_key` that train together; each has a record of its own."""
    keep_freed_memory()
    runs = [_Run(settings) for settings in all_settings]
    trained = runs[0].module if len(runs) == 1 else Stack([run.module for run in runs])
    folder = runs[0].folder if len(runs) == 1 else _stack_folder(runs)
    trained.config_hash = "+".join(run.record["config_hash"] for run in runs)
    try:
        diverged = _train_and_test(trained, runs, folder, progress, deadline, callbacks)
    except (Stopped, OSError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except SystemExit as stop:  # what Lightning makes of Ctrl+C
        raise KeyboardInterrupt from stop
    except Exception as error:
        if runs[0].module.part.count > 1:
            raise  # most likely another process was lost, which says nothing about the run
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        for run in runs:
            run.found(status="failed", reason=reason)
            write_record(run.path, run.record)
        raise
    for i, run in enumerate(runs):
        reason = diverged.get(i) or _not_finite(run.module)
        if reason:
            run.found(status="diverged", reason=reason, curve=_thinned(run.module.curve))
        elif run.writes:
            save(run.module.net.state_dict(), run.folder / "weights.pt")
            run.found(**_measured(run.module))
    if runs[0].writes:
        # Together: a stack that lost some of its runs to a full disk could not go on from its checkpoint.
        write_records({run.path: run.record for run in runs})
        (folder / "last.ckpt").unlink(missing_ok=True)
    return [run.record for run in runs]


def _not_finite(module: Training) -> str | None:
    """Which number of the test cannot be: the last training step may ruin a net whose losses were finite."""
    bad = (
        f"{name} is {value} after the last step" for name, value in module.metrics.items() if not math.isfinite(value)
    )
    return next(bad, None)


def _stack_folder(runs: list[_Run]) -> Path:
    """Where a stack leaves its checkpoint."""
    name = hashlib.sha256("\n".join(str(run.path) for run in runs).encode()).hexdigest()[:16]
    return Path(runs[0].settings["output_dir"]) / "stacks" / name


def _train_and_test(
    trained, runs: list[_Run], folder: Path, progress, deadline: float | None, callbacks: Sequence[Callback]
) -> dict[int, str]:
    """Fit (resuming from the last checkpoint), then test each run; which of them diverged, and why."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = _usable_checkpoint(folder / "last.ckpt", trained.config_hash)
    snapshots = Snapshots({run.folder: run.module for run in runs if run.writes})
    saving = [snapshots, _Checkpoints(folder / "last.ckpt", deadline)]
    callbacks = [*saving, *callbacks]
    if progress:
        callbacks.append(_Progress(progress))
    settings = runs[0].settings
    tracked = settings if runs[0].writes else settings | {"wandb": {"mode": "disabled"}}
    with tracking(tracked, runs[0].key, folder) as (logger, extra_callbacks), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", message=".*resuming from a checkpoint that ended before the epoch.*")
        trainer = pl.Trainer(
            **trainer_options(settings),
            max_epochs=-1,  # the module stops the Trainer after its last step
            logger=logger,
            callbacks=callbacks + extra_callbacks,
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=settings["progress"],
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
        )
        try:
            trainer.fit(trained, ckpt_path=checkpoint, weights_only=True)
        except Diverged as error:
            return {0: str(error)}
        diverged = getattr(trained, "diverged", {})
        for i, run in enumerate(runs):
            if i not in diverged:
                run.record["device"] = device_name(trainer.strategy.root_device, run.module.part.count)
                run.record["versions"] |= arithmetic(run.module.net)
                trainer.test(run.module, verbose=False)
        if logger:
            log_outcome(logger, _measured(runs[0].module), trained.recipe.steps)
    return diverged


def _usable_checkpoint(path: Path, config_hash: str) -> Path | None:
    """The checkpoint to resume from; None when there is none, or it is torn, or of other settings."""
    if not path.exists():
        return None
    try:
        found = load(path)["config_hash"]
    except (DataError, LookupError, TypeError) as error:
        log.warning("%s: damaged checkpoint, starting again (%s)", path, " ".join(str(error).split()))
        return None
    if found != config_hash:
        log.warning("%s: checkpoint of other settings, starting again", path)
        return None
    return path


def _blank_record(settings: dict, key: RunKey, built: Built) -> dict:
    module, config = built.module, science(settings)
    return {
        "schema": 1,
        "status": "ok",
        "reason": None,
        **key._asdict(),
        "data": settings["data"],
        "config": config,
        "config_hash": config_hash(config),
        "n_params": count_parameters(module.net),
        "widths": built.widths,
        "metrics": {},
        "per_draw": {},
        "n_test": module.n_test,
        "test_draws": module.recipe.test_draws,
        "test_wrong": None,
        "curve": {},
        "steps": module.recipe.steps,
        "wall_s": None,
        "images_per_s": None,
        "device": "unknown",
        "threads": settings["threads"],
        "versions": versions(),
        "git": git_state(),
        "data_checksums": built.data_checksums,
    }


def _measured(module: Training) -> dict:
    """What a finished run adds to its record, with the verdict whether it learned anything."""
    curve = _thinned(module.curve)
    tail = curve["train/loss"][-max(1, len(curve["train/loss"]) // 10) :]
    loss = sum(tail) / len(tail)
    reason = module.collapse(loss)
    return {
        "status": "collapsed" if reason else "ok",
        "reason": reason,
        "metrics": {"train/loss": loss, **module.metrics},
        "per_draw": module.per_draw,
        "test_wrong": None if module.test_wrong is None else pack_wrong(module.test_wrong.numpy()),
        "curve": curve,
        "wall_s": round(module.train_s, 2),
        "images_per_s": round(module.recipe.steps * module.recipe.batch_size / module.train_s, 1),
    }


def _thinned(curve: dict[str, list]) -> dict[str, list]:
    """The curve at `CURVE_POINTS` points at most, the last one among them."""
    n = len(curve["step"])
    stride = max(1, -(-n // CURVE_POINTS))
    return {name: values[(n - 1) % stride :: stride] if n else [] for name, values in curve.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
