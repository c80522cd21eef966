"""What a spatial transformer does to a test set: its theta, where its grid lies, how upright it leaves the digits."""

import torch
from torch import Tensor

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
    """The angle of the rotation nearest to each matrix (polar decomposition), in degrees: (N, 2, 2) -> (N,)."""
    sine, cosine = matrix[:, 1, 0] - matrix[:, 0, 1], matrix[:, 0, 0] + matrix[:, 1, 1]
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
    """Gathers `Warped` batches of a test set and sums them up as metrics."""

    def __init__(self) -> None:
        self.theta, self.inside, self.folded, self.labels, self.before, self.after = [], [], [], [], [], []

    def add(self, warped: Warped, labels: Tensor, src_from_out: Tensor | None = None) -> None:
        """`src_from_out` (N, 2, 3): affine map, distorted image to original digit, where there is one."""
        grid = warped.grid
        self.theta.append(warped.theta.flatten(1).cpu())
        self.inside.append((grid.abs() <= 1).all(-1).float().mean(dim=(1, 2)).cpu())
        along_x, along_y = grid[:, :-1, 1:] - grid[:, :-1, :-1], grid[:, 1:, :-1] - grid[:, :-1, :-1]
        area = along_x[..., 0] * along_y[..., 1] - along_x[..., 1] * along_y[..., 0]
        self.folded.append((area <= 0).float().mean(dim=(1, 2)).cpu())
        if src_from_out is not None:
            turn = src_from_out[:, :, :2]
            self.labels.append(labels.cpu())
            self.before.append(rotation_deg(turn).cpu())
            self.after.append(rotation_deg(turn @ linear_part(grid)).cpu())

    def summary(self) -> dict[str, float]:
        """`grid_inside`: mean share of grid points inside the image; `grid_folded`: share of cells turned over;
        `theta_std_i`: standard deviation over images of each number of theta;
        `angle_std_before_deg`, `angle_std_after_deg`: spread of the digits' rotation in the ST's input and output.
        """
        if not self.theta:
            return {}
        summary = {
            "grid_inside": torch.cat(self.inside).mean().item(),
            "grid_folded": torch.cat(self.folded).mean().item(),
        }
        for i, std in enumerate(torch.cat(self.theta).std(0).tolist()):
            summary[f"theta_std_{i}"] = std
        if self.labels:
            labels = torch.cat(self.labels)
            summary["angle_std_before_deg"] = spread_deg(torch.cat(self.before), labels)
            summary["angle_std_after_deg"] = spread_deg(torch.cat(self.after), labels)
        return summary
