"""Grid and sampler always run in float32 or wider: in half precision a 28 px identity warp is off by 0.01-0.1."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run `function` outside autocast, its float16/bfloat16 tensor arguments widened to float32."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        wide: list[Any] = [_widen(value) for value in args]
        named: dict[str, Any] = {name: _widen(value) for name, value in kwargs.items()}
        devices = [value.device.type for value in (*wide, *named.values()) if isinstance(value, Tensor)]
        if not devices or devices[0] == "meta":  # which autocast does not know
            return function(*wide, **named)
        with torch.autocast(device_type=devices[0], enabled=False):
            return function(*wide, **named)

    return wrapped


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


def product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product a b, in float64 on CUDA: there it may be rounded to TF32, 10 bits, where the caller allows
    that, and in the backward pass long after. It would move a grid by 0.07 px at 224.
    """
    if a.device.type == "cuda" and a.dtype == torch.float32:
        return (a.double() @ b.double()).float()
    return a @ b
