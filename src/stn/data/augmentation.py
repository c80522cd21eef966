"""Training crops of house numbers, moved, zoomed and relit in each step: a small set would be memorised."""

from typing import NamedTuple

import torch
from torch import Tensor

from stn.data.digit import uniform
from stn.transform import affine_grid, sample


class Augmentation(NamedTuple):
    """What is drawn uniformly for each crop of a batch; 0 leaves it out.

    Deviation: the paper names no augmentation; `paper` has none.

    `shift`: of its place in x and in y, up to this share of its side (Goodfellow et al. 2014: 54 px of 64, so 0.08).
    `zoom`: of its size, up to this share more or less. `contrast`: of the pixels' distance from the crop's mean, up to
    this share more or less. `inverted`: the probability that light and dark change places, colours included.
    What moves in from beyond the crop is its border's pixels.
    """

    shift: float = 0.0
    zoom: float = 0.0
    contrast: float = 0.0
    inverted: float = 0.0

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Shapes: images (N, C, H, W) in [0, 1], as what is returned."""
        if not any(self):
            return images
        n = len(images)
        x, y, zoom, contrast, coin = uniform(generator, (5, n), 0.0, 1.0, images.device)
        if self.shift or self.zoom:
            scale = 1 + self.zoom * (2 * zoom - 1)
            zero = torch.zeros_like(scale)
            # Normalised coordinates: a side is 2 long.
            across, down = (2 * self.shift * (2 * u - 1) for u in (x, y))
            theta = torch.stack([scale, zero, across, zero, scale, down], dim=1).view(n, 2, 3)
            images = sample(images, affine_grid(theta, images.shape[2:]), padding="border")
        if self.contrast:
            mean = images.mean(dim=(1, 2, 3), keepdim=True)
            factor = (1 + self.contrast * (2 * contrast - 1))[:, None, None, None]
            images = (mean + factor * (images - mean)).clamp(0, 1)
        if self.inverted:
            images = torch.where((coin < self.inverted)[:, None, None, None], 1 - images, images)
        return images
