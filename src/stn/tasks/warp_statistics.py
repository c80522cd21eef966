"""What a spatial transformer does to a test set: its theta, where its grid lies, how upright it leaves the digits."""

import torch
from torch import Tensor

from stn.data.streams import Batch
from stn.transform import Warped
from stn.transform.grids import homogeneous_points


def linear_part(grid: Tensor) -> Tensor:
    """The 2x2 matrix that fits the middle of a grid best (least squares): (N, H, W, 2) -> (N, 2, 2).

    Convention: maps output directions (x, y) to input directions. Output points are centred and their x and y
    uncorrelated, so each column is a quotient of two sums. The middle half of the height and width: at the edge, a
    homography may have points beyond its horizon.
    """
    height, width = grid.shape[1:3]
    middle = (slice(height // 4, height - height // 4), slice(width // 4, width - width // 4))
    points = (
        homogeneous_points((height, width), grid.dtype, grid.device)[:2].view(2, height, width)[:, *middle].flatten(1)
    )
    points = points / points.square().sum(1, keepdim=True)
    return grid[:, *middle].flatten(1, 2).transpose(1, 2) @ points.T


def rotation_deg(matrix: Tensor) -> Tensor:
    """The angle of the rotation nearest to each matrix (polar decomposition), in degrees: (..., 2, 2) -> (...)."""
    sine, cosine = matrix[..., 1, 0] - matrix[..., 0, 1], matrix[..., 0, 0] + matrix[..., 1, 1]
    return torch.atan2(sine, cosine).rad2deg()


def spread_deg(angles_deg: Tensor, labels: Tensor) -> float:
    """Root mean square deviation of angles from the circular mean of their own class, in degrees.

    Within a class, since a digit's upright is a convention: an ST may settle on any pose per class.
    """
    radians = angles_deg.deg2rad()
    vectors = torch.stack([radians.cos(), radians.sin()], dim=1)
    sums = torch.zeros(int(labels.max()) + 1, 2).index_add_(0, labels, vectors)
    means = torch.atan2(sums[:, 1], sums[:, 0])
    deviation = torch.remainder(radians - means[labels] + torch.pi, 2 * torch.pi) - torch.pi
    return deviation.square().mean().sqrt().rad2deg().item()


class WarpStatistics:
    """Gathers what the transformers of a network do to a test set, and sums it up as metrics."""

    def __init__(self) -> None:
        self.of_transformer: list[_OfTransformer] = []
        self.before: list[Tensor] = []
        self.digits: list[Tensor] = []

    def add(self, warps: list[Warped], batch: Batch) -> None:
        """What each transformer did to a batch. Angles are known where the batch has `src_from_out`."""
        if not self.of_transformer:
            self.of_transformer = [_OfTransformer() for _ in warps]
        turn = None if batch.src_from_out is None else batch.src_from_out[..., :2]
        for statistics, warped in zip(self.of_transformer, warps, strict=True):
            statistics.add(warped, turn)
        if turn is not None:
            self.digits.append(batch.digits.cpu())
            self.before.append(rotation_deg(turn).cpu())

    def summary(self) -> dict[str, float]:
        """The metrics; with several transformers each has its own, prefixed st0_, st1_, …

        `grid_inside`: mean share of grid points inside the image; `grid_folded`: share of cells turned over;
        `theta_std_i`: standard deviation over images of each number of theta;
        `angle_std_before_deg`, `angle_std_after_deg`: spread of the digits' rotation in the input and in the output.
        With several channels the latter are per transformer and channel (st0_ch1_…), and `angle_std_after_deg` is the
        mean over channels of the transformer that turns that channel's digit best.
        """
        summary = {}
        several = len(self.of_transformer) > 1
        for t, statistics in enumerate(self.of_transformer):
            prefix = f"st{t}_" if several else ""
            summary |= {prefix + name: value for name, value in statistics.summary().items()}
        if self.of_transformer and self.before:
            summary |= self._angles()
        return summary

    def _angles(self) -> dict[str, float]:
        digits, before = torch.cat(self.digits), torch.cat(self.before)
        channels = range(before.shape[1])
        after = [[spread_deg(torch.cat(s.after)[:, c], digits[:, c]) for c in channels] for s in self.of_transformer]
        summary = {
            "angle_std_before_deg": sum(spread_deg(before[:, c], digits[:, c]) for c in channels) / len(channels),
            "angle_std_after_deg": sum(min(spreads) for spreads in zip(*after, strict=True)) / len(channels),
        }
        if len(channels) > 1:
            for t, spreads in enumerate(after):
                summary |= {f"st{t}_ch{c}_angle_std_after_deg": spread for c, spread in enumerate(spreads)}
        return summary


class _OfTransformer:
    def __init__(self) -> None:
        self.theta, self.inside, self.folded, self.after = [], [], [], []

    def add(self, warped: Warped, turn: Tensor | None) -> None:
        """`turn` (N, C, 2, 2): from the image to the undistorted digit of each channel."""
        grid = warped.grid
        self.theta.append(warped.theta.flatten(1).cpu())
        self.inside.append((grid.abs() <= 1).all(-1).float().flatten(1).mean(1).cpu())
        if grid.ndim == 4:
            along_x, along_y = grid[:, :-1, 1:] - grid[:, :-1, :-1], grid[:, 1:, :-1] - grid[:, :-1, :-1]
            area = along_x[..., 0] * along_y[..., 1] - along_x[..., 1] * along_y[..., 0]
            self.folded.append((area <= 0).float().mean(dim=(1, 2)).cpu())
        if turn is not None:
            self.after.append(rotation_deg(turn @ linear_part(grid)[:, None]).cpu())

    def summary(self) -> dict[str, float]:
        summary = {"grid_inside": torch.cat(self.inside).mean().item()}
        if self.folded:
            summary["grid_folded"] = torch.cat(self.folded).mean().item()
        for i, std in enumerate(torch.cat(self.theta).std(0).tolist()):
            summary[f"theta_std_{i}"] = std
        return summary
