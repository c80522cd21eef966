import pytest
import torch

from stn.data.cub_standin_drawing import PART_NAMES
from stn.data.streams import Batch
from stn.nets.cub import tiling_centres
from stn.tasks.birds import WindowStatistics, head_and_body, share_inside
from stn.transform import Warped

PX = 100


def birds(n):
    """Heads up to the right of the middle, bodies in the middle, tails left; each bird shifted as a whole."""
    generator = torch.Generator().manual_seed(0)
    head = ("beak", "crown", "forehead", "left eye", "right eye", "nape", "throat")
    places = [(75, 20) if p in head else (15, 60) if p == "tail" else (50, 55) for p in PART_NAMES]
    parts = torch.cat([torch.tensor(places).float(), torch.ones(15, 1)], dim=1).expand(n, -1, -1).clone()
    parts[:, [PART_NAMES.index(leg) for leg in ("left leg", "right leg")]] = 0
    shift = (torch.rand(n, 1, 2, generator=generator) - 0.5) * 30
    parts[..., :2] += shift * parts[..., 2:]
    return parts


def statistics_of(theta, parts):
    found = WindowStatistics(PART_NAMES, PX, 0.5)
    for k in range(0, len(parts), 40):  # in batches
        part = slice(k, k + 40)
        batch = Batch(torch.zeros(1), torch.zeros(1), parts=parts[part])
        found.add([Warped(None, centre, None) for centre in theta[part].unbind(1)], batch)
    return found.summary()


def test_windows_that_follow_head_and_body_are_told_from_those_that_stay():
    parts = birds(100)
    crown, back = (parts[:, PART_NAMES.index(name), :2] / (PX / 2) - 1 for name in ("crown", "back"))
    following = statistics_of(torch.stack([back, crown], dim=1), parts)
    assert (following["head_share"], following["body_share"]) == (1, 1)
    assert (following["w0_region_body"], following["w1_region_head"]) == (1, 1)
    assert following["w0_consistency"] == following["w1_consistency"] == 1
    assert following["w0_p_value"] < 0.01
    assert following["w1_theta_mean_x"] == pytest.approx(crown[:, 0].mean().item(), abs=1e-5)
    assert following["w1_theta_std_y"] == pytest.approx(crown[:, 1].std(correction=0).item(), abs=1e-5)

    staying = statistics_of(tiling_centres(2).expand(100, -1, -1), parts)
    for k in (0, 1):
        assert staying[f"w{k}_consistency"] == staying[f"w{k}_start_consistency"]
        assert staying[f"w{k}_theta_std_x"] == 0
        assert staying[f"w{k}_grid_inside"] == 1
    for region in ("head", "body"):
        assert staying[f"{region}_share"] == staying[f"{region}_start_share"] == following[f"{region}_start_share"]
        assert staying[f"{region}_start_share"] < 0.9
        assert staying[f"{region}_random_share"] < 0.6
    assert following.keys() == staying.keys()


def test_head_and_body_are_of_two_different_windows():
    shares = torch.tensor([[0.9, 0.8, 0.0, 0.0], [0.3, 0.5, 0.0, 0.1], [0.2, 0.1, 0.6, 0.0]])
    assert head_and_body(shares) == pytest.approx((0.9, 0.5))  # 1.4; 0.3 + 0.8 is less
    assert head_and_body(shares[1:]) == pytest.approx((0.2, 0.5))
    assert head_and_body(shares[:1]) == pytest.approx((0.9, 0.8))  # one window alone


def test_share_inside_is_an_area():
    boxes = torch.tensor([[0.0, 0, 50, 50], [-25, 0, 25, 50], [75, 75, 125, 125], [150, 0, 200, 50]])
    assert share_inside(boxes, PX).tolist() == [1, 0.5, 0.25, 0]
