"""Constant tensors of a size, a type and a device: kept between calls, but never what a tracer made.

Making them anew in every call would cost the spline more than its product with theta does (docs/transform.md has the
times). A tensor made under `torch.export`, `torch.compile`, `make_fx` or `FakeTensorMode` is that tracer's own and must
not outlive it: while something traces, constants are made anew and are part of what is traced.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Of all that is kept, whatever is used longest ago goes first: a spline at 224 px has 3 MB, its regular grid 0.6 MB.
LIMIT_BYTES = 64 << 20
PLAIN = (Tensor, torch.nn.Parameter)  # not a subclass of them: those are what tracers work on

Make = Callable[[tuple[int, ...], torch.dtype, torch.device], Tensor]
_kept: dict[tuple[Make, tuple[int, ...], torch.dtype, torch.device], Tensor] = {}


def constant(make: Make, size: tuple[int, ...], like: Tensor) -> Tensor:
    """``make(size, like.dtype, like.device)``, kept for the next call."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(like) not in PLAIN or like.is_meta:  # type: ignore[attr-defined]
        return make(size, like.dtype, like.device)
    key = (make, size, like.dtype, like.device)
    found = _kept.pop(key, None)
    if found is None:
        with torch.inference_mode(False):  # a tensor made in inference mode could not enter a backward pass
            found = make(size, like.dtype, like.device)
        found = _unwrapped(found)
        if type(found) not in PLAIN:
            return found
    _kept[key] = found  # now the one used last
    while sum(tensor.nbytes for tensor in list(_kept.values())) > LIMIT_BYTES:
        _kept.pop(next(iter(_kept)), None)
    return found


def kept() -> list[Tensor]:
    """All that is kept: a CUDA graph reads where they are, and does not hold them."""
    return list(_kept.values())


def forget() -> None:
    """Drops all that is kept."""
    _kept.clear()


def _unwrapped(tensor: Tensor) -> Tensor:
    """What is made within `torch.func.grad` comes in that transform's own wrapping, which ends with it."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def exact_device(device: torch.device) -> torch.device:
    """Where float64 numbers for a device can be worked out: on itself, which spares a copy, but for MPS."""
    return torch.device("cpu") if device.type == "mps" else device
