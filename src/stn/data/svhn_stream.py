"""House numbers as they lie on disk, gathered into batches: no distortion, so every test draw would be the same."""

import torch
from torch import Tensor

from stn.data.augmentation import Augmentation
from stn.data.streams import Batch, Stream
from stn.data.svhn import NumberCrops
from stn.data.svhn_crops import MAX_DIGITS, NONE

TEST_BATCH = 200


class NumberStream(Stream):
    """Crops of one size for training, perhaps of several splits joined, and of another split for the test.

    The pictures stay where they are, mapped from disk; a batch goes to the device as uint8 and becomes float32 in
    [0, 1] there, where training ones are augmented. Labels are (N, 5): digits from the left, then 10 = none.
    """

    classes = NONE + 1
    test_batch_size = TEST_BATCH

    def __init__(self, train: list[NumberCrops], test: NumberCrops, augmentation: Augmentation | None = None) -> None:
        self.train, self.test, self.augmentation = train, test, augmentation or Augmentation()
        self.labels = torch.cat([part.labels for part in train])
        self.shape = (3, *test.images.shape[1:3])

    @property
    def guessing_loss(self) -> float:
        """The entropies of the five places' labels in the training set, summed."""
        counts = torch.stack([self.labels[:, k].bincount(minlength=self.classes) for k in range(MAX_DIGITS)])
        shares = counts.double() / len(self.labels)
        return -torch.xlogy(shares, shares).sum().item()

    def draw(self, n: int, generator: torch.Generator) -> Batch:
        index = torch.randint(len(self.labels), (n,), generator=generator, device=generator.device).cpu()
        batch = self._batch(self._gather(index), self.labels[index])
        return batch._replace(images=self.augmentation.apply(batch.images, generator))

    def test_batch(self, draw: int, start: int) -> Batch:
        part = slice(start, start + self.test_batch_size)
        batch = self._batch(self.test.images[part], self.test.labels[part])
        box_px = number_box(self.test.boxes_px[part])
        return batch._replace(boxes=(box_px * (2 / self.shape[-1]) - 1).to(self.device))

    def _gather(self, index: Tensor) -> Tensor:
        """Pictures of the joined training splits: (n, H, W, 3) uint8."""
        if len(self.train) == 1:
            return self.train[0].images[index]
        images = self.test.images.new_empty(len(index), *self.test.images.shape[1:])
        first = 0
        for part in self.train:
            here = (index >= first) & (index < first + len(part))
            images[here] = part.images[index[here] - first]
            first += len(part)
        return images

    def _batch(self, images: Tensor, labels: Tensor) -> Batch:
        return Batch(images.to(self.device).permute(0, 3, 1, 2).float() / 255, labels.to(self.device))


def number_box(digit_boxes: Tensor) -> Tensor:
    """The box about all digits of each number: (N, K, 4) as (x0, y0, x1, y1), 0 where there is none, -> (N, 4)."""
    absent = (digit_boxes == 0).all(-1, keepdim=True)
    low = digit_boxes[..., :2].masked_fill(absent, torch.inf).amin(1)
    high = digit_boxes[..., 2:].masked_fill(absent, -torch.inf).amax(1)
    return torch.cat([low, high], dim=1)
