import math

import pytest
import torch

from stn.data.streams import Batch
from stn.data.svhn_stream import number_box
from stn.tasks.number_boxes import NumberStatistics, box_statistics
from stn.transform import Warped, affine_grid


def test_the_box_of_a_number_is_about_all_its_digits():
    digits = torch.zeros(2, 5, 4)
    digits[0, 0], digits[0, 1] = torch.tensor([1.0, 5, 3, 9]), torch.tensor([3.0, 4, 6, 8])
    digits[1, 0] = torch.tensor([-1.0, 0, 2, 7])
    assert number_box(digits).tolist() == [[1, 4, 6, 9], [-1, 0, 2, 7]]


def window(scale_x, scale_y, x=0.0, y=0.0, angle_deg=0.0):
    a = math.radians(angle_deg)
    turn = torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    return torch.cat(
        [turn @ torch.diag(torch.tensor([float(scale_x), float(scale_y)])), torch.tensor([[x], [y]])], dim=1
    )


BOX = torch.tensor([[-0.5, -0.25, 0.5, 0.25]])  # an eighth of the picture


@pytest.mark.parametrize(
    ("theta", "kept", "fill"),
    [
        (window(1, 1), 1, 1 / 8),
        (window(0.5, 0.25), 1, 1),
        (window(0.5, 0.5), 1, 0.5),
        (window(0.25, 1), 0.5, 0.25),
        (window(0.25, 0.25), 0.5, 1),
        (window(0.5, 0.25, x=0.5), 0.5, 0.5),
        (window(0.5, 0.25, x=3.0), 0, 0),
        (window(-0.5, 0.25), 1, 1),  # mirrored
        (window(0.25, 0.5, angle_deg=90), 1, 1),
        (window(0.0, 0.0), 0, 0),
    ],
)
def test_what_a_window_keeps_of_a_box_and_how_tight_it_is(theta, kept, fill):
    statistics = box_statistics(BOX, theta[None])
    assert statistics["box_fill_before"] == pytest.approx(1 / 8)
    assert statistics["box_kept_share"] == pytest.approx(kept, abs=1e-6)
    assert statistics["box_fill_after"] == pytest.approx(fill, abs=1e-5)
    assert statistics["box_whole_share"] == (kept == 1)


def test_windows_on_their_boxes_leave_no_spread():
    places = torch.tensor([[-0.4, 0.2], [0.3, -0.1], [0.0, 0.5]])
    sizes = torch.tensor([0.1, 0.2, 0.4])
    boxes = torch.cat([places - sizes[:, None], places + sizes[:, None]], dim=1)
    theta = torch.stack([window(2 * s, 2 * s, *p) for s, p in zip(sizes.tolist(), places.tolist(), strict=True)])
    on, still = box_statistics(boxes, theta), box_statistics(boxes, window(1, 1).expand(3, 2, 3))
    before = (places - places.mean(0)).square().sum(1).mean().sqrt().item()
    assert on["box_position_std_before"] == still["box_position_std_after"] == pytest.approx(before)
    assert on["box_scale_std_before_octaves"] == pytest.approx(torch.log2(sizes).std(correction=0).item())
    assert on["box_position_std_after"] == pytest.approx(0, abs=1e-6)
    assert on["box_scale_std_after_octaves"] == pytest.approx(0, abs=1e-6)
    assert on["box_fill_after"] == pytest.approx(1 / 4)


def test_the_first_transformer_of_several_is_the_one():
    statistics = NumberStatistics()
    for _ in range(2):
        images = torch.rand(3, 1, 8, 8)
        warps = []
        for scale in (0.5, 1.0):
            theta = window(scale, scale).expand(3, 2, 3)
            grid = affine_grid(theta, (8, 8))
            warps.append(Warped(images, theta, grid))
        statistics.add(warps, Batch(images, torch.zeros(3, 5), boxes=BOX.expand(3, 4)))
    summary = statistics.summary()
    assert summary["box_fill_after"] == pytest.approx(0.5, abs=1e-5)
    assert summary["st1_grid_inside"] == 1
    assert "box_kept_share" not in NumberStatistics().summary()
