"""Digits in three dimensions (App. A.3): a digit extruded to a plate, turned and placed at random in a volume."""

import torch
from torch import Tensor

from stn.data.digit import DIGIT_PX, uniform, unit_interval
from stn.data.mnist import Digits
from stn.data.streams import Batch, DigitStream
from stn.transform import affine3d_grid, sample

# Nearly all of MNIST's ink lies in the inner 20 of 28 pixels (but not of each digit: they are centred by mass).
INK_SHARE = 20 / DIGIT_PX


class ExtrudedDigits(DigitStream):
    """A digit of `digit_voxels` a side and `thickness_voxels` deep in a cube of `size_voxels`, turned and shifted.

    Rotations are Euler angles U(-rotation_deg, rotation_deg) about x, then y, then z; the shift is uniform per axis
    over the positions at which the sphere around the plate's inner part stays inside the cube (where it fits).
    Deviation: the paper gives pictures and no numbers; the angles and sizes are settings of the task.
    Units: voxels, degrees. `shape` is (1, D, H, W); a batch's `src_from_out` is `plate_from_volume`.
    Raises: ValueError when the digit is larger than the volume.
    """

    purpose = "volumes"
    test_batch_size = 100  # 60^3 voxels and their grid take 3.5 MB an image

    def __init__(
        self,
        train: Digits,
        test: Digits,
        size_voxels: int = 60,
        digit_voxels: float = 28.0,
        thickness_voxels: float = 8.0,
        rotation_deg: tuple[float, float, float] = (45.0, 45.0, 45.0),
    ) -> None:
        super().__init__(train, test)
        check_fits(size_voxels, digit_voxels, thickness_voxels)
        self.size, self.shape = (size_voxels,) * 3, (1, *(size_voxels,) * 3)
        self.digit_voxels, self.thickness_voxels = digit_voxels, thickness_voxels
        self.rotation_deg = tuple(float(angle) for angle in rotation_deg)

    def _distorted(self, digits: Tensor, labels: Tensor, generator: torch.Generator) -> Batch:
        n, device = len(digits), digits.device
        angles = [uniform(generator, (n,), -limit, limit, device) for limit in self.rotation_deg]
        half = self.size[0] / 2
        radius = (2 * (self.digit_voxels / 2 * INK_SHARE) ** 2 + (self.thickness_voxels / 2) ** 2) ** 0.5
        shift = uniform(generator, (n, 3), -1.0, 1.0, device) * max(half - radius, 0.0) / half
        rotation = rotation_matrix(*angles)
        scale = (self.digit_voxels / self.size[0], self.thickness_voxels / self.size[0])
        volumes = extrude(digits, rotation, shift, self.size, scale)
        return Batch(volumes, labels, labels[:, None], plate_from_volume(rotation, shift)[:, None])


def check_fits(size_voxels: int, digit_voxels: float, thickness_voxels: float) -> None:
    """Raises: ValueError when the digit is larger than the volume."""
    if max(digit_voxels, thickness_voxels) > size_voxels:
        shown = f"{digit_voxels:g} voxels, {thickness_voxels:g} deep"
        raise ValueError(f"a digit of {shown}, is larger than a volume of {size_voxels}")


def rotation_matrix(x_deg: Tensor, y_deg: Tensor, z_deg: Tensor) -> Tensor:
    """R = Rz Ry Rx, each turning counter-clockwise about its axis seen from its tip: (N,) three times -> (N, 3, 3)."""
    one, zero = torch.ones_like(x_deg), torch.zeros_like(x_deg)
    (cx, sx), (cy, sy), (cz, sz) = ((a.deg2rad().cos(), a.deg2rad().sin()) for a in (x_deg, y_deg, z_deg))

    def matrix(*entries: Tensor) -> Tensor:
        return torch.stack(entries, dim=1).view(-1, 3, 3)

    about_x = matrix(one, zero, zero, zero, cx, -sx, zero, sx, cx)
    about_y = matrix(cy, zero, sy, zero, one, zero, -sy, zero, cy)
    about_z = matrix(cz, -sz, zero, sz, cz, zero, zero, zero, one)
    return about_z @ about_y @ about_x


def plate_from_volume(rotation: Tensor, shift: Tensor) -> Tensor:
    """The map from the volume to the frame of a plate that is turned, then shifted; both in units of half the volume.

    Shapes: rotation (N, 3, 3), shift (N, 3) as (x, y, z) -> (N, 3, 4).
    """
    inverse = rotation.transpose(1, 2)
    return torch.cat([inverse, -(inverse @ shift[:, :, None])], dim=2)


def extrude(digits: Tensor, rotation: Tensor, shift: Tensor, size: tuple[int, int, int], scale: tuple[float, float]):
    """The volume of each digit as a turned and shifted plate.

    The plate itself is never made: a voxel reads the flat digit at the (x, y) it has in the plate's frame, where its z
    lies within the thickness (with a ramp of one voxel at the rim).

    Shapes: digits (N, 28, 28) uint8, rotation (N, 3, 3), shift (N, 3) as (x, y, z) -> (N, 1, D, H, W) float32 in
    [0, 1]. Units: of half the volume; `scale` is half the side of the digit's square and half the plate's thickness.
    """
    frame = affine3d_grid(plate_from_volume(rotation, shift), size)  # (N, D, H, W, 3)
    flat = (frame[..., :2] / scale[0]).flatten(1, 2)  # (N, D*H, W, 2)
    ink = sample(unit_interval(digits), flat).view(len(digits), 1, *size)
    depth = ((scale[1] - frame[..., 2].abs()) * size[0] / 2 + 0.5).clamp(0, 1)
    return ink * depth[:, None]
