"""Weights & Biases: not even imported when disabled; offline, its files hold what the run's page would show."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from stn.results.records import RunKey, record_path
from stn.train.run import run
from stn.train.tracking import tracking

VERB = Path(__file__).with_name("toy_verb.py")
STEPS = 300


def leet(folder, *options):
    """What wandb's own reader prints about a run's folder."""
    call = [Path(sys.executable).with_name("wandb"), "leet", "inspect", *options, "--json", folder]
    return subprocess.run(call, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def offline_environment(tmp_path_factory):
    """No wandb file outside a temporary folder, and what tracking sets is unset afterwards."""
    folder = tmp_path_factory.mktemp("wandb_home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            patch.setenv(name, str(folder))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.delenv("WANDB_API_KEY", raising=False)
        yield folder


@pytest.fixture
def offline_run(offline_environment, toy_mnist, settings_of, tmp_path):
    """Settings, record and the W&B folder of a short tracked run."""
    settings = settings_of("mnist_r", "st_fcn_affine", "seed=1", "wandb.mode=offline", steps=STEPS)
    record = run(settings)
    (folder,) = (tmp_path / "outputs").rglob("offline-run-*")
    return settings, record, folder


def test_an_offline_run_holds_what_its_page_shows(offline_run):
    settings, record, folder = offline_run
    shown = json.loads(leet(folder, "--summary"))
    assert (shown["state"], shown["exit_code"]) == ("finished", 0)
    assert shown["name"] == "mnist_r/st_fcn_affine/smoke/seed1"
    assert shown["project"] == settings["wandb"]["project"]
    assert set(shown["tags"]) == {"mnist_r", "st_fcn_affine", "smoke", "seed1"}
    assert {name: shown["config"][name] for name in ("task", "model", "recipe", "seed")} == {
        name: settings[name] for name in ("task", "model", "recipe", "seed")
    }
    summary = shown["summary"]
    assert summary["test/error_pct"] == pytest.approx(record["metrics"]["test/error_pct"])
    assert summary["train/loss"] == pytest.approx(record["curve"]["train/loss"][-1])

    history = defaultdict(dict)  # metric -> step -> value
    for line in map(json.loads, leet(folder).splitlines()):
        if line["type"] == "history":
            values = line["history"].get("item", line["history"])
            for name, value in values.items():
                history[name][values.get("trainer/global_step")] = value
    curve = record["curve"]
    for name in ("train/loss", "train/error_pct"):
        assert list(history[name]) == curve["step"] == list(range(50, STEPS + 1, 50))
        assert list(history[name].values()) == pytest.approx(curve[name])
    assert list(history["train/lr"]) == curve["step"]
    for name in ("theta/grid_inside", "theta/theta_std_0", "theta/angle_std_after_deg", "warps.filenames"):
        assert min(history[name]) == 0  # before training, and on the same axis as the losses
        assert max(history[name]) == STEPS
        assert 3 <= len(history[name]) <= 7
    assert history["theta/grid_inside"][0] == 1  # it begins at the identity
    assert history["theta/theta_std_0"][0] == 0
    assert history["theta/theta_std_0"][STEPS] > 0
    pictures = sorted(folder.rglob("media/images/warps*.png"))
    assert len(pictures) == len(history["warps.filenames"])
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


@pytest.fixture
def loggers(offline_environment, monkeypatch, tmp_path):
    """Call it with a key and a results folder: what tracking asks WandbLogger for."""
    asked = []
    monkeypatch.setattr("pytorch_lightning.loggers.WandbLogger", lambda **arguments: asked.append(arguments))

    def ask(key, settings):
        with tracking(settings, key, tmp_path):
            return asked[-1]

    return ask


def test_a_resumed_run_continues_the_same_wandb_run(loggers, settings_of):
    settings = settings_of("mnist_r", "fcn", "wandb.mode=offline")
    key = RunKey("mnist_r", "fcn", "smoke", 0)
    first, again = loggers(key, settings), loggers(key, {**settings, "output_dir": "elsewhere", "device": "auto"})
    assert first["id"] == again["id"]
    assert first["resume"] == "allow"
    assert first["group"] == "mnist_r/fcn"  # seeds of one cell
    others = [loggers(key._replace(**change), settings)["id"] for change in ({"seed": 1}, {"model": "cnn"})]
    others.append(loggers(key, {**settings, "results_dir": settings["results_dir"] + "/sweeps"})["id"])
    assert len({first["id"], *others}) == 4


def test_an_unknown_mode_is_an_error_of_one_line(settings_of, tmp_path):
    settings = settings_of("mnist_r", "fcn", "wandb.mode=sometimes")
    with (
        pytest.raises(ValueError, match=r"wandb\.mode .*disabled.*offline.*online.*sometimes") as error,
        tracking(settings, RunKey("mnist_r", "fcn", "smoke", 0), tmp_path),
    ):
        pass
    assert "\n" not in str(error.value)


def test_a_run_without_tracking_does_not_import_wandb(toy_data_dir, tmp_path):
    call = [sys.executable, VERB, "experiments.train", "task=mnist_r", "model=fcn", "protocol=smoke", "progress=false"]
    call += [f"data_dir={toy_data_dir}", "results_dir=results", "output_dir=outputs", "device=cpu"]
    environment = os.environ | {"TOY_DATA_DIR": str(toy_data_dir)}
    result = subprocess.run(call, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "mnist_r fcn smoke seed 0: ok"
    assert "test/error_pct" in result.stdout
    assert lines[-1] == "wandb imported: False"
    assert record_path(tmp_path / "results", RunKey("mnist_r", "fcn", "smoke", 0)).exists()
    assert not list(tmp_path.rglob("*wandb*"))
