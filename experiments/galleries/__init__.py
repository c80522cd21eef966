"""Pictures drawn from the records of a table and the weights of their runs: a module per table, `training` for all.

Each has `draw(folder, records, wanted) -> list[Path]`: the files written for these records (status "ok", seed 0, of one
protocol and kind of data); what lacks weights is left out. `wanted` has protocol, data, data_dir and output_dir.
"""

from experiments.config import compose_run
from stn.settings import RunSettings


def run_of(record: dict, wanted: dict) -> RunSettings:
    """The run that a record is of, with its folders where they are wanted."""
    run = compose_run([f"{name}={record[name]}" for name in ("task", "model", "protocol", "seed", "data")])
    return run.changed(**{name: wanted[name] for name in ("data_dir", "output_dir")})


def trained(record: dict, wanted: dict):
    """The LightningModule of a record's run with its trained weights, in evaluation mode; None without the weights."""
    from stn.families import build
    from stn.saved import load

    run = run_of(record, wanted)
    weights = run.folder / "weights.pt"
    if not weights.exists():
        return None
    module = build(run).module
    module.net.load_state_dict(load(weights))
    module.net.eval()
    return module
