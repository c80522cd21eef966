"""Localisation nets for MNIST-sized inputs (App. A.4): image (N, C, H, W) -> features (N, out_features).

The regression layer that turns the features into theta belongs to `SpatialTransformer`.
"""

from torch import nn

from stn.nets.layers import conv_pool, flat_features, he


class FullyConnectedLocalisation(nn.Sequential):
    """The localisation net of an ST-FCN: fully connected, ReLU after every layer.

    Deviation: the paper gives hidden layers of 32 units but not how many; three, as in the public code that follows
    its text most closely.
    """

    def __init__(self, in_shape: tuple[int, int, int], units: tuple[int, ...] = (32, 32, 32)) -> None:
        widths = (flat_features(nn.Flatten(), in_shape), *units)
        layers = [layer for a, b in zip(widths, units, strict=False) for layer in (he(nn.Linear(a, b)), nn.ReLU())]
        super().__init__(nn.Flatten(), *layers)
        self.out_features = units[-1]


class ConvolutionalLocalisation(nn.Sequential):
    """The localisation net of an ST-CNN: input at half size, two 5x5 convolutions, a max-pool between, then fc."""

    def __init__(self, in_shape: tuple[int, int, int], filters: int = 20, units: int = 20) -> None:
        convolutions = nn.Sequential(
            nn.AvgPool2d(2),
            conv_pool(in_shape[0], filters, 5),
            he(nn.Conv2d(filters, filters, 5)),
            nn.ReLU(),
            nn.Flatten(),
        )
        super().__init__(convolutions, he(nn.Linear(flat_features(convolutions, in_shape), units)), nn.ReLU())
        self.out_features = units


LOCALISATIONS = {"fc": FullyConnectedLocalisation, "conv": ConvolutionalLocalisation}
