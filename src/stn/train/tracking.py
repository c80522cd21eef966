"""Weights & Biases tracking of a run; wandb is imported only when it is used."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from stn.results.records import RunKey, records_root
from stn.train.settings import science

MODES = ("disabled", "offline", "online")


@contextmanager
def tracking(settings: dict, key: RunKey, folder: Path) -> Iterator[tuple[object, list]]:
    """(logger, callbacks) for the Trainer: (False, []) when wandb.mode is disabled.

    The run id depends on the run's key and folder alone, so a resumed run continues the same W&B run. Closes the W&B
    run on leaving, as failed when it failed, so that the runs of one process do not share one.
    Raises: ValueError for an unknown mode.
    """
    wandb_settings = settings["wandb"]
    if wandb_settings["mode"] not in MODES:
        raise ValueError(f"wandb.mode must be one of {MODES}, got {wandb_settings['mode']!r}")
    if wandb_settings["mode"] == "disabled":
        yield False, []
        return
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    from stn.train.telemetry import Telemetry
    from stn.train.warp_pictures import WarpPictures

    identity = f"{key}|{records_root(settings['results_dir'], settings['data']).resolve()}"
    logger = WandbLogger(
        project=wandb_settings["project"],
        entity=wandb_settings["entity"],
        mode=wandb_settings["mode"],
        name=str(key),
        id=hashlib.sha256(identity.encode()).hexdigest()[:12],
        resume="allow",
        save_dir=str(folder),
        group=wandb_settings["group"] or default_group(key, settings["data"]),
        job_type=key.protocol,
        tags=[key.task, key.model, key.protocol, f"seed{key.seed}", settings["data"]],
        config=science(settings)
        | {"protocol": key.protocol}
        | {name: settings[name] for name in ("data", "precision", "device", "threads")},
    )
    telemetry, exit_code = Telemetry(), 1
    try:
        yield logger, [telemetry, WarpPictures()]
        exit_code = int(telemetry.failed)
    finally:
        wandb.finish(exit_code)


def default_group(key: RunKey, data: str) -> str:
    """The seeds of one cell, whose protocols are W&B's job types; the runs of a sweep over a cell are another group.

    A run that departs from its protocol is a sweep's, and has a protocol name with a hash (`stn.train.settings`).
    """
    cell = f"{key.task}/{key.model}" + ("" if data == "real" else f" {data}")
    protocol, _, variant = key.protocol.partition("-")
    return f"sweep of {cell}, {protocol}" if variant else cell


def log_outcome(logger, measured: Mapping, step: int) -> None:
    """The test's metrics, and in the W&B run's summary what its record says besides: status, reason, seconds."""
    logger.log_metrics({name: value for name, value in measured["metrics"].items() if name.startswith("test/")}, step)
    told = ("status", "reason", "wall_s", "images_per_s")
    logger.experiment.summary.update({name: measured[name] for name in told})
