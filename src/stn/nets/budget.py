"""One number of parameters for all networks of an experiment (Sect. 4.1): widths are solved for."""

from collections.abc import Callable

import torch
from torch import nn

TOLERANCE = 0.02
# How far the two widths may be apart. One filter more in both layers of a small CNN already adds 4-12 %.
MAX_DIFFERENCE = 4


def count_parameters(net: nn.Module) -> int:
    """The number of learnable parameters."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def build_within_budget(
    build: Callable[[tuple[int, int]], nn.Module], budget: int
) -> tuple[nn.Module, tuple[int, int]]:
    """The network, `build` of two widths, that has `budget` parameters within 2 %, and those widths.

    Raises: ValueError when no widths do, or the image is too small.
    """

    def parameters(widths: tuple[int, int]) -> int:
        with torch.device("meta"):
            return count_parameters(build(widths))

    widths = solve_widths(parameters, budget)
    return build(widths), widths


def solve_widths(parameters: Callable[[tuple[int, int]], int], budget: int) -> tuple[int, int]:
    """The two layer widths, as equal as possible, with which a network has `budget` parameters within 2 %.

    `parameters` counts a network's parameters for given widths, and must grow with both.
    Raises: ValueError when no widths do.
    """
    low, high = 1, 2
    while parameters((high, high)) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters((middle, middle)) <= budget else (low, middle)
    best = None
    for difference in range(MAX_DIFFERENCE + 1):
        errors = {
            pair: abs(parameters(pair) / budget - 1)
            for a in range(max(1, low - MAX_DIFFERENCE), low + MAX_DIFFERENCE + 2)
            for pair in sorted({(a, a + difference), (a + difference, a)})
        }
        nearest = min(errors, key=errors.get)
        if errors[nearest] <= TOLERANCE:
            return nearest
        best = nearest if best is None or errors[nearest] < abs(parameters(best) / budget - 1) else best
    raise ValueError(
        f"no layer widths give {budget} parameters within {TOLERANCE:.0%}; "
        f"the nearest, {best}, gives {parameters(best)}"
    )
