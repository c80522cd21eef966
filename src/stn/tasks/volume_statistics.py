"""What a 3D spatial transformer does to a test set: its theta, where its grid lies, how it turns the plates."""

from pathlib import Path

import torch
from torch import Tensor

from stn.data.streams import Batch
from stn.tasks.looks import Look, caption
from stn.tasks.warp_statistics import TransformerStatistics, rotation_deg, spread_deg
from stn.transform import Warped

VOLUMES = 2  # in a picture: one takes half a second to draw


def tilt_deg(turn: Tensor) -> Tensor:
    """The angle between the line along which a projection looks and the normal of the plate it looks at.

    Shapes: (N, 3, 3) from directions (x, y, z) of the projected volume to the plate's frame, whose z is the normal
    -> (N,) in [0, 90]; 0 is face on, from the front or from behind.
    """
    view = turn[:, :, 2]  # the projection looks along z
    return torch.atan2(view[:, :2].norm(dim=1), view[:, 2].abs()).rad2deg()


class VolumeLook(Look):
    """As `Look`, of volumes; its `warps` are `stn.results.volume_figures.VolumeWarp`."""

    def draw(self, path: Path, title: str) -> Path:
        """The surface and the projection, before and after."""
        from stn.results.volume_figures import volume_gallery

        return volume_gallery(path, self.warps, title)


class VolumeStatistics:
    """Gathers what the transformer of a network does to volumes, and sums it up as metrics."""

    def __init__(self) -> None:
        self.of_transformer, self.digits = TransformerStatistics(), []
        self.before, self.after = [], []  # (N, 3, 3), from directions of the input, or output, to the plate's frame

    def add(self, warps: list[Warped], batch: Batch) -> None:
        (warped,) = warps
        turn = batch.src_from_out[:, 0, :, :3]
        self.of_transformer.add(warped, None)
        self.digits.append(batch.digits[:, 0].cpu())
        self.before.append(turn.cpu())
        self.after.append((turn @ warped.theta[:, :, :3]).cpu())

    @staticmethod
    def look(warps: list[Warped], batch: Batch, statistics: dict[str, float]) -> VolumeLook:
        """The first volumes and their projections, which are means along the depth."""
        from stn.results.volume_figures import VolumeWarp

        before, after = (x[:VOLUMES, 0].cpu() for x in (batch.images, warps[0].image))
        panels = [x.numpy() for x in (before, after, before.mean(1), after.mean(1))]
        rows = [VolumeWarp(*row) for row in zip(*panels, map(caption, batch.labels[:VOLUMES]), strict=True)]
        return VolumeLook(rows, 1, statistics)

    def summary(self) -> dict[str, float]:
        """The metrics.

        `grid_inside`, `theta_std_i`: as `WarpStatistics`. `tilt_before_deg`, `tilt_after_deg`: mean `tilt_deg` of the
        plates in the input and in the output. `angle_std_before_deg`, `angle_std_after_deg`: spread of the rotation in
        the picture plane, within each class.
        """
        summary, digits = self.of_transformer.summary(), torch.cat(self.digits)
        for place, turns in (("before", torch.cat(self.before)), ("after", torch.cat(self.after))):
            summary[f"tilt_{place}_deg"] = tilt_deg(turns).mean().item()
            summary[f"angle_std_{place}_deg"] = spread_deg(rotation_deg(turns[:, :2, :2]), digits)
        return summary
