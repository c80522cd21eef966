"""The two building blocks that the networks of Sect. 4.1 share."""

import math

import torch
from torch import nn


def conv_pool(in_channels: int, filters: int, kernel: int) -> nn.Sequential:
    """Convolution (stride 1, no padding), 2x2 max-pool that rounds sizes up, ReLU.

    ReLU after the pooling equals ReLU before it, on a quarter of the values. Rounding up (ceil mode) is what lets a
    21x21 map through conv 9x9, pool, conv 7x7, pool.
    """
    return nn.Sequential(nn.Conv2d(in_channels, filters, kernel), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU())


def flat_features(net: nn.Module, in_shape: tuple[int, int, int]) -> int:
    """How many numbers `net` gives for one image of shape (C, H, W).

    Raises: ValueError when the image is too small for the net.
    """
    try:
        with torch.no_grad():
            return math.prod(net(torch.zeros(1, *in_shape)).shape[1:])
    except RuntimeError as error:
        raise ValueError(f"an input of {in_shape[1]}x{in_shape[2]} px is too small for this network") from error
