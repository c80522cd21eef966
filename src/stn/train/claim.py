"""Which process trains a run: two at once would spoil each other's checkpoint."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from stn.train.settings import run_folder, run_key

try:
    import fcntl
except ImportError:  # Windows: nothing is claimed
    fcntl = None


class Busy(RuntimeError):
    """Another process trains the same run: a second command, or a job that outlived the command that started it."""


@contextmanager
def claimed(stack: list[dict]) -> Iterator[None]:
    """Holds the runs of a stack for this process; the system frees them however it ends. Raises: Busy."""
    with ExitStack() as held:
        for settings in stack if fcntl else ():
            path = run_folder(settings).with_suffix(".lock")
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                fcntl.flock(held.enter_context(path.open("w")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Busy(f"{run_key(settings)}: another process is training it (it holds {path})") from error
        yield
