"""Which process trains a run: two at once would spoil each other's checkpoint."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from stn.train.settings import run_folder, run_key

try:
    import fcntl
except ImportError:  # Windows: nothing is claimed
    fcntl = None


class Busy(RuntimeError):
    """Another process does the same: a second command, or a job that outlived the command that started it."""


@contextmanager
def claimed(stack: list[dict]) -> Iterator[None]:
    """Holds the runs of a stack for this process; the system frees them however it ends. Raises: Busy."""
    with ExitStack() as held:
        for settings in stack:
            path = run_folder(settings).with_suffix(".lock")
            held.enter_context(held_file(path, f"{run_key(settings)}: another process is training it"))
        yield


@contextmanager
def held_file(path: Path, complaint: str) -> Iterator[None]:
    """Holds the lock on a file, which is made and stays. Raises: Busy, with the complaint, when another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(f"{complaint} (it holds {path}); give the same command again when that has ended") from error
        yield
