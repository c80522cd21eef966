"""What a spatial transformer does to a test set: its theta, where its grid lies, how alike it leaves the digits."""

import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from stn.data.digit import DIGIT_PX
from stn.data.streams import Batch
from stn.tasks.looks import look_through
from stn.transform import Warped
from stn.transform.grids import homogeneous_points

SYMMETRIC_DIGITS = (0, 1, 8)  # half a turn leaves them what they were
MIN_SPREAD_DEG = 1e-2  # what rounding leaves of the deviations of a class's only digit
NORMAL_PER_MAD = 1.4826  # standard deviations per median absolute deviation, of a normal distribution


class Pose(NamedTuple):
    """How digits lie in a picture. `position_px`: the digit's own pixel that the picture's middle falls on."""

    angle_deg: Tensor  # (...)
    log2_scale: Tensor  # (...)
    position_px: Tensor  # (..., 2), x to the right and y down, from the digit's middle

    @classmethod
    def of(cls, digit_from_picture: Tensor) -> "Pose":
        """Of the affine maps (..., 2, 3), normalised, from the picture to the undistorted digit."""
        linear = digit_from_picture[..., :2]
        area = torch.linalg.det(linear).abs().clamp(min=torch.finfo(linear.dtype).tiny)
        return cls(rotation_deg(linear), -torch.log2(area) / 2, digit_from_picture[..., 2] * DIGIT_PX / 2)

    def spreads(self, labels: Tensor) -> dict[str, float]:
        """By name, of N digits each: the deviation from the mean pose of their own class, root mean square.

        Within a class, since a digit's upright is a convention: an ST may settle on any pose per class.
        `angle_robust_…` is the same of most digits, blind to a few that lie the wrong way round (`robust_spread_deg`).
        """
        return {
            "angle_std_{}_deg": spread_deg(self.angle_deg, labels),
            "angle_robust_{}_deg": robust_spread_deg(self.angle_deg, labels),
            "scale_std_{}_octaves": _spread(self.log2_scale[:, None], labels),
            "position_std_{}_px": _spread(self.position_px, labels),
        }


def middle_affine(grid: Tensor) -> Tensor:
    """The affine map that fits the middle of a grid best (least squares): (N, H, W, 2) -> (N, 2, 3).

    Convention: maps output points (x, y) to input points. Output points are centred and their x and y uncorrelated, so
    each column is a quotient of two sums. The middle half of the height and width: at the edge, a homography may have
    points beyond its horizon.
    """
    height, width = grid.shape[1:3]
    middle = (slice(height // 4, height - height // 4), slice(width // 4, width - width // 4))
    points = homogeneous_points((height, width), grid)[:2].view(2, height, width)[:, *middle].flatten(1)
    points = points / points.square().sum(1, keepdim=True)
    read = grid[:, *middle].flatten(1, 2).transpose(1, 2)
    return torch.cat([read @ points.T, read.mean(2, keepdim=True)], dim=2)


def rotation_deg(matrix: Tensor) -> Tensor:
    """The angle of the rotation nearest to each matrix (polar decomposition), in degrees: (..., 2, 2) -> (...)."""
    sine, cosine = matrix[..., 1, 0] - matrix[..., 0, 1], matrix[..., 0, 0] + matrix[..., 1, 1]
    return torch.atan2(sine, cosine).rad2deg()


def spread_deg(angles_deg: Tensor, labels: Tensor) -> float:
    """Root mean square deviation of angles from the circular mean of their own class, in degrees."""
    return deviations_deg(angles_deg, labels).square().mean().sqrt().item()


def robust_spread_deg(angles_deg: Tensor, labels: Tensor) -> float:
    """The same by the median absolute deviation, scaled to equal the standard deviation of a normal distribution; of
    `SYMMETRIC_DIGITS` up to half a turn.
    """
    return NORMAL_PER_MAD * deviations_deg(angles_deg, labels, SYMMETRIC_DIGITS).abs().median().item()


def rotation_kept(before_deg: Tensor, after_deg: Tensor, labels: Tensor) -> float:
    """Which share of the digits' rotation is still there: 1 when nothing was undone, 0 when all stand alike.

    The slope of a line through the origin, by least squares, of the deviation after on the deviation before, each from
    the mean of their own class. Unlike a spread it leaves out by how much the handwriting of a class differs.
    `SYMMETRIC_DIGITS` count only where there are no others: turned by -90° to 90° they have no mean.
    NaN where no two digits of a class differ in their angles.
    """
    counted = ~torch.isin(labels, torch.tensor(SYMMETRIC_DIGITS, device=labels.device))
    counted |= ~counted.any()
    before, after = (deviations_deg(angles[counted], labels[counted]) for angles in (before_deg, after_deg))
    turned = before.square().sum()
    return ((before * after).sum() / turned).item() if turned > MIN_SPREAD_DEG**2 else math.nan


def deviations_deg(angles_deg: Tensor, labels: Tensor, symmetric: Collection[int] = ()) -> Tensor:
    """How far angles are from the circular mean of their own class, -180 to 180 degrees: (N,) -> (N,).

    Of `symmetric` classes, which half a turn does not change, -90 to 90: angles that differ by 180 are the same.
    """
    folds = torch.ones(int(labels.max()) + 1)
    folds[[k for k in symmetric if k < len(folds)]] = 2
    radians = angles_deg.deg2rad() * folds[labels]
    vectors = torch.stack([radians.cos(), radians.sin()], dim=1)
    sums = torch.zeros(len(folds), 2).index_add_(0, labels, vectors)
    means = torch.atan2(sums[:, 1], sums[:, 0])
    deviations = torch.remainder(radians - means[labels] + torch.pi, 2 * torch.pi) - torch.pi
    return deviations.rad2deg() / folds[labels]


def _spread(values: Tensor, labels: Tensor) -> float:
    """The same of vectors (N, D): root mean square length of what differs from the mean of their own class."""
    of_class = torch.nn.functional.one_hot(labels).to(values.dtype)
    means = (of_class.T @ values) / of_class.sum(0).clamp(min=1)[:, None]
    return (values - means[labels]).square().sum(1).mean().sqrt().item()


class WarpStatistics:
    """Gathers what the transformers of a network do to a test set, and sums it up as metrics."""

    def __init__(self) -> None:
        self.of_transformer: list[TransformerStatistics] = []
        self.before: list[Tensor] = []
        self.digits: list[Tensor] = []

    def add(self, warps: list[Warped], batch: Batch) -> None:
        """What each transformer did to a batch. Poses are known where the batch has `src_from_out`."""
        if not self.of_transformer:
            self.of_transformer = [TransformerStatistics() for _ in warps]
        for statistics, warped in zip(self.of_transformer, warps, strict=True):
            statistics.add(warped, batch.src_from_out)
        if batch.src_from_out is not None:
            self.digits.append(batch.digits.cpu())
            self.before.append(batch.src_from_out.cpu())

    look = staticmethod(look_through)

    def summary(self) -> dict[str, float]:
        """The metrics; with several transformers each has its own, prefixed st0_, st1_, …

        `grid_inside`: mean share of grid points inside the image; `grid_folded`: share of cells turned over;
        `theta_std_i`: standard deviation over images of each number of theta;
        `angle_std_before_deg`, `angle_std_after_deg`, and likewise `angle_robust_…_deg`, `scale_std_…_octaves`,
        `position_std_…_px`: spread of the digits' poses (`Pose`) in the input and in the output; `angle_kept`: share of
        the rotation that is left (`rotation_kept`). With several channels those after are per transformer and channel
        (st0_ch1_…), and without a prefix the mean over channels of the best transformer there.
        """
        summary = {}
        several = len(self.of_transformer) > 1
        for t, statistics in enumerate(self.of_transformer):
            prefix = f"st{t}_" if several else ""
            summary |= {prefix + name: value for name, value in statistics.summary().items()}
        if self.of_transformer and self.before:
            summary |= self._poses()
        return summary

    def _poses(self) -> dict[str, float]:
        digits, before = torch.cat(self.digits), torch.cat(self.before)
        after = [torch.cat(statistics.after) for statistics in self.of_transformer]
        summary = {}
        for c in range(digits.shape[1]):
            labels, pose = digits[:, c], Pose.of(before[:, c])
            by_transformer = [_after(pose, Pose.of(affine[:, c]), labels) for affine in after]
            best = {name: min((metrics[name] for metrics in by_transformer), key=abs) for name in by_transformer[0]}
            spreads = {name.format("before"): spread for name, spread in pose.spreads(labels).items()}
            for name, value in (spreads | best).items():
                summary[name] = summary.get(name, 0.0) + value / digits.shape[1]
            if digits.shape[1] > 1:
                for t, metrics in enumerate(by_transformer):
                    summary |= {f"st{t}_ch{c}_{name}": value for name, value in metrics.items()}
        return summary


def _after(before: Pose, after: Pose, labels: Tensor) -> dict[str, float]:
    """The metrics of the poses that a transformer leaves."""
    spreads = {name.format("after"): spread for name, spread in after.spreads(labels).items()}
    kept = rotation_kept(before.angle_deg, after.angle_deg, labels)
    return spreads if math.isnan(kept) else spreads | {"angle_kept": kept}


class TransformerStatistics:
    """Of one transformer, of images or volumes: theta, its grid, and the poses that it leaves."""

    def __init__(self) -> None:
        self.theta, self.inside, self.folded, self.after = [], [], [], []

    def add(self, warped: Warped, src_from_out: Tensor | None) -> None:
        """`src_from_out` (N, C, 2, 3): from the image to the undistorted digit of each channel."""
        grid = warped.grid
        self.theta.append(warped.theta.flatten(1).cpu())
        self.inside.append((grid.abs() <= 1).all(-1).float().flatten(1).mean(1).cpu())
        if grid.ndim == 4:
            along_x, along_y = grid[:, :-1, 1:] - grid[:, :-1, :-1], grid[:, 1:, :-1] - grid[:, :-1, :-1]
            area = along_x[..., 0] * along_y[..., 1] - along_x[..., 1] * along_y[..., 0]
            self.folded.append((area <= 0).float().mean(dim=(1, 2)).cpu())
        if src_from_out is not None:
            affine, offset = middle_affine(grid)[:, None], src_from_out[..., 2:]
            composed = src_from_out[..., :2] @ affine
            self.after.append(torch.cat([composed[..., :2], composed[..., 2:] + offset], dim=-1).cpu())

    def summary(self) -> dict[str, float]:
        summary = {"grid_inside": torch.cat(self.inside).mean().item()}
        if self.folded:
            summary["grid_folded"] = torch.cat(self.folded).mean().item()
        for i, std in enumerate(torch.cat(self.theta).std(0, correction=0).tolist()):
            summary[f"theta_std_{i}"] = std
        return summary
