"""What tests train: one run, most often; the optimiser and schedule that protocol=smoke does not have."""

from collections import defaultdict

from stn.families import family
from stn.settings import RunSettings
from stn.train.run import train
from stn.validation import Checked


def run(settings, *more, **named) -> dict:
    """The record of the only run."""
    (record,) = train([settings], *more, **named)
    return record


ELAPSED = {"wall_s", "images_per_s", "finished_at"}  # what differs between the records of equal runs
NAMES = {"name", "family"}  # by which a group is found
SGD = {"name": "sgd", "lr": 0.006, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
MUON = {"name": "muon", "lr": 0.002, "weight_decay": 0.1}
STEP = {"name": "step", "every": 50000, "factor": 0.1}


def unread(settings: RunSettings, monkeypatch) -> set[str]:
    """The keys of task, model and recipe that nothing looks at while the run is prepared, trained and tested."""
    looked_at, look, dump = defaultdict(set), Checked.__getattribute__, Checked.model_dump

    def noted(self, name):
        if name in type(self).model_fields:
            looked_at[type(self)].add(name)
        return look(self, name)

    def all_noted(self, **options):
        looked_at[type(self)] |= type(self).model_fields.keys()
        return dump(self, **options)

    module = family(settings)
    parts = settings.read(*(getattr(module, part, Checked) for part in ("Task", "Model", "Recipe")))
    with monkeypatch.context() as patch:
        patch.setattr(Checked, "__getattribute__", noted)
        patch.setattr(Checked, "model_dump", all_noted)
        module.prepare(settings)
        train([settings])
    kinds = {kind for part in parts for kind in _kinds(part)}
    return {f"{kind.__name__}.{name}" for kind in kinds for name in kind.model_fields.keys() - looked_at[kind] - NAMES}


def _kinds(part: Checked):
    yield type(part)
    for name in type(part).model_fields:
        if isinstance(value := getattr(part, name), Checked):
            yield from _kinds(value)
