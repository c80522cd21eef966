"""What grids and sampler accept, and the one line that they refuse anything else with."""

from collections.abc import Sequence

import torch
from torch import Tensor

AXES = {2: "(H, W)", 3: "(D, H, W)", None: "(H, W) or (D, H, W)"}


def check_tensor(function: str, argument: str, value: object, shape: str) -> None:
    """Raises: TypeError when `value` is not a tensor of floating-point numbers."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return
    given = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
    raise TypeError(f"{function}: {argument} must be a floating-point tensor of shape {shape}, got {given}")


def check_theta(function: str, theta: Tensor, shape: tuple[int | str, ...]) -> None:
    """A letter in `shape` stands for any size.

    Raises: TypeError when theta is not a tensor of floating-point numbers, ValueError when it is not (N, *shape).
    """
    words = f"({', '.join(map(str, ('N', *shape)))})"
    check_tensor(function, "theta", theta, words)
    given = tuple(theta.shape[1:])
    if len(given) != len(shape) or any(isinstance(n, int) and n != m for n, m in zip(shape, given, strict=True)):
        raise ValueError(f"{function}: theta must have shape {words}, got {tuple(theta.shape)}")


def checked_size(
    function: str, given: Sequence[int], n_axes: int | None = None, argument: str = "out_size"
) -> tuple[int, ...]:
    """A size as a tuple; without `n_axes` it may have two or three. `argument` is what `function` calls it.

    Raises: TypeError when it is no sequence of integers, ValueError when it has not `n_axes` or is not positive.
    """
    axes = AXES[n_axes]
    if isinstance(given, str) or not hasattr(given, "__iter__"):
        raise TypeError(f"{function}: {argument} must be {axes}, got {given!r}")
    size = tuple(given)
    if not all(hasattr(n, "__index__") or isinstance(n, torch.SymInt) for n in size):
        raise TypeError(f"{function}: {argument} must be {axes} in whole pixels, got {size}")
    if len(size) not in ((2, 3) if n_axes is None else (n_axes,)):
        raise ValueError(f"{function}: {argument} must be {axes}, got {size}")
    if any(n < 1 for n in size):
        raise ValueError(f"{function}: {argument} must be positive, got {size}")
    return size
