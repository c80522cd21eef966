"""The spatial transformer module (Fig. 2, Sect. 3): localisation net -> theta -> grid -> sampler."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stn.transform.arguments import check_theta, checked_size
from stn.transform.grids import affine3d_grid, affine_grid, attention_grid, projective_grid
from stn.transform.precision import full_precision
from stn.transform.sampling import check_sampler, sample
from stn.transform.tps import regular_control_points, tps_grid


@dataclass(frozen=True)
class Transformation:
    """A family of warps: its grid function and the theta at which it changes nothing.

    `grid` is ``(theta (N, *shape), out_size) -> grid``; `identity` is nested tuples of that shape.
    """

    name: str
    grid: Callable[[Tensor, Sequence[int]], Tensor]
    identity: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(torch.tensor(self.identity).shape)

    @property
    def size(self) -> int:
        """How many numbers theta has."""
        return math.prod(self.shape)


def fixed_attention(scale: float) -> Transformation:
    """Attention of a fixed isotropic scale: theta (N, 2) is the translation (tx, ty) alone (Sect. 4.3)."""
    return Transformation(f"attention_{scale:g}", functools.partial(_fixed_attention_grid, scale), (0.0, 0.0))


@full_precision
def _fixed_attention_grid(scale: float, theta: Tensor, out_size: Sequence[int]) -> Tensor:
    check_theta("fixed_attention", theta, (2,))
    return attention_grid(torch.cat([torch.full_like(theta[:, :1], scale), theta], dim=1), out_size)


TRANSFORMATIONS = {
    t.name: t
    for t in (
        Transformation("affine", affine_grid, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))),
        Transformation("attention", attention_grid, (1.0, 0.0, 0.0)),
        Transformation("projective", projective_grid, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)),
        Transformation("tps", tps_grid, tuple(map(tuple, regular_control_points(4).tolist()))),
        Transformation("affine3d", affine3d_grid, ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0))),
    )
}


class Warped(NamedTuple):
    """What a spatial transformer did: the output V (N, C, H', W'), theta (N, ...) and the grid (N, H', W', 2)."""

    image: Tensor
    theta: Tensor
    grid: Tensor


class SpatialTransformer(nn.Module):
    """Warps its input by the transformation that its localisation net predicts from it (Sect. 3).

    `localisation` maps the input to features (N, F) and has an attribute `out_features` = F. The regression layer on
    top of it is this module's own: theta = initial theta + W·features + b with W = b = 0 at the start, so that
    training begins at the identity, and weight decay pulls towards it.

    Theta is float32 at least, also where the module is of a narrower type: its start is kept in float64, whatever the
    module is converted to, so that the identity is exact. The output is of the images' type.

    `transformation`: a name in `TRANSFORMATIONS` or a `Transformation`. `out_size` (H', W') or (D', H', W'); None
    keeps the input's size. `initial_theta`, of the transformation's shape, replaces the identity.
    `kernel`, `padding`, `antialias`: see `sample`.
    Raises: ValueError for an unknown transformation, kernel or padding, or an `initial_theta` of another shape;
    TypeError for a localisation net without `out_features` or an `out_size` that is no sequence of integers.
    """

    def __init__(
        self,
        localisation: nn.Module,
        transformation: str | Transformation = "affine",
        out_size: Sequence[int] | None = None,
        *,
        kernel: str = "bilinear",
        padding: str = "zeros",
        antialias: bool = False,
        initial_theta: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(transformation, Transformation):
            if transformation not in tuple(TRANSFORMATIONS):
                raise ValueError(f"transformation must be one of {list(TRANSFORMATIONS)}, got {transformation!r}")
            transformation = TRANSFORMATIONS[transformation]
        identity = torch.tensor(transformation.identity, dtype=torch.float64)
        initial = identity if initial_theta is None else torch.as_tensor(initial_theta)
        if tuple(initial.shape) != transformation.shape:
            raise ValueError(
                f"initial_theta of {transformation.name} must have shape {transformation.shape}, "
                f"got {tuple(initial.shape)}"
            )
        check_sampler(kernel, padding)
        features = getattr(localisation, "out_features", None)
        if not isinstance(features, int):
            raise TypeError(f"the localisation net must have an integer attribute out_features, got {features!r}")
        self.localisation = localisation
        self.regression = nn.Linear(features, transformation.size)
        nn.init.zeros_(self.regression.weight)
        nn.init.zeros_(self.regression.bias)
        self.initial_theta: Tensor
        self.register_buffer("initial_theta", initial.detach().double().clone())
        self.transformation = transformation
        self.out_size = None if out_size is None else checked_size("SpatialTransformer", out_size)
        self.kernel, self.padding, self.antialias = kernel, padding, antialias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SpatialTransformer":
        exact = self.initial_theta
        super()._apply(fn, recurse)
        if self.initial_theta.dtype != exact.dtype and self.initial_theta.device.type != "mps":  # MPS has no float64
            self.initial_theta = exact.to(self.initial_theta.device)
        return self

    def theta(self, image: Tensor) -> Tensor:
        """The predicted parameters: image (N, C, H, W) -> (N, *transformation.shape)."""
        offset: Tensor = self.regression(self.localisation(image))
        dtype = torch.promote_types(offset.dtype, torch.float32)
        return self.initial_theta.to(dtype) + offset.to(dtype).unflatten(1, self.transformation.shape)

    def warp(self, image: Tensor, theta: Tensor | None = None) -> Warped:
        """Output, theta and grid together; a given `theta` takes the place of the localisation net's."""
        theta = self.theta(image) if theta is None else theta
        grid = self.transformation.grid(theta, self.out_size or tuple(image.shape[2:]))
        out = sample(image, grid, kernel=self.kernel, padding=self.padding, antialias=self.antialias)
        return Warped(out, theta, grid)

    def forward(self, image: Tensor) -> Tensor:
        """image (N, C, H, W) -> (N, C, H', W')."""
        return self.warp(image).image


class ParallelTransformers(nn.ModuleList):
    """Several spatial transformers side by side, for several objects or parts (Sect. 3.4).

    Each sees and warps all channels of the input; their outputs are concatenated along the channels. One alone is the
    transformer itself.
    """

    def warps(self, image: Tensor) -> list[Warped]:
        """What each of them does to image (N, C, H, W)."""
        transformers: Iterable[Any] = self
        return [transformer.warp(image) for transformer in transformers]

    def forward(self, image: Tensor) -> Tensor:
        """image (N, C, H, W) -> (N, n C, H', W')."""
        return torch.cat([transformer(image) for transformer in self], dim=1)
