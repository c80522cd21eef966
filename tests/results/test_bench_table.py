"""The benchmark's table says what its record says."""

import json

import pytest

from experiments.tables import check, render, rendered_files
from stn.results.bench_table import bench_table
from stn.results.records import RecordError


def measured(ms, ratio, **parts):
    return {
        "contenders": {
            "ours": {"ms": ms, "images_per_s": 128_000 / ms, "ratio": ratio},
            "plain loop": {"ms": ms * ratio, "images_per_s": 128_000 / ms / ratio, "ratio": 1.0},
        },
        "shares_ms": {"distortion": 1.0, "classifier": 3.0, **parts},
        "flop_per_step": 3_530_000_000,
        "peak_fraction": 0.42,
    }


@pytest.fixture
def path(tmp_path):
    loader = measured(10.0, 1.5)
    loader["contenders"]["plain loop, DataLoader"] = {"ms": 40.0, "images_per_s": 3_200.0, "ratio": 0.375}
    loader["contenders"]["public layers"] = {"ms": 60.0, "images_per_s": 2_100.0, "ratio": 0.5}
    loader["contenders"]["direct"] = {"ms": 15.0, "images_per_s": 8_500.0, "ratio": 1.0}
    record = {"task": "mnist_r", "protocol": "fast", "device": "A processor", "threads": 1}
    record["instructions"] = "AVX2"
    record["models"] = {"cnn": loader, "st_cnn_tps": measured(20.0, 2.0, localisation=4.0)}
    path = tmp_path / "results" / "bench" / "step_cpu.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
    return path


def test_rows_are_computed_from_the_record(path):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in bench_table(path).splitlines()[4:]]
    header, _, cnn, st = (dict(zip(lines[0], line, strict=True)) for line in lines)
    assert list(header)[:4] == ["model", "GFLOP/step", "ms/step", "÷ without ST"]
    assert (cnn["GFLOP/step"], cnn["÷ without ST"], st["÷ without ST"]) == ("3.53", "–", "2.00")
    assert (cnn["ms/step"], cnn["images/s"], cnn["ours ÷ DataLoader"]) == ("10.0", "12800", "4.00")
    assert (st["ours ÷ plain loop"], st["ours ÷ DataLoader"]) == ("2.00", "–")
    assert (cnn["ours ÷ public layers"], cnn["ours ÷ direct"], st["ours ÷ direct"]) == ("3.00", "1.50", "–")
    assert ", instructions AVX2." in bench_table(path)
    assert (cnn["distortion, %"], cnn["localisation, %"]) == ("25", "–")
    assert (st["distortion, %"], st["localisation, %"], st["of peak, %"]) == ("12", "50", "42")


def test_it_is_rendered_and_checked_like_the_other_tables(path, tmp_path):
    results, conf, readme = path.parents[1], tmp_path / "conf", tmp_path / "README.md"
    (conf / "table").mkdir(parents=True)
    readme.write_text("before\n<!-- table: bench_step_cpu -->\n<!-- end of table -->\nafter\n")
    assert render(results, conf, [readme]) == 0
    assert "**A training step on A processor, 1 thread(s)**" in readme.read_text()
    assert list(rendered_files(results / "tables")) == ["bench_step_cpu.md"]
    assert check(results, conf, [readme]) == 0
    path.write_text(path.read_text().replace('"ms": 10.0', '"ms": 11.0'))
    assert check(results, conf, [readme]) == 1


def test_another_file_is_named(path):
    path.write_text('{"models": [1]}')
    with pytest.raises(RecordError, match=r"step_cpu\.json: not a record of experiments\.bench"):
        bench_table(path)
