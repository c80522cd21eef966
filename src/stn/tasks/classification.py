"""Classification of images that a stream makes anew in every step (Sect. 4, App. A.1, A.3)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from stn.data.streams import Batch, Stream
from stn.tasks.looks import IMAGES, Look, theta_means
from stn.tasks.recipe import Recipe
from stn.tasks.series import Series
from stn.tasks.training import Training

# A run counts as collapsed when its last losses are no better than guessing, or its ST looks past the image.
GUESSING_MARGIN = 0.05
MIN_GRID_INSIDE = 0.05


class Classification(Training):
    """Trains `net` (N, C, H, W) -> logits (N, classes), or (N, K, classes) for K labels per image, on `stream`.

    A test that is random is drawn `test_draws` times. `label_smoothing`: see `cross_entropy`; of training alone.
    An image counts as wrong when any of its K labels is. A net with a method `observe`, image -> (logits, what each of
    its spatial transformers did), has that summed up over the test by `statistics()`: an object with
    `add(warps, batch)`, `summary()` and `look(warps, batch, summary)`, which shows some.
    """

    def __init__(
        self,
        net: nn.Module,
        stream: Stream,
        recipe: Recipe,
        seed: int,
        statistics: Callable | None = None,
        test_draws: int = 1,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(net, recipe, seed)
        self.stream = stream
        self.statistics = statistics if hasattr(net, "observe") else None
        self.test_draws = test_draws
        self.label_smoothing = label_smoothing
        self.drawn: Batch | None = None  # the next training batch, where it is drawn already

    @property
    def n_test(self) -> int:
        return self.stream.n_test

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.stream.to(self.device)
        graphs = stage == "fit" and self.device.type == "cuda" and self.slice.count == 1 and self.stream.at_once
        self.series = Series(self) if graphs else None

    def teardown(self, stage: str) -> None:
        self.series = None  # with it goes the graph's memory

    def begin_chunk(self) -> int:
        self.stream.progress = self.steps_done / self.recipe.steps
        return super().begin_chunk()

    def draw_batch(self) -> Batch:
        """The next training batch."""
        return self.drawn or self.stream.draw(self.recipe.batch_size, self.generator)

    def batch_loss(self) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batch = self.slice.of(self.draw_batch())
        logits = self.net(batch.images)
        loss = cross_entropy(logits, batch.labels, self.label_smoothing)
        return loss, (logits.detach(), batch.labels)

    def chunk_metrics(self, outcomes: list) -> dict[str, float]:
        """Of (logits, labels), each of one batch or of several after one another."""
        logits, labels = (torch.cat(column) for column in zip(*outcomes, strict=True))
        return {"train/error_pct": 100 * is_wrong(logits, labels).float().mean().item()}

    def look(self) -> Look | None:
        """The first test images through the transformers on the input."""
        batch = self.stream.test_batch(draw=0, start=0)
        batch = Batch(*(None if part is None else part[:IMAGES] for part in batch))
        warps = self.net.observe(batch.images)[1] if self.statistics else []
        if not warps:
            return None
        statistics = self.statistics()
        statistics.add(warps, batch)
        return statistics.look(warps, batch, statistics.summary() | theta_means(warps))

    def test_dataloader(self) -> DataLoader:
        """(draw, first image) of every test batch."""
        starts = range(0, self.n_test, self.stream.test_batch_size)
        return DataLoader([(draw, start) for draw in range(self.test_draws) for start in starts], batch_size=None)

    def on_test_start(self) -> None:
        self.test_wrong = torch.zeros(self.test_draws, self.n_test, dtype=torch.bool)
        self.test_loss = 0.0
        self.observed = self.statistics() if self.statistics else None

    def test_batch_of(self, image: int) -> tuple[int, int]:
        """The first image of the test batch that holds test image number `image`, and its place in the batch."""
        place = image % self.stream.test_batch_size
        return image - place, place

    def test_step(self, place: tuple[int, int], batch_idx: int) -> dict[str, Tensor]:
        """What it returns is for callbacks."""
        draw, start = place
        batch = self.stream.test_batch(draw, start)
        if self.observed:
            logits, warps = self.net.observe(batch.images)
            self.observed.add(warps, batch)
        else:
            logits = self.net(batch.images)
        self.test_loss += cross_entropy(logits, batch.labels).item() * len(batch.labels)
        self.test_wrong[draw, start : start + len(batch.labels)] = is_wrong(logits, batch.labels).cpu()
        return {"logits": logits, "labels": batch.labels}

    def on_test_end(self) -> None:
        self.per_draw = {"test/error_pct": (100 * self.test_wrong.float().mean(dim=1)).tolist()}
        self.metrics = {
            "test/error_pct": 100 * self.test_wrong.float().mean().item(),
            "test/loss": self.test_loss / self.test_wrong.numel(),
        }
        if self.observed:
            self.metrics |= {f"test/{name}": value for name, value in self.observed.summary().items()}

    def collapse(self, loss: float) -> str | None:
        if loss > self.stream.guessing_loss - GUESSING_MARGIN:
            return f"training loss {loss:.3f} at the end is that of guessing among {self.stream.classes} classes"
        inside = min((v for name, v in self.metrics.items() if name.endswith("grid_inside")), default=1.0)
        if inside < MIN_GRID_INSIDE:
            return f"only {inside:.1%} of a sampling grid lies inside the image"
        return None


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over the images, summed over the labels of an image; `smoothing` of a label is spread over all classes.

    Shapes: logits (N, classes), labels (N,); or (N, K, classes), (N, K), of which those below 0 count for nothing.
    """
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=smoothing)
    return total / (labels >= 0).sum().clamp(min=1) * labels.shape[1]


def is_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether any label of an image is: (N,) bool."""
    wrong = logits.argmax(-1) != labels
    return wrong if wrong.ndim == 1 else wrong.any(1)
