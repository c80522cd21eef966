"""Temporary folders beside what they become, and the removal of those that killed processes left."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


@contextmanager
def staging(parent: Path, prefix: str) -> Iterator[Path]:
    """An empty folder in `parent`, which is made too; removed in the end, with what is then still in it.

    A living process holds a lock on its folder. Those without one, under the same prefix, are of processes that were
    killed; they are removed first. Where a file system has no locks, they stay.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for abandoned in parent.glob(f"{prefix}*"):
        with suppress(OSError), _locked(abandoned):
            shutil.rmtree(abandoned, ignore_errors=True)
    with ExitStack() as held:
        folder = None
        while folder is None:
            folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
            try:
                held.enter_context(_locked(folder))
            except (BlockingIOError, FileNotFoundError):
                folder = None  # another process took it for abandoned before it was locked
            except OSError:
                pass  # no locks here
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


@contextmanager
def new_folder(folder: Path, prefix: str, whole: Callable[[], object]) -> Iterator[Path]:
    """An empty folder beside `folder`, which gets its name in the end.

    Where the name is taken by then and the folder is `whole`, another process was faster: its folder stays.
    """
    with staging(folder.parent, prefix) as temporary:
        fresh = temporary / "fresh"
        fresh.mkdir()
        yield fresh
        try:
            os.rename(fresh, folder)
        except OSError:
            if not whole():
                raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the lock on a folder. Raises: OSError when another process has it, or the folder is gone."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(handle), os.stat(folder)):
            raise FileNotFoundError(folder)
        yield
    finally:
        os.close(handle)
