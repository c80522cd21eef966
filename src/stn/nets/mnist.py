"""The networks of Tables 1 and 4 (Sect. 4.1, App. A.1, A.4): FCN and CNN, alone or behind spatial transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor, nn

from stn.nets.layers import BlockMean, conv_pool, flat_features, he
from stn.nets.localisation import LOCALISATIONS
from stn.transform import ParallelTransformers, SpatialTransformer, Warped


class Fcn(nn.Sequential):
    """Two hidden fully connected layers, classifier."""

    def __init__(self, in_shape: tuple[int, int, int], widths: tuple[int, int], classes: int = 10) -> None:
        a, b = widths
        n = flat_features(nn.Flatten(), in_shape)
        super().__init__(
            nn.Flatten(), he(nn.Linear(n, a)), nn.ReLU(), he(nn.Linear(a, b)), nn.ReLU(), nn.Linear(b, classes)
        )


class Cnn(nn.Sequential):
    """conv 9x9, max-pool, conv 7x7, max-pool, classifier; `widths` are the two layers' filters."""

    def __init__(self, in_shape: tuple[int, int, int], widths: tuple[int, int], classes: int = 10) -> None:
        a, b = widths
        features = nn.Sequential(conv_pool(in_shape[0], a, 9), conv_pool(a, b, 7), nn.Flatten())
        super().__init__(features, nn.Linear(flat_features(features, in_shape), classes))


CLASSIFIERS = {"fcn": Fcn, "cnn": Cnn}


class TransformedClassifier(nn.Module):
    """Spatial transformers on the input, their output average-pooled by `pool`, a classifier on that."""

    def __init__(self, transformers: ParallelTransformers, classifier: nn.Module, pool: int = 1) -> None:
        super().__init__()
        self.transformers = transformers
        self.pool = BlockMean(pool) if pool > 1 else nn.Identity()
        self.classifier = classifier

    def forward(self, image: Tensor) -> Tensor:
        """image (N, C, H, W) -> logits (N, classes)."""
        return self.classifier(self.pool(self.transformers(image)))

    def observe(self, image: Tensor) -> tuple[Tensor, list[Warped]]:
        """The same logits, and what each transformer did to image (N, C, H, W)."""
        warps = self.transformers.warps(image)
        return self.classifier(self.pool(torch.cat([warped.image for warped in warps], dim=1))), warps

    def input_warps(self, image: Tensor, thetas: Sequence[Tensor] | None = None) -> list[Warped]:
        """What each transformer makes of image (N, C, H, W), or would make of it with other thetas than its own."""
        return [t.warp(image, theta) for t, theta in zip(self.transformers, thetas or repeat(None), strict=False)]


@dataclass(frozen=True)
class Architecture:
    """One row of a table: which classifier, and which transformers in front of it, if any (conf/model/*.yaml)."""

    classifier: str
    transformation: str | None = None
    localisation: str | None = None
    transformers: int = 1
    padding: str = "zeros"
    antialias: bool = False

    def __post_init__(self) -> None:
        needed = {"classifier": CLASSIFIERS}
        if self.transformation is not None:
            needed["localisation"] = LOCALISATIONS
        for name, allowed in needed.items():
            if getattr(self, name) not in tuple(allowed):
                raise ValueError(f"model.{name} must be one of {tuple(allowed)}, got {getattr(self, name)!r}")

    def build(self, in_shape: tuple[int, int, int], widths: tuple[int, int], classes: int, pool: int) -> nn.Module:
        """The network for images of shape (C, H, W); `pool` is the average-pooling of the transformers' output.

        Raises: ValueError when the image is too small for the network.
        """
        if self.transformation is None:
            return CLASSIFIERS[self.classifier](in_shape, widths, classes)
        transformers = ParallelTransformers(
            SpatialTransformer(
                LOCALISATIONS[self.localisation](in_shape),
                self.transformation,
                in_shape[1:],
                padding=self.padding,
                antialias=self.antialias,
            )
            for _ in range(self.transformers)
        )
        pooled = (self.transformers * in_shape[0], in_shape[1] // pool, in_shape[2] // pool)
        return TransformedClassifier(transformers, CLASSIFIERS[self.classifier](pooled, widths, classes), pool)
