"""tools.upright, on toy digits: the numbers of its tables, and an ST that is told the rotation undoes it."""

import re

import torch

from tools.upright import Seen, upright


def test_a_told_st_undoes_the_rotation_and_all_is_printed_and_drawn(toy_mnist, tmp_path, capsys):
    picture = tmp_path / "upright.png"
    brief = [f"protocol.mnist.{key}" for key in ("steps=20", "batch_size=64", "optimiser.lr=0")]
    upright(["model=st_fcn_affine", *brief, "told=300", f"picture={picture}"])
    printed = capsys.readouterr().out
    steps, kept = zip(*re.findall(r"^\| (\d+) \| .* \| (-?[\d.]+) \|$", printed, re.MULTILINE)[:2], strict=True)
    assert steps == ("0", "20")
    assert abs(float(kept[0])) < 0.3  # 1: the ST leaves the digits as they were turned
    assert "theta: mirrors 0.0 %" in printed
    assert picture.stat().st_size > 0


def test_errors_by_the_angle_that_is_left_and_rotation_kept_by_class():
    before = torch.tensor([-62.0, -22.0, 22.0, 62.0]).repeat(2)
    after = torch.cat([before[:4] / 2, before[:4]])  # class 0 is turned half of the way back, class 1 not at all
    labels = torch.arange(8) // 4
    wrong = torch.tensor([0, 1, 0, 0, 1, 0, 0, 1], dtype=torch.bool)
    seen = Seen(before, after, labels, wrong, torch.eye(2).repeat(8, 1, 1))
    assert seen.error_pct == 37.5
    rows = dict(re.findall(r"^\| (\d+ to \d+) \| (.*) \|$", seen.by_angle(), re.MULTILINE))
    assert rows["10 to 20"] == "25.0 | 50.0"
    assert rows["60 to 70"] == "25.0 | 100.0"
    assert rows["90 to 180"] == "0.0 | –"
    assert seen.by_class().splitlines()[2:] == ["| 0 | 0.50 |", "| 1 | 1.00 |"]
    assert seen.theta() == "theta: mirrors 0.0 %; its two scales' ratio 1.00, their mean 1.00 (medians)"
