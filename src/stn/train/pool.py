"""Several runs at once on one machine: worker processes of one thread each, with progress as they go."""

import logging
import multiprocessing
import os
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import NamedTuple

_queue = None  # in a worker: where it reports progress


class Progress(NamedTuple):
    """Run number `index` has done `steps`."""

    index: int
    steps: int


class Finished(NamedTuple):
    """Run number `index` ended: its record, or the exception that ended it."""

    index: int
    record: dict | None
    error: BaseException | None


def run_all(all_settings: list[dict], workers: int) -> Iterator[Progress | Finished]:
    """Runs all settings in order, `workers` at a time; yields what happens, ending with one `Finished` per run.

    A run that fails does not stop the others. Workers end when the caller's process does, even when it is killed.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads would slow the neighbour process
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    with ProcessPoolExecutor(workers, context, _start_worker, (queue,)) as pool:
        pending = {pool.submit(_run, i, settings): i for i, settings in enumerate(all_settings)}
        try:
            while pending:
                done, _ = wait(pending, timeout=0.3, return_when=FIRST_COMPLETED)
                while not queue.empty():
                    yield Progress(*queue.get())
                for future in done:
                    error = future.exception()
                    yield Finished(pending.pop(future), None if error else future.result(), error)
        except (GeneratorExit, KeyboardInterrupt):
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(queue) -> None:
    global _queue
    _queue = queue
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _run(index: int, settings: dict) -> dict:
    from stn.train.run import run

    return run(settings, progress=lambda steps: _queue.put((index, steps)))
