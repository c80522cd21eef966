"""make dashboard: its panels show what runs really log; without account or extra it says so in a line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import dashboard
from experiments.config import CONF
from stn.results.tables import load_table
from tests.tiny import run

LINE = "Mean error of each model"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No account, and no wandb file outside a temporary folder."""
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.fixture
def tables(tmp_path):
    """A results folder with one rendered table."""
    folder = tmp_path / "results"
    (folder / "tables").mkdir(parents=True)
    head = f"# Table 1: title\n\nnote\n\n| model |\n|---|\n| FCN |\n\n## Claims\n\n{LINE}\n"
    text = f"{head}\n## Claims, part by part\n\nlong"
    (folder / "tables" / "table1_fast.md").write_text(text)
    (folder / "tables" / "table1_fast.csv").write_text("table,protocol,data\ntable1,fast,real\n")
    return list(dashboard.rendered(folder))


def test_the_keys_of_the_panels_are_among_those_that_a_run_logs(offline, toy_mnist, settings_of, tmp_path):
    run(settings_of("mnist_r", "st_fcn_affine", "wandb.mode=offline"))
    (folder,) = (tmp_path / "outputs").rglob("offline-run-*")
    call = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", folder]
    lines = subprocess.run(call, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    rows = [line["history"] for line in map(json.loads, lines) if line["type"] == "history"]
    logged = {name.split(".")[0] for row in rows for name in row.get("item", row)}
    curves = {key for keys in dashboard.CURVES.values() for key in keys}
    assert curves | {dashboard.STEP, dashboard.ERROR, dashboard.WARPS, dashboard.CONFUSION} <= logged


def test_a_rendered_table_is_its_head_with_claims(tables):
    (table,) = tables
    assert (table.spec.name, table.protocol, table.data) == ("table1", "fast", "real")
    assert table.text.startswith("## Table 1: title\n")
    assert f"### Claims\n\n{LINE}" in table.text
    assert "long" not in table.text


def test_the_runs_of_a_table_are_those_of_its_cells(tables):
    found = dashboard.run_filter(tables[0])
    spec = load_table(CONF / "table" / "table1.yaml")
    assert all(f"'{column.task}/{row.model}'" in found for row, column, _ in spec.cells())
    assert found.count("/") == len({(column.task, row.model) for row, column, _ in spec.cells()})
    assert found.endswith("and JobType = 'fast' and State = 'finished'")


def test_without_an_account_one_line_says_what_to_do(offline):
    with pytest.raises(ValueError, match=r"wandb login.*make report") as error:
        list(dashboard.create(None, "project", []))
    assert "\n" not in str(error.value)


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(ValueError, match=r"pip install .*dashboard.*make report"):
        list(dashboard.create("someone", "project", []))


def values_of(spec, *names):
    """Every value of these keys, anywhere in a nested spec."""
    if isinstance(spec, dict):
        found = [value for name, value in spec.items() if name in names]
        return found + [value for part in spec.values() for value in values_of(part, *names)]
    return [value for part in spec for value in values_of(part, *names)] if isinstance(spec, list) else []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of wandb_workspaces itself
def test_workspace_and_report_ask_for_nothing_else(offline, tables):
    """The specs that W&B would be sent."""
    pytest.importorskip("wandb_workspaces")
    pages = [dashboard.workspace("someone", "project"), dashboard.report("someone", "project", tables)]
    known = {key for keys in dashboard.CURVES.values() for key in keys}
    known |= {dashboard.STEP, dashboard.ERROR, dashboard.WARPS}
    for page in pages:
        spec = json.loads(json.dumps(page._to_model().model_dump(by_alias=True), default=str))
        asked = {key for keys in values_of(spec, "metrics", "mediaKeys") for key in keys or ()}
        assert {dashboard.ERROR, dashboard.WARPS, "train/loss"} <= asked <= known
        assert {axis for axis in values_of(spec, "xAxis") if axis} <= {dashboard.STEP, "config:seed.value", "_step"}
        assert {axis for axis in values_of(spec, "yAxis") if axis} == {f"summary:{dashboard.ERROR}"}
        assert {key for key in values_of(spec, "groupBy") if key} == {"group"}
    workspace, report = (json.dumps(page._to_model().model_dump(by_alias=True), default=str) for page in pages)
    assert dashboard.CONFUSION in workspace
    assert LINE in report
    assert "mnist_tc/st_cnn_affine" in report
