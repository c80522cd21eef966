"""Data-parallel training: each process computes a slice of every batch, and all end at the numbers of one alone."""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stn.data.streams import Batch


class BatchSlice(NamedTuple):
    """Which of `count` equal slices of every batch this process takes.

    Every process draws the whole batch from the same random stream: the images are those of a run in one process.
    """

    rank: int = 0
    count: int = 1

    def of(self, batch: Batch) -> Batch:
        if self.count == 1:
            return batch
        n = len(batch.images) // self.count
        mine = slice(self.rank * n, (self.rank + 1) * n)
        return batch._make(None if column is None else column[mine] for column in batch)

    def mean(self, metrics: dict[str, float], device: torch.device) -> dict[str, float]:
        """Each metric's mean over the processes: of equal slices, that is the metric of the whole batch."""
        if self.count == 1:
            return metrics
        values = torch.tensor(list(metrics.values()), dtype=torch.float64, device=device)
        dist.all_reduce(values)
        return dict(zip(metrics, (values / self.count).tolist(), strict=True))

    def batch_norm(self) -> AbstractContextManager:
        """Forward passes in it normalise by the statistics of the whole batch."""
        return nullcontext() if self.count == 1 else _WholeBatchNorm()


class _WholeBatchNorm(TorchFunctionMode):
    """Replaces `F.batch_norm`, whichever layer calls it, so that the network stays as it is.

    torch's SyncBatchNorm refuses the CPU, and layers derived from BatchNorm2d (timm's have the activation inside).
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """`F.batch_norm` with the mean and variance over all processes, of which each has the same number of images."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    dims, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
    wide = x.to(weight.dtype)  # bfloat16 under autocast
    mean = _Mean.apply(wide.mean(dims))
    centred = wide - mean.view(shape)
    var = _Mean.apply(centred.square().mean(dims))
    with torch.no_grad():
        n = dist.get_world_size() * x.numel() / x.shape[1]
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (n / (n - 1)), momentum)
    return (centred * (weight * torch.rsqrt(var + eps)).view(shape) + bias.view(shape)).to(x.dtype)


class _Mean(torch.autograd.Function):
    """The mean over the processes of what each has; the gradient of their mean loss is the mean of its gradients."""

    @staticmethod
    def forward(_, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(_, gradient: Tensor) -> Tensor:
        return _Mean.forward(_, gradient)
