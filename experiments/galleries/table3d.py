"""App. A.3: test digits whose projection is read wrongly as it is, and rightly behind the 3D transformer; and what that
makes of the first test digits through its training.
"""

from pathlib import Path

import numpy as np

from experiments.galleries import trained
from experiments.galleries.training import snapshots_of
from stn.results.records import unpack_wrong
from stn.results.volume_figures import VolumeWarp, volume_animation, volume_gallery

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
    paths = [volume_gallery(folder / f"gallery_mnist3d_{protocol}.png", _warps(module, chosen), title)]
    if snapshots := snapshots_of(transformed, wanted):
        path = folder / f"training_mnist3d_{TRANSFORMED}_{protocol}.gif"
        title = f"mnist3d: {TRANSFORMED} ({protocol}, seed {transformed['seed']})"
        paths.append(volume_animation(path, _through_training(module, snapshots), title))
    return paths


def _through_training(module, snapshots: dict[str, np.ndarray]) -> dict[int, list[VolumeWarp]]:
    """step -> what the transformer then did to the first test volumes."""
    import torch

    batch, frames = module.stream.test_batch(0, 0), {}
    for step, thetas in zip(snapshots["step"].tolist(), snapshots["theta_0"], strict=True):
        volume = batch.images[: len(thetas)]
        with torch.no_grad():
            after = module.net.transformer.warp(volume, torch.from_numpy(thetas)).image
            pictures = (volume, after, module.net.project(volume), module.net.project(after))
        columns = zip(*([picture[0].numpy() for picture in column] for column in pictures), strict=True)
        labels = batch.labels[: len(thetas)].tolist()
        frames[step] = [VolumeWarp(*column, f"a {label}") for column, label in zip(columns, labels, strict=True)]
    return frames


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
