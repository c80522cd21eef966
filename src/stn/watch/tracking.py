"""Weights & Biases tracking of a run; wandb is imported only when it is used."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

from stn.data.errors import one_line
from stn.results.records import RunKey, read_record, records_root
from stn.settings import RunSettings

TOLD = ("status", "reason", "wall_s", "images_per_s")
STEP = "trainer/global_step"  # every metric's x axis: training steps

log = logging.getLogger(__name__)


class NotStarted(ValueError):
    """What should track a run is not available; one line, with the remedy."""


class WandbRun(Logger):
    """One W&B run, as a logger of Lightning. When it fails, the training goes on, tracked offline, with a warning."""

    def __init__(self, **options: Any) -> None:
        """`options`: of wandb.init. Raises: NotStarted, with the remedy."""
        super().__init__()
        import wandb

        self.options = options
        try:
            self.run = self._begin()
        except (Exception, SystemExit) as error:
            with suppress(Exception):
                wandb.teardown()
            raise NotStarted(
                f"W&B did not start ({one_line(error)[:300]}): `wandb login`, check the network, or track with "
                "wandb.mode=offline"
            ) from error

    def _begin(self, **changes: Any):
        import wandb

        run = wandb.init(**self.options | changes)
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        return run

    def safely(self, tell: Callable[[Any], Any]) -> None:
        """tell(the W&B run); where that fails, the same of one that goes on offline, under the same id."""
        try:
            if self.run is not None:
                tell(self.run)
        except Exception as error:
            import wandb

            with suppress(Exception):
                wandb.teardown()
            told = one_line(error)
            try:
                self.run = self._begin(mode="offline")
                tell(self.run)
                log.warning("W&B failed (%s); the run goes on and is tracked offline, in %s", told, self.run.dir)
            except Exception as again:
                self.run = None
                log.warning("W&B failed (%s), and again offline (%s); the run goes on without it", told, again)

    @property
    def name(self) -> str:
        return self.options["project"]

    @property
    def version(self) -> str:
        return self.options["name"] or "agent"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.log({**metrics, STEP: step})

    def log(self, values: dict[str, Any]) -> None:
        """Metrics, pictures, charts, with their `STEP`."""
        self.safely(lambda run: run.log(values))

    def log_hyperparams(self, params: Mapping[str, Any], *_: Any, **__: Any) -> None:
        self.safely(lambda run: run.config.update(dict(params), allow_val_change=True))

    def finish(self, exit_code: int) -> None:
        self.safely(lambda run: run.finish(exit_code))


class Tracked:
    """What the Trainer is given for a run that is tracked, or for one that is not; told how the run ended."""

    def __init__(self, loggers: list[Logger], callbacks=()) -> None:
        self.loggers, self.callbacks = loggers, callbacks
        self.wandb = next((logger for logger in loggers if isinstance(logger, WandbRun)), None)
        self.status: str | None = None

    def tell(self, run: RunSettings, record: Mapping) -> None:
        """The test's metrics; and in the W&B run's summary what its record says besides: status, reason, seconds."""
        measured = {name: value for name, value in record["metrics"].items() if not name.startswith("train/")}
        for logger in self.loggers:
            logger.log_metrics(measured, record["steps"])
        self.status = record["status"]
        if self.wandb is None:
            return
        self.wandb.safely(lambda tracked: tracked.summary.update({name: record[name] for name in TOLD}))
        if record["status"] != "ok":
            self.wandb.safely(lambda tracked: tracked.alert(f"{run.key}: {record['status']}", record["reason"] or ""))
        if run.wandb.artifacts and record["status"] in ("ok", "collapsed"):
            self._log_model(run, record)

    def _log_model(self, run: RunSettings, record: Mapping) -> None:
        """Weights and record in one file, as a W&B artifact of the run."""
        import wandb

        from stn.trained import SUFFIX, find, write

        name = "-".join([*run.key[:3], f"seed{run.seed}"])
        metadata = {name: record[name] for name in ("config_hash", "n_params", "metrics", "steps")}
        try:
            path = write(find(record, output_dir=run.output_dir), run.folder / f"model{SUFFIX}")
            artifact = wandb.Artifact(name, type="model", metadata=metadata)
            artifact.add_file(str(path))
        except (OSError, ValueError) as error:  # the run is over and recorded: a full disk is no reason to end it so
            log.warning("%s: no W&B artifact (%s)", run.key, one_line(error))
            return
        self.wandb.safely(lambda tracked: tracked.log_artifact(artifact))


@contextmanager
def tracking(run: RunSettings, config: Mapping[str, Any], writes: bool = True) -> Iterator[Tracked]:
    """The loggers of a run for the Trainer; none where another process `writes`. `config`: what W&B's states besides.

    Closes the W&B run on leaving, so that the runs of one process do not share one; as preempted when it was stopped.
    Raises: NotStarted, with the remedy, where W&B does not start.
    """
    loggers: list[Logger] = _files(run) if writes else []
    if run.wandb.mode == "disabled" or not writes:
        yield Tracked(loggers)
        return
    from stn.watch.telemetry import Telemetry
    from stn.watch.warp_pictures import WarpPictures

    wandb_run = WandbRun(**options(run, config))
    tracked = Tracked([wandb_run, *loggers], [Telemetry(wandb_run), WarpPictures(wandb_run)])
    try:
        yield tracked
    except BaseException as error:
        if tracked.status is None:  # no record: it was pruned, or goes on some time
            tracked.status = getattr(error, "status", "stopped")
            if tracked.status == "stopped":
                wandb_run.safely(lambda at: at.mark_preempting())  # W&B then shows it as preempted, to be resumed
            told = {"status": tracked.status, "reason": f"{type(error).__name__}: {error}"[:500]}
            wandb_run.safely(lambda at: at.summary.update(told))
        raise
    finally:
        wandb_run.finish(0 if tracked.status in ("ok", "pruned") else 1)


def _files(run: RunSettings) -> list[Logger]:
    """Lightning's own loggers, whose files lie in the run's folder."""
    made = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}
    try:
        return [made[name](run.folder, name="", version=name) for name in run.loggers]
    except ModuleNotFoundError as error:
        raise NotStarted("loggers=[tensorboard]: it is not installed: pip install tensorboard") from error


def options(run: RunSettings, config: Mapping[str, Any]) -> dict[str, Any]:
    """What wandb.init is told of a run.

    The id depends on the run's key and folder alone, and on the record that it replaces (one made with other settings,
    or with force=true), so a resumed run continues the same W&B run, and one begun anew is another. An agent of a W&B
    sweep gives its runs ids of its own.
    """
    key, wandb = run.key, run.wandb
    replaced = read_record(run.record_file)["finished_at"] if run.record_file.exists() else ""
    identity = f"{key}|{records_root(run.results_dir, run.data).resolve()}{replaced}"
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):  # by default in the home folder
        os.environ.setdefault(name, str((run.output_dir / "wandb").resolve()))
    by_agent = "WANDB_SWEEP_ID" in os.environ
    run.folder.mkdir(parents=True, exist_ok=True)
    return {
        "project": wandb.project,
        "entity": wandb.entity,
        "mode": wandb.mode,
        "name": None if by_agent else str(key),
        "id": os.environ.get("WANDB_RUN_ID") if by_agent else hashlib.sha256(identity.encode()).hexdigest()[:12],
        "resume": None if by_agent else "allow",
        "dir": str(run.folder),
        "group": wandb.group or default_group(key, run.data),
        "job_type": key.protocol,
        "tags": [key.task, key.model, key.protocol, f"seed{key.seed}", run.data],
        "config": {
            **run.config,
            "protocol": key.protocol,
            **{name: getattr(run, name) for name in ("data", "precision", "device", "threads")},
            **config,
            **wandb.config,
        },
    }


def default_group(key: RunKey, data: str) -> str:
    """The seeds of one cell, whose protocols are W&B's job types; the runs of a sweep over a cell are another group.

    A run that departs from its protocol is a sweep's, and has a protocol name with a hash (`RunSettings.variant`).
    """
    cell = f"{key.task}/{key.model}" + ("" if data == "real" else f" {data}")
    protocol, _, variant = key.protocol.partition("-")
    return f"sweep of {cell}, {protocol}" if variant else cell
