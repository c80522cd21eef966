"""Weights & Biases tracking of a run; wandb is imported only when it is used."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODES = ("disabled", "offline", "online")


@contextmanager
def tracking(settings: dict, key, folder: Path) -> Iterator[tuple[object, list]]:
    """(logger, callbacks) for the Trainer: (False, []) when wandb.mode is disabled.

    The run id depends on the run's key and folder alone, so a resumed run continues the same W&B run. Closes the W&B
    run on leaving, so that the runs of one process do not share one.
    Raises: ValueError for an unknown mode.
    """
    wandb_settings = settings["wandb"]
    if wandb_settings["mode"] not in MODES:
        raise ValueError(f"wandb.mode must be one of {MODES}, got {wandb_settings['mode']!r}")
    if wandb_settings["mode"] == "disabled":
        yield False, []
        return
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ["WANDB_MODE"] = wandb_settings["mode"]
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    from stn.train.warp_pictures import WarpPictures

    identity = f"{key}|{Path(settings['results_dir']).resolve()}"
    logger = WandbLogger(
        project=wandb_settings["project"],
        entity=wandb_settings["entity"],
        name=str(key),
        id=hashlib.sha256(identity.encode()).hexdigest()[:12],
        resume="allow",
        save_dir=str(folder),
        group=f"{key.task}/{key.model}",
        job_type=key.protocol,
        tags=[key.task, key.model, key.protocol, f"seed{key.seed}"],
        config={name: settings[name] for name in ("task", "model", "recipe", "evaluate", "seed")},
    )
    failed = True
    try:
        yield logger, [WarpPictures()]
        failed = False
    finally:
        wandb.finish(exit_code=int(failed))
