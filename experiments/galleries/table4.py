"""App. A.1: what each of the parallel transformers does to both channels of an addition."""

from pathlib import Path

from experiments.galleries import trained
from stn.results.figures import Warp, warp_gallery

EXAMPLES = 4  # test images; the same for every model


def draw(folder: Path, records: list[dict], wanted: dict) -> list[Path]:
    paths = []
    for record in (r for r in records if r["model"].startswith("st")):
        module = trained(record, wanted)
        if module is not None:
            name, protocol = record["model"], record["protocol"]
            title = f"addition: {name}, a line per test image ({protocol}, seed {record['seed']})"
            rows, per_line = _warps(module)
            path = folder / f"gallery_addition_{name}_{protocol}.png"
            paths.append(warp_gallery(path, rows, title, per_line, lines_every=8))
    return paths


def _warps(module) -> tuple[list[Warp], int]:
    """Every channel under every transformer, image by image, and how many that are per image."""
    import torch

    batch = module.stream.test_batch(0, 0)
    images = batch.images[:EXAMPLES]
    with torch.no_grad():
        _, warps = module.net.observe(images)
    rows = [
        Warp(
            images[i, channel].numpy(),
            warped.grid[i].numpy(),
            warped.image[i, channel].numpy(),
            f"ST {t + 1} on the {int(batch.digits[i, channel])}",
        )
        for i in range(len(images))
        for t, warped in enumerate(warps)
        for channel in range(images.shape[1])
    ]
    return rows, len(warps) * images.shape[1]
