"""`python -m experiments.tables`: renders, checks, cleans up, and says in one line what is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.tables import tables
from stn.results.records import record_path, records_root, run_key, write_records


@pytest.fixture
def project(tmp_path, small_table, record, monkeypatch):
    """A folder with the small table and two records; call it with arguments of the command: its exit status."""
    small_table()
    for given in (record(seed=0), record(seed=1, wrong=52), record(protocol="smoke", data="standin")):
        write_records({record_path(tmp_path / "results", run_key(given)): given})

    def call(*arguments: str) -> int:
        folders = [f"results_dir={tmp_path / 'results'}", f"conf_dir={tmp_path / 'conf'}"]
        monkeypatch.setattr("sys.argv", ["tables", *folders, f"readme={tmp_path / 'none.md'}", *arguments])
        with pytest.raises(SystemExit) as ended:
            main(tables)
        return ended.value.code

    call.tables = tmp_path / "results" / "tables"
    call.runs = tmp_path / "results" / "runs"
    return call


def test_renders_each_protocol_and_kind_of_data(project):
    assert project() == 0
    names = {path.name for path in project.tables.iterdir()}
    stems = ("tablegolden_fast", "tablegolden_smoke_standin")
    assert names == {f"{stem}.{suffix}" for stem in stems for suffix in ("md", "csv", "tex")}


def test_sweeps_have_a_page_with_the_settings_that_differ_and_none_left_out(project, record):
    """A record is silent about a setting that is at its usual value; the page is not."""
    sweeps = project.tables.parent / "sweeps"
    for protocol, wrong, recipe in (("fast-aa", 30, {"lr": 0.1}), ("fast-bb", 10, {"lr": 0.1, "distortion_ramp": 0.3})):
        made = record(protocol=protocol, wrong=wrong, data="subset", config={"recipe": recipe, "protocol_note": wrong})
        write_records({record_path(records_root(sweeps, "subset"), run_key(made)): made})
    assert project() == 0
    page = (project.tables / "sweeps.md").read_text()
    assert page.partition("## ")[2].split("\n")[0] == "mnist_r, fcn: departures from fast, part of the real data"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    assert rows == [
        ["variant", "recipe.distortion_ramp", "runs", "test/error_pct"],
        ["fast-bb", "0.3", "1 ok", "1"],
        ["fast-aa", "0", "1 ok", "3"],
    ]
    (project.tables / "sweeps.md").write_text("by hand")
    assert project("check=true") == 1


def test_check_passes_on_what_was_rendered_and_writes_nothing(project, capsys):
    project()
    before = {path: path.stat().st_mtime_ns for path in project.tables.iterdir()}
    assert project("check=true") == 0
    assert {path: path.stat().st_mtime_ns for path in project.tables.iterdir()} == before
    assert "6 files up to date" in capsys.readouterr().out


def test_check_lists_what_differs(project, capsys):
    project()
    (project.tables / "tablegolden_fast.md").write_text("by hand")
    (project.tables / "tablegolden_fast.tex").unlink()
    (project.tables / "table9_fast.csv").write_text("")
    (project.tables / "README.md").write_text("not a table")
    capsys.readouterr()
    assert project("check=true") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["differs: tablegolden_fast.md", "missing: tablegolden_fast.tex", "superfluous: table9_fast.csv"]


def test_stale_tables_are_removed_and_nothing_else(project):
    project()
    (project.tables / "table9_fast.csv").write_text("")
    (project.tables / "README.md").write_text("not a table")
    assert project() == 0
    assert not (project.tables / "table9_fast.csv").exists()
    assert (project.tables / "README.md").exists()


def test_a_bad_record_is_one_line_and_status_2(project, capsys):
    path = project.runs / "mnist_r/fcn/fast/seed0.json"
    path.write_text(path.read_text()[:100])
    assert project("check=true") == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("argument", ["results_dir=nowhere", "conf_dir=nowhere"])
def test_a_missing_folder_is_one_line_and_status_2(project, argument, capsys):
    assert project(argument) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_no_records_no_tables(project, tmp_path):
    (tmp_path / "empty").mkdir()
    assert project("check=true", f"results_dir={tmp_path / 'empty'}") == 0


def test_rendering_imports_no_torch():
    modules = "experiments.tables, stn.results.figures"
    code = f"import sys, {modules}; sys.exit(bool({{'torch', 'hydra'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_a_block_of_the_readme_holds_the_head_of_its_table(project, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table: tablegolden_fast -->\nstale words\n<!-- end of table -->\nafter\n")
    assert project(f"readme={readme}") == 0
    text = readme.read_text()
    overview = (project.tables / "tablegolden_fast.md").read_text().split("\n## ")[0]
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale words" not in text
    assert "## " not in text
    assert all(line in text for line in overview.splitlines() if line.startswith("|"))
    assert project("check=true", f"readme={readme}") == 0


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_check_fails_on_a_stale_table_in_the_readme_or_a_page_of_docs(project, tmp_path, capsys, page):
    readme = tmp_path / page
    readme.parent.mkdir(exist_ok=True)
    readme.write_text("<!-- table: tablegolden_fast -->\n<!-- end of table -->\n")
    project(f"readme={tmp_path / 'README.md'}")
    readme.write_text(readme.read_text().replace("|", "!", 1))
    assert project("check=true", f"readme={tmp_path / 'README.md'}") == 1
    assert f"differs: a table in {readme.name}" in capsys.readouterr().out
