"""Why a run ends without a record: the same command continues it later. Imports no torch."""


class Stopped(Exception):
    """Training was ended from outside before its last step; nothing is recorded."""


class Pruned(Stopped):
    """A search gave the run up; its `status` is what W&B shows."""

    status = "pruned"


class Interrupted(Stopped):
    """What is around a run failed, not its training or test: a logger, the terminal, the Trainer's start."""


class OutOfTime(Stopped):
    """The time budget ended before the training did; the checkpoint is there for the next call."""


class Busy(RuntimeError):
    """Another process does the same: a second command, or a job that outlived the command that started it."""
