import pytest
import torch

from stn.data.cub_standin_drawing import PART_NAMES
from stn.tasks.window_parts import (
    NO_REGION,
    REGIONS,
    parts_inside,
    random_windows,
    region_of_parts,
    report_windows,
    window_regions,
)

HEAD, BODY, LEGS, TAIL = range(4)
AT = {"head": (70.0, 20.0), "body": (50.0, 50.0), "legs": (50.0, 80.0), "tail": (15.0, 60.0)}


def birds(n, seed=0, jitter_px=3.0):
    """Parts of n birds on images of 100 px: each region's parts around its place, the bird as a whole shifted."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.tensor([AT[r] for p in PART_NAMES for r, names in REGIONS.items() if p in names])
    noise = torch.randn(n, 15, 2, generator=generator) * jitter_px
    shift = (torch.rand(n, 1, 2, generator=generator) - 0.5) * 20
    return torch.cat([places + noise + shift, torch.ones(n, 15, 1)], dim=-1)


def window(x, y, side=50.0):
    return torch.tensor([x - side / 2, y - side / 2, x + side / 2, y + side / 2])


def test_every_part_has_a_region_and_an_unknown_one_is_named():
    assert sorted(part for names in REGIONS.values() for part in names) == sorted(PART_NAMES)
    assert region_of_parts(("tail", "left eye", "belly")).tolist() == [TAIL, HEAD, BODY]
    with pytest.raises(ValueError, match=r"parts \['antenna'\] are in no region"):
        region_of_parts(("tail", "antenna"))


def test_parts_inside_counts_visible_parts_in_the_window():
    parts = torch.tensor([[[10.0, 10.0, 1.0], [30.0, 10.0, 1.0], [12.0, 12.0, 0.0]]])
    windows = torch.stack([window(10, 10, 10), window(20, 10, 30)])[None]
    assert parts_inside(windows, parts).tolist() == [[[True, False, False], [True, True, False]]]


def test_a_window_falls_on_the_region_whose_middle_is_nearest_to_its_own():
    parts = birds(1, jitter_px=0.0)
    shift = parts[0, 0, :2] - torch.tensor(AT["body"])
    names = list(AT)
    windows = torch.stack([window(*(torch.tensor(AT[name]) + shift + 2), 20) for name in names])[None]
    assert window_regions(windows, parts, PART_NAMES).tolist() == [[HEAD, BODY, LEGS, TAIL]]
    everything, corner = window(50, 50, 200), window(99, 1, 4)
    assert window_regions(torch.stack([everything, corner])[None], parts, PART_NAMES).tolist() == [[BODY, NO_REGION]]


def test_what_is_invisible_counts_for_nothing():
    parts = birds(1, jitter_px=0.0)
    parts[0, region_of_parts(PART_NAMES) == BODY] = 0.0
    corner = window(5, 5, 12)  # (0, 0) is where invisible parts are written
    assert window_regions(corner[None, None], parts, PART_NAMES).tolist() == [[NO_REGION]]
    assert window_regions(torch.zeros(1, 1, 4), torch.zeros(1, 15, 3), PART_NAMES).tolist() == [[NO_REGION]]


def test_windows_that_follow_the_head_and_the_body_are_told_from_chance():
    parts = birds(300)
    parts[::7, PART_NAMES.index("left eye")] = 0.0
    head = parts[:, PART_NAMES.index("nape"), :2]
    body = parts[:, PART_NAMES.index("back"), :2]
    centres = torch.stack([head, body], dim=1)
    windows = torch.cat([centres - 15, centres + 15], dim=-1)
    first, second = report_windows(windows, parts, PART_NAMES, 100, torch.Generator().manual_seed(0))
    assert first["region_head"] == first["consistency"] > 0.98
    assert second["region_body"] == second["consistency"] > 0.98
    assert first["random_consistency"] < 0.4
    assert first["p_value"] == 1 / 201
    assert sum(first[f"region_{region}"] for region in REGIONS) <= 1 + 1e-6


def test_windows_at_random_places_are_not_told_from_chance():
    parts, generator = birds(300), torch.Generator().manual_seed(1)
    windows = random_windows(300, 8, 0.3, 100, generator)
    assert windows.min() >= 0
    assert windows.max() <= 100
    torch.testing.assert_close(windows[..., 2:] - windows[..., :2], torch.full((300, 8, 2), 30.0))
    reports = report_windows(windows, parts, PART_NAMES, 100, generator)
    assert sum(report["p_value"] < 0.05 for report in reports) <= 2
