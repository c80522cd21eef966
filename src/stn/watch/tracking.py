"""Weights & Biases tracking of a run; wandb is imported only when it is used."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from stn.results.records import RunKey, records_root
from stn.settings import RunSettings

TOLD = ("status", "reason", "wall_s", "images_per_s")


class Tracked:
    """What the Trainer is given for a run that is tracked, or for one that is not; told how the run ended."""

    def __init__(self, logger=False, callbacks=()) -> None:
        self.logger, self.callbacks = logger, callbacks
        self.status: str | None = None

    def __iter__(self) -> Iterator:
        return iter(self.callbacks)

    def tell(self, record: Mapping) -> None:
        """The test's metrics, and in the W&B run's summary what its record says besides: status, reason, seconds."""
        if self.logger:
            measured = {name: value for name, value in record["metrics"].items() if name.startswith("test/")}
            self.logger.log_metrics(measured, record["steps"])
            self.logger.experiment.summary.update({name: record[name] for name in TOLD})
            self.status = record["status"]


@contextmanager
def tracking(run: RunSettings, writes: bool = True) -> Iterator[Tracked]:
    """W&B for the Trainer; nothing where wandb.mode is disabled or another process `writes`.

    The run id depends on the run's key and folder alone, so a resumed run continues the same W&B run. Closes the W&B
    run on leaving, so that the runs of one process do not share one; as preempted when it was stopped.
    """
    if run.wandb.mode == "disabled" or not writes:
        yield Tracked()
        return
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    from stn.watch.telemetry import Telemetry
    from stn.watch.warp_pictures import WarpPictures

    key = run.key
    identity = f"{key}|{records_root(run.results_dir, run.data).resolve()}"
    logger = WandbLogger(
        project=run.wandb.project,
        entity=run.wandb.entity,
        mode=run.wandb.mode,
        name=str(key),
        id=hashlib.sha256(identity.encode()).hexdigest()[:12],
        resume="allow",
        save_dir=str(run.folder),
        group=run.wandb.group or default_group(key, run.data),
        job_type=key.protocol,
        tags=[key.task, key.model, key.protocol, f"seed{key.seed}", run.data],
        config=run.config
        | {"protocol": key.protocol}
        | {name: getattr(run, name) for name in ("data", "precision", "device", "threads")},
    )
    tracked = Tracked(logger, [Telemetry(), WarpPictures()])
    try:
        yield tracked
    except BaseException as error:
        if tracked.status is None:  # no record, so it goes on some time
            logger.experiment.mark_preempting()  # W&B then shows the run as preempted, to be resumed
            reason = f"{type(error).__name__}: {error}"[:500]
            logger.experiment.summary.update({"status": "stopped", "reason": reason})
        raise
    finally:
        wandb.finish(0 if tracked.status in ("ok", "collapsed") else 1)


def default_group(key: RunKey, data: str) -> str:
    """The seeds of one cell, whose protocols are W&B's job types; the runs of a sweep over a cell are another group.

    A run that departs from its protocol is a sweep's, and has a protocol name with a hash (`RunSettings.variant`).
    """
    cell = f"{key.task}/{key.model}" + ("" if data == "real" else f" {data}")
    protocol, _, variant = key.protocol.partition("-")
    return f"sweep of {cell}, {protocol}" if variant else cell
