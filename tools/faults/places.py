"""Disks that are full, folders that take nothing, two commands at once."""

import ctypes
import os
import random
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kills import reproduce
from zygote import Child, Ended, command


@contextmanager
def small_disk(folder: Path, size_kib: int) -> Iterator[Callable[[int], None]]:
    """A file system of that size at `folder`, for root; yields what gives it another size."""
    folder.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder))
    try:
        yield lambda kib: _mount("-o", f"remount,size={kib}k", str(folder))
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def can_mount(folder: Path) -> bool:
    try:
        with small_disk(folder, 64):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def with_small_files(limit_bytes: int, task: Callable, *arguments) -> None:
    """Writing more than so many bytes into a file fails, for whoever it is."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    task(*arguments)


def without_privileges(task: Callable, *arguments) -> None:
    """As a user who may write only where the modes of files say so, which root needs not heed."""
    if os.getuid() == 0:
        version_3, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(version_3, none) == 0
    task(*arguments)


def said_in_a_line(task: Callable, *arguments) -> None:
    """The task as a verb: an error that the user can mend ends in one line and status 2."""
    from experiments.cli import errors_in_a_line

    with errors_in_a_line():
        task(*arguments)


def train_command(digits: Path, *overrides: str) -> None:
    command(digits, "experiments.train", *overrides, "progress=false")


def two_at_once(folder: Path, digits: Path, chance: random.Random) -> tuple[list[str], Ended, Ended]:
    """Two equal commands, the second a moment later: the runs that were trained, one name for each training, and how
    the commands ended.
    """
    first = Child(folder, count_trainings, folder / "one.txt", reproduce, digits, said=folder / "first.txt")
    first.process.join(chance.uniform(0, 2))
    second = Child(folder, count_trainings, folder / "two.txt", reproduce, digits)
    ended = first.wait(), second.wait()
    files = [path for path in (folder / "one.txt", folder / "two.txt") if path.exists()]
    return [line for path in files for line in path.read_text(encoding="utf-8").splitlines()], *ended


def count_trainings(file: Path, task: Callable, *arguments) -> None:
    """The task, with a line in `file` for each run that it trains."""
    import stn.train.run

    built = stn.train.run.build

    def counted(run):
        with file.open("a", encoding="utf-8") as out:
            out.write(f"{run.key}\n")
        return built(run)

    stn.train.run.build = counted
    task(*arguments)
