"""The checkpoint that an interrupted run, or stack of runs, goes on from."""

import hashlib
import logging
import os
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from pytorch_lightning.callbacks import Callback

from stn.data.errors import DataError
from stn.saved import load
from stn.settings import RunSettings
from stn.train.stopped import OutOfTime

EVERY = timedelta(seconds=30)
CHECKPOINT = "last.ckpt"
MEMBERS = "runs.txt"  # beside a stack's checkpoint: the record files of its runs

log = logging.getLogger(__name__)


def checkpoint_file(runs: Sequence[RunSettings]) -> Path:
    """Of one run in its folder; a stack of runs has a folder of its own."""
    if len(runs) == 1:
        return runs[0].folder / CHECKPOINT
    name = hashlib.sha256("\n".join(str(run.record_file) for run in runs).encode()).hexdigest()[:16]
    return runs[0].output_dir / "stacks" / name / CHECKPOINT


def name_members(runs: Sequence[RunSettings]) -> None:
    """Writes beside the checkpoint of a stack which runs are in it: who goes on must form the same stack."""
    if len(runs) > 1:
        folder = checkpoint_file(runs).parent
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MEMBERS).write_text("\n".join(str(run.record_file) for run in runs), encoding="utf-8")


def begun_stacks(output_dir: Path) -> list[list[str]]:
    """The record files of the runs of each stack that has a checkpoint there."""
    named = sorted((output_dir / "stacks").glob(f"*/{MEMBERS}"))
    return [path.read_text(encoding="utf-8").splitlines() for path in named if (path.parent / CHECKPOINT).exists()]


def forget(runs: Sequence[RunSettings]) -> None:
    """Removes the checkpoint of runs that need none any more, and a stack's list of its runs."""
    path = checkpoint_file(runs)
    for done in (path, path.parent / MEMBERS):
        done.unlink(missing_ok=True)


def usable(path: Path, config_hash: str) -> Path | None:
    """The checkpoint to resume from; None when there is none, or it is torn, or of other settings."""
    if not path.exists():
        return None
    try:
        its_hash = load(path)["config_hash"]
    except (DataError, LookupError, TypeError) as error:
        log.warning("%s: damaged checkpoint, starting again (%s)", path, " ".join(str(error).split()))
        return None
    if its_hash != config_hash:
        log.warning("%s: checkpoint of other settings, starting again", path)
        return None
    return path


class Checkpoints(Callback):
    """Saves the run to `path` every `EVERY` and at the deadline, when it stops it; the file is always whole.

    Lightning's ModelCheckpoint never saves by time under manual optimisation.
    """

    def __init__(self, path: Path, deadline: float | None) -> None:
        self.path, self.deadline, self.saved_at = path, deadline, time.monotonic()

    def on_train_batch_end(self, trainer, module, *_) -> None:
        over = self.deadline is not None and time.time() >= self.deadline and module.steps_done < module.recipe.steps
        due = over or time.monotonic() - self.saved_at >= EVERY.total_seconds()
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
