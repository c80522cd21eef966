"""One run, from resolved settings to one record: build, train, test, write. Interrupted runs resume."""

import logging
import math
import os
import time
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from stn.data.distortions import distortion
from stn.data.mnist import MNIST_MD5, holdout, load_mnist
from stn.data.seeds import stream_seed
from stn.data.streams import stream_class
from stn.nets.budget import count_parameters
from stn.nets.mnist import Architecture, build_within_budget
from stn.results.records import RunKey, config_hash, pack_wrong, record_path, write_record
from stn.tasks.classification import Classification, Diverged, Recipe
from stn.train.provenance import device_name, git_state, versions
from stn.train.settings import check, from_settings, run_key, science
from stn.train.tracking import tracking

CHECKPOINT_EVERY = timedelta(seconds=30)
CURVE_POINTS = 200
# A run counts as collapsed when its last losses are no better than guessing, or its ST looks past the image.
GUESSING_MARGIN = 0.05
MIN_GRID_INSIDE = 0.05

log = logging.getLogger(__name__)
logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)  # hardware lines, adverts


def build_classification(settings: dict) -> tuple[Classification, tuple[int, int]]:
    """The LightningModule of a run on distorted MNIST, and its network's layer widths.

    Raises: ValueError for settings that do not fit together, DataError when MNIST is not there.
    """
    task, seed = settings["task"], settings["seed"]
    recipe = from_settings(Recipe, settings["recipe"], "the recipe")
    model = {name: value for name, value in settings["model"].items() if name != "name"}
    model |= {"padding": recipe.padding, "antialias": recipe.antialias}
    architecture = from_settings(Architecture, model, "the model")
    warp = from_settings(distortion, task["distortion"], "the distortion")
    make_stream = stream_class(task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "weights"))
        net, widths = build_within_budget(
            architecture,
            (make_stream.channels, *warp.canvas),
            make_stream.classes,
            task["st_output_pool"],
            recipe.filters,
        )
    train = load_mnist(settings["data_dir"], "train")
    train, test = (
        (train, load_mnist(settings["data_dir"], "test")) if settings["evaluate"] == "test" else holdout(train)
    )
    return Classification(net, make_stream(warp, train, test), recipe, seed), widths


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
    module, widths = build_classification(settings)
    record = _blank_record(settings, key, module, widths)
    folder = Path(settings["output_dir"]) / "runs" / key.task / key.model / key.protocol / f"seed{key.seed}"
    path = record_path(settings["results_dir"], key)
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


def _blank_record(settings: dict, key: RunKey, module: Classification, widths: tuple[int, int]) -> dict:
    recipe, config = module.recipe, science(settings)
    return {
        "schema": 1,
        "status": "ok",
        "reason": None,
        **key._asdict(),
        "data": "real",
        "config": config,
        "config_hash": config_hash(config),
        "n_params": count_parameters(module.net),
        "widths": {"layer1": widths[0], "layer2": widths[1]},
        "metrics": {},
        "per_draw": {},
        "n_test": module.stream.n_test,
        "test_draws": recipe.test_draws,
        "test_wrong": None,
        "curve": {},
        "steps": recipe.steps,
        "wall_s": None,
        "images_per_s": None,
        "device": "unknown",
        "threads": settings["threads"],
        "versions": versions(),
        "git": git_state(),
        "data_checksums": dict(MNIST_MD5),
    }


def _measured(module: Classification, device: torch.device) -> dict:
    """What a finished run adds to its record, with the verdict whether it learned anything."""
    curve = _thinned(module.curve)
    tail = curve["train/loss"][-max(1, len(curve["train/loss"]) // 10) :]
    loss = sum(tail) / len(tail)
    metrics = {"train/loss": loss, **module.metrics}
    reason = None
    classes = module.stream.classes
    if loss > math.log(classes) - GUESSING_MARGIN:
        reason = f"training loss {loss:.3f} at the end is that of guessing among {classes} classes"
    elif min(_grid_inside(metrics), default=1.0) < MIN_GRID_INSIDE:
        reason = f"only {min(_grid_inside(metrics)):.1%} of a sampling grid lies inside the image"
    return {
        "status": "collapsed" if reason else "ok",
        "reason": reason,
        "metrics": metrics,
        "per_draw": {"test/error_pct": module.per_draw},
        "test_wrong": pack_wrong(module.test_wrong.numpy()),
        "curve": curve,
        "wall_s": round(module.train_s, 2),
        "images_per_s": round(module.recipe.steps * module.recipe.batch_size / module.train_s, 1),
        "device": device_name(device),
    }


def _grid_inside(metrics: dict) -> list[float]:
    """The share of grid points inside the image, of every transformer."""
    return [value for name, value in metrics.items() if name.endswith("grid_inside")]


def _thinned(curve: dict[str, list]) -> dict[str, list]:
    """The curve at `CURVE_POINTS` points at most, the last one among them."""
    n = len(curve["step"])
    stride = max(1, -(-n // CURVE_POINTS))
    return {name: values[(n - 1) % stride :: stride] if n else [] for name, values in curve.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
