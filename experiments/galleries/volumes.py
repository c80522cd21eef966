"""App. A.3: test digits whose projection is read wrongly as it is, and rightly behind the 3D transformer; and what that
makes of the first test digits through its training.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from experiments.galleries import figure_path, figure_title, newly_right, snapshots_of, test_images, with_weights
from stn.results.volume_figures import VolumeWarp, volume_animation, volume_gallery

BASELINE, TRANSFORMED = "projection_cnn", "st3d_cnn"
DIGITS, ANIMATED_DIGITS = 8, 4


def volumes(folder: Path, records: list[dict], settings: dict) -> Iterator[Path]:
    by_model = {record["model"]: record for record in records}
    if not {BASELINE, TRANSFORMED} <= by_model.keys():
        return
    for record, module in with_weights([by_model[TRANSFORMED]], settings):
        if chosen := newly_right(by_model[BASELINE], record, DIGITS):
            title = figure_title(record, f"{BASELINE} wrong, {TRANSFORMED} right")
            warps = _warps(module.net, *test_images(module, chosen))
            yield volume_gallery(figure_path(folder, "gallery_mnist3d", record), warps, title)
        if snapshots := snapshots_of(record, settings):
            images, labels = test_images(module, range(ANIMATED_DIGITS))
            thetas = torch.from_numpy(snapshots["theta_0"])[:, :ANIMATED_DIGITS]
            steps = {
                step: _warps(module.net, images, labels, theta)
                for step, theta in zip(snapshots["step"].tolist(), thetas, strict=True)
            }
            path = figure_path(folder, f"training_mnist3d_{TRANSFORMED}", record, "gif")
            yield volume_animation(path, steps, figure_title(record, TRANSFORMED))


def _warps(net, images, labels, theta=None) -> list[VolumeWarp]:
    """What the transformer makes of volumes, with its own theta or another."""
    with torch.no_grad():
        after = net.transformer.warp(images, theta).image
        columns = [x[:, 0].numpy() for x in (images, after, net.project(images), net.project(after))]
    return [VolumeWarp(*column) for column in zip(*columns, (f"a {label}" for label in labels.tolist()), strict=True)]
