"""The records in results/ are those of the protocols in conf/."""

import pytest

from experiments.config import CONF, compose_run
from stn.results.records import DATA_KINDS, read_records, records_root


@pytest.mark.parametrize("data", DATA_KINDS)
def test_the_committed_records_were_made_with_the_settings_that_their_protocols_have_now(data):
    made = {
        (r["task"], r["model"], r["protocol"]): r["config_hash"]
        for r in read_records(records_root(CONF.parent / "results", data))
    }
    assert made
    now = {
        (task, model, protocol): compose_run(
            [f"task={task}", f"model={model}", f"protocol={protocol}", f"data={data}"]
        ).hash
        for task, model, protocol in made
    }
    assert {"/".join(cell) for cell in made if made[cell] != now[cell]} == set()
