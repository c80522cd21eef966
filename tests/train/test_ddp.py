"""Two real processes that share every batch train as one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.config import compose_run
from stn import families
from stn.data.streams import Batch
from stn.results.records import read_record
from stn.tasks.classification import Classification
from stn.tasks.data_parallel import BatchSlice
from stn.train.stopped import OutOfTime
from tests.tiny import SGD, STEP, run
from tests.train import two_processes

SCRIPT = Path(__file__).with_name("two_processes.py")
TINY = {
    "svhn": ["task.standin.train=40", "task.standin.test=12", "protocol.svhn.batch_size=4", "protocol.svhn.steps=60"],
    "cub": [
        *("protocol.cub.standin_birds=20", "protocol.cub.standin_px=48", "protocol.cub.backbone.width=4"),
        *("protocol.cub.batch_size=8", "protocol.cub.steps=60"),
    ],
}


@pytest.fixture(scope="module")
def settings_in(tmp_path_factory):
    """Call it with a family, model, folder and overrides: settings of a tiny run that writes to that folder."""
    root = tmp_path_factory.mktemp("ddp")

    def make(family, model, folder, *overrides):
        task = {"svhn": "svhn_64", "cub": "cub_224"}[family]
        places = [f"data_dir={root}", f"results_dir={root / folder}", f"output_dir={root / folder}"]
        common = [f"task={task}", f"model={model}", "protocol=smoke", "data=standin", "device=cpu", "progress=false"]
        return compose_run([*common, *places, *TINY[family], *overrides])

    return make


@pytest.fixture(scope="module")
def pairs(settings_in):
    """By name: the settings of a run that one process trained, and of the same run that two trained, or finished."""
    two = "trainer.devices=2"
    cells = {"svhn": ("svhn", "svhn_st_single"), "cub": ("cub", "cub_st2"), "cub_cnn": ("cub", "cub_cnn")}
    made = {name: (settings_in(*cell, "one"), settings_in(*cell, "two", two)) for name, cell in cells.items()}
    broken = settings_in("svhn", "svhn_cnn", "two", two)
    broken = broken.changed(recipe=broken.recipe | {"optimiser": SGD | {"lr": 1e12}, "schedule": STEP})
    made["diverging"] = (None, broken)
    begun_by_one = settings_in(*cells["cub_cnn"], "begun_by_one", two)
    begun_by_two = settings_in(*cells["cub_cnn"], "begun_by_two")
    with pytest.MonkeyPatch.context() as patch:
        two_processes.in_double(patch.setattr)
        for settings, _ in made.values():
            if settings:
                families.prepare(settings)
                run(settings)
        with pytest.raises(OutOfTime, match="after step 50 of 60"):
            run(begun_by_one.changed(trainer={"devices": 1, "num_nodes": 1}), deadline=0)
        jobs = [(settings, None) for _, settings in made.values()] + [(begun_by_one, None)]
        jobs.append((begun_by_two.changed(trainer={"devices": 2, "num_nodes": 1}), 0))
        file = begun_by_two.results_dir.parent / "jobs.json"
        file.write_text(json.dumps([(settings.model_dump(mode="json"), deadline) for settings, deadline in jobs]))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, SCRIPT, file], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert "after step 50 of 60" in done.stdout
        assert not begun_by_two.record_file.exists()
        run(begun_by_two)
    whole = made["cub_cnn"][0]
    return made | {"begun_by_one": (whole, begun_by_one), "begun_by_two": (whole, begun_by_two)}


@pytest.mark.parametrize("name", ["svhn", "cub", "cub_cnn", "begun_by_one", "begun_by_two"])
def test_two_processes_end_where_one_does(pairs, name):
    one, two = (read_record(settings.record_file) for settings in pairs[name])
    assert one["config_hash"] == two["config_hash"]
    assert two["curve"]["train/loss"] == pytest.approx(one["curve"]["train/loss"], rel=1e-7)
    assert two["curve"]["train/error_pct"] == pytest.approx(one["curve"]["train/error_pct"])
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-5, abs=1e-7)
    assert two["test_wrong"] == one["test_wrong"]
    one_of, two_of = one["device"], f"2 x {one['device']}"
    begun = {"begun_by_one": f"{one_of}, then {two_of}", "begun_by_two": f"{two_of}, then {one_of}"}
    assert two["device"] == begun.get(name, two_of)
    ours, theirs = (torch.load(settings.folder / "weights.pt", weights_only=True) for settings in pairs[name])
    for key, value in ours.items():  # those of batch norm's running statistics, too
        torch.testing.assert_close(theirs[key], value, rtol=1e-6, atol=1e-8)


def test_a_run_that_diverges_in_two_processes_is_recorded_once(pairs):
    record = read_record(pairs["diverging"][1].record_file)
    assert record["status"] == "diverged"
    assert "before step 50" in record["reason"]


# -- parts ----------------------------------------------------------------------------------------------------------


def test_parts_are_the_batch_and_overlap_nowhere():
    batch = Batch(torch.arange(6.0).view(6, 1, 1, 1), torch.arange(6))
    parts = [BatchSlice(rank, 3).of(batch) for rank in range(3)]
    assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert parts[0].parts is None
    assert BatchSlice().of(batch) is batch


def test_batch_norm_of_one_process_is_torchs():
    """With one process alone in its group the replacement must be the original; bfloat16 stays what it is."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        images = torch.randn(6, 3, 5, 4, dtype=torch.float64, requires_grad=True)
        results = []
        for part in (BatchSlice(), BatchSlice(0, 2)):
            layer = nn.BatchNorm2d(3).double()
            layer.load_state_dict({**layer.state_dict(), "weight": torch.tensor([1.0, 2.0, 0.5])})
            with part.batch_norm():
                out = layer(images)
            (gradient,) = torch.autograd.grad(out.pow(3).sum(), images)
            results.append((out, gradient, layer.running_mean, layer.running_var, layer.eval()(images)))
        for ours, theirs in zip(*reversed(results), strict=True):
            torch.testing.assert_close(ours, theirs)
        with BatchSlice(0, 2).batch_norm():
            assert nn.BatchNorm2d(3)(images.detach().bfloat16()).dtype == torch.bfloat16
    finally:
        torch.distributed.destroy_process_group()


# -- settings -------------------------------------------------------------------------------------------------------


def test_the_number_of_processes_is_no_part_of_the_experiment(settings_in):
    one, two = settings_in("svhn", "svhn_cnn", "x"), settings_in("svhn", "svhn_cnn", "x", "trainer.devices=2")
    assert one.hash == two.hash


@pytest.mark.parametrize("value", ["0", "auto", "true"])
def test_numbers_of_processes_that_cannot_be(settings_in, value):
    with pytest.raises(ValueError, match=r"trainer.devices must be (an integer|more than 0), got"):
        (settings_in("svhn", "svhn_cnn", "x", f"trainer.devices={value}"))


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["trainer.devices=3"], "batch_size 4 must be a multiple of the 3 processes"),
        (["trainer.num_nodes=2"], "start it with srun or torchrun"),
        (["trainer.devices=2", "device=auto"], "1 CUDA devices are here"),
    ],
)
def test_runs_that_cannot_be_shared_are_refused(settings_in, monkeypatch, overrides, complaint):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    settings = settings_in("svhn", "svhn_cnn", "refused", *overrides)
    families.prepare(settings)
    with pytest.raises(ValueError, match=complaint):
        run(settings)
    assert not settings.record_file.exists()


def test_a_task_that_is_no_classification_trains_in_one_process(toy_mnist, settings_of, monkeypatch):
    monkeypatch.setattr("stn.train.parallel.Classification", type("Other", (Classification,), {}))
    with pytest.raises(ValueError, match="mnist_r trains in one process"):
        run(settings_of("mnist_r", "fcn", "trainer.devices=2"))
