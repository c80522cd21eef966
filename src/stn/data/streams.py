"""What a task feeds its network: batches of digits distorted anew for training, fixed ones for the test."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from stn.data.mnist import Digits
from stn.data.seeds import TEST_SEED, stream_seed

TEST_BATCH = 1000


class Batch(NamedTuple):
    """images (N, C, *size) float32 in [0, 1], labels (N,) or, for several per image, (N, K), int64.

    Of digits also: `digits` (N, C), the class of each channel's, and `src_from_out` (N, C, 2, 3), of volumes
    (N, C, 3, 4), the affine map from the image to the undistorted digit, None where there is none. Of birds: `parts`
    (N, P, 3), see `stn.data.cub`. Of house numbers: `boxes` (N, 4), x0, y0, x1, y1 about all digits, normalised.
    """

    images: Tensor
    labels: Tensor
    digits: Tensor | None = None
    src_from_out: Tensor | None = None
    parts: Tensor | None = None
    boxes: Tensor | None = None


class Stream:
    """Images of one split for training and of another for the test.

    `shape` (C, *size) of an image; `classes` of a label; `n_test` images, of which `test_batch_size` make a batch;
    `guessing_loss`: of a net that knows how frequent each class is and nothing else; `progress`: how much of the
    training is done, in [0, 1], as it is told before every chunk of steps; `at_once`: whether many batches may be drawn
    as one, on the device where they are used.
    Training batches are drawn with replacement from the generator; test batches depend on (draw, start) alone, so that
    every model, seed and device sees the same pictures.
    """

    shape: tuple[int, ...]
    classes: int
    test_batch_size = TEST_BATCH
    device = torch.device("cpu")
    progress = 1.0
    at_once = False

    @property
    def n_test(self) -> int:
        return len(self.test)

    @property
    def guessing_loss(self) -> float:
        return math.log(self.classes)

    def to(self, device: torch.device) -> None:
        """Where the batches go; what they are made from stays, unless a subclass moves it."""
        self.device = torch.device(device)

    def draw(self, n: int, generator: torch.Generator) -> Batch:
        """A training batch of n images, on the generator's device."""
        raise NotImplementedError

    def test_batch(self, draw: int, start: int) -> Batch:
        """Test images `start` .. `start` + `test_batch_size` under distortion number `draw`."""
        raise NotImplementedError


class DigitStream(Stream):
    """Digits, kept on one device as uint8. The test's distortions are drawn on the CPU, from `TEST_SEED`.

    `channels`: how many digits an image has, one in each. `purpose`: of the test's random stream. A subclass says what
    becomes of digits (N, 28, 28) and labels (N,), or (N, channels, …) where an image has several: `_distorted`.
    """

    channels, classes, purpose = 1, 10, "test"
    at_once = True

    def __init__(self, train: Digits, test: Digits) -> None:
        self.train, self.test = train, test

    def to(self, device: torch.device) -> None:
        """Moves the digits."""
        self.train, self.test = self.train.to(device), self.test.to(device)

    def draw(self, n: int, generator: torch.Generator) -> Batch:
        index = self._choose(n, generator)
        return self._distorted(self.train.images[index], self.train.labels[index], generator)

    def test_batch(self, draw: int, start: int) -> Batch:
        index = self._test_digits(draw, start).to(self.test.images.device)
        generator = torch.Generator().manual_seed(stream_seed(TEST_SEED, f"{self.purpose}/{draw}", start))
        return self._distorted(self.test.images[index], self.test.labels[index], generator)

    def _choose(self, n: int, generator: torch.Generator) -> Tensor:
        device = self.train.images.device
        return torch.randint(len(self.train), (n,), generator=generator, device=device)

    def _test_digits(self, draw: int, start: int) -> Tensor:
        return torch.arange(start, min(start + self.test_batch_size, self.n_test))


class DistortedDigits(DigitStream):
    """One distorted digit per image: the columns of Table 1.

    For the share `ramp` of the training the distortion grows from none to its full strength.
    """

    def __init__(self, distortion, train: Digits, test: Digits, ramp: float = 0.0) -> None:
        super().__init__(train, test)
        self.distortion, self.ramp = distortion, ramp
        self.shape = (self.channels, *distortion.canvas)

    def draw(self, n: int, generator: torch.Generator) -> Batch:
        index = self._choose(n, generator)
        grown = self.progress >= self.ramp
        distortion = self.distortion if grown else self.distortion.weaker(self.progress / self.ramp)
        return self._distorted(self.train.images[index], self.train.labels[index], generator, distortion)

    def _distorted(self, digits: Tensor, labels: Tensor, generator: torch.Generator, distortion=None) -> Batch:
        distortion = distortion or self.distortion
        parameters = distortion.sample(digits, generator)
        turned = getattr(distortion, "src_from_out", None)
        src_from_out = turned(parameters)[:, None] if turned else None
        return Batch(distortion.apply(digits, parameters), labels, labels[:, None], src_from_out)


class AddedDigits(DistortedDigits):
    """MNIST addition (App. A.1): two channels, a digit in each under its own distortion; the label is their sum.

    Test: digit i with a partner that differs from draw to draw, and is the same for every model.
    """

    channels, classes, purpose = 2, 19, "pairs"

    @property
    def guessing_loss(self) -> float:
        """The entropy of the sum of two digits as frequent as in training: 9 is ten times as frequent as 0 or 18."""
        shares = self.train.labels.bincount(minlength=10).double() / len(self.train)
        of_pairs = torch.outer(shares, shares).fliplr()
        of_sums = torch.stack([of_pairs.diagonal(9 - total).sum() for total in range(self.classes)])
        return -torch.xlogy(of_sums, of_sums).sum().item()

    def _choose(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.stack([super()._choose(n, generator), super()._choose(n, generator)], dim=1)

    def _test_digits(self, draw: int, start: int) -> Tensor:
        generator = torch.Generator().manual_seed(stream_seed(TEST_SEED, "partners", draw))
        first, partners = super()._test_digits(draw, start), torch.randperm(self.n_test, generator=generator)
        return torch.stack([first, partners[first]], dim=1)

    def _distorted(self, digits: Tensor, labels: Tensor, generator: torch.Generator, distortion=None) -> Batch:
        """digits (N, 2, 28, 28), labels (N, 2): all 2 N digits are distorted in one go."""
        flat = super()._distorted(digits.flatten(0, 1), labels.flatten(), generator, distortion)
        src_from_out = None if flat.src_from_out is None else flat.src_from_out.view(-1, 2, 2, 3)
        return Batch(flat.images.view(-1, *self.shape), labels.sum(1), labels, src_from_out)


STREAMS = {"distorted": DistortedDigits, "added": AddedDigits}
