"""CONTRIBUTING.md is true: a family made by its steps, file by file as they stand there, trains and has a table."""

import re
import shutil
from pathlib import Path

import pytest

import stn.data
import stn.families
from experiments.config import CONF, compose_config, run_of
from stn.results.records import read_records
from stn.results.tables import load_table, render_table
from stn.train.run import train

ROOT = Path(__file__).parents[1]
STEP = re.compile(r"^\d\. .*?`([\w/.]+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILES = dict(STEP.findall((ROOT / "CONTRIBUTING.md").read_text()))


@pytest.fixture
def family(monkeypatch, tmp_path):
    """The example, beside the families that there are."""
    shutil.copytree(CONF, tmp_path / "conf")
    for name, content in FILES.items():
        path = tmp_path / name
        assert not (ROOT / name).exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for package in (stn.data, stn.families):
        folder = tmp_path / "src" / package.__name__.replace(".", "/")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    monkeypatch.setitem(stn.families.FAMILIES, "bars", "bars")
    monkeypatch.setattr("experiments.config.CONF", tmp_path / "conf")
    return tmp_path


def test_a_family_takes_eight_files():
    steps = re.findall(r"^(\d)\. ", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert [int(step) for step in steps] == list(range(1, 9))
    assert len(FILES) == len(steps) - 2  # a line in a file that is there, and the test


def test_a_family_made_by_the_steps_trains_and_has_a_table(family):
    places = [f"results_dir={family / 'results'}", f"output_dir={family / 'outputs'}", "device=cpu", "progress=false"]
    run = run_of(compose_config("train", ["task=bars", "model=bars_fcn", "protocol=bars", *places]))
    (record,) = train([run])
    assert (record["status"], record["protocol"], record["n_test"]) == ("ok", "bars", 200)
    assert record["metrics"]["test/error_pct"] < 5  # chance: 50
    spec = load_table(family / "conf" / "table" / "tablebars.yaml")
    table, *_ = render_table(spec, read_records(family / "results"), "bars", family / "tables", "real")
    assert f"| FCN | {record['metrics']['test/error_pct']:.2f}" in re.sub(r" +", " ", table.read_text())


def test_its_settings_are_checked_as_those_of_the_others(family):
    config = compose_config("train", ["task=bars", "model=fcn", "protocol=bars"])
    with pytest.raises(ValueError, match=r"^model=fcn is no model of bars: missing key 'model.units'$"):
        train([run_of(config)])
