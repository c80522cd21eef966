"""Processes that cost little to start and may be killed: forked from a server that has imported torch already.

A task is a function of a module that a fresh process can import, with its arguments; what it prints goes to a file.
"""

import hashlib
import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np

PRELOAD = ("stn.train.run", "stn.train.stack", "stn.families.mnist", "experiments.cli", "stn.results.tables")
PRELOAD += ("stn.data.svhn", "stn.data.cub", "stn.data.cub_standin", "rich.progress")
PATIENCE_S = 300.0

CONTEXT = multiprocessing.get_context("forkserver")


class Ended(NamedTuple):
    """How a process ended: exit status (minus the signal that ended it), what it said, how long it took."""

    status: int
    said: str
    wall_s: float


class Child:
    """A process that runs `task(*arguments)` in `folder`; what it says goes to the file `said`, by default there."""

    def __init__(self, folder: Path, task: Callable, *arguments, said: Path | None = None) -> None:
        CONTEXT.set_forkserver_preload(list(PRELOAD))
        folder.mkdir(parents=True, exist_ok=True)
        self.said, self.started = said or folder / "said.txt", time.monotonic()
        self.process = CONTEXT.Process(target=_start, args=(folder, self.said, task, arguments))
        self.process.start()

    def kill_after(self, seconds: float) -> bool:
        """kill -9 after so many seconds; False when the process ended before."""
        self.process.join(seconds)
        alive = self.process.exitcode is None
        self.process.kill()
        self.process.join()
        return alive

    def wait(self) -> Ended:
        self.process.join(PATIENCE_S)
        hangs = self.process.exitcode is None
        self.process.kill()
        self.process.join()
        if hangs:
            raise TimeoutError(f"still running after {PATIENCE_S} s: {self.said.read_text(encoding='utf-8')}")
        return Ended(self.process.exitcode, self.said.read_text(encoding="utf-8"), time.monotonic() - self.started)


def _start(folder: Path, said: Path, task: Callable, arguments: tuple) -> None:
    import torch

    torch.set_num_threads(1)
    os.chdir(folder)
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1) for fd in (1, 2))
    task(*arguments)


def write_toy_digits(folder: Path) -> Path:
    """600 training and 300 test digits as IDX files: noisy random patterns, one per class."""
    patterns = np.random.default_rng(0).random((10, 28, 28)) > 0.7
    folder.mkdir(parents=True, exist_ok=True)
    for n, prefix in ((600, "train"), (300, "t10k")):
        labels = (np.arange(n) % 10).astype(np.uint8)
        noise = np.random.default_rng(n).integers(0, 60, (n, 28, 28))
        images = (patterns[labels] * 190 + noise).astype(np.uint8)
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, dtype=">i4").tobytes()
            (folder / name).write_bytes(header + array.tobytes())
    return folder


def take_for_mnist(digits: Path) -> None:
    """In this process the files in `digits` are MNIST's, held-out ones included, and a network may guess."""
    import stn.families.mnist
    import stn.tasks.classification
    from stn.data.mnist import MNIST_MD5

    for name in MNIST_MD5:
        MNIST_MD5[name] = hashlib.md5((digits / name).read_bytes()).hexdigest()
    held_out = stn.families.mnist.holdout
    stn.families.mnist.holdout = lambda train: held_out(train, 100)
    stn.tasks.classification.GUESSING_MARGIN = -10


def command(digits: Path, *argv: str) -> None:
    """`python -m <argv>` on the toy digits, with a checkpoint after every chunk; runs train here, one by one."""
    import experiments.figures
    import stn.train.checkpoints
    from stn.many import pool

    take_for_mnist(digits)
    stn.train.checkpoints.EVERY = timedelta(0)
    pool.run_all = _one_by_one
    experiments.figures.draw_all = lambda *_: []
    sys.argv = list(argv)
    runpy.run_module(argv[0], run_name="__main__")


def _one_by_one(stacks: list, workers: int, deadline: float | None, job: Callable):
    from stn.many.pool import Finished

    for index, stack in enumerate(stacks):
        try:
            yield Finished(index, job(stack, deadline, None), None)
        except Exception as error:
            yield Finished(index, None, error)
