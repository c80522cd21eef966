"""Where co-localisation begins: for each image the best of some random windows, by the loss alone."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from stn.nets.colocalisation import Localisers, WindowBounds

RANDOM_DRAWS = 8  # random crops per image that a choice of windows is judged by
ENCODED_AT_ONCE = 400
FIT_LR = 0.004


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """‖a_n - b_m‖² by one matrix product. Shapes: (..., N, F), (..., M, F) -> (..., N, M)."""
    lengths = a.square().sum(-1)[..., :, None] + b.square().sum(-1)[..., None, :]
    return (lengths - 2 * a @ b.mT).clamp(min=0)


def hinge_loss(between: Tensor, to_random: Tensor, alpha: float) -> Tensor:
    """max(0, between_nm - to_random_n + alpha), mean over n≠m (App. A.2). Shapes: (..., N, N), (..., N) -> (...)."""
    n = between.shape[-1]
    others = ~torch.eye(n, dtype=torch.bool, device=between.device)
    hinge = (between - to_random[..., None] + alpha).clamp(min=0)
    return (hinge * others).sum((-2, -1)) / (n * (n - 1))


@torch.no_grad()
def search_windows(
    encode: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    bounds: WindowBounds,
    alpha: float,
    generator: torch.Generator,
    n_windows: int,
    n_prototypes: int,
) -> Tensor:
    """The windows (N, 3), one for each image of a class, with the least loss among those that it tries.

    It encodes `n_windows` random windows of each image, their scales uniform in the logarithm. Some of all these crops
    are prototypes in turn: each image then takes the window whose crop is nearest to the prototype, and the loss of
    these N crops is measured. The prototype with the least wins.
    Deviation: the paper starts with windows that are all alike and descends the gradient. From there most descents end
    with all windows on blank ground, also a minimum of its loss though a higher one.
    Shapes: images (N, C, H, W); encode(images (B, C, H, W), windows (B, 3)) -> (B, F).
    """
    n, device = len(images), images.device
    share = torch.rand(n, n_windows, generator=generator, device=device)
    ratio = math.log(bounds.scale_max / bounds.scale_min)
    windows = bounds.at_random(bounds.scale_min * (ratio * share).exp(), generator)
    parts = windows.flatten(0, 1).split(ENCODED_AT_ONCE)
    of_image = torch.arange(n, device=device).repeat_interleave(n_windows).split(ENCODED_AT_ONCE)
    encoded = torch.cat([encode(images[i], part) for i, part in zip(of_image, parts, strict=True)])
    prototypes = torch.randperm(len(encoded), generator=generator, device=device)[:n_prototypes]
    nearest = squared_distances(encoded[prototypes], encoded).unflatten(1, (n, n_windows)).argmin(-1)
    encoded, each = encoded.unflatten(0, (n, n_windows)), torch.arange(n, device=device)
    others = torch.randint(n_windows, (RANDOM_DRAWS, n), generator=generator, device=device)
    to_random = squared_distances(encoded, encoded[each, others].transpose(0, 1))  # (N, n_windows, RANDOM_DRAWS)
    losses = []
    for chosen in nearest:
        crops = encoded[each, chosen]
        losses.append(hinge_loss(squared_distances(crops, crops), to_random[each, chosen].T, alpha).mean())
    return windows[each, nearest[torch.stack(losses).argmin()]]


def fit_windows(net: Localisers, images: Tensor, windows: Tensor, steps: int, batch_size: int, seed: int) -> None:
    """Trains the localisers to give these windows, by least squares.

    Shapes: images (N, K, C, H, W), windows (N, K, 3).
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr=FIT_LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    for _ in range(steps):
        chosen = torch.randperm(len(images), generator=generator, device=images.device)[:batch_size]
        loss = F.mse_loss(net(images[chosen]), windows[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
