"""The networks of Table 3 (Sect. 4.3, App. A.6): a CNN, and n spatial transformers in parallel, each with a CNN."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn.nets.backbones import Backbone, backbone
from stn.nets.layers import flat_features, he
from stn.transform import Warped, fixed_attention, sample
from stn.transform.sampling import check_sampler

LOCALISATION_UNITS = 128


class MultiStreamTransformer(nn.Module):
    """n×ST-CNN: n attention windows of fixed scale, one localisation net for all, one CNN for each.

    With `n_windows` 0 it is the CNN alone. `name` and `width` are those of `backbone`; the localisation net and
    every stream have weights of their own.
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
        self.streams = nn.ModuleList(backbone(name, width=width) for _ in range(n_streams))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(n_streams * self.streams[0].channels, classes)
        if n_windows:
            self.localisation = _localisation(backbone(name, width=width), crop_px)
            self.regression = nn.Linear(LOCALISATION_UNITS, 2 * n_windows)
            nn.init.zeros_(self.regression.weight)
            nn.init.zeros_(self.regression.bias)
            self.register_buffer("initial_theta", tiling_centres(n_windows))

    def theta(self, image: Tensor) -> Tensor:
        """The centres of the windows, normalised: (N, n_windows, 2)."""
        shown = F.avg_pool2d(image, 2) if self.image_px == 2 * self.crop_px else image
        return self.initial_theta + self.regression(self.localisation(shown)).unflatten(1, (self.n_windows, 2))

    def warps(self, image: Tensor) -> list[Warped]:
        """What the windows see: n_windows times an image of (N, 3, crop_px, crop_px); theta is a window's centre."""
        if tuple(image.shape[1:]) != (3, self.image_px, self.image_px):
            raise ValueError(f"image must be (N, 3, {self.image_px}, {self.image_px}), got {tuple(image.shape)}")
        warps = []
        for centre in self.theta(image).unbind(1) if self.n_windows else ():
            grid = self.attention.grid(centre, (self.crop_px, self.crop_px))
            crop = sample(image, grid, padding=self.padding, antialias=self.antialias)
            warps.append(Warped(crop, centre, grid))
        return warps

    def descriptor(self, crops: list[Tensor]) -> Tensor:
        """The global averages of each stream's maps of its crop, concatenated: (N, n_streams·channels)."""
        maps = [stream(crop) for stream, crop in zip(self.streams, crops, strict=True)]
        return torch.cat([features.mean(dim=(2, 3)) for features in maps], dim=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.observe(image)[0]

    def observe(self, image: Tensor) -> tuple[Tensor, list[Warped]]:
        """The logits, and what each window saw."""
        warps = self.warps(image)
        crops = [warped.image for warped in warps] or [image]
        return self.classifier(self.dropout(self.descriptor(crops))), warps


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


def _localisation(features: Backbone, in_px: int) -> nn.Sequential:
    """The backbone, conv 1x1 to 128, fc 128: image (N, 3, in_px, in_px) -> (N, 128)."""
    # In evaluation mode: in training mode a batch of zeros would enter the running averages.
    numbers = flat_features(features.eval(), (3, in_px, in_px)) // features.channels * LOCALISATION_UNITS
    features.train()
    return nn.Sequential(
        features,
        he(nn.Conv2d(features.channels, LOCALISATION_UNITS, 1)),
        nn.ReLU(),
        nn.Flatten(),
        he(nn.Linear(numbers, LOCALISATION_UNITS)),
        nn.ReLU(),
    )
