"""What spatial transformers do to a few images, for a picture: input, sampling grid on it, output."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from stn.data.streams import Batch
from stn.transform import Warped, sample

IMAGES = 200  # test images that the statistics are taken over
ROWS = 6  # warps in a picture, more where an image has many
GRID_LINES = 8


class Look(NamedTuple):
    """`warps`: image by image, each through every transformer on the input. `per_image`: how many of them are of one
    image. `statistics`: theta and what the run's test says of its transformers.
    """

    warps: Sequence  # of stn.results.warp_figures.Warp
    per_image: int
    statistics: dict[str, float]

    def draw(self, path: Path, title: str) -> Path:
        """Input, sampling grid on it, output."""
        from stn.results.warp_figures import warp_gallery

        every = max(2, self.warps[0].grid.shape[0] // GRID_LINES)
        return warp_gallery(path, self.warps, title, self.per_image if self.per_image > 1 else 3, every)


def look_through(warps: Sequence[Warped], batch: Batch, statistics: dict[str, float]) -> Look:
    """The first images of a batch through the transformers on the input; those behind other layers are left out.

    They are sampled anew, bilinear and black outside: a network may have changed the images before its transformer saw
    them.
    """
    grids = [warped.grid for warped in warps if warped.image.shape[1] == batch.images.shape[1]]
    channels = batch.images.shape[1]
    per_image = len(grids) * (1 if channels == 3 else channels)  # three are colours
    images = batch.images[: max(2, ROWS // per_image)]
    warps = [Warped(sample(images, grid[: len(images)]), None, grid) for grid in grids]
    captions = [caption(label) for label in batch.labels[: len(images)]]
    return Look(rows_of(images, warps, captions), per_image, statistics)


def rows_of(images: Tensor, warps: Sequence[Warped], captions: Sequence[str] | None = None) -> list:
    """A `Warp` for each image, transformer and, where they are not colours, channel: images (N, C, H, W).

    Captions, one per image, are by default the number of the transformer where there are several.
    """
    from stn.results.warp_figures import Warp, channel_pictures

    numbers = [f"ST {k + 1}" if len(warps) > 1 else "" for k in range(len(warps))]
    return [
        Warp(before, warped.grid[i].cpu().numpy(), after, captions[i] if captions else number)
        for i, image in enumerate(images)
        for warped, number in zip(warps, numbers, strict=True)
        for before, after in zip(*(channel_pictures(x.cpu().numpy()) for x in (image, warped.image[i])), strict=True)
    ]


def theta_means(warps: Sequence[Warped]) -> dict[str, float]:
    """`theta_mean_i`, of several transformers `st0_theta_mean_i` …."""
    means = {}
    for k, warped in enumerate(warps):
        prefix = f"st{k}_" if len(warps) > 1 else ""
        of_transformer = warped.theta.flatten(1).mean(0).tolist()
        means |= {f"{prefix}theta_mean_{i}": mean for i, mean in enumerate(of_transformer)}
    return means


def caption(label: Tensor) -> str:
    """A class, or the digits of a house number, where 10 means none."""
    return str(int(label)) if label.ndim == 0 else "".join(str(digit) for digit in label.tolist() if digit < 10)
