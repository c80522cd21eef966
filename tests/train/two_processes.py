"""Runs of a JSON file, each in two processes: python tests/train/two_processes.py FILE

FILE: a list of [settings, seconds of time budget or null]. Lightning starts this script again as the second process.
Networks and images are float64, so that rounding does not grow into another course of the training.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from stn.data.cub_stream import BirdStream
from stn.data.svhn_stream import NumberStream
from stn.settings import run_settings
from stn.train import run as run_module
from stn.train.run import train
from stn.train.stopped import OutOfTime


def in_double(replace: Callable[[object, str, object], None] = setattr) -> None:
    """From here on, networks and the images of SVHN and CUB are float64; `replace` as setattr."""
    build = run_module.build

    def build_double(settings):
        built = build(settings)
        built.module.net.double()
        return built

    replace(run_module, "build", build_double)
    for stream in (NumberStream, BirdStream):
        replace(stream, "_batch", _doubled(stream._batch))


def _doubled(make: Callable) -> Callable:
    def make_double(self, *parts):
        batch = make(self, *parts)
        return batch._replace(images=batch.images.double())

    return make_double


if __name__ == "__main__":
    in_double()
    for settings, budget_s in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        try:
            train([run_settings(settings)], deadline=None if budget_s is None else time.time() + budget_s)
        except OutOfTime as stopped:
            print(stopped)
