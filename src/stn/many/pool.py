"""Several runs at once on one machine: worker processes of one thread each, with progress as they go."""

import logging
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from typing import Any, NamedTuple

from stn.settings import RunSettings
from stn.train.stopped import OutOfTime

_queue = None  # in a worker: where it reports progress


class Progress(NamedTuple):
    """Stack number `index` has done `steps`."""

    index: int
    steps: int


class Finished(NamedTuple):
    """Stack number `index` ended: the records of its runs, or the exception that ended it."""

    index: int
    records: list[dict] | None
    error: BaseException | None


def train_stack(
    stack: list[RunSettings],
    deadline: float | None,
    progress: Callable[[int], None] | None,
    listed: dict[str, str | None] | None = None,
) -> list[dict]:
    """Trains one stack: the records of its runs.

    `listed`: by record file, when the record finished that was there as the runs were listed, None where there was
    none. Where another is there now, another process has done that run in the meantime; it is not trained again.
    """
    from stn.train.run import train

    return train(stack, progress, deadline, done=partial(_done_since, listed))


def _done_since(listed: dict[str, str | None] | None, run: RunSettings) -> dict | None:
    record = run.recorded() if listed is not None else None
    return record if record and record["finished_at"] != listed.get(str(run.record_file)) else None


def run_all(
    stacks: list, workers: int, deadline: float | None = None, job: Callable = train_stack
) -> Iterator[Progress | Finished]:
    """Trains all stacks (lists of settings that share a `stack_key`, most often of one) in order, `workers` at a time.

    Yields what happens, ending with one `Finished` per stack. A stack that fails does not stop the others, nor does one
    whose process is lost. Workers end at once when the caller is interrupted, by Ctrl+C say, or closes this generator,
    or its process ends, even killed: a run goes on from its last checkpoint. After the `deadline`, a time.time(), none
    is started.
    `job(stack, deadline, progress)` may be another function than `train_stack`; `stacks` holds what it takes.
    On a machine with several GPUs each worker sees one of them, in turn.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads would slow the neighbour process
    context = multiprocessing.get_context("spawn")
    gpus, waiting = visible_gpus(), list(enumerate(stacks))
    lifeline, ours = context.Pipe(duplex=False)
    running: dict[Future, tuple[_Worker, int]] = {}

    def start(worker: _Worker) -> None:
        if waiting:
            index, stack = waiting.pop(0)
            running[worker.submit(_run, index, job, stack, deadline)] = worker, index

    with ours, lifeline:
        at_work = [_Worker(context, gpus[k % len(gpus)] if gpus else None, lifeline) for k in range(workers)]
        try:
            for worker in at_work:
                start(worker)
            while running:
                done, _ = wait(running, timeout=0.3, return_when=FIRST_COMPLETED)
                for worker in at_work:
                    yield from worker.progress()
                for future in done:
                    worker, index = running.pop(future)
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        error = RuntimeError("its worker process was lost: killed, perhaps for want of memory")
                    start(worker)
                    yield Finished(index, None if error else future.result(), error)
        except BaseException:
            ours.close()
            for worker in at_work:
                worker.close(wait=False)
            raise
        for worker in at_work:
            worker.close()


class _Worker:
    """A process for one stack after the other; when it is lost, another takes its place."""

    def __init__(self, context: SpawnContext, gpu: str | None, lifeline: Connection) -> None:
        self.context, self.gpu, self.lifeline = context, gpu, lifeline
        self._begin()

    def _begin(self) -> None:
        self.queue = self.context.SimpleQueue()  # its own: a lost process may have held its lock
        self.pool = ProcessPoolExecutor(1, self.context, _start_worker, (self.queue, self.gpu, self.lifeline))

    def submit(self, *call: Any) -> Future:
        try:
            return self.pool.submit(*call)
        except BrokenProcessPool:
            self.close(wait=False)
            self._begin()
            return self.pool.submit(*call)

    def progress(self) -> Iterator[Progress]:
        while not self.queue.empty():
            yield Progress(*self.queue.get())

    def close(self, wait: bool = True) -> None:
        self.pool.shutdown(wait, cancel_futures=True)


def visible_gpus() -> list[str]:
    """The GPUs that CUDA shows to this process, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return [name.strip() for name in named.split(",")][:count] if named else [str(i) for i in range(count)]


def _start_worker(queue, gpu: str | None, lifeline: Connection) -> None:
    global _queue
    _queue = queue
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # CUDA reads it when it is first used
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches all in a terminal; the caller ends its workers
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    """Ends this process when the other end is closed, by the caller or with its process."""
    with suppress(EOFError):
        lifeline.recv()
    os._exit(1)


def _run(index: int, job: Callable, stack: list, deadline: float | None) -> list[dict]:
    return in_time(job, stack, deadline, progress=lambda steps: _queue.put((index, steps)))


def in_time(job: Callable, stack: list, deadline: float | None, progress: Callable[[int], None] | None) -> list[dict]:
    """What `job` makes of a stack. Raises: OutOfTime when the deadline is past before it starts."""
    if deadline is not None and time.time() >= deadline:
        raise OutOfTime("not started, the time budget is used up")
    return job(stack, deadline, progress)
