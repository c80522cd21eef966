"""Pictures drawn from the records of a table and the weights of their runs (status "ok", seed 0, of one protocol and
kind of data). What lacks weights is left out.

A gallery is a generator: (folder, records, settings) -> the files, as they are written; settings has protocol, data,
data_dir and output_dir.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from experiments.config import compose_run
from stn.data.errors import DataError
from stn.families import build
from stn.results.records import unpack_wrong
from stn.results.tables import table_stem
from stn.settings import RunSettings
from stn.tasks.training import Training
from stn.trained import weights_of
from stn.watch.snapshots import FILE


def run_of(record: dict, settings: dict) -> RunSettings:
    """The run that a record is of, with data and weights in the folders that the settings name."""
    run = compose_run([f"{name}={record[name]}" for name in ("task", "model", "protocol", "seed", "data")])
    return run.changed(**{name: settings[name] for name in ("data_dir", "output_dir")})


def with_weights(records: Iterable[dict], settings: dict) -> Iterator[tuple[dict, Training]]:
    """The records whose runs left their weights, each with its LightningModule, trained and in evaluation mode.

    Raises: DataError for weights that do not fit, or are of another training than the record.
    """
    for record in records:
        run = run_of(record, settings)
        weights = run.folder / "weights.pt"
        if weights.exists():
            module = build(run).module
            try:
                module.net.load_state_dict(weights_of(record, run.folder))
            except RuntimeError as error:
                line = "is of another network than conf/ describes now: train it again, or delete it"
                raise DataError(f"{weights} {line}") from error
            module.net.eval()
            yield record, module


def snapshots_of(record: dict, settings: dict) -> dict[str, np.ndarray]:
    """What `stn.watch.snapshots` wrote of a run; empty where it left nothing. Raises: DataError for a damaged file."""
    file = run_of(record, settings).folder / FILE
    if not file.exists():
        return {}
    try:
        with np.load(file) as arrays:
            return dict(arrays)
    except Exception as error:  # whatever a damaged file makes numpy raise
        raise DataError(f"{file} is damaged ({type(error).__name__}): delete it") from error


def figure_path(folder: Path, subject: str, record: dict, suffix: str = "png") -> Path:
    return folder / f"{table_stem(subject, record['protocol'], record['data'])}.{suffix}"


def figure_title(record: dict, text: str) -> str:
    said = {"real": "", "subset": " – PART OF THE REAL DATA", "standin": " – STAND-IN DATA"}[record["data"]]
    return f"{record['task']}: {text} ({record['protocol']}, seed {record['seed']}){said}"


def newly_right(baseline: dict, transformed: dict, count: int) -> list[int]:
    """The first test images that the baseline gets wrong and the transformed network right, under the first draw."""
    won = unpack_wrong(baseline["test_wrong"])[0] & ~unpack_wrong(transformed["test_wrong"])[0]
    return np.flatnonzero(won)[:count].tolist()


def test_images(module, numbers: Iterable[int]):
    """Those test images under the first draw, and their labels."""
    images, labels = [], []
    for number in numbers:
        start, place = module.test_batch_of(number)
        batch = module.stream.test_batch(0, start)
        images.append(batch.images[place])
        labels.append(batch.labels[place])
    return torch.stack(images), torch.stack(labels)
