"""Which process trains a run: two at once would spoil each other's checkpoint."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from stn.settings import RunSettings
from stn.train.stopped import Busy


@contextmanager
def claimed(runs: Sequence[RunSettings]) -> Iterator[None]:
    """Holds these runs for this process; the system frees them however it ends. Raises: Busy."""
    with ExitStack() as held:
        for run in runs:
            held.enter_context(held_file(run.folder.with_suffix(".lock"), f"{run.key}: another process is training it"))
        yield


@contextmanager
def held_file(path: Path, complaint: str) -> Iterator[None]:
    """Holds the lock on a file, which is made and stays. Raises: Busy, with the complaint, when another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(f"{complaint} (it holds {path}); give the same command again when that has ended") from error
        yield
