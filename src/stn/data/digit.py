"""What all distortions share: the digit image they start from, and random numbers that follow the generator."""

import math
from typing import Any

import torch
from torch import Tensor

DIGIT_PX = 28


def number(name: str, given: Any) -> float:
    """A distortion's setting that is 0 or more. Raises: ValueError naming it."""
    if not _is_number(given) or given < 0:
        raise ValueError(f"distortion.{name} must be a number, 0 or more, got {given!r}")
    return float(given)


def whole_number(name: str, given: Any, least: int) -> int:
    """Raises: ValueError naming the setting."""
    if not isinstance(given, int) or isinstance(given, bool) or given < least:
        raise ValueError(f"distortion.{name} must be an integer, {least} or more, got {given!r}")
    return given


def scales(given: Any) -> tuple[float, float]:
    """The setting `scale`, lowest and highest. Raises: ValueError."""
    two = isinstance(given, list | tuple) and len(given) == 2 and all(map(_is_number, given))
    if not two or not 0 < given[0] <= given[1]:
        raise ValueError(f"distortion.scale must be two numbers, 0 < low <= high, got {given!r}")
    return float(given[0]), float(given[1])


def _is_number(given: Any) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)


def unit_interval(images: Tensor) -> Tensor:
    """Digits as stored to one channel in [0, 1]. Shapes: (N, 28, 28) uint8 -> (N, 1, 28, 28) float32.

    Raises: ValueError for another type or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 3 or images.shape[1:] != (DIGIT_PX, DIGIT_PX):
        raise ValueError(
            f"distortion: want images (N, {DIGIT_PX}, {DIGIT_PX}) of uint8, got {tuple(images.shape)} of {images.dtype}"
        )
    return images[:, None] / 255


def uniform(
    generator: torch.Generator, shape: tuple[int, ...], low: float, high: float, device: torch.device
) -> Tensor:
    """U(low, high), drawn on the generator's device, then moved."""
    return torch.empty(shape, device=generator.device).uniform_(low, high, generator=generator).to(device)


def normal(generator: torch.Generator, shape: tuple[int, ...], sigma: float, device: torch.device) -> Tensor:
    """N(0, sigma), drawn on the generator's device, then moved."""
    return torch.empty(shape, device=generator.device).normal_(0.0, sigma, generator=generator).to(device)


def integers(generator: torch.Generator, shape: tuple[int, ...], low: int, high: int, device: torch.device) -> Tensor:
    """Integers low..high, both included, drawn on the generator's device, then moved."""
    return torch.randint(low, high + 1, shape, generator=generator, device=generator.device).to(device)
