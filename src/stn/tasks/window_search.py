"""Where co-localisation begins: for each image the best of some random windows, by the loss alone."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from stn.nets.colocalisation import Localisers, WindowBounds
from stn.transform.precision import full_precision

RANDOM_CROPS = 8  # of each image, that its windows are compared with
REFINEMENTS = 5
BEAM = 8  # windows of each image that a refinement looks around
NEAR_SCALE, NEAR_SHIFT = 0.3, 0.4  # how far: log of the scale; shift in units of half the window's side
ENCODED_AT_ONCE = 400
FIT_STARTS = 4  # random initialisations of the localisers that are tried, each for a share of the steps
FIT_START_SHARE = 1 / 8
FIT_LR = 0.002  # peak of a one-cycle rate; from a high one at once some of the nets do not recover
FIT_BATCH = 25  # images of each class a step: twice the steps on half the images fit better at the same cost


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
    descends. Then `REFINEMENTS` times each image takes, of all windows tried so far and of some around the `BEAM` best
    of them, the one with the least loss. (Around its own alone, an image that begins far from the object stays there.)
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
    tried = bounds.at_random(bounds.scale_min * (ratio * share).exp(), generator)
    crops = encoded(tried)
    random = crops[:, :RANDOM_CROPS]
    to_random = squared_distances(crops, random).mean(-1)
    chosen = best_prototype(crops, random, generator, n_prototypes)
    for _ in range(REFINEMENTS):
        mean = crops[each, chosen].mean(0).expand(n, 1, -1)
        best = _loss(crops, mean, to_random).topk(BEAM, largest=False).indices
        places = best[:, torch.arange(max(n_windows // REFINEMENTS, 1), device=device) % BEAM]
        near = _near(tried[each[:, None], places], bounds, generator)
        near_crops = encoded(near)
        tried, crops = torch.cat([tried, near], dim=1), torch.cat([crops, near_crops], dim=1)
        to_random = torch.cat([to_random, squared_distances(near_crops, random).mean(-1)], dim=1)
        chosen = _loss(crops, mean, to_random).argmin(1)
    return tried[each, chosen]


def _loss(crops: Tensor, mean: Tensor, to_random: Tensor) -> Tensor:
    """What the sum over all pairs changes by with e_n: twice its distance to the others, as n and as m.

    Shapes: crops (N, P, F), the mean of the chosen ones (N, 1, F), to_random (N, P) -> (N, P).
    """
    return 2 * squared_distances(crops, mean)[..., 0] - to_random


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


def _near(windows: Tensor, bounds: WindowBounds, generator: torch.Generator) -> Tensor:
    """A random window near each, within the bounds: (..., 3) -> (..., 3)."""
    noise = 2 * torch.rand(windows.shape, generator=generator, device=windows.device) - 1
    scale = windows[..., :1] * (NEAR_SCALE * noise[..., :1]).exp()
    centre = windows[..., 1:] + NEAR_SHIFT * windows[..., :1] * noise[..., 1:]
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
    """Trains the localisers to give these windows.

    What falls is, class by class, the root of the mean fourth power of the distances in (s, tx, ty): least squares
    leave single images far behind. From some initialisations no rate and no number of steps leads near all windows, so
    each class begins at that of `FIT_STARTS` which a short fit takes nearest to its own.
    `before_step` is called with the number of each step: they count from -`steps` up to 0, where the descent begins.
    Shapes: images (N, K, C, H, W), windows (N, K, 3).
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    least = torch.full((images.shape[1],), math.inf, device=images.device)
    given = copy.deepcopy(net)
    for start in range(FIT_STARTS if steps else 0):
        tried = copy.deepcopy(given)
        if start:
            tried.begin_anew(images, generator)
        begun = copy.deepcopy(tried.transformers)
        _fit(tried, images, windows, math.ceil(FIT_START_SHARE * steps), batch_size, generator, lambda step: None)
        with torch.no_grad():
            left = _distance(tried(images), windows)
        for k in (left < least).nonzero()[:, 0].tolist():
            net.transformers[k].load_state_dict(begun[k].state_dict())
        least = torch.minimum(least, left)
    _fit(net, images, windows, steps, batch_size, generator, before_step)


def _fit(
    net: Localisers,
    images: Tensor,
    windows: Tensor,
    steps: int,
    batch_size: int,
    generator: torch.Generator,
    before_step: Callable[[int], None],
) -> None:
    optimiser = torch.optim.AdamW(net.parameters(), lr=FIT_LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, FIT_LR, max(steps, 1))
    for step in range(-steps, 0):
        before_step(step)
        chosen = torch.randperm(len(images), generator=generator, device=images.device)[:batch_size]
        loss = _distance(net(images[chosen]), windows[chosen]).sum()  # over classes, whose nets have nothing in common
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def _distance(given: Tensor, wanted: Tensor) -> Tensor:
    """Of windows (N, K, 3), class by class: the root of the mean fourth power, (K,)."""
    return (given - wanted).square().sum(-1).square().mean(0).clamp(min=1e-16).sqrt()
