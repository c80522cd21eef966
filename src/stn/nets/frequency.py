"""A convolution through the frequency domain: the function of `F.conv2d`, exactly, in a fraction of its products.

The discrete Fourier transform of an H x W map turns circular correlation into products frequency by frequency, and of
the circular correlation the valid part (stride 1, no padding) is the ordinary one: it never wraps around. Maps are
small here, so transforms are matrix products, first along the height, then along the width.

Convention: a spectrum holds a half of all frequencies, those that a real map does not repeat, in pairs of real numbers:
real and imaginary part of a frequency or, of those that are real (both indices 0 or half the side), two of them, or one
and a zero. It is a list over the pairs of frequencies along the height; each entry is (N, q, 2, C), q along the width.
Transforms of maps are orthonormal, so that the adjoint is the inverse; those of kernels are not normalised.
"""

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Transform(NamedTuple):
    """Matrices of the transform of maps that fill `side` of `circle` px, the rest zero, in both directions."""

    height: Tensor  # (2 pairs, side_y): of a real column
    real: Tensor  # (2q, 2 side_x): of the pair of rows whose frequencies along the height are real
    complex: Tensor  # (2q, 2 side_x): of a real and an imaginary row
    real_pairs: tuple[int, ...]  # which q of `real` are two real frequencies

    def along_width(self, pair: int) -> Tensor:
        return self.complex if pair else self.real

    def analyse(self, maps: Tensor) -> list[Tensor]:
        """maps (N, H, W, C) -> spectrum."""
        n, h, w, c = maps.shape
        pairs = len(self.height) // 2
        columns = torch.bmm(self.height.expand(n, -1, -1), maps.reshape(n, h, w * c)).view(n, pairs, 2 * w, c)
        rows = (torch.bmm(self.along_width(i).expand(n, -1, -1), columns[:, i]) for i in range(pairs))
        return [spectrum.view(n, -1, 2, c) for spectrum in rows]

    def synthesise(self, spectrum: list[Tensor]) -> Tensor:
        """The adjoint of `analyse`: spectrum -> maps (N, H, W, C)."""
        n, _, _, c = spectrum[0].shape
        pairs, w = len(spectrum), self.real.shape[1] // 2
        columns = spectrum[0].new_empty(pairs, 2, n, w, c)
        for i, entry in enumerate(spectrum):
            matrix = self.along_width(i).view(-1, 2, 2, w)
            for part in range(2):
                real, imaginary = (matrix[:, j, part].T.expand(n, -1, -1) for j in range(2))
                torch.bmm(real, entry[:, :, 0], out=columns[i, part])
                columns[i, part].baddbmm_(imaginary, entry[:, :, 1])
        columns = columns.view(2 * pairs, n, w * c).transpose(0, 1)
        return torch.bmm(self.height.T.expand(n, -1, -1), columns).view(n, -1, w, c)


@functools.lru_cache(maxsize=128)
def _transform(side: tuple[int, int], circle: tuple[int, int], normalised: bool, dtype: torch.dtype) -> _Transform:
    height, width = (_real_dft(s, n, normalised) for s, n in zip(side, circle, strict=True))
    q = len(width) // 2
    if circle[0] % 2 == 0:  # two real frequencies along the height: 0 and a half
        real, real_pairs = torch.block_diag(width, width), (0, q)
    else:
        real, real_pairs = torch.cat([width, torch.zeros_like(width)], dim=1), (0,)
    matrices = (height, real, _complex_dft(side[1], circle[1], normalised))
    return _Transform(*(matrix.to(dtype) for matrix in matrices), real_pairs)


def _real_dft(side: int, circle: int, normalised: bool) -> Tensor:
    """(2 pairs, side), float64: frequency 0 and half the circle (or a zero), then real and imaginary parts."""
    angles = _angles(side, circle)[: (circle + 1) // 2]
    half = (-1.0) ** torch.arange(side) * (circle % 2 == 0)
    rows = torch.stack([angles.cos(), -angles.sin()], dim=1)
    rows[0, 1] = half
    if normalised:
        rows *= math.sqrt(2 / circle)
        rows[0] /= math.sqrt(2)
    return rows.flatten(0, 1)


def _complex_dft(side: int, circle: int, normalised: bool) -> Tensor:
    """(2 circle, 2 side), float64: real and imaginary part of each frequency, of real and imaginary parts."""
    angles = _angles(side, circle)
    real = torch.cat([angles.cos(), angles.sin()], dim=1)
    imaginary = torch.cat([-angles.sin(), angles.cos()], dim=1)
    rows = torch.stack([real, imaginary], dim=1).flatten(0, 1)
    return rows / math.sqrt(circle) if normalised else rows


def _angles(side: int, circle: int) -> Tensor:
    turns = torch.arange(circle)[:, None] * torch.arange(side) % circle
    return 2 * math.pi / circle * turns.double()


def _multiplier(kernels: Tensor, real_pairs: tuple[int, ...]) -> Tensor:
    """kernels (F, q, 2, C), an entry of their spectrum -> (q, 2F, 2C), what takes a map's pairs to the output's.

    The complex product with the conjugate, as one real matrix.
    """
    f, q, _, c = kernels.shape
    real, imaginary = kernels.permute(2, 1, 0, 3)
    blocks = kernels.new_empty(q, 2, f, 2, c)
    blocks[:, 0, :, 0] = real
    blocks[:, 0, :, 1] = imaginary
    torch.neg(imaginary, out=blocks[:, 1, :, 0])
    blocks[:, 1, :, 1] = real
    for pair in real_pairs:
        blocks[pair, 0, :, 1] = 0
        blocks[pair, 1, :, 0] = 0
        blocks[pair, 1, :, 1] = imaginary[pair]
    return blocks.view(q, 2 * f, 2 * c)


def _multiplier_adjoint(blocks: Tensor, filters: int, real_pairs: tuple[int, ...]) -> Tensor:
    """(q, 2F, 2C) -> (F, q, 2, C): the gradient to an entry of the kernels' spectrum."""
    blocks = blocks.view(len(blocks), 2, filters, 2, -1)
    parts = torch.stack([blocks[:, 0, :, 0] + blocks[:, 1, :, 1], blocks[:, 0, :, 1] - blocks[:, 1, :, 0]])
    for pair in real_pairs:
        parts[0, pair], parts[1, pair] = blocks[pair, 0, :, 0], blocks[pair, 1, :, 1]
    return parts.permute(2, 1, 0, 3)


class FrequencyConvolution(torch.autograd.Function):
    """(image (N, C, H, W), weight (F, C, k, k), bias (F)) -> `F.conv2d` of them, and what the gradients need again.

    Differentiable once.
    """

    @staticmethod
    def forward(image: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        maps, kernels, out = _transforms(image.shape, weight.shape, image.dtype)
        spectrum = [_by_frequency(entry) for entry in maps.analyse(image.permute(0, 2, 3, 1))]
        entries = kernels.analyse(weight.permute(0, 2, 3, 1))
        multipliers = [_multiplier(entry, kernels.real_pairs if i == 0 else ()) for i, entry in enumerate(entries)]
        products = [torch.bmm(x, w.mT) for x, w in zip(spectrum, multipliers, strict=True)]
        output = out.synthesise([_by_image(product) for product in products]).add_(bias)
        return output.permute(0, 3, 1, 2), *spectrum, *multipliers

    @staticmethod
    def setup_context(ctx, inputs, outputs) -> None:
        image, weight, _ = inputs
        ctx.shapes = image.shape, weight.shape, image.dtype
        ctx.save_for_backward(*outputs[1:])
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor | None, *_):
        if gradient is None:
            return None, None, None
        maps, kernels, out = _transforms(*ctx.shapes)
        pairs, filters = len(ctx.saved_tensors) // 2, ctx.shapes[1][0]
        spectrum, multipliers = ctx.saved_tensors[:pairs], ctx.saved_tensors[pairs:]
        entries = [_by_frequency(entry) for entry in out.analyse(gradient.permute(0, 2, 3, 1))]
        to_image = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            products = [torch.bmm(g, w) for g, w in zip(entries, multipliers, strict=True)]
            to_image = maps.synthesise([_by_image(product) for product in products]).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            products = [torch.bmm(g.mT, x) for g, x in zip(entries, spectrum, strict=True)]
            to_weight = kernels.synthesise(
                [
                    _multiplier_adjoint(product, filters, kernels.real_pairs if i == 0 else ())
                    for i, product in enumerate(products)
                ]
            ).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[2]:
            to_bias = gradient.sum(dim=(0, 2, 3))
        return to_image, to_weight, to_bias


def _transforms(image: torch.Size, weight: torch.Size, dtype: torch.dtype) -> tuple[_Transform, _Transform, _Transform]:
    """Of the image, the kernels and the output."""
    circle, kernel = tuple(image[2:]), tuple(weight[2:])
    valid = tuple(side - k + 1 for side, k in zip(circle, kernel, strict=True))
    return (
        _transform(circle, circle, True, dtype),
        _transform(kernel, circle, False, dtype),
        _transform(valid, circle, True, dtype),
    )


def _by_frequency(entry: Tensor) -> Tensor:
    """(N, q, 2, C) -> (q, N, 2C), a view."""
    return entry.flatten(2).transpose(0, 1)


def _by_image(product: Tensor) -> Tensor:
    """(q, N, 2C) -> (N, q, 2, C), a view."""
    return product.unflatten(2, (2, -1)).transpose(0, 1)


class FrequencyConv2d(nn.Conv2d):
    """`nn.Conv2d` (stride 1, no padding), computed in the frequency domain where `by_frequency` says so; on the CPU as
    one matrix product where its kernels are as large as the map.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        self.way: str | None = None  # which the latest images of training took

    def forward(self, image: Tensor) -> Tensor:
        by_products = by_frequency(image, self.weight)
        if torch.is_grad_enabled():
            self.way = "frequency" if by_products else "direct"
        if by_products:
            return FrequencyConvolution.apply(image, self.weight, self.bias)[0]
        if _allowed[-1] and image.device.type == "cpu" and image.shape[2:] == self.weight.shape[2:]:
            return F.linear(_flat(image), _flat(self.weight), self.bias)[..., None, None]
        return super().forward(image)


def _flat(maps: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H W C), no copy when channels come last."""
    return maps.permute(0, 2, 3, 1).flatten(1)


_allowed = [True]


@contextmanager
def direct_convolutions() -> Iterator[None]:
    """Inside, all convolutions are torch's own: for measurements of what the others do."""
    _allowed.append(False)
    try:
        yield
    finally:
        _allowed.pop()


def by_frequency(image: Tensor, weight: Tensor) -> bool:
    """Whether a convolution is computed in the frequency domain: by its sizes alone, never by a measurement on the way,
    so that a run is the same whenever it is made.

    In float32 on CPUs whose matrix products MKL computes, where it was measured; autocast wants fewer bits.
    """
    if (
        not _allowed[-1]
        or image.device.type != "cpu"
        or image.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
    ):
        return False
    return torch.backends.mkl.is_available() and pays(tuple(image.shape), tuple(weight.shape))


def pays(image: tuple[int, int, int, int], weight: tuple[int, int, int, int]) -> bool:
    """Whether the frequency domain is estimated to be faster, by 5 % at least, forward and backward.

    Fitted to 214 measurements with AVX512 and with AVX2, which differ little (results/bench/README.md), and
    to 56 of layers with 8 to 46 channels and sides of 20 and 40 px. Judged on the same: of those 56 none that it takes
    was slower; of the 214 it takes 86 at most, of which three were (0.85 to 0.97 of the direct speed), batches of 16
    of layers that no network here has.
    """
    (n, c, height, width), (f, _, k_y, k_x) = image, weight
    direct = n * c * -(-f // 8) * 8 * (height - k_y + 1) * (width - k_x + 1) * k_y * k_x  # it fills up its vectors
    return direct > products(image, weight)


def products(image: tuple[int, int, int, int], weight: tuple[int, int, int, int]) -> float:
    """What the frequency domain costs, forward and backward, in as many products of the direct way.

    Those of all frequencies, the maps' way there and back (matrix products as long as the maps' sides), the kernels',
    and the calls.
    """
    (n, c, height, width), f = image, weight[0]
    there_and_back = max(125, 3.1 * (height + width))
    return height * width * (0.63 * n * c * f + there_and_back * n * (c + f) + 140 * c * f) + 21e6
