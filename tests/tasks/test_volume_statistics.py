import pytest
import torch
from scipy.spatial.transform import Rotation

from stn.data.streams import Batch
from stn.data.volumes import plate_from_volume, rotation_matrix
from stn.tasks.volume_statistics import VolumeStatistics, tilt_deg
from stn.transform import Warped, affine3d_grid

N = 40


def turned(limit_deg=60.0):
    """Rotations of plates, and a batch that knows them; five classes."""
    angles = (2 * torch.rand(3, N, generator=torch.Generator().manual_seed(0)) - 1) * limit_deg
    rotation = rotation_matrix(*angles)
    digits = torch.arange(N) % 5
    plates = plate_from_volume(rotation, 0.1 * torch.randn(N, 3, generator=torch.Generator().manual_seed(1)))
    return rotation, Batch(torch.zeros(N, 1, 2, 2, 2), digits, digits[:, None], plates[:, None])


def statistics(theta, batch):
    gathered = VolumeStatistics()
    for part in (slice(0, 15), slice(15, N)):
        warped = Warped(batch.images[part], theta[part], affine3d_grid(theta[part], (4, 6, 6)))
        gathered.add([warped], Batch(*(None if field is None else field[part] for field in batch)))
    return gathered.summary()


def test_tilt_is_the_angle_between_depth_and_the_plates_normal():
    rotations = Rotation.random(20, random_state=0)
    normals = rotations.apply([0.0, 0.0, 1.0])  # of the plate, in the volume
    wanted = torch.from_numpy(normals[:, 2]).abs().arccos().rad2deg()
    found = tilt_deg(torch.from_numpy(rotations.as_matrix()).transpose(1, 2))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_an_identity_leaves_tilt_and_angles_as_they_are():
    _, batch = turned()
    summary = statistics(torch.eye(3, 4).expand(N, 3, 4), batch)
    assert summary["tilt_before_deg"] == summary["tilt_after_deg"] > 30
    assert summary["angle_std_before_deg"] == summary["angle_std_after_deg"] > 25
    assert summary["grid_inside"] == 1
    assert [summary[f"theta_std_{i}"] for i in range(12)] == [0] * 12


@pytest.mark.parametrize("scale", [(1.0, 1.0, 1.0), (0.5, 0.5, 3.0)])
def test_a_transformer_that_undoes_the_rotation_leaves_neither_tilt_nor_angle(scale):
    """Whatever it scales: what counts is the direction that the projection looks along, and that of upright."""
    rotation, batch = turned()
    theta = torch.cat([rotation * torch.tensor(scale), torch.zeros(N, 3, 1)], dim=2)
    summary = statistics(theta, batch)
    assert summary["tilt_before_deg"] > 30
    assert summary["tilt_after_deg"] == pytest.approx(0, abs=0.05)
    assert summary["angle_std_after_deg"] == pytest.approx(0, abs=0.05)
    assert summary["theta_std_1"] > 0.1
    assert summary["grid_inside"] < 1


def test_a_turn_that_is_the_same_for_a_class_is_no_spread_of_angles():
    rotation, batch = turned()
    turn_deg = 30.0 * (torch.arange(N) % 5)
    zero = torch.zeros(N)
    theta = torch.cat([rotation @ rotation_matrix(zero, zero, turn_deg), torch.zeros(N, 3, 1)], dim=2)
    assert statistics(theta, batch)["angle_std_after_deg"] == pytest.approx(0, abs=0.05)
