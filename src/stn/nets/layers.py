"""The building blocks that the networks of Sect. 4.1 share."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn.nets.frequency import FrequencyConv2d

# An image with up to so many channels takes the faster way of `InputConv2d`.
FEW_CHANNELS = 4


class _PatchGradientConv(torch.autograd.Function):
    """A convolution (stride 1, no padding) whose gradients are single matrix products with its patches.

    On the CPU, torch computes the gradient to the image as a convolution with as many output channels as the image
    has: one, for MNIST, which leaves the vector units idle. One matrix product to all patches and 2k shifted additions
    take a ninth of the time. Without AVX512, its gradient to the weights leaves them idle, too, unless the filters are
    a multiple of the vector's length.
    """

    @staticmethod
    def forward(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(image, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, gradient: Tensor):
        image, weight = ctx.saved_tensors
        pixels = gradient.permute(0, 2, 3, 1).flatten(0, 2)  # (N h w, F), no copy when channels come last
        to_image = _to_image(image, weight, pixels) if ctx.needs_input_grad[0] else None
        to_weight = to_bias = None
        if any(ctx.needs_input_grad[1:]):  # not of a frozen network
            to_weight, to_bias = _to_weight_and_bias(image, weight, pixels)
        return to_image, to_weight, to_bias


def _to_image(image: Tensor, weight: Tensor, pixels: Tensor) -> Tensor:
    n, c, height, width = image.shape
    k_y, k_x = weight.shape[2:]
    h, w = height - k_y + 1, width - k_x + 1
    patches = (weight.flatten(1).T @ pixels.T).view(c, k_y, k_x, n, h, w)
    if patches.dtype == torch.bfloat16:  # many sums: they would lose digits, and time
        patches = patches.float()
    rows = patches.new_zeros(c, k_y, n, h, width)
    for x in range(k_x):
        rows[..., x : x + w] += patches[:, :, x]
    to_image = patches.new_zeros(c, n, height, width)
    for y in range(k_y):
        to_image[:, :, y : y + h] += rows[:, y]
    return to_image.transpose(0, 1).to(image.dtype)


def _to_weight_and_bias(image: Tensor, weight: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The bias is a weight of patches that are 1."""
    _, c, k_y, k_x = weight.shape
    windows = image.unfold(2, k_y, 1).unfold(3, k_x, 1).permute(1, 4, 5, 0, 2, 3)
    patches = image.new_empty(c * k_y * k_x + 1, len(pixels))
    patches[:-1].view(windows.shape).copy_(windows)
    patches[-1] = 1
    gradients = pixels.T @ patches.T
    return gradients[:, :-1].reshape(weight.shape), gradients[:, -1]


class InputConv2d(nn.Conv2d):
    """`nn.Conv2d` (stride 1, no padding) for an image of few channels.

    The same function; on the CPU its gradients are computed in a faster way.
    """

    def forward(self, image: Tensor) -> Tensor:
        operands = (image, self.weight, self.bias)
        if image.device.type != "cpu":
            return super().forward(image)
        if torch.is_autocast_enabled("cpu"):
            if not image.requires_grad:
                return super().forward(image)
            operands = (operand.to(torch.get_autocast_dtype("cpu")) for operand in operands)
        return _PatchGradientConv.apply(*operands)


class BlockMean(nn.Module):
    """`nn.AvgPool2d(block)`, which drops what is left of a side that is no multiple of `block`, in half the time on
    the CPU.
    """

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def forward(self, image: Tensor) -> Tensor:
        height, width = (side // self.block * self.block for side in image.shape[-2:])
        rows = sum(image[..., i : height : self.block, :] for i in range(self.block))
        return sum(rows[..., i : width : self.block] for i in range(self.block)) / self.block**2


def he(layer: nn.Conv2d | nn.Linear, generator: torch.Generator | None = None) -> nn.Conv2d | nn.Linear:
    """The layer, initialised for a ReLU behind it (He et al. 2015): keeps the signal's size from layer to layer.

    Deviation: the paper names no initialisation. With torch's own, which shrinks the signal about 2.4 times a layer, a
    localisation net of three layers hardly moves its theta in a short schedule.
    """
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def conv_pool(in_channels: int, filters: int, kernel: int) -> nn.Sequential:
    """Convolution (stride 1, no padding), 2x2 max-pool that rounds sizes up, ReLU.

    ReLU after the pooling equals ReLU before it, on a quarter of the values.
    Deviation: the rounding (ceil mode) is ours; it is what lets a 21x21 map through conv 9x9, pool, conv 7x7, pool.
    """
    conv = (InputConv2d if in_channels <= FEW_CHANNELS else FrequencyConv2d)(in_channels, filters, kernel)
    return nn.Sequential(he(conv), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU())


def flat_features(net: nn.Module, in_shape: tuple[int, int, int]) -> int:
    """How many numbers `net` gives for one image of shape (C, H, W).

    Raises: ValueError when the image is too small for the net.
    """
    try:
        with torch.no_grad():
            return math.prod(net(torch.zeros(1, *in_shape)).shape[1:])
    except RuntimeError as error:
        raise ValueError(f"an input of {in_shape[1]}x{in_shape[2]} px is too small for this network") from error
