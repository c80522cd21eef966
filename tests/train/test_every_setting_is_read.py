"""No key without effect: each composes into what its family reads, and each is looked at by a run."""

import itertools
from collections import defaultdict
from contextlib import nullcontext

import pytest
import yaml
from omegaconf.errors import InterpolationKeyError

from experiments.config import CONF, compose_run, options
from stn.families import FAMILIES, family
from stn.results.tables import load_table
from stn.settings import AnyModel
from tests.tiny import MUON, SGD, STEP, unread

MODELS = {name: AnyModel(**yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())) for name in options("model")}
FAMILY = {name: yaml.safe_load((CONF / "task" / f"{name}.yaml").read_text())["family"] for name in options("task")}
HAS = defaultdict(set)  # the rows of the tables, by the module of their columns' family
for table in options("table"):
    for row, column, _ in load_table(CONF / "table" / f"{table}.yaml").cells():
        HAS[FAMILIES[FAMILY[column.task]]].add(row.model)


@pytest.mark.parametrize(("protocol", "task"), list(itertools.product(options("protocol"), options("task"))))
def test_a_task_composes_with_the_models_of_its_family_and_refuses_the_others(protocol, task):
    try:
        run = compose_run([f"task={task}", "model=fcn", f"protocol={protocol}", "data=standin"])
    except InterpolationKeyError:  # nothing about this family
        assert FAMILY[task] not in yaml.safe_load((CONF / "protocol" / f"{protocol}.yaml").read_text())
        return
    module = family(run)
    for name, model in MODELS.items():
        run = run.model_copy(update={"model": model})
        refused = pytest.raises(ValueError, match=rf"^model={name} is no model of {task}: .*$")
        with nullcontext() if name in HAS[FAMILIES[run.task.family]] else refused:
            run.read(module.Task, module.Model, module.Recipe)


def test_every_family_is_tried():
    assert HAS.keys() == set(FAMILIES.values())
    assert set().union(*HAS.values()) == MODELS.keys()


@pytest.mark.parametrize(
    "recipe", [{}, {"optimiser": MUON}, {"optimiser": SGD, "schedule": STEP}], ids=["adamw", "muon", "sgd"]
)
@pytest.mark.parametrize(("task", "model"), [("mnist_r", "st_fcn_affine"), ("addition", "st2_fcn_affine")])
def test_each_key_of_the_digits_is_read(toy_mnist, settings_of, monkeypatch, task, model, recipe):
    monkeypatch.setattr("stn.families.mnist.prepare_mnist", lambda data_dir: None)
    settings = settings_of(task, model, "protocol.addition.steps=50", steps=50, batch_size=4, **recipe)
    assert unread(settings, monkeypatch) == set()
