"""Toy digits in place of MNIST: ten asymmetric strokes, so that no test needs the network."""

import hashlib
import os
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import settings

from experiments.config import compose_run
from stn.data.mnist import MNIST_MD5, Digits
from stn.settings import RunSettings

CLASSES = 10
CORNERS = 4

# The same examples each time, so that `make test` answers the same for the same code. New ones, and more of them:
#   pytest --hypothesis-profile=search tests/faults/test_fuzz.py
settings.register_profile("same", derandomize=True, deadline=None, database=None, max_examples=80)
settings.register_profile("search", deadline=None, max_examples=3000)
settings.load_profile("same")


def draw_strokes(n: int, seed: int) -> Digits:
    """`n` digits, classes in turn: a bent line per class, its corners moved by N(0, 0.6 px) in every example."""
    shapes = np.random.default_rng(7).uniform(6, 21, (CLASSES, CORNERS, 2))
    labels = np.arange(n) % CLASSES
    corners = shapes[labels] + np.random.default_rng(seed).normal(0, 0.6, (n, CORNERS, 2))
    pixels = np.stack(np.meshgrid(np.arange(28), np.arange(28)), axis=-1).reshape(1, -1, 2)
    distance = np.full((n, 28 * 28), np.inf)
    for i in range(CORNERS - 1):
        start, end = corners[:, i : i + 1], corners[:, i + 1 : i + 2]
        along = ((pixels - start) * (end - start)).sum(-1) / ((end - start) ** 2).sum(-1)
        nearest = start + np.clip(along, 0, 1)[..., None] * (end - start)
        distance = np.minimum(distance, np.hypot(*np.moveaxis(pixels - nearest, -1, 0)))
    images = (255 * np.clip(2.2 - distance, 0, 1)).astype(np.uint8).reshape(n, 28, 28)
    return Digits(torch.from_numpy(images), torch.from_numpy(labels))


@pytest.fixture(scope="session")
def toy_digits() -> dict[str, Digits]:
    """600 training and 300 test digits."""
    return {"train": draw_strokes(600, seed=1), "test": draw_strokes(300, seed=2)}


@pytest.fixture
def toy_mnist(monkeypatch, toy_digits) -> dict[str, Digits]:
    """Runs of this process read the toy digits."""
    monkeypatch.setattr("stn.families.mnist.load_mnist", lambda data_dir, split: toy_digits[split])
    return toy_digits


@pytest.fixture(scope="session")
def toy_data_dir(tmp_path_factory, toy_digits):
    """A data folder with the toy digits as IDX files, for processes started by tests/train/toy_verb.py."""
    folder = tmp_path_factory.mktemp("toy_data")
    for split, prefix in (("train", "train"), ("test", "t10k")):
        digits = toy_digits[split]
        for name, array in (
            (f"{prefix}-images-idx3-ubyte", digits.images.numpy()),
            (f"{prefix}-labels-idx1-ubyte", digits.labels.numpy().astype(np.uint8)),
        ):
            header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, dtype=">i4").tobytes()
            (folder / name).write_bytes(header + array.tobytes())
    return folder


@pytest.fixture
def toy_md5(monkeypatch, toy_data_dir):
    """This process takes the toy IDX files for MNIST's: what it writes fits what a toy_verb.py process writes."""
    for path in toy_data_dir.iterdir():
        monkeypatch.setitem(MNIST_MD5, path.name, hashlib.md5(path.read_bytes()).hexdigest())
    return toy_data_dir


@pytest.fixture
def full_disk(monkeypatch):
    """with full_disk(n): of the records, the n-th that is written finds no room."""

    @contextmanager
    def full(nth: int):
        sync, synced = os.fsync, []

        def find_no_room(handle):
            synced.append(handle)
            if len(synced) == nth:
                raise OSError("no space left")
            sync(handle)

        with monkeypatch.context() as patched:
            patched.setattr("stn.results.records.os.fsync", find_no_room)
            yield

    return full


@pytest.fixture
def settings_of(tmp_path):
    """Call it with a task, a model and recipe=…: the settings of a tiny run that writes below tmp_path.

    An optimiser or schedule without a name keeps its other settings.
    """

    def make(task: str, model: str, *overrides: str, **recipe) -> RunSettings:
        run = compose_run(
            [
                f"task={task}",
                f"model={model}",
                "protocol=smoke",
                "protocol.mnist.steps=100",
                "protocol.mnist.batch_size=16",
                f"results_dir={tmp_path / 'results'}",
                f"output_dir={tmp_path / 'outputs'}",
                "device=cpu",
                "progress=false",
                *overrides,
            ]
        )
        for name, value in recipe.items():
            if isinstance(value, dict) and "name" not in value:
                recipe[name] = run.recipe[name] | value
        return run.changed(recipe=run.recipe | recipe)

    return make
