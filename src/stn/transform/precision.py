"""Grid and sampler always run in float32 or wider: in half precision a 28 px identity warp is off by 0.01-0.1."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def full_precision(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run `function` outside autocast, its float16/bfloat16 tensor arguments widened to float32."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs) -> Tensor:
        kwargs = {name: _widen(value) for name, value in kwargs.items()}
        device = next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(device_type=device.type, enabled=False):
            return function(*map(_widen, args), **kwargs)

    return wrapped


def _widen(value):
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value
