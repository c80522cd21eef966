"""The networks of App. A.3: a digit in a volume, classified from its projection, with and without a 3D transformer."""

from torch import Tensor, nn

from stn.nets.layers import flat_features, he
from stn.nets.mnist import Cnn
from stn.transform import SpatialTransformer, Warped

# The localisation net sees the volume pooled to about so many voxels a side: enough to find a plate and its tilt.
LOCALISATION_VOXELS = 16


class DepthMean(nn.Module):
    """The projection of a volume along its depth: (N, C, D, H, W) -> (N, C, H, W).

    Deviation: the paper says that the depth is "flattened". The mean, and not the sum, since it stays in [0, 1]
    whatever the depth of the volume and however many slices a transformer samples.
    """

    def forward(self, volume: Tensor) -> Tensor:
        return volume.mean(2)


def conv_pool3d(in_channels: int, filters: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution (no padding), 2x2x2 max-pool that rounds sizes up, ReLU: `conv_pool` on volumes."""
    conv = he(nn.Conv3d(in_channels, filters, kernel, stride))
    return nn.Sequential(conv, nn.MaxPool3d(2, ceil_mode=True), nn.ReLU())


class VolumeLocalisation(nn.Sequential):
    """The localisation net of the 3D transformer: volume pooled to about 16^3, two convolutions, fc.

    Deviation: the paper does not describe it; this one follows the localisation net of its ST-CNN (App. A.4).
    """

    def __init__(self, in_shape: tuple[int, ...], filters: tuple[int, int] = (8, 16), units: int = 32) -> None:
        convolutions = nn.Sequential(
            nn.AvgPool3d(max(1, round(in_shape[1] / LOCALISATION_VOXELS))),
            conv_pool3d(in_shape[0], filters[0], 5),
            he(nn.Conv3d(*filters, 3)),
            nn.ReLU(),
            nn.Flatten(),
        )
        super().__init__(convolutions, he(nn.Linear(flat_features(convolutions, in_shape), units)), nn.ReLU())
        self.out_features = units


class TransformedProjection(nn.Module):
    """A 3D affine transformer on the whole volume, the projection of its output, the CNN of Table 1.

    The transformer samples half as many slices as the volume has: they are averaged all the same, and sampling is
    most of a step on the CPU.
    """

    def __init__(self, in_shape: tuple[int, ...], widths: tuple[int, int], classes: int) -> None:
        super().__init__()
        channels, depth, height, width = in_shape
        out_size = (max(1, depth // 2), height, width)
        self.transformer = SpatialTransformer(VolumeLocalisation(in_shape), "affine3d", out_size)
        self.project = DepthMean()
        self.classifier = Cnn((channels, height, width), widths, classes)

    def forward(self, volume: Tensor) -> Tensor:
        """volume (N, C, D, H, W) -> logits (N, classes)."""
        return self.classifier(self.project(self.transformer(volume)))

    def observe(self, volume: Tensor) -> tuple[Tensor, list[Warped]]:
        """The same logits, and what the transformer did."""
        warped = self.transformer.warp(volume)
        return self.classifier(self.project(warped.image)), [warped]


class ProjectionCnn(nn.Sequential):
    """The projection of the volume as it is, the CNN of Table 1."""

    def __init__(self, in_shape: tuple[int, ...], widths: tuple[int, int], classes: int) -> None:
        channels, _, height, width = in_shape
        super().__init__(DepthMean(), Cnn((channels, height, width), widths, classes))


class Cnn3d(nn.Sequential):
    """conv 5x5x5 of stride 2, max-pool, conv 5x5x5, max-pool, classifier: sees the volume itself.

    Deviation: the paper has no such network.
    """

    def __init__(self, in_shape: tuple[int, ...], widths: tuple[int, int], classes: int) -> None:
        a, b = widths
        features = nn.Sequential(conv_pool3d(in_shape[0], a, 5, stride=2), conv_pool3d(a, b, 5), nn.Flatten())
        super().__init__(features, nn.Linear(flat_features(features, in_shape), classes))


# (projection, transformation), as conf/model/*.yaml has them.
NETWORKS = {(True, "affine3d"): TransformedProjection, (True, None): ProjectionCnn, (False, None): Cnn3d}


def volume_network(projection: bool, transformation: str | None = None) -> type[nn.Module]:
    """The network of a row of the table of App. A.3 (conf/model/*.yaml): (in_shape, widths, classes) -> module.

    `projection`: does it see the volume's projection, or the volume itself? `transformation`: of a spatial transformer
    before the projection, if any. `in_shape` is (C, D, H, W); too small a volume raises ValueError then.
    Raises: ValueError for a combination that does not exist.
    """
    if (projection, transformation) not in NETWORKS:
        raise ValueError(
            "transformation must be null or, with projection: true, affine3d; "
            f"got {transformation!r} with projection: {projection!r}"
        )
    return NETWORKS[projection, transformation]
