import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.transform import Rotation

from stn.data.distortions import DISTORTIONS, distortion
from stn.data.mnist import Digits
from stn.data.streams import TEST_BATCH, AddedDigits, DistortedDigits
from stn.data.volumes import ExtrudedDigits, extrude, rotation_matrix


def digits(n: int, seed: int = 0) -> Digits:
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(n, 28, 28, dtype=torch.uint8)
    images[:, 6:22, 8:20] = torch.randint(1, 256, (n, 16, 12), generator=generator, dtype=torch.uint8)
    return Digits(images, torch.randint(10, (n,), generator=generator))


def stream(kind, name="rts", n_test=30):
    return kind(distortion(name), digits(50), digits(n_test, seed=1))


def test_a_distorted_batch_is_the_distortion_of_the_drawn_digits():
    ours = stream(DistortedDigits, "tc")
    batch = ours.draw(16, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    index = torch.randint(50, (16,), generator=generator)
    assert torch.equal(batch.images, distortion("tc")(digits(50).images[index], generator))
    assert torch.equal(batch.labels, digits(50).labels[index])
    assert batch.src_from_out is None
    assert batch.images.shape[1:] == ours.shape


@pytest.mark.parametrize("kind", [DistortedDigits, AddedDigits])
def test_the_distortion_grows_for_a_share_of_the_training(kind):
    plain, growing = (kind(distortion("rts"), digits(50), digits(30), ramp) for ramp in (0.0, 0.5))

    def images(stream, progress):
        stream.progress = progress
        return stream.draw(16, torch.Generator().manual_seed(0)).images

    assert torch.equal(images(plain, 0.0), images(plain, 1.0))
    for progress, weaker in ((0.0, 0.0), (0.25, 0.5)):
        weak = kind(distortion("rts").weaker(weaker), digits(50), digits(30))
        assert torch.equal(images(growing, progress), images(weak, progress))
    for progress in (0.5, 1.0):
        assert torch.equal(images(growing, progress), images(plain, progress))
    growing.progress = 0.0
    assert torch.equal(growing.test_batch(0, 0).images, plain.test_batch(0, 0).images)


@pytest.mark.parametrize("kind", [DistortedDigits, AddedDigits])
def test_test_batches_depend_on_draw_and_start_alone(kind):
    first, again = stream(kind).test_batch(0, 0), stream(kind).test_batch(0, 0)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, stream(kind).test_batch(1, 0).images)


def test_the_label_of_an_addition_is_the_sum_of_its_digits():
    batch = stream(AddedDigits).draw(64, torch.Generator().manual_seed(0))
    assert batch.images.shape == (64, 2, 42, 42)
    assert torch.equal(batch.labels, batch.digits.sum(1))
    assert batch.labels.max() < AddedDigits.classes


def test_an_addition_draws_its_two_digits_independently():
    batch = stream(AddedDigits).draw(4000, torch.Generator().manual_seed(0))
    same = (batch.digits[:, 0] == batch.digits[:, 1]).float().mean().item()
    share = torch.bincount(digits(50).labels, minlength=10) / 50
    assert same == pytest.approx(share.square().sum().item(), abs=4 * (0.1 * 0.9 / 4000) ** 0.5)


def test_guessing_a_sum_costs_the_entropy_of_the_sums():
    ours = stream(AddedDigits)
    labels = digits(50).labels
    shares = (labels[:, None] + labels).flatten().bincount(minlength=19) / 2500
    loss = torch.nn.functional.cross_entropy(shares.log(), shares)
    assert ours.guessing_loss == pytest.approx(loss.nan_to_num().item(), abs=1e-6)
    assert ours.guessing_loss < torch.tensor(19.0).log().item() - 0.1


def test_every_test_digit_is_a_first_summand_once_and_a_second_once():
    ours = stream(AddedDigits, n_test=TEST_BATCH + 40)
    batches = [ours.test_batch(2, start) for start in (0, TEST_BATCH)]
    pairs = torch.cat([batch.digits for batch in batches])
    assert torch.equal(pairs[:, 0], ours.test.labels)
    assert torch.equal(pairs[:, 1].sort().values, ours.test.labels.sort().values)


def test_each_channel_carries_the_map_of_its_own_digit():
    batch = stream(AddedDigits).draw(8, torch.Generator().manual_seed(5))
    assert batch.src_from_out.shape == (8, 2, 2, 3)
    assert not torch.equal(batch.src_from_out[:, 0], batch.src_from_out[:, 1])


# -- volumes -----------------------------------------------------------------------------------------------------------


def upright(image: torch.Tensor, size: int = 32, thickness: float = 6 / 32) -> torch.Tensor:
    zero = torch.zeros(1)
    return extrude(image, rotation_matrix(zero, zero, zero), torch.zeros(1, 3), (size,) * 3, (28 / size, thickness))


def test_an_unturned_plate_is_the_digit_in_every_slice_of_its_thickness():
    image = digits(1).images
    volume = upright(image)[0, 0]
    inside = volume[13:19]
    assert torch.allclose(inside[:, 2:30, 2:30], (image / 255).expand(6, 28, 28), atol=1e-5)
    assert volume[:12].abs().max() == 0
    assert volume[20:].abs().max() == 0


@pytest.mark.parametrize("name", DISTORTIONS)
def test_digits_under_any_distortion_can_be_added(name):
    stream = AddedDigits(distortion(name), digits(20), digits(10))
    for batch in (stream.draw(4, torch.Generator().manual_seed(0)), stream.test_batch(0, 0)):
        assert batch.images.shape[1:] == (2, *distortion(name).canvas)
        assert (batch.src_from_out is not None) == hasattr(distortion(name), "src_from_out")


@pytest.mark.parametrize(("axis", "dims"), [(0, (0, 1)), (1, (2, 0)), (2, (1, 2))])
def test_a_quarter_turn_is_that_of_the_array(axis, dims):
    """Counter-clockwise about x turns y towards z; about y, z towards x; about z, x towards y (array axes z, y, x)."""
    image = digits(1).images
    angles = [torch.zeros(1) for _ in range(3)]
    angles[axis] = torch.full((1,), 90.0)
    turned = extrude(image, rotation_matrix(*angles), torch.zeros(1, 3), (32,) * 3, (28 / 32, 6 / 32))[0, 0]
    expected = torch.rot90(upright(image)[0, 0], k=-1, dims=dims)
    assert torch.allclose(turned, expected, atol=1e-4)


def test_a_shift_moves_the_plate_along_x_y_z():
    zero = torch.zeros(1)
    shift = torch.tensor([[4 / 16, 2 / 16, -3 / 16]])
    moved = extrude(digits(1).images, rotation_matrix(zero, zero, zero), shift, (32,) * 3, (28 / 32, 6 / 32))[0, 0]
    expected = torch.roll(upright(digits(1).images)[0, 0], (-3, 2, 4), dims=(0, 1, 2))
    assert torch.allclose(moved, expected, atol=1e-4)


def test_digits_are_turned_about_each_axis_and_placed_within_the_room_uniformly():
    ours = ExtrudedDigits(digits(50), digits(30), size_voxels=16, digit_voxels=8, thickness_voxels=2)
    inverse, offset = ours.draw(1000, torch.Generator().manual_seed(0)).src_from_out[:, 0].double().split((3, 1), dim=2)
    rotation = inverse.mT
    angles_deg = Rotation.from_matrix(rotation.numpy()).as_euler("xyz", degrees=True)  # about fixed axes: x, y, z
    shift = -(rotation @ offset)[:, :, 0].numpy() * 8  # in voxels
    room = 8 - np.hypot(np.sqrt(2) * 4 * 20 / 28, 1)  # to the sphere around the plate's inner part
    for axis in range(3):
        assert stats.kstest(angles_deg[:, axis], stats.uniform(-45, 90).cdf).pvalue > 1e-4
        assert stats.kstest(shift[:, axis], stats.uniform(-room, 2 * room).cdf).pvalue > 1e-4
    drawn = np.concatenate([angles_deg, shift], axis=1)
    assert abs(np.corrcoef(drawn.T) - np.eye(6)).max() < 5 / np.sqrt(len(drawn))


def test_turned_and_placed_digits_stay_inside_the_volume():
    ours = ExtrudedDigits(digits(50), digits(30), size_voxels=48, digit_voxels=24, thickness_voxels=6)
    volumes = ours.draw(32, torch.Generator().manual_seed(0)).images
    rim = torch.ones(48, 48, 48, dtype=torch.bool)
    rim[1:-1, 1:-1, 1:-1] = False
    assert volumes.shape == (32, 1, 48, 48, 48)
    assert volumes[:, 0, rim].max() == 0


def test_a_digit_larger_than_the_volume_is_refused():
    with pytest.raises(ValueError, match="larger than a volume of 16"):
        ExtrudedDigits(digits(5), digits(5), size_voxels=16, digit_voxels=28)
