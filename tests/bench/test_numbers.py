import pytest

from stn.bench.numbers import convolution_effect, precision_effect
from stn.data.mnist import Digits
from tests.tiny import SGD, STEP, run


def test_the_effect_of_a_precision_is_that_of_runs_made_one_by_one(toy_mnist, settings_of, monkeypatch):
    images, labels = toy_mnist["train"].images, toy_mnist["train"].labels
    halves = [Digits(images[part], labels[part]) for part in (slice(300), slice(300, None))]
    monkeypatch.setattr("stn.families.mnist.holdout", lambda train: halves)
    settings = settings_of("mnist_r", "st_fcn_affine", steps=40)
    found = precision_effect(settings, "bf16", seeds=2)
    assert found["float32"]["error_pct"] != found["bf16"]["error_pct"]
    differences = [b - a for a, b in zip(found["float32"]["error_pct"], found["bf16"]["error_pct"], strict=True)]
    assert found["difference_pct"] == pytest.approx(differences)
    alone = run(settings.changed(seed=1, precision="bf16", evaluate="heldout"))
    assert found["bf16"]["error_pct"][1] == alone["metrics"]["heldout/error_pct"]
    assert found["bf16"]["ms_per_step"] > 0


def test_a_run_that_diverged_has_no_error_and_a_cpu_no_tf32(toy_mnist, settings_of, monkeypatch):
    monkeypatch.setattr("stn.families.mnist.holdout", lambda train: (train, toy_mnist["test"]))
    settings = settings_of("mnist_r", "fcn", steps=10, optimiser=SGD | {"lr": 1e20}, schedule=STEP)
    found = precision_effect(settings, "bf16", seeds=1)
    assert found["float32"] == found["bf16"] == {"error_pct": [None], "ms_per_step": None}
    assert found["difference_pct"] == []
    with pytest.raises(ValueError, match="TF32"):
        precision_effect(settings, "tf32", seeds=1)


def test_the_effect_of_the_frequency_domain_is_none_where_it_is_not_taken(toy_mnist, settings_of, monkeypatch):
    monkeypatch.setattr("stn.families.mnist.holdout", lambda train: (train, toy_mnist["test"]))
    asked = []
    monkeypatch.setattr("stn.nets.frequency.pays", lambda *sizes: asked.append(sizes) or True)
    found = convolution_effect(settings_of("mnist_r", "st_fcn_affine", steps=10), seeds=1)
    assert found["difference_pct"] == [0]
    assert asked == []
    found = convolution_effect(settings_of("mnist_r", "cnn", steps=10), seeds=1)
    assert found.keys() == {"direct", "frequency", "difference_pct"}
    assert asked
