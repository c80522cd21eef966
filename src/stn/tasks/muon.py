"""Muon: steps along orthogonal matrices (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/)."""

import math

import torch
from torch import Tensor

MOMENTUM = 0.95
ROUNDS, COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration; theirs
ADAM_RMS = 0.2  # of the numbers in a step of AdamW, over its rate (Liu et al. 2025, arXiv 2502.16982, Sect. 2.2)


class Muon(torch.optim.AdamW):
    """AdamW, but for the groups with `orthogonal=True`: there a step is the momentum with all its singular values made
    about one.

    Those groups hold weights of two dimensions or more: filters (F, C, k, k) count as a matrix (F, C k k). Steps are as
    large as AdamW's would be, so one rate and one weight decay do for both.
    Unlike `torch.optim.Muon` it takes filters, can be part of a CUDA graph, and computes in float32: bfloat16, theirs,
    is ten times slower on processors that emulate it.
    """

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if group.get("orthogonal"):
                for weight in group["params"]:
                    if weight.grad is None:
                        continue
                    self._step(weight, group["lr"], group["weight_decay"])
                    weight.grad = None  # AdamW passes over what has none
        return super().step(closure)

    def _step(self, weight: Tensor, lr: float | Tensor, weight_decay: float) -> None:
        state = self.state[weight]
        if not state:
            state |= {
                "momentum": torch.zeros_like(weight),
                "step": torch.tensor(0.0),
            }  # AdamW loads none without a step
        momentum = state["momentum"]
        momentum.lerp_(weight.grad, 1 - MOMENTUM)
        direction = weight.grad.lerp(momentum, MOMENTUM).flatten(1)  # Nesterov's
        size = ADAM_RMS * math.sqrt(max(direction.shape))  # an orthogonal matrix has 1 / max(shape) as mean square
        weight.mul_(1 - lr * weight_decay)
        weight.sub_((lr * size) * orthogonal(direction).view_as(weight))


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix (M, N) with its singular values brought to about 0.7 to 1.2, by a few products; those below a
    hundredth of its norm remain smaller.

    Where one side is much the longer, the rounds are made on the products of the shorter side's vectors alone.
    """
    a, b, c = COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    n, m = wide.shape
    if m < 2 * n:
        for _ in range(ROUNDS):
            gram = wide @ wide.T
            wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    else:
        gram, total = wide @ wide.T, None
        for i in range(ROUNDS):
            factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal().add_(a)
            total = factor if total is None else factor @ total
            if i < ROUNDS - 1:
                gram = factor @ gram @ factor
        wide = total @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
