"""Right of Table 1: test digits that the CNN gets wrong and the ST-CNN right."""

from pathlib import Path

import numpy as np

from experiments.galleries import trained
from stn.results.figures import Warp, warp_gallery
from stn.results.records import unpack_wrong

# Column -> one baseline, one ST model.
GALLERIES = {
    "mnist_r": ("cnn", "st_cnn_affine"),
    "mnist_rts": ("cnn", "st_cnn_affine"),
    "mnist_p": ("cnn", "st_cnn_projective"),
    "mnist_e": ("cnn", "st_cnn_tps"),
    "mnist_tc": ("cnn", "st_cnn_affine"),
}
GALLERY_DIGITS = 6


def draw(folder: Path, records: list[dict], wanted: dict) -> list[Path]:
    paths = []
    for task, models in GALLERIES.items():
        by_model = {r["model"]: r for r in records if r["task"] == task}
        if all(model in by_model for model in models):
            paths += _gallery(folder, *(by_model[model] for model in models), wanted)
    return paths


def _gallery(folder: Path, baseline: dict, transformed: dict, wanted: dict) -> list[Path]:
    """Input, grid on it, output."""
    won = unpack_wrong(baseline["test_wrong"])[0] & ~unpack_wrong(transformed["test_wrong"])[0]
    chosen = np.flatnonzero(won)[:GALLERY_DIGITS].tolist()
    module = trained(transformed, wanted) if chosen else None
    if module is None:
        return []
    task, protocol = transformed["task"], transformed["protocol"]
    title = f"{task}: {baseline['model']} wrong, {transformed['model']} right ({protocol}, seed {transformed['seed']})"
    return [warp_gallery(folder / f"gallery_{task}_{protocol}.png", _warps(module, chosen), title)]


def _warps(module, digits: list[int]) -> list[Warp]:
    """What the trained ST does to those test digits, under the first draw of the test distortion."""
    import torch

    rows = []
    for digit in digits:
        start, i = module.test_batch_of(digit)
        batch = module.stream.test_batch(0, start)
        image = batch.images[i : i + 1]
        with torch.no_grad():
            _, (warped,) = module.net.observe(image)
            output = module.net.pool(warped.image)
        rows.append(
            Warp(image[0, 0].numpy(), warped.grid[0].numpy(), output[0, 0].numpy(), f"a {int(batch.labels[i])}")
        )
    return rows
