import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from stn.data.augmentation import Augmentation


def images(n=400, px=24):
    return torch.rand(n, 3, px, px, generator=torch.Generator().manual_seed(0))


def generator():
    return torch.Generator().manual_seed(1)


def test_nothing_asked_is_nothing_done_and_nothing_drawn():
    before, g = images(), generator()
    assert Augmentation().apply(before, g) is before
    assert torch.equal(g.get_state(), generator().get_state())


def test_a_shift_is_that_of_scipy_and_repeats_the_border():
    """A ramp in x and in y: where a crop begins says how far it was moved."""
    px = 40
    y, x = torch.meshgrid(torch.arange(px), torch.arange(px), indexing="ij")
    ramp = torch.stack([x, y, 0 * x]).float() / px
    moved = Augmentation(shift=0.1).apply(ramp.expand(300, -1, -1, -1).clone(), generator())
    shift = (moved[:, :2, px // 2, px // 2] - ramp[:2, px // 2, px // 2]) * px
    assert shift.abs().max() <= 4
    assert shift.abs().amax(0).min() > 3.8
    assert shift.mean(0).abs().max() < 0.4
    for i in (0, 1, 2):
        dx, dy = shift[i].tolist()
        read = map_coordinates(ramp[0].numpy(), np.stack([y + dy, x + dx]), order=1, mode="nearest")
        np.testing.assert_allclose(moved[i, 0].numpy(), read, atol=1e-5)


def test_a_zoom_is_about_the_middle_and_as_far_as_said():
    px = 40
    ramp = ((torch.arange(px) + 0.5) / px - 0.5).expand(300, 1, px, px)
    moved = Augmentation(zoom=0.2).apply(ramp.clone(), generator())
    slope = (moved[:, 0, 20, 24] - moved[:, 0, 20, 15]) / 9 * px
    assert 0.8 <= slope.min() < 0.82
    assert 1.18 < slope.max() <= 1.2
    assert (moved[:, 0, 20, 19] + moved[:, 0, 20, 20]).abs().max() < 1e-5


def test_contrast_keeps_the_mean_and_inversion_is_exact():
    before = 0.25 + images() / 2
    after = Augmentation(contrast=0.4).apply(before, generator())
    torch.testing.assert_close(after.mean((1, 2, 3)), before.mean((1, 2, 3)))
    factor = after.std((1, 2, 3)) / before.std((1, 2, 3))
    assert 0.6 <= factor.min() < 0.62
    assert 1.38 < factor.max() <= 1.4
    assert Augmentation(contrast=0.9).apply(images(), generator()).aminmax().max <= 1
    inverted = Augmentation(inverted=0.5).apply(before, generator())
    turned = (inverted != before).flatten(1).any(1)
    assert 0.4 < turned.float().mean() < 0.6
    assert torch.equal(inverted[turned], 1 - before[turned])


@pytest.mark.parametrize("augmentation", [Augmentation(0.1, 0.1, 0.3, 0.5)])
def test_it_depends_on_the_generator_alone(augmentation):
    first, second = (augmentation.apply(images(8), generator()) for _ in range(2))
    assert torch.equal(first, second)
