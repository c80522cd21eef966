"""The records in results/ are those of the protocols in conf/."""

import pytest

from experiments.config import CONF, compose_run
from stn.results.records import DATA_KINDS, read_records, records_root, run_key
from stn.results.tables import load_table, render_table

RESULTS = CONF.parent / "results"
QUICK = RESULTS / "reproduce"  # what `make reproduce` made, in a folder of its own: the command would find it done


@pytest.mark.parametrize("data", DATA_KINDS)
def test_the_committed_records_were_made_with_the_settings_that_their_protocols_have_now(data):
    records = read_records(records_root(RESULTS, data)) + (read_records(QUICK) if data == "real" else [])
    assert records
    now = {
        cell: compose_run([f"task={cell[0]}", f"model={cell[1]}", f"protocol={cell[2]}", f"data={data}"])
        for cell in {(r["task"], r["model"], r["protocol"]) for r in records}
    }
    others = [r for r in records if r["config_hash"] != now[r["task"], r["model"], r["protocol"]].hash]
    assert {str(run_key(r)) for r in others} == set()


def test_what_the_readme_says_that_reproduce_ends_with_is_the_table_of_its_records(tmp_path):
    page = render_table(load_table(CONF / "table" / "table1.yaml"), read_records(QUICK), "quick", tmp_path)[0]
    rows = [line.split("|")[1:6] for line in page.read_text(encoding="utf-8").split("\n\n")[2].splitlines()]
    wanted = [[cell.strip() for cell in row] for row in rows if "--" not in row[0]]
    readme = (CONF.parent / "README.md").read_text(encoding="utf-8")
    shown = [line.split("|")[1:6] for line in readme.splitlines() if line.startswith("    | ")]
    assert [[cell.strip() for cell in row] for row in shown] == wanted
    assert len(wanted) == 9
