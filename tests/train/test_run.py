"""A run ends in exactly one record that says what happened, also when it was killed in between."""

import itertools
import logging
import math
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from stn.families import build
from stn.families import mnist as mnist_family
from stn.nets.budget import count_parameters
from stn.results.records import read_record, record_path, unpack_wrong
from stn.tasks import classification
from stn.train import checkpoints
from stn.train import run as train_run
from stn.train.outcome import CURVE_POINTS, thinned
from stn.train.stopped import Interrupted
from tests.tiny import ELAPSED, SGD, STEP, run

CANVAS = {"mnist_r": 28, "mnist_rts": 42, "mnist_p": 28, "mnist_e": 28, "mnist_tc": 60}
VERB = Path(__file__).with_name("toy_verb.py")


def records_in(settings):
    return sorted(Path(settings.results_dir).rglob("*.json"))


def record_of(settings):
    return read_record(record_path(settings.results_dir, settings.key))


def folder_of(settings):
    key = settings.key
    return settings.output_dir / "runs" / key.task / key.model / key.protocol / f"seed{key.seed}"


def numbers(record):
    """What two equal runs agree in."""
    return {name: value for name, value in record.items() if name not in ELAPSED}


# -- records --------------------------------------------------------------------------------------------------------


# The rows of Table 1, each with a task that a few steps make a dent in.
TASK_OF = {"fcn": "mnist_r", "st_fcn_affine": "mnist_p", "st_fcn_projective": "mnist_p", "st_fcn_tps": "mnist_p"}
TASK_OF |= {"cnn": "mnist_r", "st_cnn_affine": "mnist_r", "st_cnn_projective": "mnist_p", "st_cnn_tps": "mnist_e"}


def test_the_training_loss_of_a_record_is_that_of_the_last_tenth(toy_mnist, settings_of):
    record = run(settings_of("mnist_r", "fcn", steps=1500, batch_size=4))
    assert len(record["curve"]["train/loss"]) == 30
    assert record["metrics"]["train/loss"] == pytest.approx(sum(record["curve"]["train/loss"][-3:]) / 3)


@pytest.mark.parametrize(("model", "task"), list(TASK_OF.items()))
def test_every_model_ends_in_one_ok_record(toy_mnist, settings_of, model, task):
    settings = settings_of(task, model, "seed=2", test_draws=2, steps=150)
    steps_seen = []
    returned = run(settings, progress=steps_seen.append)
    assert records_in(settings) == [record_path(settings.results_dir, settings.key)]
    record = record_of(settings)
    assert record == {**returned, "finished_at": record["finished_at"]}
    assert (record["status"], record["reason"], record["data"]) == ("ok", None, "real")
    assert (record["task"], record["model"], record["protocol"], record["seed"]) == (task, model, "smoke", 2)
    assert record["config"] == settings.config
    assert record["config_hash"] == settings.hash
    assert steps_seen == [50, 100, 150]
    assert record["steps"] == 150

    budget = round(settings.task.budget * settings.recipe["budget_fraction"])
    assert abs(record["n_params"] / budget - 1) <= 0.02
    wrong = unpack_wrong(record["test_wrong"])
    assert wrong.shape == (record["test_draws"], record["n_test"]) == (2, 300)
    per_draw = record["per_draw"]["test/error_pct"]
    assert per_draw == pytest.approx(100 * wrong.mean(axis=1), rel=1e-5)
    assert record["metrics"]["test/error_pct"] == pytest.approx(100 * wrong.mean(), rel=1e-5)
    assert (wrong[0] != wrong[1]).any()  # the draws are not the same pictures
    assert record["curve"]["step"] == [50, 100, 150]
    assert all(len(points) == 3 for points in record["curve"].values())
    assert record["curve"]["train/loss"][-1] < record["curve"]["train/loss"][0]
    has_st = model.startswith("st")
    assert ("test/grid_inside" in record["metrics"]) == has_st
    assert ("test/angle_std_after_deg" in record["metrics"]) == (has_st and task in ("mnist_r", "mnist_rts"))
    assert record["images_per_s"] == pytest.approx(150 * 16 / record["wall_s"], rel=0.1)
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["git"].keys() == {"revision", "dirty"}
    assert len(record["data_checksums"]) == 4


@pytest.mark.parametrize(("task", "most_pct"), [("mnist_p", 25), ("mnist_rts", 75), ("mnist_tc", 75)])
def test_the_network_learns(toy_mnist, settings_of, task, most_pct):
    record = run(settings_of(task, "fcn", steps=500, batch_size=32))
    assert record["status"] == "ok"
    assert record["metrics"]["test/error_pct"] < most_pct  # chance: 90
    assert record["metrics"]["train/loss"] < math.log(10) - 0.5
    budget = round(record["config"]["task"]["budget"] * record["config"]["recipe"]["budget_fraction"])
    assert abs(record["n_params"] / budget - 1) <= 0.02


def test_the_spatial_transformer_learns(toy_mnist, settings_of):
    settings = settings_of("mnist_r", "st_fcn_affine", steps=400, batch_size=64)
    record = run(settings)
    assert record["metrics"]["test/error_pct"] < 30
    assert record["metrics"]["test/grid_inside"] > 0.2
    assert record["metrics"]["test/theta_std_1"] > 0.05  # it turns digits by different angles
    assert record["metrics"]["test/angle_std_after_deg"] < record["metrics"]["test/angle_std_before_deg"]


def test_the_same_run_twice_gives_the_same_record(toy_mnist, settings_of):
    settings = settings_of("mnist_e", "st_cnn_tps", steps=60, batch_size=4)
    first = run(settings)
    torch.manual_seed(99)
    second = run(settings)
    assert numbers(first) == numbers(second)


def test_the_saved_weights_give_the_recorded_error(toy_mnist, settings_of):
    settings = settings_of("mnist_rts", "st_cnn_affine", steps=60, test_draws=2)
    record = run(settings)
    assert sorted(path.name for path in folder_of(settings).iterdir()) == ["snapshots.npz", "weights.pt"]
    module, widths, _ = build(settings)
    module.net.load_state_dict(torch.load(folder_of(settings) / "weights.pt", weights_only=True))
    assert record["widths"] == widths
    assert record["n_params"] == count_parameters(module.net)
    module.net.eval()
    for draw, error_pct in enumerate(record["per_draw"]["test/error_pct"]):
        images, labels, *_ = module.stream.test_batch(draw, 0)
        with torch.no_grad():
            wrong = module.net(images).argmax(1) != labels
        assert 100 * wrong.float().mean().item() == pytest.approx(error_pct, abs=0.4)  # one digit: rounding


def test_a_heldout_run_says_so_in_its_settings(monkeypatch, toy_digits, settings_of):
    monkeypatch.setattr(mnist_family, "load_mnist", lambda data_dir, split: toy_digits["train"])
    monkeypatch.setattr(mnist_family, "holdout", lambda train: (train, toy_digits["train"]))
    record = run(settings_of("mnist_r", "fcn", "evaluate=heldout"))
    assert record["config"]["evaluate"] == "heldout"
    assert record["n_test"] == 600
    measured = record["metrics"].keys() | record["per_draw"].keys()
    assert "heldout/error_pct" in measured
    assert not any(name.startswith("test/") for name in measured)


@pytest.mark.parametrize("n", [0, 1, 2, CURVE_POINTS, CURVE_POINTS + 1, 3000, 3001])
def test_a_thinned_curve_is_short_even_and_keeps_its_end(n):
    curve = thinned({"step": list(range(1, n + 1)), "train/loss": [0.5] * n})
    steps = curve["step"]
    assert len(steps) == len(curve["train/loss"])
    assert min(n, CURVE_POINTS // 2) <= len(steps) <= CURVE_POINTS
    assert steps[-1:] == ([n] if n else [])
    assert len({b - a for a, b in itertools.pairwise(steps)}) <= 1


# -- runs that go wrong ---------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_recorded_as_diverged(toy_mnist, settings_of):
    settings = settings_of("mnist_r", "fcn", optimiser=SGD | {"lr": 1e12}, schedule=STEP)
    run(settings)
    record = record_of(settings)
    assert record["status"] == "diverged"
    assert "step 50" in record["reason"]
    assert record["metrics"] == {}
    assert record["test_wrong"] is None
    assert not list(folder_of(settings).iterdir())  # neither weights nor a checkpoint to resume


@pytest.mark.parametrize("model", ["cnn", "st_fcn_tps"])
def test_a_network_that_guesses_is_recorded_as_collapsed(toy_mnist, settings_of, model):
    settings = settings_of("mnist_e", model, optimiser=SGD | {"lr": 0}, schedule=STEP)
    run(settings)
    record = record_of(settings)
    assert record["status"] == "collapsed"
    assert "guessing among 10 classes" in record["reason"]
    assert record["metrics"]["test/error_pct"] > 70


def test_a_transformer_that_looks_past_the_image_is_recorded_as_collapsed(monkeypatch, toy_mnist, settings_of):
    within_budget = mnist_family.build_within_budget

    def outside(*arguments):
        net, widths = within_budget(*arguments)
        with torch.no_grad():
            net.transformers[0].regression.bias[2] = 10.0  # x of every grid point
        return net, widths

    monkeypatch.setattr(mnist_family, "build_within_budget", outside)
    settings = settings_of("mnist_e", "st_fcn_affine", optimiser=SGD | {"lr": 0}, schedule=STEP)
    run(settings)
    assert record_of(settings)["status"] == "collapsed"  # it sees black, and guesses
    monkeypatch.setattr(classification, "GUESSING_MARGIN", -10)
    run(settings)
    record = record_of(settings)
    assert record["status"] == "collapsed"
    assert "0.0% of a sampling grid lies inside the image" in record["reason"]


def test_an_error_in_training_is_recorded_and_raised(monkeypatch, toy_mnist, settings_of):
    settings = settings_of("mnist_r", "fcn")

    def fail(module):
        raise RuntimeError("no room\nfor more")

    monkeypatch.setattr(classification.Classification, "batch_loss", fail)
    with pytest.raises(RuntimeError, match="no room"):
        run(settings)
    record = record_of(settings)
    assert record["status"] == "failed"
    assert record["reason"] == "RuntimeError: no room for more"
    assert record["metrics"] == {}


def test_an_interrupted_run_leaves_no_record_and_says_that_it_was_interrupted(monkeypatch, toy_mnist, settings_of):
    settings = settings_of("mnist_r", "fcn")

    def stop(steps):
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(settings, progress=stop)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores the signal from then on
    assert records_in(settings) == []


@pytest.mark.parametrize(
    ("overrides", "recipe", "named"),
    [
        ((), {"optimiser": {"name": "lbfgs"}}, "protocol.mnist.optimiser"),
        ((), {"steps": 0}, "protocol.mnist.steps"),
        ((), {"optimiser": {"lr": -1}}, "protocol.mnist.optimiser.lr"),
        ((), {"padding": "mirror"}, "padding"),
        (("evaluate=train",), {}, "evaluate"),
        (("task.distortion.name=x",), {}, "distortion"),
        (("task.distortion.canvas=12",), {}, "too small"),
        (("wandb.mode=sometimes",), {}, "wandb.mode must be one of"),
        (("device=tpu",), {}, "device must be one of"),
        (("seed=-1",), {}, "seed must be"),
        (("seed=one",), {}, "seed must be"),
        (("threads=0",), {}, "threads must be"),
    ],
)
def test_settings_that_cannot_be_run_raise_at_once_and_leave_no_record(
    toy_mnist, settings_of, overrides, recipe, named
):
    with pytest.raises(ValueError, match=named):
        run(
            settings_of("mnist_rts", "st_cnn_tps", *overrides, **recipe),
            progress=lambda steps: pytest.fail("trained"),
        )
    assert records_in(settings_of("mnist_rts", "st_cnn_tps")) == []


# -- interrupted runs -----------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint_always(monkeypatch):
    monkeypatch.setattr(checkpoints, "EVERY", timedelta(0))


def interrupt(settings, at):
    """Runs until step `at`, as if the power went: what is left is the last checkpoint."""

    def stop(steps):
        if steps >= at:
            raise SystemError("interrupted")

    with pytest.raises(Interrupted, match="interrupted"):
        run(settings, progress=stop)
    assert (folder_of(settings) / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("model", "recipe"), [("st_cnn_affine", {}), ("fcn", {"optimiser": SGD, "schedule": STEP | {"every": 70}})]
)
def test_an_interrupted_run_ends_at_the_numbers_of_an_uninterrupted_one(
    toy_mnist, settings_of, checkpoint_always, model, recipe
):
    settings = settings_of("mnist_r", model, steps=220, batch_size=4, **recipe)
    whole = run(settings)
    for at in (100, 200):  # interrupted twice
        interrupt(settings, at)
    seen = []
    resumed = run(settings, progress=seen.append)
    assert seen[0] > 100  # it did resume
    assert numbers(resumed) == numbers(whole)
    assert not (folder_of(settings) / "last.ckpt").exists()


def test_a_run_interrupted_after_its_last_step_is_only_tested(monkeypatch, toy_mnist, settings_of, checkpoint_always):
    settings = settings_of("mnist_r", "st_fcn_affine", steps=100)
    whole = run(settings)
    with monkeypatch.context() as patch:
        patch.setattr("stn.tasks.classification.Classification.on_test_start", lambda self: 1 / 0)
        with pytest.raises(Interrupted, match="division by zero"):
            run(settings)
    interrupted = torch.load(folder_of(settings) / "last.ckpt", weights_only=True)["steps_done"]
    seen = []
    resumed = run(settings, progress=seen.append)
    assert seen == ([] if interrupted == 100 else [100])
    assert numbers(resumed) == numbers(whole)


def damaged(path, damage):
    content = path.read_bytes()
    path.write_bytes({"torn": content[: len(content) // 2], "empty": b"", "garbage": b"\x80garbage" * 99}[damage])


@pytest.mark.parametrize("damage", ["torn", "empty", "garbage"])
def test_a_damaged_checkpoint_is_reported_and_the_run_starts_again(
    toy_mnist, settings_of, checkpoint_always, caplog, damage
):
    settings = settings_of("mnist_r", "fcn", steps=150)
    whole = run(settings)
    interrupt(settings, at=100)
    damaged(folder_of(settings) / "last.ckpt", damage)
    seen = []
    with caplog.at_level(logging.WARNING, logger="stn.train.checkpoints"):
        record = run(settings, progress=seen.append)
    assert "damaged checkpoint" in caplog.text
    assert seen == [50, 100, 150]
    assert numbers(record) == numbers(whole)


def test_a_checkpoint_of_other_settings_is_reported_and_not_resumed(toy_mnist, settings_of, checkpoint_always, caplog):
    settings = settings_of("mnist_r", "fcn", steps=150)
    whole = run(settings)
    interrupt(settings_of("mnist_r", "fcn", steps=200), at=100)
    seen = []
    with caplog.at_level(logging.WARNING, logger="stn.train.checkpoints"):
        record = run(settings, progress=seen.append)
    assert "checkpoint of other settings" in caplog.text
    assert seen == [50, 100, 150]
    assert numbers(record) == numbers(whole)


def test_a_checkpoint_of_another_note_is_resumed(toy_mnist, settings_of, checkpoint_always, caplog):
    settings = settings_of("mnist_r", "fcn", steps=150)
    interrupt(settings, at=100)
    seen = []
    run(settings.changed(protocol_note="reworded"), progress=seen.append)
    assert seen[0] > 50


def test_a_run_that_another_revision_began_says_so(toy_mnist, settings_of, checkpoint_always, monkeypatch):
    began, ended = ({"revision": letter * 40, "dirty": letter == "a"} for letter in "ab")
    settings = settings_of("mnist_r", "fcn", steps=150)
    monkeypatch.setattr(train_run, "code_state", lambda: began)
    interrupt(settings, at=100)
    monkeypatch.setattr(train_run, "code_state", lambda: ended)
    assert run(settings)["git"] == {"revision": f"{'a' * 40}, then {'b' * 40}", "dirty": True}
    assert run(settings.changed(force=True))["git"] == ended


def test_a_precision_that_only_cuda_has_is_refused_elsewhere(toy_mnist, settings_of):
    settings = settings_of("mnist_r", "fcn", "device=cpu", "precision=tf32")
    with pytest.raises(ValueError, match=r"^precision=tf32: only CUDA computes in it; allowed here: float32, bf16$"):
        run(settings)
    assert not settings.results_dir.exists()


def test_a_killed_process_resumes_and_ends_at_the_same_numbers(toy_mnist, toy_md5, settings_of):
    settings = settings_of("mnist_r", "st_fcn_affine", f"data_dir={toy_md5}", steps=1000)
    checkpoint = folder_of(settings) / "last.ckpt"
    code = "import json, sys, toy_verb; from stn.settings import run_settings; from stn.train.run import train; "
    code += "train([run_settings(json.loads(sys.argv[1]))])"
    environment = os.environ | {
        "TOY_DATA_DIR": str(toy_md5),
        "TOY_EVERY_S": "0",
        "PYTHONPATH": os.pathsep.join([str(VERB.parent), *sys.path]),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", code, settings.model_dump_json()],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not checkpoint.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert records_in(settings) == []
    seen = []
    resumed = run(settings, progress=seen.append)
    assert 50 < seen[0] < 1000
    assert not checkpoint.exists()
    assert numbers(run(settings)) == numbers(resumed)


def test_a_cuda_device_that_is_not_there_is_refused_before_anything_is_recorded(toy_mnist, settings_of, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    settings = settings_of("mnist_r", "fcn", "device=cuda")
    with pytest.raises(ValueError, match="no CUDA device"):
        run(settings)
    assert not settings.results_dir.exists()


@pytest.mark.parametrize(("part", "named"), [("recipe", r"protocol\.mnist"), ("model", "model")])
def test_a_setting_that_the_code_does_not_have_is_refused_in_one_line(toy_mnist, settings_of, part, named):
    settings = settings_of("mnist_r", "fcn")
    given = settings.model_dump()
    settings = settings.changed(**{part: given[part] | {"frobnicate": 1}})
    with pytest.raises(ValueError, match=rf"unknown key .{named}\.frobnicate"):
        run(settings)
