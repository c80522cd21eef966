"""The records in results/ are those of the protocols in conf/."""

import pytest

from experiments.config import CONF, compose_run
from stn.results.records import DATA_KINDS, read_records, records_root, run_key


@pytest.mark.parametrize("data", DATA_KINDS)
def test_the_committed_records_were_made_with_the_settings_that_their_protocols_have_now(data):
    records = read_records(records_root(CONF.parent / "results", data))
    assert records
    now = {
        cell: compose_run([f"task={cell[0]}", f"model={cell[1]}", f"protocol={cell[2]}", f"data={data}"])
        for cell in {(r["task"], r["model"], r["protocol"]) for r in records}
    }
    others = [r for r in records if r["config_hash"] != now[r["task"], r["model"], r["protocol"]].hash]
    assert {str(run_key(r)) for r in others} == set()
