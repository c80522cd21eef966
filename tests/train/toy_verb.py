"""Runs a verb on toy digits: TOY_DATA_DIR=<IDX files> python tests/train/toy_verb.py experiments.train task=… …

The files' own md5 take the place of MNIST's, at import: a spawned worker imports this script again, as its main
module, and so reads the same digits. With TOY_EVERY_S a run saves a checkpoint that often; TOY_OVERRIDES
are appended to those of every run that a verb composes.
"""

import hashlib
import os
import runpy
import sys
from datetime import timedelta
from pathlib import Path

from stn.data.mnist import MNIST_MD5

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
for name in MNIST_MD5:
    MNIST_MD5[name] = hashlib.md5((Path(os.environ["TOY_DATA_DIR"]) / name).read_bytes()).hexdigest()
if "TOY_EVERY_S" in os.environ:
    import stn.train.checkpoints

    stn.train.checkpoints.EVERY = timedelta(seconds=float(os.environ["TOY_EVERY_S"]))
if "TOY_OVERRIDES" in os.environ:
    import experiments.config

    composed = experiments.config.compose_run
    extra = os.environ["TOY_OVERRIDES"].split()
    experiments.config.compose_run = lambda overrides: composed([*overrides, *extra])

if __name__ == "__main__":
    verb = sys.argv.pop(1)
    runpy.run_module(verb, run_name="__main__")
    print("wandb imported:", "wandb" in sys.modules)
