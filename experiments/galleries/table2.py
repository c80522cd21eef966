"""House numbers: where the transformer on the input looks, what it passes on, and what the network reads."""

from pathlib import Path

from experiments.galleries import trained
from stn.results.figures import Warp, warp_gallery
from stn.results.tables import table_stem

EXAMPLES = 9  # the first test images; the same for every model


def draw(folder: Path, records: list[dict], wanted: dict) -> list[Path]:
    paths = []
    for record in (r for r in records if "_st_" in r["model"]):
        module = trained(record, wanted)
        if module is not None:
            name = f"gallery_{record['task']}_{record['model']}"
            title = f"{record['task']}: {record['model']} ({record['protocol']}, seed {record['seed']})"
            if record["data"] != "real":
                title += " – STAND-IN DATA"
            path = folder / f"{table_stem(name, record['protocol'], record['data'])}.png"
            paths.append(
                warp_gallery(path, _warps(module), title, lines_every=record["config"]["task"]["crop_px"] // 8)
            )
    return paths


def _warps(module) -> list[Warp]:
    """What the first transformer makes of test images; the mean that the network subtracts is added again."""
    import torch

    batch = module.stream.test_batch(0, 0)
    images, labels = batch.images[:EXAMPLES], batch.labels[:EXAMPLES]
    with torch.no_grad():
        logits, (warped, *_) = module.net.observe(images)
    outputs = warped.image + images.mean(dim=(1, 2, 3), keepdim=True)
    return [
        Warp(as_picture(image), grid.numpy(), as_picture(output), caption(label.tolist(), read.tolist()))
        for image, grid, output, label, read in zip(
            images, warped.grid, outputs, labels, logits.argmax(-1), strict=True
        )
    ]


def as_picture(image):
    """(3, H, W) tensor in [0, 1] -> (H, W, 3) array."""
    return image.permute(1, 2, 0).clamp(0, 1).numpy()


def caption(label: list[int], read: list[int]) -> str:
    """Both numbers, and whether they differ."""
    true, ours = number(label), number(read)
    return f"{true}, read as {ours}" if true != ours else f"{true}, read"


def number(labels: list[int]) -> str:
    """Digits from the left; "·" for a place read as empty between digits."""
    from stn.data.svhn_crops import NONE

    return "".join("·" if label == NONE else str(label) for label in labels).rstrip("·") or "nothing"
