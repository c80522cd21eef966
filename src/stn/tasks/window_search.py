"""Where co-localisation begins: for each image the best of some random windows, by the loss alone."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from stn.nets.colocalisation import Localisers, WindowBounds
from stn.transform.precision import full_precision

RANDOM_CROPS = 8  # of each image, that its windows are compared with
REFINEMENTS = 3
NEAR_SCALE, NEAR_SHIFT = 0.3, 0.4  # how far: log of the scale; shift in units of half the window's side
ENCODED_AT_ONCE = 400
FIT_LR = 0.004


@full_precision  # a difference of large numbers: in bf16 nothing would be left of it
def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """‖a_n - b_m‖² by one matrix product. Shapes: (..., N, F), (..., M, F) -> (..., N, M)."""
    lengths = a.square().sum(-1)[..., :, None] + b.square().sum(-1)[..., None, :]
    return (lengths - 2 * a @ b.mT).clamp(min=0)


@torch.no_grad()
def search_windows(
    encode: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    bounds: WindowBounds,
    generator: torch.Generator,
    n_windows: int,
    n_prototypes: int,
) -> Tensor:
    """The windows (N, 3), one for each image of a class, that a search by the terms of the loss finds.

    It encodes `n_windows` random windows of each image, their scales uniform in the logarithm. Some of all these crops
    are prototypes in turn: each image takes the window whose crop is nearest to the prototype. The prototype wins whose
    N crops have the least ½ ‖e_n - e_m‖² - ‖e_n - e_rand(n)‖² in the mean, which is what the gradient of `pair_loss`
    descends. Then `REFINEMENTS` times each image takes, of all its windows and of more around its own, the one with
    the least loss.
    Deviation: the paper starts with windows that are all alike and descends the gradient. From there most descents end
    with all windows on blank ground, also a minimum of its loss though a higher one.
    Shapes: images (N, C, H, W); encode(images (B, C, H, W), windows (B, 3)) -> (B, F).
    """
    n, device = len(images), images.device
    each = torch.arange(n, device=device)

    def encoded(windows: Tensor) -> Tensor:
        """(N, P, 3) -> (N, P, F)."""
        of_image = each.repeat_interleave(windows.shape[1]).split(ENCODED_AT_ONCE)
        parts = windows.flatten(0, 1).split(ENCODED_AT_ONCE)
        crops = [encode(images[i], part) for i, part in zip(of_image, parts, strict=True)]
        return torch.cat(crops).unflatten(0, (n, -1))

    ratio = math.log(bounds.scale_max / bounds.scale_min)
    share = torch.rand(n, n_windows, generator=generator, device=device)
    first = bounds.at_random(bounds.scale_min * (ratio * share).exp(), generator)
    first_crops = encoded(first)
    random = first_crops[:, :RANDOM_CROPS]
    chosen = best_prototype(first_crops, random, generator, n_prototypes)
    windows, crops = first[each, chosen], first_crops[each, chosen]
    for _ in range(REFINEMENTS):
        near = torch.cat([windows[:, None], _around(windows, n_windows // REFINEMENTS, bounds, generator)], dim=1)
        mean = crops.mean(0).expand(n, 1, -1)
        # What the sum over all pairs changes by with e_n: twice its distance to the others, as n and as m.
        loss = torch.cat(
            [
                2 * squared_distances(tried, mean)[..., 0] - squared_distances(tried, random).mean(-1)
                for tried in (first_crops, encoded(near))
            ],
            dim=1,
        )
        windows = torch.cat([first, near], dim=1)[each, loss.argmin(1)]
        crops = encoded(windows[:, None])[:, 0]
    return windows


def best_prototype(crops: Tensor, random: Tensor, generator: torch.Generator, n_prototypes: int) -> Tensor:
    """Which window each image takes: crops (N, P, F), random crops (N, R, F) -> (N,)."""
    n = len(crops)
    each = torch.arange(n, device=crops.device)
    flat = crops.flatten(0, 1)
    prototypes = torch.randperm(len(flat), generator=generator, device=flat.device)[:n_prototypes]
    nearest = squared_distances(flat[prototypes], flat).unflatten(1, crops.shape[:2]).argmin(-1)
    to_random = squared_distances(crops, random).mean(-1)
    scores = []
    for chosen in nearest:
        taken = crops[each, chosen]
        between = squared_distances(taken, taken).sum() / (n * (n - 1))
        scores.append(between / 2 - to_random[each, chosen].mean())
    return nearest[torch.stack(scores).argmin()]


def _around(windows: Tensor, n_tried: int, bounds: WindowBounds, generator: torch.Generator) -> Tensor:
    """Random windows near given ones, within the bounds: (N, 3) -> (N, n_tried, 3)."""
    noise = 2 * torch.rand(len(windows), n_tried, 3, generator=generator, device=windows.device) - 1
    scale = windows[:, None, :1] * (NEAR_SCALE * noise[..., :1]).exp()
    centre = windows[:, None, 1:] + NEAR_SHIFT * windows[:, None, :1] * noise[..., 1:]
    scale, centre = scale.clamp(bounds.scale_min, bounds.scale_max), centre.clamp(-bounds.max_shift, bounds.max_shift)
    return torch.cat([scale, centre], dim=-1)


def fit_windows(
    net: Localisers,
    images: Tensor,
    windows: Tensor,
    steps: int,
    batch_size: int,
    seed: int,
    before_step: Callable[[int], None],
) -> None:
    """Trains the localisers to give these windows, by least squares.

    `before_step` is called with the number of each step: they count from -`steps` up to 0, where the descent begins.
    Shapes: images (N, K, C, H, W), windows (N, K, 3).
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr=FIT_LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    for step in range(-steps, 0):
        before_step(step)
        chosen = torch.randperm(len(images), generator=generator, device=images.device)[:batch_size]
        loss = F.mse_loss(net(images[chosen]), windows[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
