"""The networks of Table 3 (Sect. 4.3, App. A.6): a CNN, and n spatial transformers in parallel, each with a CNN."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn.nets.backbones import Backbone, backbone
from stn.nets.layers import he
from stn.transform import boxes_to_px, fixed_attention, sample
from stn.transform.sampling import check_sampler

LOCALISATION_UNITS = 128


class Windows(NamedTuple):
    """Where n windows look.

    Shapes: theta (N, n, 2), their centres (x, y), normalised; boxes_px (N, n, 4) as (x0, y0, x1, y1), not clipped.
    Units: boxes in pixels of the image, counted from its top left corner.
    """

    theta: Tensor
    boxes_px: Tensor


class MultiStreamTransformer(nn.Module):
    """n×ST-CNN: n attention windows of fixed scale, one localisation net for all, one CNN for each.

    With `n_windows` 0 it is the CNN alone. `name`, `pretrained` and `width` are those of `backbone`; the localisation
    net and every stream have weights of their own, which begin alike when they are pretrained.
    Shapes: image (N, 3, image_px, image_px) in [0, 1] -> logits (N, classes); the windows are sampled at `crop_px`. An
    image of 2·crop_px is shown to the localisation net at half its size (averages of 2x2).
    Convention: theta = initial centres + W·features + b with W = b = 0 at the start, as in `SpatialTransformer`: the
    windows begin side by side as `tiling_centres` and weight decay pulls them back there.
    Deviation: the paper does not say whether the two added layers of the localisation net have a ReLU; they do here.
    """

    def __init__(
        self,
        name: str,
        n_windows: int,
        classes: int,
        *,
        image_px: int = 224,
        crop_px: int = 224,
        scale: float = 0.5,
        dropout: float = 0.7,
        pretrained: str | None = None,
        width: int = 16,
        padding: str = "zeros",
        antialias: bool = False,
    ) -> None:
        super().__init__()
        if n_windows < 0 or image_px not in (crop_px, 2 * crop_px) or not 0 < scale <= 1:
            raise ValueError(
                f"n_windows must not be negative, image_px {crop_px} or {2 * crop_px} (crop_px or twice it), scale in "
                f"(0, 1]; got {n_windows}, {image_px}, {scale}"
            )
        check_sampler("bilinear", padding)
        self.n_windows, self.image_px, self.crop_px, self.scale = n_windows, image_px, crop_px, scale
        self.padding, self.antialias = padding, antialias
        self.attention = fixed_attention(scale)
        n_streams = max(n_windows, 1)
        self.streams = nn.ModuleList(backbone(name, pretrained, width) for _ in range(n_streams))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(n_streams * self.streams[0].channels, classes)
        if n_windows:
            self.localisation = _localisation(backbone(name, pretrained, width), crop_px)
            self.regression = nn.Linear(LOCALISATION_UNITS, 2 * n_windows)
            nn.init.zeros_(self.regression.weight)
            nn.init.zeros_(self.regression.bias)
            self.register_buffer("initial_theta", tiling_centres(n_windows))

    def theta(self, image: Tensor) -> Tensor:
        """The centres of the windows, normalised: (N, n_windows, 2)."""
        seen = F.avg_pool2d(image, 2) if self.image_px == 2 * self.crop_px else image
        return self.initial_theta + self.regression(self.localisation(seen)).unflatten(1, (self.n_windows, 2))

    def crops(self, image: Tensor, theta: Tensor) -> list[Tensor]:
        """What the windows see: n_windows times (N, 3, crop_px, crop_px)."""
        grids = [self.attention.grid(centre, (self.crop_px, self.crop_px)) for centre in theta.unbind(1)]
        return [sample(image, grid, padding=self.padding, antialias=self.antialias) for grid in grids]

    def descriptor(self, image: Tensor, theta: Tensor | None = None) -> Tensor:
        """The streams' global averages, concatenated: (N, n_streams·channels). A given `theta` replaces the net's."""
        if tuple(image.shape[1:]) != (3, self.image_px, self.image_px):
            raise ValueError(f"image must be (N, 3, {self.image_px}, {self.image_px}), got {tuple(image.shape)}")
        if self.n_windows and theta is None:
            theta = self.theta(image)
        seen = self.crops(image, theta) if self.n_windows else [image]
        maps = [stream(crop) for stream, crop in zip(self.streams, seen, strict=True)]
        return torch.cat([features.mean(dim=(2, 3)) for features in maps], dim=1)

    def forward(self, image: Tensor, theta: Tensor | None = None) -> Tensor:
        return self.classifier(self.dropout(self.descriptor(image, theta)))

    def windows(self, image: Tensor) -> Windows:
        """Raises: ValueError when the net has no windows."""
        if not self.n_windows:
            raise ValueError("windows: this is the plain CNN, n_windows is 0")
        theta = self.theta(image)
        return Windows(theta, window_boxes_px(theta, self.scale, self.image_px))

    def observe(self, image: Tensor) -> tuple[Tensor, Windows]:
        """The logits, and where the windows looked. Raises: ValueError when the net has no windows."""
        windows = self.windows(image)
        return self(image, windows.theta), windows


def tiling_centres(n: int) -> Tensor:
    """Centres at which n windows of scale 0.5 lie inside the image, in rows from the top left: (n, 2).

    1: the middle; 2: side by side; 4: the quadrants; as square as it goes, the windows of the last row spread out.
    """
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    centres = []
    for row in range(rows):
        in_row = min(columns, n - row * columns)
        centres += [(x, _spread(rows)[row]) for x in _spread(in_row)]
    return torch.tensor(centres)


def _spread(n: int) -> list[float]:
    return [0.0] if n == 1 else [i / (n - 1) - 0.5 for i in range(n)]


def window_boxes_px(theta: Tensor, scale: float, image_px: int) -> Tensor:
    """Windows by their normalised centres, as boxes: (..., 2) -> (..., 4) as (x0, y0, x1, y1), in pixels."""
    boxes = torch.cat([theta - scale, theta + scale], dim=-1)
    return boxes_to_px(boxes, (image_px, image_px))


def _localisation(features: Backbone, in_px: int) -> nn.Sequential:
    """The backbone, conv 1x1 to 128, fc 128: image (N, 3, in_px, in_px) -> (N, 128)."""
    side = _map_side(features, in_px)
    return nn.Sequential(
        features,
        he(nn.Conv2d(features.channels, LOCALISATION_UNITS, 1)),
        nn.ReLU(),
        nn.Flatten(),
        he(nn.Linear(LOCALISATION_UNITS * side**2, LOCALISATION_UNITS)),
        nn.ReLU(),
    )


def _map_side(features: Backbone, in_px: int) -> int:
    device = next(features.parameters()).device
    training = features.training
    try:
        with torch.no_grad():  # in evaluation mode: in training mode a batch of zeros would enter the running averages
            return features.eval()(torch.zeros(1, 3, in_px, in_px, device=device)).shape[-1]
    except RuntimeError as error:
        raise ValueError(f"an input of {in_px} px is too small for this backbone") from error
    finally:
        features.train(training)
