"""Runs of co-localisation on toy digits, with a small encoder that lies where its run would have left it."""

from datetime import timedelta

import numpy as np
import pytest
import torch

from experiments.config import compose_run
from experiments.galleries import windows as galleries
from stn.data.errors import DataError
from stn.families import build, coloc, needs, network
from stn.nets.mnist import Cnn
from stn.nets.windows import window_boxes_px
from stn.results.records import read_record, unpack_wrong
from stn.saved import weights_sha256
from stn.settings import RunSettings
from stn.tasks.colocalisation import Colocalisation, iou
from stn.train import checkpoints
from stn.train.stopped import Interrupted
from tests.tiny import ELAPSED, run, unread

CANVAS = 48


@pytest.fixture
def settings_of_coloc(tmp_path, toy_mnist, monkeypatch):
    """Call it with a task and recipe=…: a run of seconds."""
    monkeypatch.setattr(coloc, "PATCH_DONORS", 30)

    def make(task: str = "coloc_t", **recipe) -> RunSettings:
        tiny = {"images_per_class": 6, "batch_size": 4, "steps": 30, "search_windows": 8, "search_prototypes": 5}
        tiny |= {"fit_steps": 2} | recipe
        run = compose_run(
            [
                *(f"task={task}", "model=coloc_st", "protocol=smoke", "device=cpu", "progress=false"),
                *(f"task.clutter.canvas={CANVAS}", f"results_dir={tmp_path / 'results'}"),
                f"output_dir={tmp_path / 'outputs'}",
            ]
        )
        return run.changed(recipe=run.recipe | tiny)

    return make


@pytest.fixture
def encoder(settings_of_coloc):
    """A CNN with random weights, as the run of the encoder would leave it; returns its file."""
    torch.manual_seed(1)
    settings = settings_of_coloc()
    path = settings.folder_of(*needs(settings)) / "weights.pt"
    path.parent.mkdir(parents=True)
    torch.save(Cnn((1, 28, 28), (3, 4)).state_dict(), path)
    return path


def test_there_are_no_digits_that_the_encoder_has_not_seen_to_hold_out(settings_of_coloc):
    with pytest.raises(ValueError, match=r"^evaluate=heldout: coloc_t has no held-out data; allowed: test$"):
        network(settings_of_coloc().changed(evaluate="heldout"))


@pytest.fixture
def never_collapsed(monkeypatch):
    monkeypatch.setattr(Colocalisation, "collapse", lambda self, loss: None)


def test_a_run_needs_the_weights_of_its_encoder_and_says_how_to_make_them(settings_of_coloc):
    settings = settings_of_coloc()
    assert needs(settings) == [("mnist_p", "cnn", "smoke", 0)]
    with pytest.raises(DataError, match=r"experiments\.train task=mnist_p model=cnn protocol=smoke seed=0$"):
        run(settings)
    assert not settings.record_file.exists()


def test_each_key_is_read(settings_of_coloc, encoder, never_collapsed, monkeypatch):
    monkeypatch.setattr(coloc, "prepare_mnist", lambda data_dir: None)
    assert unread(settings_of_coloc(), monkeypatch) == set()


def test_weights_of_another_net_are_refused(settings_of_coloc, encoder):
    torch.save(Cnn((1, 28, 42), (3, 4)).state_dict(), encoder)
    with pytest.raises(ValueError, match="not those of a CNN for 1x28x28"):
        run(settings_of_coloc())


def test_too_few_images_of_a_digit_are_said(settings_of_coloc, encoder):
    with pytest.raises(DataError, match=r"digit 0 has 60 images, but protocol\.coloc\.images_per_class is 61"):
        run(settings_of_coloc(images_per_class=61))


@pytest.mark.parametrize("wrong", [{"batch_size": 1}, {"images_per_class": 3}, {"search_windows": 1}])
def test_a_recipe_that_cannot_work_is_refused(settings_of_coloc, wrong):
    with pytest.raises(
        ValueError, match=r"protocol\.coloc(\.\w+ must be|: images_per_class must be batch_size) .*or more"
    ):
        run(settings_of_coloc(**wrong))


@pytest.mark.parametrize("task", ["coloc_t", "coloc_tc"])
def test_a_run_ends_in_a_record_that_its_weights_confirm(settings_of_coloc, encoder, never_collapsed, task, tmp_path):
    settings = settings_of_coloc(task)
    run(settings)
    record = read_record(settings.record_file)
    metrics, wrong = record["metrics"], unpack_wrong(record["test_wrong"])
    assert (record["status"], record["n_test"], wrong.shape) == ("ok", 60, (1, 60))
    by_digit = [metrics[f"test/correct_pct_digit{k}"] for k in range(10)]
    assert by_digit == pytest.approx(100 * (1 - wrong.reshape(10, 6).mean(1)))
    assert metrics["test/correct_pct"] == pytest.approx(np.mean(by_digit))
    assert metrics["test/correct_pct_worst"] == pytest.approx(min(by_digit))
    assert metrics["test/error_pct"] == pytest.approx(100 - metrics["test/correct_pct"], abs=1e-4)
    kinds = sum(metrics[f"test/{kind}_pct"] for kind in ("off", "loose", "tight", "shifted"))
    assert kinds == pytest.approx(metrics["test/error_pct"], abs=1e-4)
    unseen = [metrics[f"test/correct_unseen_pct_digit{k}"] for k in range(10)]
    assert metrics["test/correct_unseen_pct"] == pytest.approx(np.mean(unseen))
    weights = torch.load(encoder, weights_only=True)
    assert record["data_checksums"]["encoder mnist_p/cnn/smoke/seed0"] == weights_sha256(weights)

    module = build(settings).module
    module.net.load_state_dict(torch.load(settings.folder / "weights.pt", weights_only=True))
    scenes = module.scenes["train"]
    with torch.no_grad():
        overlap = iou(window_boxes_px(module.net(scenes.images), CANVAS), scenes.boxes_px)
    assert overlap.mean().item() == pytest.approx(metrics["test/iou"], abs=1e-3)
    steps, windows = module.trace()
    assert steps == [-2, -1, *range(0, 31, 2)]
    assert windows.shape == (18, 6, 10, 3)
    assert torch.allclose(windows[0], windows[0, 0, 0].expand(6, 10, 3))  # all alike, before the fit
    with torch.no_grad():
        assert torch.allclose(windows[-1], module.net(scenes.images), atol=1e-5)

    wanted = {"protocol": "smoke", "data": "real", "data_dir": settings.data_dir, "output_dir": "none"}
    assert list(galleries.digits(tmp_path, [record], wanted)) == []  # without weights nothing is drawn


def test_an_interrupted_run_ends_at_the_numbers_of_an_uninterrupted_one(
    settings_of_coloc, encoder, never_collapsed, monkeypatch
):
    monkeypatch.setattr(checkpoints, "EVERY", timedelta(0))
    settings = settings_of_coloc(steps=30)
    whole = run(settings)
    whole_weights = torch.load(settings.folder / "weights.pt", weights_only=True)

    def stop(steps):
        if steps >= 20:
            raise SystemError("interrupted")

    with pytest.raises(Interrupted, match="interrupted"):
        run(settings, progress=stop)
    monkeypatch.setattr(Colocalisation, "begin", lambda self: pytest.fail("searched again"))
    seen = []
    resumed = run(settings, progress=seen.append)
    assert seen[0] > 10  # it did resume
    assert {k: v for k, v in resumed.items() if k not in ELAPSED} == {
        k: v for k, v in whole.items() if k not in ELAPSED
    }
    for name, tensor in torch.load(settings.folder / "weights.pt", weights_only=True).items():
        assert torch.equal(tensor, whole_weights[name]), name


def test_seeds_differ_in_their_images_and_share_the_unseen_ones(settings_of_coloc, encoder):
    first, again, other = (build(settings_of_coloc().changed(seed=seed)).module.scenes for seed in (0, 0, 1))
    assert torch.equal(first["train"].images, again["train"].images)
    assert not torch.equal(first["train"].images, other["train"].images)
    assert torch.equal(first["unseen"].images, other["unseen"].images)


def test_the_true_box_holds_the_digit(settings_of_coloc, encoder, toy_digits):
    """On a black ground all the ink is that of the digit, in the box."""
    scenes = build(settings_of_coloc()).module.scenes["train"]
    left, top, right, bottom = scenes.boxes_px[2, 7].int().tolist()
    image = scenes.images[2, 7, 0]
    crop = (255 * image[top:bottom, left:right]).round().byte()
    sevens = toy_digits["train"].images[toy_digits["train"].labels == 7]
    assert (sevens == crop).all((1, 2)).any()
    assert image.sum().item() == pytest.approx(image[top:bottom, left:right].sum().item())
