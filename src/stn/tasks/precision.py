"""In which arithmetic a training step is computed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Forward passes in "float32", "tf32" (convolutions on CUDA) or "bf16" (autocast).

    In TF32 matrix products stay in float32, for the grid is one. In bf16 grid and sampler see to it themselves.
    """
    allow_tf32(precision == "tf32")  # not undone: what follows is the backward pass
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


def allow_tf32(allowed: bool) -> None:
    """Whether CUDA computes float32 convolutions in TF32; torch does unless told otherwise."""
    torch.backends.cudnn.allow_tf32 = allowed
