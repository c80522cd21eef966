"""Series of training steps as CUDA graphs: a GPU is done with a step of a small network long before Python has started
its kernels, so a whole series is captured once, and then started by one call.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from stn.data.streams import Batch
from stn.tasks.precision import computing
from stn.transform import constants

# As many numbers of images are drawn at a time, at most, unless one batch has more: 0.7 GB at the peak, with the grids
# by which they are distorted. It decides which images a run on CUDA sees.
DRAWN_NUMBERS = 2**24


class Series:
    """Takes the steps of `module`, a classification whose stream draws `at_once`, chunk by chunk.

    On CUDA on a stream of kernels of its own, so that several networks whose chunks are started one after the other
    run side by side. The first chunk is taken step by step: it leaves behind what a graph cannot make, such as
    momentum. Then the graph of a series of `length` steps is captured, and replayed for all that follow with other
    images and rates. Images are drawn for a whole series at once, outside of the graph, since a distortion that grows
    is another one in every chunk.
    On the CPU, where there are no graphs, a series is one step: the images are those of `draw_batch`.
    """

    def __init__(self, module) -> None:
        self.module, self.device = module, module.device
        self.length, self.stream = 1, None
        if self.device.type == "cuda":
            self.stream = torch.cuda.Stream(self.device)
            fit = max(1, DRAWN_NUMBERS // (module.recipe.batch_size * math.prod(module.stream.shape)))
            # All series of a chunk are of one length, that of the graph.
            self.length = max(n for n in range(1, fit + 1) if module.chunk_steps % n == 0)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.warm = False

    def train_chunk(self, optimiser: Optimizer, schedule: LRScheduler) -> tuple[Tensor, list]:
        """Takes the steps of the next chunk: the loss of each (steps,), and what `end_chunk` needs of them besides.

        On CUDA it only starts them: `wait` is called before these are read, or the network is.
        """
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        losses, outcomes = [], []
        with torch.cuda.stream(self.stream) if self.stream else nullcontext():
            steps = self.module.begin_chunk()
            for first in range(0, steps, self.length):
                drawn = self._draw(n := min(self.length, steps - first))
                replays = self.warm and n == self.length
                loss, outcome = (self._replay if replays else self._step_by_step)(drawn, optimiser, schedule)
                losses.append(loss)
                outcomes += outcome
            losses = torch.cat(losses)
        if self.stream and not self.warm:
            self.wait()  # constants were made that other streams of kernels read, too
            self.warm = True
        return losses, outcomes

    def wait(self) -> None:
        """What is called from now on comes after all that was started."""
        if self.stream:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def _draw(self, steps: int) -> tuple[Tensor, Tensor]:
        """Images (steps, N, C, *size) and labels (steps, N) or (steps, N, K)."""
        size = self.module.recipe.batch_size
        batch = self.module.stream.draw(steps * size, self.module.generator)
        return tuple(part.unflatten(0, (steps, size)) for part in (batch.images, batch.labels))

    def _step_by_step(self, drawn: tuple[Tensor, Tensor], optimiser: Optimizer, schedule: LRScheduler):
        losses, outcomes = [], []
        for loss, outcome in self._steps(drawn, optimiser):
            schedule.step()
            losses.append(loss)
            outcomes.append(outcome)
        return torch.stack(losses), outcomes

    def _steps(self, drawn: tuple[Tensor, Tensor], optimiser: Optimizer) -> Iterator[tuple[Tensor, object]]:
        for images, labels in zip(*drawn, strict=True):
            self.module.drawn = Batch(images, labels)
            with computing(self.module.precision, self.device):
                loss, outcome = self.module.batch_loss()
            self.module.drawn = None
            self.module.update(optimiser, loss)
            yield loss.detach(), outcome

    def _replay(self, drawn: tuple[Tensor, Tensor], optimiser: Optimizer, schedule: LRScheduler):
        rates = []
        for _ in range(self.length):
            rates.append([group["lr"] for group in optimiser.param_groups])
            schedule.step()
        if self.graph is None:
            self._capture(drawn, rates, optimiser)
        for kept, given in zip(self.drawn, drawn, strict=True):
            kept.copy_(given)
        self.rates.copy_(torch.tensor(rates, pin_memory=self.device.type == "cuda"), non_blocking=True)
        self.graph.replay()
        # Copies, for the next replay writes there.
        return self.losses.clone(), [(self.logits.clone(), self.drawn[1].flatten(0, 1).clone())]

    def _capture(self, drawn: tuple[Tensor, Tensor], rates: list[list[float]], optimiser: Optimizer) -> None:
        """Makes the graph, of these steps: what it reads is `drawn` and `rates`, what it writes `losses`, `logits`."""
        self.drawn = tuple(part.clone() for part in drawn)
        self.rates = torch.tensor(rates, device=self.device)
        numbers = [group["lr"] for group in optimiser.param_groups]
        self.constants = constants.kept()
        optimiser.zero_grad()  # gradients are the graph's own
        self.graph, taken = torch.cuda.CUDAGraph(), []
        with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
            steps = self._steps(self.drawn, optimiser)
            for rate in self.rates:
                for group, lr in zip(optimiser.param_groups, rate, strict=True):
                    group["lr"] = lr
                    if "capturable" in group:  # of Adam: that its count of steps is on the device
                        group["capturable"] = True
                taken.append(next(steps))
            losses, outcomes = zip(*taken, strict=True)
            self.losses, self.logits = torch.stack(losses), torch.cat([logits for logits, _ in outcomes])
        for group, lr in zip(optimiser.param_groups, numbers, strict=True):
            group["lr"] = lr
