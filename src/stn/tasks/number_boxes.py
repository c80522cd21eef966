"""What the first spatial transformer does to the box of a house number (Sect. 4.2): how much it keeps, how tight."""

import torch
from torch import Tensor

from stn.data.streams import Batch
from stn.tasks.warp_statistics import WarpStatistics, middle_affine
from stn.transform import Warped

# Points of a box, per side: its share inside the window is counted on them.
POINTS = 16
NO_AREA = 1e-9  # of a window or box, in normalised coordinates
WHOLE = 0.95  # a number counts as kept when this share of its box is


class NumberStatistics(WarpStatistics):
    """Adds, of the first transformer, the box of the whole number (the smallest about all its digits' boxes)."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes: list[Tensor] = []
        self.affine: list[Tensor] = []

    def add(self, warps: list[Warped], batch: Batch) -> None:
        super().add(warps, batch)
        if warps and batch.boxes is not None:
            self.boxes.append(batch.boxes.cpu())
            self.affine.append(middle_affine(warps[0].grid).cpu())

    def summary(self) -> dict[str, float]:
        """The metrics, after those of `WarpStatistics`; means over the test pictures.

        `box_kept_share`: of the number's box, what lies in the first transformer's window; `box_whole_share`: of the
        pictures, those of which 95 % of the box does. `box_fill_before`, `box_fill_after`: the share of the picture,
        and of the window, that the box (what is kept of it) fills. `box_position_std_before`, `…_after`: root mean
        square distance of the box's middle from its mean place, and `box_scale_std_before_octaves`, `…_after_…`: spread
        of the box's size; of the picture and of the window, whose sides are 2 long.
        """
        summary = super().summary()
        if self.boxes:
            summary |= box_statistics(torch.cat(self.boxes), torch.cat(self.affine))
        return summary


def box_statistics(boxes: Tensor, in_from_out: Tensor) -> dict[str, float]:
    """Shapes: boxes (N, 4) as (x0, y0, x1, y1) in the input, in_from_out (N, 2, 3); both normalised, sides 2 long."""
    low, high = boxes[:, :2].clamp(-1, 1), boxes[:, 2:].clamp(-1, 1)
    share = (torch.arange(POINTS) + 0.5) / POINTS
    places = torch.stack(torch.meshgrid(share, share, indexing="xy"), dim=-1).flatten(0, 1)  # (P, 2)
    points = low[:, None] + places * (high - low)[:, None]
    linear, offset = in_from_out[:, :, :2], in_from_out[:, :, 2]
    window = torch.linalg.det(linear).abs().clamp(min=NO_AREA)
    inverse = torch.linalg.pinv(linear)
    in_window = (points - offset[:, None]) @ inverse.transpose(1, 2)
    kept = (in_window.abs() <= 1).all(-1).float().mean(1) * (window > NO_AREA)
    area_before = (high - low).prod(1) / 4
    fill_after = (kept * area_before / window).clamp(max=1)
    middle = (low + high)[:, None] / 2
    after = ((middle - offset[:, None]) @ inverse.transpose(1, 2))[:, 0]
    octaves = torch.log2(area_before.clamp(min=NO_AREA)) / 2
    octaves_after = octaves - torch.log2(window) / 2
    return {
        "box_kept_share": kept.mean().item(),
        "box_whole_share": (kept >= WHOLE).float().mean().item(),
        "box_fill_before": area_before.mean().item(),
        "box_fill_after": fill_after.mean().item(),
        "box_position_std_before": _spread(middle[:, 0]),
        "box_position_std_after": _spread(after),
        "box_scale_std_before_octaves": octaves.std(correction=0).item(),
        "box_scale_std_after_octaves": octaves_after.std(correction=0).item(),
    }


def _spread(places: Tensor) -> float:
    return (places - places.mean(0)).square().sum(1).mean().sqrt().item()
