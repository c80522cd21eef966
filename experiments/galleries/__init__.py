"""Pictures drawn from the records of a table and the weights of their runs: a module per table, `training` for all.

Each has `draw(folder, records, wanted) -> list[Path]`: the files written for these records (status "ok", seed 0, of one
protocol and kind of data); what lacks weights is left out. `wanted` has protocol, data, data_dir and output_dir.
"""

from experiments.config import compose_run


def trained(record: dict, wanted: dict):
    """The LightningModule of a record's run with its trained weights, in evaluation mode; None without the weights."""
    from stn.families import build
    from stn.train.saved import load
    from stn.train.settings import run_folder

    settings = compose_run([f"{name}={record[name]}" for name in ("task", "model", "protocol", "seed", "data")])
    settings |= {name: wanted[name] for name in ("data_dir", "output_dir")}
    weights = run_folder(settings) / "weights.pt"
    if not weights.exists():
        return None
    module = build(settings).module
    module.net.load_state_dict(load(weights))
    module.net.eval()
    return module
