"""Square attention windows (Eq. 2), as theta (s, tx, ty) and as boxes in pixels."""

import torch
from torch import Tensor

from stn.transform import boxes_to_px


def windows_at(centres: Tensor, scale: float) -> Tensor:
    """Windows of one scale at normalised centres: (..., 2) -> (..., 3) as (s, tx, ty)."""
    return torch.cat([torch.full_like(centres[..., :1], scale), centres], dim=-1)


def window_boxes_px(windows: Tensor, image_px: int) -> Tensor:
    """Windows (..., 3) as (s, tx, ty) to boxes (..., 4) as left, top, right, bottom edge in a square image.

    Units: pixels of the image, counted from its top left corner; not clipped.
    """
    scale, centre = windows[..., :1], windows[..., 1:]
    return boxes_to_px(torch.cat([centre - scale, centre + scale], dim=-1), (image_px, image_px))
