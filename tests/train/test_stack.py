"""A stack of runs: every replica is what it would be alone, whatever happens to the others."""

import time
from datetime import timedelta

import pytest
import torch

from stn.families import build
from stn.many.grouping import stack_key, stacked, stacks
from stn.results.records import read_record
from stn.tasks.classification import Classification
from stn.train import checkpoints
from stn.train import run as run_module
from stn.train.run import train
from stn.train.stopped import Interrupted, OutOfTime
from tests.tiny import ELAPSED, SGD, STEP, run


@pytest.fixture
def group(toy_mnist, settings_of):
    """Call it with a model: three runs that differ in seed, distortion, rates and optimiser, and may share a stack."""

    def make(model, folder, **recipe):
        def settings(task, *overrides, **more):
            made = settings_of(task, model, *overrides, **{"steps": 120, "batch_size": 4} | recipe | more)
            return made.changed(**{name: getattr(made, name) / folder for name in ("results_dir", "output_dir")})

        return [
            settings("mnist_r"),
            settings("mnist_p", "seed=1", optimiser={"lr": 0.002}, localiser_lr_multiplier=0.5, label_smoothing=0.1),
            settings("mnist_e", optimiser=SGD | {"lr": 0.02}, schedule=STEP | {"every": 60}),
        ]

    return make


def weights_of(settings):
    return torch.load(settings.folder / "weights.pt", weights_only=True)


def numbers(record):
    return {name: value for name, value in record.items() if name not in ELAPSED}


@pytest.fixture
def double(monkeypatch):
    """Networks and images in float64: rounding does not grow into another course of the training within 100 steps."""
    draw = Classification.draw_batch

    def draw_double(self):
        batch = draw(self)
        return batch._replace(images=batch.images.double())

    def build_double(settings):
        built = build(settings)
        built.module.net.double()
        return built

    monkeypatch.setattr(Classification, "draw_batch", draw_double)
    monkeypatch.setattr(run_module, "build", build_double)
    monkeypatch.setattr(Classification, "test_step", lambda *_: None)


@pytest.mark.parametrize("model", ["fcn", "st_fcn_tps", "st_cnn_projective"])
def test_every_replica_takes_the_steps_it_would_take_alone(double, group, model):
    alone = [run(settings) for settings in group(model, "alone", steps=60)]
    stacked = group(model, "stacked", steps=60)
    assert len({stack_key(settings) for settings in stacked}) == 1
    for one, record in zip(alone, train(stacked), strict=True):
        assert record["curve"]["train/loss"] == pytest.approx(one["curve"]["train/loss"], rel=1e-7)
        assert record["curve"]["train/error_pct"] == one["curve"]["train/error_pct"]
    for settings, lonely in zip(stacked, group(model, "alone", steps=60), strict=True):
        for name, value in weights_of(lonely).items():
            torch.testing.assert_close(weights_of(settings)[name], value, rtol=1e-6, atol=1e-8)


def test_every_replica_has_the_record_it_would_have_alone(group):
    alone = [run(settings) for settings in group("fcn", "alone", steps=10)]
    stacked = group("fcn", "stacked", steps=10)
    for one, record, settings in zip(alone, train(stacked), stacked, strict=True):
        assert read_record(settings.record_file) == record
        measured = {"curve", "metrics", "per_draw", "test_wrong"}
        assert {k: v for k, v in numbers(record).items() if k not in measured} == {
            k: v for k, v in numbers(one).items() if k not in measured
        }
        assert record["curve"]["train/loss"] == pytest.approx(one["curve"]["train/loss"], rel=1e-4)
        assert record["metrics"]["test/loss"] == pytest.approx(one["metrics"]["test/loss"], rel=1e-3)


def test_a_replica_that_diverges_leaves_the_others_untouched(group):
    whole = train(group("st_fcn_affine", "whole"))
    broken = group("st_fcn_affine", "broken")
    ruinous = {"optimiser": SGD | {"lr": 1e12}, "schedule": STEP}
    broken[1] = broken[1].changed(recipe=broken[1].recipe | ruinous)
    records = train(broken)
    assert [record["status"] == "diverged" for record in records] == [False, True, False]
    assert "before step" in records[1]["reason"]
    assert not (broken[1].folder / "weights.pt").exists()
    for i in (0, 2):
        assert numbers(records[i])["curve"] == numbers(whole[i])["curve"]
        assert records[i]["metrics"] == whole[i]["metrics"]


@pytest.mark.parametrize("together", [False, True])
def test_a_net_that_the_last_step_ruins_has_diverged(group, together):
    settings = group("fcn", "ruined", steps=1)
    ruinous = {"optimiser": SGD | {"lr": 1e30}, "schedule": STEP}
    settings[0] = settings[0].changed(recipe=settings[0].recipe | ruinous)
    records = train(settings) if together else [run(settings[0])]
    assert records[0]["status"] == "diverged"
    assert "nan after the last step" in records[0]["reason"]
    assert all(record["status"] != "diverged" for record in records[1:])
    assert [read_record(one.record_file) for one in settings[: len(records)]] == records


def test_a_stack_whose_records_find_no_room_is_tested_again_and_not_trained_again(monkeypatch, full_disk, group):
    monkeypatch.setattr(checkpoints, "EVERY", timedelta(0))
    whole = train(group("fcn", "whole"))
    settings = group("fcn", "full")
    with full_disk(2), pytest.raises(OSError, match="no space"):
        train(settings)
    assert not any(one.record_file.exists() for one in settings)
    seen = []
    assert [numbers(record) for record in train(settings, progress=seen.append)] == [numbers(one) for one in whole]
    assert seen == []


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_what_the_device_lacks_says_nothing_about_the_runs(monkeypatch, group, error):
    def lacking(self):
        raise error("CUDA out of memory")

    monkeypatch.setattr(Classification, "draw_batch", lacking)
    settings = group("fcn", "lacking")
    with pytest.raises(error):
        train(settings)
    assert not any(one.record_file.exists() for one in settings)


def test_an_interrupted_stack_ends_at_the_numbers_of_an_uninterrupted_one(monkeypatch, group):
    monkeypatch.setattr(checkpoints, "EVERY", timedelta(0))
    whole = train(group("st_fcn_tps", "whole"))
    settings = group("st_fcn_tps", "interrupted")

    def stop(steps):
        raise SystemError("interrupted")

    with pytest.raises(Interrupted, match="interrupted"):
        train(settings, progress=stop)
    seen = []
    resumed = train(settings, progress=seen.append)
    assert seen == [100, 120]  # it did resume
    assert [numbers(record) for record in resumed] == [numbers(record) for record in whole]
    assert not list((settings[0].folder.parents[4] / "stacks").rglob("*.ckpt"))


@pytest.mark.parametrize("together", [False, True])
def test_a_deadline_stops_cleanly_and_the_next_call_goes_on(group, together):
    call = train if together else lambda settings, **more: [run(settings[0], **more)]
    whole = call(group("st_fcn_affine", "whole"))
    settings = group("st_fcn_affine", "pieces")
    for steps in (50, 100):
        with pytest.raises(OutOfTime, match=f"after step {steps} of 120"):
            call(settings, deadline=time.time())
        assert not any(one.record_file.exists() for one in settings)
    records = call(settings, deadline=time.time())  # nothing is left but the test, which it finishes
    assert [numbers(record) for record in records] == [numbers(record) for record in whole]


def test_what_a_stack_may_differ_in(settings_of):
    def key(task="mnist_r", model="st_fcn_affine", *overrides, **recipe):
        return stack_key(settings_of(task, model, *overrides, **recipe))

    assert key() == key("mnist_p", "fcn", "seed=3") == key("mnist_tc", batch_size=4, optimiser=SGD, padding="border")
    assert len({key(), key(steps=99), key("mnist_r", "st_fcn_affine", "threads=2")}) == 3
    alone = [("wandb.mode=offline",), ("loggers=[csv]",), ("trainer.devices=2",)]
    assert [key("mnist_r", "fcn", *overrides) for overrides in alone] == [None] * 3
    assert key("mnist3d", "cnn3d") is None
    assert stack_key(settings_of("mnist_r", "fcn").changed(device="auto")) != key("mnist_r", "fcn")


@pytest.mark.parametrize(
    ("costs", "workers", "wanted"),
    [
        ([1] * 13, 1, [7, 6]),  # two programs are needed
        ([33, 12, *[1] * 10], 1, [12]),
        ([33, 12, *[1] * 10], 2, [1, 11]),  # the dearest alone: the others are not as dear together
        ([33, 12, *[1] * 34], 2, [12, 12, 12]),
        ([5, 1], 8, [1, 1]),
    ],
)
def test_every_worker_gets_a_stack_and_none_much_more_than_the_others(settings_of, costs, workers, wanted):
    runs = [settings_of("mnist_r", "fcn", f"seed={i}") for i in range(len(costs))]
    groups = stacks(runs, True, workers, lambda run: costs[run.seed])
    assert [len(group) for group in groups] == wanted
    assert sorted(run.seed for group in groups for run in group) == list(range(len(costs)))
    assert [len(group) for group in stacks(runs, False, workers)] == [1] * len(costs)


def test_an_interrupted_stack_is_formed_again_whatever_else_is_left(settings_of):
    runs = [settings_of("mnist_r", "fcn", f"seed={i}") for i in range(6)]
    first, second = stacks(runs, True, workers=2)
    checkpoints.name_members(second)
    assert stacks(second + first[:1], True, workers=2) != [second, first[:1]]  # no checkpoint was written yet
    checkpoints.checkpoint_file(second).touch()
    assert stacks(second + first[:1], True, workers=2) == [second, first[:1]]
    left = second[1:]  # one of its runs has a record meanwhile
    assert sorted(run.seed for group in stacks(left, True, 2) for run in group) == sorted(run.seed for run in left)
    assert stacks(second, False) == [[run] for run in second]


@pytest.mark.parametrize(
    ("launcher", "gpu_here", "wanted"),
    [
        ({"name": "local"}, True, True),
        ({"name": "local"}, False, False),
        ({"name": "ray", "resources": {"num_cpus": 1, "num_gpus": 0}}, True, False),
        ({"name": "ray", "resources": {"num_cpus": 1, "num_gpus": 0.5}}, False, True),
        ({"name": "submitit", "parameters": {"gpus_per_node": 0, "slurm_partition": "gpu"}}, True, False),
        ({"name": "submitit", "parameters": {"gpus_per_node": 1}}, False, True),
        ({"name": "submitit", "parameters": {"gpus_per_node": 0, "slurm_gres": "gpu:1"}}, False, True),
    ],
)
def test_runs_stack_by_themselves_where_they_will_have_a_gpu(monkeypatch, launcher, gpu_here, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu_here)
    assert stacked("auto", "auto", launcher) is wanted
    assert not stacked("auto", "cpu", launcher)
    assert stacked(True, "cpu", launcher)


def test_runs_of_unequal_length_are_refused(toy_mnist, settings_of):
    with pytest.raises(ValueError, match="must have the same number of steps"):
        train([settings_of("mnist_r", "fcn", steps=10), settings_of("mnist_r", "fcn", "seed=1", steps=20)])
