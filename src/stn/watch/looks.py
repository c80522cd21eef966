"""What the spatial transformers of a run do to its first images: pictures and statistics, for every family of tasks."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stn.data.streams import Batch
from stn.results.volume_figures import VolumeWarp, volume_gallery
from stn.results.warp_figures import Warp, channel_pictures, warp_gallery
from stn.tasks.colocalisation import Colocalisation, crops
from stn.tasks.training import Training
from stn.transform import SpatialTransformer, Warped
from stn.transform.grids import attention_grid
from stn.watch.snapshots import evaluating

IMAGES = 200  # test images that the statistics are taken over
ROWS, VOLUMES = 6, 2  # warps in a picture, more where an image has many; a volume takes half a second to draw
GRID_LINES = 8


class Look(NamedTuple):
    """`warps`: image by image, each through every transformer on the input. `per_image`: how many of them are of one
    image. `statistics`: theta and what the run's test says of its transformers.
    """

    warps: Sequence[Warp | VolumeWarp]
    per_image: int
    statistics: dict[str, float]


@torch.no_grad()
def look(module: Training) -> Look | None:
    """As the test would see it, and without a trace: no random number is drawn. None without a transformer."""
    with evaluating(module.net):
        if isinstance(module, Colocalisation):
            return _look_at_scenes(module)
        if getattr(module, "statistics", None) and hasattr(module.net, "observe"):
            return _look_at_stream(module)
    return None


def draw(path: Path, found: Look, title: str) -> Path:
    """Input, sampling grid on it, output; of volumes the surface and the projection, before and after."""
    if isinstance(found.warps[0], VolumeWarp):
        return volume_gallery(path, found.warps, title)
    every = max(2, found.warps[0].grid.shape[0] // GRID_LINES)
    return warp_gallery(path, found.warps, title, found.per_image if found.per_image > 1 else 3, every)


def _look_at_stream(module: Training) -> Look | None:
    net, batch = module.net, module.stream.test_batch(draw=0, start=0)
    batch = Batch(*(None if part is None else part[:IMAGES] for part in batch))
    _, seen = net.observe(batch.images)
    if not seen:
        return None
    statistics = module.statistics()
    statistics.add(seen, batch)
    found = statistics.summary()
    if isinstance(seen, list):
        for k, warped in enumerate(seen):
            prefix = f"st{k}_" if len(seen) > 1 else ""
            means = warped.theta.flatten(1).mean(0).tolist()
            found |= {f"{prefix}theta_mean_{i}": mean for i, mean in enumerate(means)}
    if batch.images.ndim == 5:
        return Look(_volumes(net, batch), 1, found)
    warps = _warps_of_input(net, batch.images[:ROWS], seen)
    per_image = len(warps) * len(_pictures(batch.images[0]))
    n = min(len(batch.images), max(2, ROWS // per_image))
    return Look(_rows(batch.images[:n], warps, [_caption(label) for label in batch.labels[:n]]), per_image, found)


def _look_at_scenes(module: Colocalisation) -> Look:
    """The first image of each of the first classes."""
    images, px = module.scenes["train"].images[:IMAGES], module.recipe.crop_px
    windows = module.net(images)
    found = {}
    for i, name in enumerate(("scale", "x", "y")):
        of_class = windows[..., i]
        found |= {f"theta_mean_{name}": of_class.mean().item(), f"theta_std_{name}": of_class.std(0).mean().item()}
    images, windows = images[:1, :ROWS], windows[:1, :ROWS]
    cut = crops(images, windows, px, module.recipe.antialias)
    warped = Warped(cut, windows[0], attention_grid(windows[0], (px, px)))
    return Look(_rows(images[0], [warped], module.names[:ROWS]), len(_pictures(images[0, 0])), found)


def _warps_of_input(net: nn.Module, images: Tensor, seen) -> list[Warped]:
    """What each transformer makes of the images themselves; those behind other layers are left out.

    `seen`, of these and more images: what each transformer did, or the windows of a net that looks through windows.
    """
    n = len(images)
    if not isinstance(seen, list):
        theta, size = seen.theta[:n], (net.crop_px, net.crop_px)
        cut = net.crops(images, theta)
        return [
            Warped(crop, centre, net.attention.grid(centre, size))
            for crop, centre in zip(cut, theta.unbind(1), strict=True)
        ]
    transformers = [layer for layer in net.modules() if isinstance(layer, SpatialTransformer)]
    return [
        transformer.warp(images, warped.theta[:n])
        for transformer, warped in zip(transformers, seen, strict=True)
        if warped.image.shape[1] == images.shape[1]
    ]


def _rows(images: Tensor, warps: Sequence[Warped], captions: Sequence[str]) -> list[Warp]:
    return [
        Warp(before, warped.grid[i].cpu().numpy(), after, caption)
        for i, (image, caption) in enumerate(zip(images, captions, strict=True))
        for warped in warps
        for before, after in zip(_pictures(image), _pictures(warped.image[i]), strict=True)
    ]


def _volumes(net: nn.Module, batch: Batch) -> list[VolumeWarp]:
    volumes = batch.images[:VOLUMES]
    _, (warped,) = net.observe(volumes)
    panels = [x[:, 0].cpu().numpy() for x in (volumes, warped.image, net.project(volumes), net.project(warped.image))]
    captions = [_caption(label) for label in batch.labels[:VOLUMES]]
    return [VolumeWarp(*row) for row in zip(*panels, captions, strict=True)]


def _pictures(image: Tensor) -> list:
    return channel_pictures(image.cpu().numpy())


def _caption(label: Tensor) -> str:
    """A class, or the digits of a house number, where 10 means none."""
    return str(int(label)) if label.ndim == 0 else "".join(str(digit) for digit in label.tolist() if digit < 10)
