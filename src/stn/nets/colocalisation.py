"""The nets of co-localisation (App. A.2): a localiser per class, and the encoder that compares their crops."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stn.nets.layers import conv_pool, flat_features, he
from stn.nets.mnist import Cnn
from stn.transform import SpatialTransformer
from stn.transform.grids import attention_grid
from stn.transform.transformer import Transformation


@dataclass(frozen=True)
class WindowBounds:
    """The windows that a localiser can choose: scale `scale_min` to `scale_max`, centre within ±`max_shift`.

    Deviation: the paper bounds nothing. Its loss has minima where all windows see nothing, beyond the image's border
    or zoomed out until the object vanishes, so here the centre stays in the image and the scale in a range around
    the size that the object is known to have roughly.
    Raises: ValueError for a range that is none.
    """

    scale_min: float
    scale_max: float
    initial_scale: float
    max_shift: float

    def __post_init__(self) -> None:
        if not 0 < self.scale_min < self.initial_scale < self.scale_max or self.max_shift <= 0:
            raise ValueError(
                "windows need 0 < scale_min < initial_scale < scale_max and max_shift > 0, got "
                f"{self.scale_min}, {self.initial_scale}, {self.scale_max}, {self.max_shift}"
            )

    def windows(self, raw: Tensor) -> Tensor:
        """What a regression layer says as attention theta (s, tx, ty): (..., 3) -> (..., 3)."""
        scale = self.scale_min + (self.scale_max - self.scale_min) * raw[..., :1].sigmoid()
        return torch.cat([scale, self.max_shift * raw[..., 1:].tanh()], dim=-1)

    def raw(self, scale: float) -> Tensor:
        """The raw theta of the window of this scale in the middle of the image."""
        share = (scale - self.scale_min) / (self.scale_max - self.scale_min)
        return torch.tensor([math.log(share / (1 - share)), 0.0, 0.0])

    def at_random(self, scale: Tensor, generator: torch.Generator) -> Tensor:
        """Windows of given scales (...) with uniformly random centres: (..., 3)."""
        centre = torch.rand(*scale.shape, 2, generator=generator, device=scale.device)
        return torch.cat([scale[..., None], self.max_shift * (2 * centre - 1)], dim=-1)

    def transformation(self) -> Transformation:
        """Attention (Eq. 2) of the bounded theta."""
        return Transformation("bounded_attention", self.grid, tuple(self.raw(self.initial_scale).tolist()))

    def grid(self, raw: Tensor, out_size: Sequence[int]) -> Tensor:
        """The sampling grid of the window that `raw` says: (N, 3) -> (N, H, W, 2)."""
        return attention_grid(self.windows(raw), out_size)


class ColocalisationLocalisation(nn.Sequential):
    """Two 5x5 convolutions of 8 filters, each with a 2x2 max-pool, then four fc layers of 8 units (App. A.2)."""

    def __init__(self, in_shape: tuple[int, int, int], filters: int = 8, units: int = 8, fc_layers: int = 4) -> None:
        features = nn.Sequential(conv_pool(in_shape[0], filters, 5), conv_pool(filters, filters, 5), nn.Flatten())
        widths = [flat_features(features, in_shape), *[units] * fc_layers]
        fc = [layer for a, b in itertools.pairwise(widths) for layer in (he(nn.Linear(a, b)), nn.ReLU())]
        super().__init__(*features, *fc)
        self.out_features = units


class Localisers(nn.Module):
    """One spatial transformer (scale, translation) per class, none of which sees another's images.

    Shapes: images (N, K, C, H, W), N of each of K classes.
    """

    def __init__(self, classes: int, in_shape: tuple[int, int, int], bounds: WindowBounds, crop_px: int = 28) -> None:
        super().__init__()
        self.bounds = bounds
        self.transformers = nn.ModuleList(
            SpatialTransformer(ColocalisationLocalisation(in_shape), bounds.transformation(), (crop_px, crop_px))
            for _ in range(classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """The windows as attention theta (s, tx, ty): (N, K, 3)."""
        raw = [transformer.theta(images[:, k]) for k, transformer in enumerate(self.transformers)]
        return self.bounds.windows(torch.stack(raw, dim=1))

    @torch.no_grad()
    def standardise(self, images: Tensor) -> None:
        """Scales and shifts every layer, from the first on, so that each unit has mean 0 and variance 1 on the images.

        Deviation: the paper names no initialisation. Four layers of eight units with random weights pass on next to
        nothing of where a small object is; a layer's scale then differs tenfold from class to class.
        """
        for k, transformer in enumerate(self.transformers):
            seen = images[:, k]
            for block in transformer.localisation:
                for layer in _layers(block):
                    _standardise(layer, layer(seen))
                seen = block(seen)

    @torch.no_grad()
    def begin_anew(self, images: Tensor, generator: torch.Generator) -> None:
        """Other random weights in the localisation nets, standardised on the images."""
        for transformer in self.transformers:
            for layer in _layers(transformer.localisation):
                he(layer, generator)
        self.standardise(images)


def _layers(net: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def _standardise(layer: nn.Conv2d | nn.Linear, values: Tensor) -> None:
    """values: what the layer gives now, units on axis 1."""
    over = [axis for axis in range(values.dim()) if axis != 1]
    mean, std = values.mean(over), values.std(over).clamp(min=1e-6)
    layer.weight /= std.view(-1, *[1] * (layer.weight.dim() - 1))
    layer.bias.copy_((layer.bias - mean) / std)


class CnnActivations(nn.Module):
    """The encoder e() of App. A.2: the activations of a trained CNN's three layers, as a list.

    The first two after pooling and ReLU, the last as logits. Its weights are frozen.
    """

    def __init__(self, cnn: Cnn) -> None:
        super().__init__()
        self.cnn = cnn.eval().requires_grad_(False)

    @classmethod
    def from_weights(cls, weights: dict[str, Tensor], in_shape: tuple[int, int, int] = (1, 28, 28)) -> "CnnActivations":
        """Raises: ValueError when they are not those of a CNN of this input."""
        filters = [tensor.shape[0] for tensor in weights.values() if tensor.dim() == 4]
        try:
            cnn = Cnn(in_shape, tuple(filters))
            cnn.load_state_dict(weights)
        except (RuntimeError, ValueError) as error:
            shape = "x".join(map(str, in_shape))
            raise ValueError(f"the encoder's weights are not those of a CNN for {shape} images") from error
        return cls(cnn.to(memory_format=torch.channels_last))

    def forward(self, crops: Tensor) -> list[Tensor]:
        """crops (N, C, H, W) -> three tensors (N, ...)."""
        (first, second, flatten), classifier = self.cnn
        low = first(crops)
        high = second(low)
        return [low, high, classifier(flatten(high))]
