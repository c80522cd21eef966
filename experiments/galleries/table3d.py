"""App. A.3: test digits whose projection is read wrongly as it is, and rightly behind the 3D transformer."""

from pathlib import Path

import numpy as np

from experiments.galleries import trained
from stn.results.records import unpack_wrong
from stn.results.volume_figures import VolumeWarp, volume_gallery

BASELINE, TRANSFORMED = "projection_cnn", "st3d_cnn"
GALLERY_DIGITS = 8


def draw(folder: Path, records: list[dict], wanted: dict) -> list[Path]:
    by_model = {record["model"]: record for record in records}
    if not {BASELINE, TRANSFORMED} <= by_model.keys():
        return []
    baseline, transformed = by_model[BASELINE], by_model[TRANSFORMED]
    won = unpack_wrong(baseline["test_wrong"])[0] & ~unpack_wrong(transformed["test_wrong"])[0]
    chosen = np.flatnonzero(won)[:GALLERY_DIGITS].tolist()
    module = trained(transformed, wanted) if chosen else None
    if module is None:
        return []
    protocol = transformed["protocol"]
    title = f"mnist3d: {BASELINE} wrong, {TRANSFORMED} right ({protocol}, seed {transformed['seed']})"
    return [volume_gallery(folder / f"gallery_mnist3d_{protocol}.png", _warps(module, chosen), title)]


def _warps(module, digits: list[int]) -> list[VolumeWarp]:
    """What the trained transformer does to those test digits, under the first draw of the test."""
    import torch

    rows = []
    for digit in digits:
        start, i = module.test_batch_of(digit)
        batch = module.stream.test_batch(0, start)
        volume = batch.images[i : i + 1]
        with torch.no_grad():
            _, (warped,) = module.net.observe(volume)
            pictures = (volume, warped.image, module.net.project(volume), module.net.project(warped.image))
        rows.append(VolumeWarp(*(picture[0, 0].numpy() for picture in pictures), f"a {int(batch.labels[i])}"))
    return rows
