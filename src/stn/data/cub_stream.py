"""Batches of birds: random crops for training, the middle of each image for the test (App. A.6)."""

import torch
from torch import Tensor

from stn.data.cub import Birds, Crops, center_crop, random_crop_flip
from stn.data.streams import Batch, Stream


class BirdStream(Stream):
    """Square crops of `crop_px`; training ones lie anywhere in the image and are mirrored half of the time.

    Images stay on the CPU, memory-mapped, and are cropped there, which is little beside a step of the network. The
    test has one draw: nothing about it is random.
    """

    test_batch_size = 50  # 448 px, four windows and their streams' maps: memory

    def __init__(self, train: Birds, test: Birds, crop_px: int) -> None:
        self.train, self.test, self.crop_px = train, test, crop_px
        self.shape = (3, crop_px, crop_px)
        self.classes = len(train.classes)

    def draw(self, n: int, generator: torch.Generator) -> Batch:
        index = torch.randint(len(self.train), (n,), generator=generator, device=generator.device).cpu()
        return self._batch(random_crop_flip(self.train, index, self.crop_px, generator), self.train.labels[index])

    def test_batch(self, draw: int, start: int) -> Batch:
        index = torch.arange(start, min(start + self.test_batch_size, self.n_test))
        return self._batch(center_crop(self.test, index, self.crop_px), self.test.labels[index])

    def _batch(self, crops: Crops, labels: Tensor) -> Batch:
        images = crops.images.to(self.device).float() / 255
        return Batch(images, labels.to(self.device), parts=crops.parts.to(self.device))
