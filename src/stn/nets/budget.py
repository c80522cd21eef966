"""One number of parameters for all networks of an experiment (Sect. 4.1): widths are solved for."""

from collections.abc import Callable

from torch import nn

TOLERANCE = 0.02
# How far the two widths may be apart. One filter more in both layers of a small CNN already adds 4-12 %.
MAX_DIFFERENCE = 4


def count_parameters(net: nn.Module) -> int:
    """The number of learnable parameters."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


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
    near = range(max(1, low - MAX_DIFFERENCE), low + MAX_DIFFERENCE + 2)
    errors = {(a, b): abs(parameters((a, b)) / budget - 1) for a in near for b in near if abs(a - b) <= MAX_DIFFERENCE}
    fitting = [widths for widths, error in errors.items() if error <= TOLERANCE]
    if not fitting:
        best = min(errors, key=errors.get)
        raise ValueError(
            f"no layer widths give {budget} parameters within {TOLERANCE:.0%}; "
            f"the nearest, {best}, gives {parameters(best)}"
        )
    return min(fitting, key=lambda widths: (abs(widths[0] - widths[1]), errors[widths]))
