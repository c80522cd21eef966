"""Which part of the bird a window settles on (Sect. 4.3: unsupervised parts, "one window the head, one the body").

Windows and boxes are (x0, y0, x1, y1), parts (x, y, visible), all in pixels of the same image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

REGIONS = {
    "head": ("beak", "crown", "forehead", "left eye", "right eye", "nape", "throat"),
    "body": ("back", "belly", "breast", "left wing", "right wing"),
    "legs": ("left leg", "right leg"),
    "tail": ("tail",),
}
NO_REGION = -1
BASELINE_DRAWS = 200


def parts_inside(windows_px: Tensor, parts: Tensor) -> Tensor:
    """Whether each visible part lies in each window: windows (N, n, 4), parts (N, P, 3) -> (N, n, P) bool."""
    xy, visible = parts[:, None, :, :2], parts[:, None, :, 2] > 0
    low, high = windows_px[:, :, None, :2], windows_px[:, :, None, 2:]
    return ((xy >= low) & (xy <= high)).all(-1) & visible


def region_of_parts(part_names: tuple[str, ...]) -> Tensor:
    """(P,) int64, indices into `REGIONS`. Raises: ValueError for a part that is in none."""
    regions = {part: i for i, names in enumerate(REGIONS.values()) for part in names}
    unknown = [name for name in part_names if name not in regions]
    if unknown:
        raise ValueError(f"parts {unknown} are in no region; known are {tuple(regions)}")
    return torch.tensor([regions[name] for name in part_names])


def window_regions(windows_px: Tensor, parts: Tensor, part_names: tuple[str, ...]) -> Tensor:
    """The region on which each window falls most: (N, n) int64, index into `REGIONS` or `NO_REGION`.

    It is the region whose middle, the mean of its visible parts, is nearest to the window's middle; none when no middle
    of a region is in the window. Middles, not counts of parts: the head has seven parts and the tail one.
    """
    member = F.one_hot(region_of_parts(part_names).to(parts.device), len(REGIONS)).to(parts.dtype)
    weight = (parts[..., 2] > 0).to(parts.dtype)[..., None] * member
    n_visible = weight.sum(1)
    region_px = torch.einsum("npd,npr->nrd", parts[..., :2], weight) / n_visible.clamp(min=1)[..., None]
    inside = parts_inside(windows_px, torch.cat([region_px, n_visible[..., None]], dim=-1))
    middle = (windows_px[..., :2] + windows_px[..., 2:]) / 2
    distance = (middle[:, :, None] - region_px[:, None]).norm(dim=-1).masked_fill(~inside, float("inf"))
    return distance.argmin(-1).masked_fill(~inside.any(-1), NO_REGION)


def region_frequencies(regions: Tensor) -> Tensor:
    """In which share of the images each window falls on each region: (N, n) -> (n, R). The rest falls on none."""
    return torch.stack([(regions == r).float().mean(0) for r in range(len(REGIONS))], dim=1)


def random_windows(n_images: int, n_windows: int, scale: float, image_px: int, generator: torch.Generator) -> Tensor:
    """Windows of this scale at uniformly random places inside the image: (n_images, n_windows, 4)."""
    side = scale * image_px
    corner = torch.rand(n_images, n_windows, 2, generator=generator, device=generator.device) * (image_px - side)
    return torch.cat([corner, corner + side], dim=-1)


def report_windows(
    windows_px: Tensor, parts: Tensor, part_names: tuple[str, ...], image_px: int, generator: torch.Generator
) -> list[dict[str, float]]:
    """What each of the n windows looks at, beside windows of its size at random places in the same images.

    `region_<region>` is the share of the images in which the window falls on that region, `consistency` the largest of
    them; `random_consistency` is the largest that windows at random places reach on average, and `p_value` how often
    they reach `consistency` (one-sided, never 0).
    Shapes: windows_px (N, n, 4), parts (N, P, 3). The windows' scale is taken from the first.
    """
    windows_px, parts = windows_px.cpu(), parts.cpu()
    frequencies = region_frequencies(window_regions(windows_px, parts, part_names))
    scale = float(windows_px[0, 0, 2] - windows_px[0, 0, 0]) / image_px
    random = random_windows(len(parts), BASELINE_DRAWS, scale, image_px, generator).cpu()
    baseline = region_frequencies(window_regions(random, parts, part_names)).amax(1)
    return [
        {f"region_{region}": share for region, share in zip(REGIONS, shares.tolist(), strict=True)}
        | {
            "consistency": float(shares.max()),
            "random_consistency": float(baseline.mean()),
            "p_value": (1 + int((baseline >= shares.max()).sum())) / (1 + BASELINE_DRAWS),
        }
        for shares in frequencies
    ]
