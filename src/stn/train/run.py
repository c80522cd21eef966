"""One run, from resolved settings to one record: build, train, test, write. Interrupted runs resume."""

import logging
import os
import time
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from stn.families import Built, build
from stn.nets.budget import count_parameters
from stn.results.records import RunKey, config_hash, pack_wrong, write_record
from stn.tasks.training import Diverged, Training
from stn.train.provenance import device_name, git_state, versions
from stn.train.settings import check, record_file, run_folder, run_key, science
from stn.train.tracking import tracking

CHECKPOINT_EVERY = timedelta(seconds=30)
CURVE_POINTS = 200

log = logging.getLogger(__name__)
logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)  # hardware lines, adverts


class _Progress(Callback):
    """Tells `progress` the number of steps done, after every chunk."""

    def __init__(self, progress) -> None:
        self.progress = progress

    def on_train_batch_end(self, trainer, module, *_) -> None:
        self.progress(module.steps_done)


class _Checkpoints(Callback):
    """Saves the run to `path` every `CHECKPOINT_EVERY`; the file is always whole.

    Lightning's ModelCheckpoint never saves by time under manual optimisation.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.saved_at = path, time.monotonic()

    def on_train_batch_end(self, trainer, *_) -> None:
        if time.monotonic() - self.saved_at >= CHECKPOINT_EVERY.total_seconds():
            temporary = self.path.with_suffix(".tmp")
            trainer.save_checkpoint(temporary, weights_only=False)  # the optimiser, too
            os.replace(temporary, self.path)
            self.saved_at = time.monotonic()


def run(settings: dict, progress=None) -> dict:
    """Train and test what `settings` (conf/train.yaml, resolved) describe; write the record and return it.

    `progress` is called with the number of steps done, now and then.
    Raises: ValueError or DataError for settings or data that cannot be run; nothing is recorded then. An error during
    training is recorded with status "failed" and raised again.
    """
    check(settings)
    if settings["device"] == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: no CUDA device is here; allowed: auto, cpu")
    key = run_key(settings)
    torch.set_num_threads(settings["threads"])
    built = build(settings)
    module, record = built.module, _blank_record(settings, key, built)
    folder, path = run_folder(settings), record_file(settings)
    try:
        device = _train_and_test(module, settings, key, record["config_hash"], folder, progress)
    except Diverged as error:
        record |= {"status": "diverged", "reason": str(error), "curve": _thinned(module.curve)}
    except SystemExit as stop:  # what Lightning makes of Ctrl+C
        raise KeyboardInterrupt from stop
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        write_record(path, record | {"status": "failed", "reason": reason, "finished_at": _now()})
        raise
    else:
        record |= _measured(module, device)
        torch.save(module.net.state_dict(), folder / "weights.pt")
    write_record(path, record | {"finished_at": _now()})
    (folder / "last.ckpt").unlink(missing_ok=True)
    return record


def _train_and_test(module, settings, key, config_hash, folder, progress) -> torch.device:
    """Fit (resuming from the last checkpoint) and test; the device it ran on."""
    folder.mkdir(parents=True, exist_ok=True)
    module.config_hash = config_hash
    checkpoint = _usable_checkpoint(folder / "last.ckpt", config_hash)
    callbacks = [_Checkpoints(folder / "last.ckpt")]
    if progress:
        callbacks.append(_Progress(progress))
    with tracking(settings, key, folder) as (logger, extra_callbacks), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", message=".*resuming from a checkpoint that ended before the epoch.*")
        trainer = pl.Trainer(
            accelerator="cpu" if settings["device"] == "cpu" else "auto" if settings["device"] == "auto" else "gpu",
            devices=1,
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
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
        device = module.device
        trainer.test(module, verbose=False)
        if logger:
            logger.log_metrics(module.metrics, step=module.recipe.steps)
    return device


def _usable_checkpoint(path: Path, config_hash: str) -> Path | None:
    """The checkpoint to resume from; None when there is none, or it is torn, or of other settings."""
    if not path.exists():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)["config_hash"]
    except Exception as error:  # whatever a damaged file makes torch raise
        log.warning("%s: damaged checkpoint (%s), starting again", path, type(error).__name__)
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


def _measured(module: Training, device: torch.device) -> dict:
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
        "device": device_name(device),
    }


def _thinned(curve: dict[str, list]) -> dict[str, list]:
    """The curve at `CURVE_POINTS` points at most, the last one among them."""
    n = len(curve["step"])
    stride = max(1, -(-n // CURVE_POINTS))
    return {name: values[(n - 1) % stride :: stride] if n else [] for name, values in curve.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
