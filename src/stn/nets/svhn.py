"""The networks of Table 2 (Sect. 4.2, App. A.5): a CNN that reads house numbers, alone or with spatial transformers."""

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from stn.nets.layers import flat_features, he
from stn.nets.localisation import FullyConnectedLocalisation
from stn.transform import SpatialTransformer, Warped

PLACES, CLASSES = 5, 11  # up to five digits; ten digits and "none"
CHANNELS = 3
# The hidden layers in the paper's order: conv[filters,5,1,2], with max[2,2] behind the marked ones, then fc[units].
FILTERS = (48, 64, 128, 160, 192, 192, 192, 192)
POOLED = (True, False, True, False, True, False, True, False)
UNITS = (3072, 3072, 3072)
KERNEL, PADDING_PX = 5, 2
LOCALISER_FILTERS, LOCALISER_UNITS = 32, 32


class FourLayerLocalisation(nn.Sequential):
    """The localisation net of ST-CNN Single: conv[32,5,1,2]-max[2,2]-conv[32,5,1,2]-fc[32]-fc[32]."""

    def __init__(self, in_shape: tuple[int, int, int], width: float) -> None:
        n, units = scaled(LOCALISER_FILTERS, width), LOCALISER_UNITS
        convolutions = nn.Sequential(
            he(nn.Conv2d(in_shape[0], n, KERNEL, padding=PADDING_PX)),
            nn.MaxPool2d(2),
            nn.ReLU(),
            he(nn.Conv2d(n, n, KERNEL, padding=PADDING_PX)),
            nn.ReLU(),
            nn.Flatten(),
        )
        first = he(nn.Linear(flat_features(convolutions, in_shape), units))
        super().__init__(convolutions, first, nn.ReLU(), he(nn.Linear(units, units)), nn.ReLU())
        self.out_features = units


def two_layer_localisation(in_shape: tuple[int, int, int], _width: float) -> nn.Module:
    """The localisation nets of ST-CNN Multi: fc[32]-fc[32]."""
    return FullyConnectedLocalisation(in_shape, (LOCALISER_UNITS, LOCALISER_UNITS))


LOCALISATIONS: dict[str | None, Callable] = {"conv": FourLayerLocalisation, "fc": two_layer_localisation}


class NumberReader(nn.Module):
    """The CNN of 11 hidden layers and five softmax heads, an affine transformer before each of its first convolutions.

    `transformers`: before how many of them; `localisation` their localisation net, a key of `LOCALISATIONS`.
    `width` multiplies all filters and units but the fc[32] of the localisation nets; 1 is the paper's.
    Shapes: image (N, 3, image_px, image_px) in [0, 1] -> logits (N, 5, 11).
    Deviation: the paper does not say how pixels are normalised, nor on what dropout acts. Each image loses its mean, as
    in the paper's reference for the preprocessing (Goodfellow et al. 2014), so what a transformer reads outside the
    image, 0, is its mean grey. Dropout acts on the output of a layer, its pooling included.
    Raises: ValueError for an invalid `width`, `transformers` or `localisation`.
    """

    def __init__(
        self,
        image_px: int,
        transformers: int = 0,
        localisation: str | None = None,
        *,
        width: float = 1.0,
        dropout: float = 0.5,
        padding: str = "zeros",
        antialias: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= transformers <= len(FILTERS):
            raise ValueError(f"model.transformers must be 0 to {len(FILTERS)}, got {transformers}")
        if (localisation not in LOCALISATIONS) if transformers else (localisation is not None):
            allowed = tuple(LOCALISATIONS) if transformers else "null without transformers"
            raise ValueError(f"model.localisation must be {allowed}, got {localisation!r}")
        if width <= 0 or image_px % 2 ** sum(POOLED):
            raise ValueError(f"width must be above 0 and image_px a multiple of 16, got {width}, {image_px}")
        self.spatial_transformers = nn.ModuleList()
        self.convolutions = nn.ModuleList()
        shape = (CHANNELS, image_px, image_px)
        for layer, (filters, pooled) in enumerate(zip(FILTERS, POOLED, strict=True)):
            if layer < transformers:
                localiser = LOCALISATIONS[localisation](shape, width)
                transformer = SpatialTransformer(localiser, "affine", padding=padding, antialias=antialias)
                self.spatial_transformers.append(transformer)
            filters = scaled(filters, width)
            self.convolutions.append(convolution(shape[0], filters, pooled, dropout if layer > 0 else 0.0))
            side = shape[1] // 2 if pooled else shape[1]
            shape = (filters, side, side)
        units = (shape[0] * shape[1] * shape[2], *(scaled(n, width) for n in UNITS))
        hidden = [(he(nn.Linear(a, b)), nn.ReLU(), nn.Dropout(dropout)) for a, b in itertools.pairwise(units)]
        self.hidden = nn.Sequential(nn.Flatten(), *(module for layer in hidden for module in layer))
        self.heads = nn.Linear(units[-1], PLACES * CLASSES)  # five parallel fc[11] in one product

    def forward(self, image: Tensor) -> Tensor:
        return self.observe(image)[0]

    def observe(self, image: Tensor) -> tuple[Tensor, list[Warped]]:
        """The logits, and what each transformer did to its input."""
        features, warps = image - image.mean(dim=(1, 2, 3), keepdim=True), []
        for layer, convolve in enumerate(self.convolutions):
            if layer < len(self.spatial_transformers):
                warps.append(self.spatial_transformers[layer].warp(features))
                features = warps[-1].image
            features = convolve(features)
        return self.heads(self.hidden(features)).unflatten(1, (PLACES, CLASSES)), warps

    def input_warps(self, image: Tensor, thetas: Sequence[Tensor | None] = (None,)) -> list[Warped]:
        """What the transformer on the input makes of it, with its own theta or another; its mean is added again."""
        mean = image.mean(dim=(1, 2, 3), keepdim=True)
        warps = [t.warp(image - mean, theta) for t, theta in zip(self.spatial_transformers[:1], thetas, strict=False)]
        return [warped._replace(image=warped.image + mean) for warped in warps]


def scaled(n: int, width: float) -> int:
    """The multiple of 8 nearest to n·width: other numbers of channels are slow."""
    return max(1, round(n * width / 8)) * 8


def convolution(in_channels: int, filters: int, pooled: bool, dropout: float) -> nn.Sequential:
    """conv[filters,5,1,2], ReLU, perhaps max[2,2], dropout. ReLU after the pooling equals ReLU before it."""
    conv = he(nn.Conv2d(in_channels, filters, KERNEL, padding=PADDING_PX))
    return nn.Sequential(conv, *([nn.MaxPool2d(2)] if pooled else []), nn.ReLU(), nn.Dropout(dropout))
