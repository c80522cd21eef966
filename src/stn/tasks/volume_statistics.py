"""What a 3D spatial transformer does to a test set: its theta, where its grid lies, how it turns the plates."""

import torch
from torch import Tensor

from stn.data.streams import Batch
from stn.tasks.warp_statistics import rotation_deg, spread_deg
from stn.transform import Warped


def tilt_deg(turn: Tensor) -> Tensor:
    """The angle between the line along which a projection looks and the normal of the plate it looks at.

    Shapes: (N, 3, 3) from directions (x, y, z) of the projected volume to the plate's frame, whose z is the normal
    -> (N,) in [0, 90]; 0 is face on, from the front or from behind.
    """
    view = turn[:, :, 2]  # the projection looks along z
    return torch.atan2(view[:, :2].norm(dim=1), view[:, 2].abs()).rad2deg()


class VolumeStatistics:
    """Gathers what the transformer of a network does to volumes, and sums it up as metrics."""

    def __init__(self) -> None:
        self.theta, self.inside, self.digits = [], [], []
        self.before, self.after = [], []  # (N, 3, 3), from directions of the input, or output, to the plate's frame

    def add(self, warps: list[Warped], batch: Batch) -> None:
        (warped,) = warps
        turn = batch.src_from_out[:, 0, :, :3]
        self.theta.append(warped.theta.cpu())
        self.inside.append((warped.grid.abs() <= 1).all(-1).float().flatten(1).mean(1).cpu())
        self.digits.append(batch.digits[:, 0].cpu())
        self.before.append(turn.cpu())
        self.after.append((turn @ warped.theta[:, :, :3]).cpu())

    def summary(self) -> dict[str, float]:
        """The metrics.

        `grid_inside`, `theta_std_i`: as `WarpStatistics`. `tilt_before_deg`, `tilt_after_deg`: mean `tilt_deg` of the
        plates in the input and in the output. `angle_std_before_deg`, `angle_std_after_deg`: spread of the rotation in
        the picture plane, within each class.
        """
        theta, digits = torch.cat(self.theta), torch.cat(self.digits)
        summary = {"grid_inside": torch.cat(self.inside).mean().item()}
        summary |= {f"theta_std_{i}": std for i, std in enumerate(theta.flatten(1).std(0).tolist())}
        for place, turns in (("before", torch.cat(self.before)), ("after", torch.cat(self.after))):
            summary[f"tilt_{place}_deg"] = tilt_deg(turns).mean().item()
            summary[f"angle_std_{place}_deg"] = spread_deg(rotation_deg(turns[:, :2, :2]), digits)
        return summary
