"""Snapshots: theta of the same test images through the training, and nothing else changes."""

from datetime import timedelta

import numpy as np
import pytest
import torch

from experiments.galleries import upright, warps
from stn.families import build
from stn.train import checkpoints
from stn.train.run import train
from stn.train.stopped import Interrupted
from stn.watch.snapshots import EXAMPLES, FILE, SNAPSHOTS, Snapshots, _chosen
from tests.tiny import ELAPSED, run


def snapshots_of(settings):
    with np.load(settings.folder / FILE) as found:
        return dict(found)


def test_the_last_snapshot_is_theta_of_the_saved_weights_and_the_first_the_identity(toy_mnist, settings_of):
    settings = settings_of("addition", "st2_fcn_affine", "protocol.addition.steps=120")
    run(settings)
    found = snapshots_of(settings)
    assert found["step"].tolist() == [0, 50, 100, 120]
    module = build(settings).module
    module.net.load_state_dict(torch.load(settings.folder / "weights.pt", weights_only=True))
    module.net.eval()
    with torch.no_grad():
        expected = [t.theta(module.stream.test_batch(0, 0).images[:EXAMPLES]) for t in module.net.transformers]
    assert found.keys() == {"step", "theta_0", "theta_1"}
    for k, transformer in enumerate(module.net.transformers):
        thetas = torch.from_numpy(found[f"theta_{k}"])
        assert thetas.shape == (4, EXAMPLES, 2, 3)
        torch.testing.assert_close(thetas[0], transformer.initial_theta.float().expand(EXAMPLES, 2, 3))
        torch.testing.assert_close(thetas[-1], expected[k], rtol=1e-4, atol=1e-5)
        assert not torch.equal(thetas[1], thetas[0])


def test_a_run_ends_at_the_same_numbers_with_and_without_snapshots(monkeypatch, toy_mnist, settings_of):
    settings = settings_of("mnist_e", "st_cnn_tps", steps=120, batch_size=4)
    kept = run(settings)
    monkeypatch.setattr(Snapshots, "_keep", lambda self, step: None)
    plain = run(settings)
    assert {k: v for k, v in kept.items() if k not in ELAPSED} == {k: v for k, v in plain.items() if k not in ELAPSED}


def test_an_interrupted_run_keeps_the_snapshots_of_an_uninterrupted_one(monkeypatch, toy_mnist, settings_of):
    monkeypatch.setattr(checkpoints, "EVERY", timedelta(0))
    settings = settings_of("mnist_r", "st_fcn_affine", steps=250, batch_size=4)
    run(settings)
    whole = snapshots_of(settings)
    (settings.folder / FILE).unlink()

    def stop(steps):
        if steps >= 150:
            raise SystemError("interrupted")

    with pytest.raises(Interrupted, match="interrupted"):
        run(settings, progress=stop)
    seen = []
    run(settings, progress=seen.append)
    assert seen[0] > 50  # it did resume
    resumed = snapshots_of(settings)
    assert resumed.keys() == whole.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(resumed[name], values)


def test_every_run_of_a_stack_has_its_own(toy_mnist, settings_of):
    runs = [settings_of("mnist_r", "st_fcn_affine", f"seed={seed}", steps=60, batch_size=4) for seed in (0, 1)]
    train(runs)
    one, other = map(snapshots_of, runs)
    assert one["step"].tolist() == other["step"].tolist() == [0, 50, 60]
    np.testing.assert_array_equal(one["theta_0"][0], other["theta_0"][0])
    assert (one["theta_0"][-1] != other["theta_0"][-1]).any()


def test_a_network_without_a_transformer_has_none(toy_mnist, settings_of):
    settings = settings_of("mnist_r", "fcn", steps=50)
    run(settings)
    assert not (settings.folder / FILE).exists()


@pytest.mark.parametrize("chunks", [1, 2, 11, 80, 3000])
def test_snapshots_are_few_begin_early_and_include_the_end(chunks):
    chosen = sorted(_chosen(chunks))
    assert chosen[-1] == chunks
    assert len(chosen) <= SNAPSHOTS - 1
    assert chosen[0] <= max(1, chunks / 100)


@pytest.mark.parametrize(
    ("task", "model", "columns"),
    [("mnist_r", "st_cnn_tps", warps.ANIMATED_IMAGES), ("addition", "st2_fcn_affine", 8)],
)
def test_the_gallery_shows_every_snapshot(monkeypatch, toy_mnist, settings_of, tmp_path, task, model, columns):
    settings = settings_of(task, model, "protocol.addition.steps=60", steps=60, batch_size=4)
    record = run(settings)
    shown = {}
    monkeypatch.setattr(warps, "training_animation", lambda path, frames, title: shown.update(frames) or path)
    (path,) = warps.trainings(tmp_path, [record], settings.model_dump())
    assert path == tmp_path / f"training_{task}_{model}_smoke.gif"
    assert list(shown) == [0, 50, 60]
    assert {len(warps) for warps in shown.values()} == {columns}
    first, last = shown[0][0], shown[60][0]
    np.testing.assert_array_equal(first.input, last.input)
    k = len(first.input) // len(first.output)  # pooled, as the classifier reads it
    pooled = first.input.reshape(len(first.output), k, -1, k).mean((1, 3))
    np.testing.assert_allclose(first.output, pooled, atol=1e-5)  # the identity
    assert np.abs(last.grid - first.grid).max() > 1e-4

    (settings.folder / FILE).unlink()
    assert list(warps.trainings(tmp_path, [record], settings.model_dump())) == []


def test_one_class_of_turned_digits_before_and_after_the_st(monkeypatch, toy_mnist, settings_of, tmp_path):
    settings = settings_of("mnist_r", "st_fcn_affine", steps=60, batch_size=4)
    record = run(settings)
    record["metrics"] |= {"test/angle_std_before_deg": 52.0, "test/angle_std_after_deg": 39.9}  # no class with itself
    sheets = {}
    monkeypatch.setattr(upright, "write_sheet", lambda path, lines, title, layout: sheets.update({path: lines}) or path)
    monkeypatch.setattr(upright, "write_animation", lambda path, steps, *_: sheets.update({path: steps}) or path)
    (still,) = upright.turned(tmp_path, [record], settings.model_dump())
    (moving,) = upright.turning(tmp_path, [record], settings.model_dump())
    assert still == tmp_path / "upright_mnist_r_smoke.png"
    assert moving == tmp_path / "turning_mnist_r_st_fcn_affine_smoke.gif"
    inputs, outputs = sheets[still]
    angles = [float(panel.caption.removesuffix("°")) for panel in inputs[:-1]]
    assert angles == sorted(angles)
    assert angles[0] < 0 < angles[-1]
    assert len(inputs) == len(outputs)
    assert inputs[-1].caption.startswith("mean of ")
    assert list(sheets[moving]) == [0, 50, 60]
    first, last = sheets[moving][0], sheets[moving][60]
    np.testing.assert_allclose(first[1][0].image, first[0][0].image, atol=1e-5)  # the identity
    assert np.abs(last[1][0].image - last[0][0].image).max() > 1e-3
