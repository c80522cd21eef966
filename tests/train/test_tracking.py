"""Weights & Biases: not even imported when disabled; offline, its files hold what the run's page would show."""

import json
import math
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stn.results.records import RunKey, read_record, record_path
from stn.train.stopped import Interrupted, OutOfTime
from stn.watch.telemetry import Telemetry, confusion
from stn.watch.tracking import NotStarted, options
from stn.watch.warp_pictures import WarpPictures
from tests.tiny import SGD, STEP, run

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
    (folder,) = run_folders(tmp_path)
    return settings, record, folder


def run_folders(tmp_path):
    """Those of offline runs, oldest first."""
    return sorted((tmp_path / "outputs").rglob("offline-run-*"))


def history_of(folder):
    """metric -> training step -> value"""
    history = defaultdict(dict)
    for line in map(json.loads, leet(folder).splitlines()):
        if line["type"] == "history":
            values = line["history"].get("item", line["history"])
            for name, value in values.items():
                history[name][values.get("trainer/global_step")] = value
    return history


def test_an_offline_run_holds_what_its_page_shows(offline_run):
    settings, record, folder = offline_run
    shown = json.loads(leet(folder, "--summary"))
    assert (shown["state"], shown["exit_code"]) == ("finished", 0)
    assert shown["name"] == "mnist_r/st_fcn_affine/smoke/seed1"
    assert shown["project"] == settings.wandb.project
    assert set(shown["tags"]) == {"mnist_r", "st_fcn_affine", "smoke", "seed1", "real"}
    assert {name: shown["config"][name] for name in ("task", "model", "recipe", "seed")} == {
        name: settings.config[name] for name in ("task", "model", "recipe", "seed")
    }
    assert shown["config"]["n_params"] == record["n_params"]
    summary = shown["summary"]
    assert {name: summary[name] for name in ("status", "wall_s")} == {
        name: record[name] for name in ("status", "wall_s")
    }
    assert summary["test/error_pct"] == pytest.approx(record["metrics"]["test/error_pct"])
    assert summary["train/loss"] == pytest.approx(record["curve"]["train/loss"][-1])

    history = history_of(folder)
    curve = record["curve"]
    for name in ("train/loss", "train/error_pct"):
        assert list(history[name]) == curve["step"] == list(range(50, STEPS + 1, 50))
        assert list(history[name].values()) == pytest.approx(curve[name])
    parts = [f"optim/{what}_{part}" for what in ("lr", "grad_norm") for part in ("localiser", "rest")]
    for name in ("train/lr", "train/images_per_s", *parts):
        assert list(history[name]) == curve["step"]
        assert all(value > 0 for value in history[name].values())
    (table,) = folder.rglob("media/table/confusion_matrix*.json")
    counts = {(true, found): n for true, found, n in json.loads(table.read_text())["data"]}
    assert sum(counts.values()) == record["n_test"] * record["test_draws"]
    wrong = sum(n for (true, found), n in counts.items() if true != found) / sum(counts.values())
    assert 100 * wrong == pytest.approx(record["metrics"]["test/error_pct"])
    assert all(sum(counts[str(k), str(j)] for j in range(10)) == 30 * record["test_draws"] for k in range(10))
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


def test_what_is_logged_of_the_optimiser_is_true_and_changes_no_number(
    offline_environment, toy_mnist, settings_of, tmp_path, monkeypatch
):
    """Norms against the gradients of each last step, part by part; everything else against an untracked run."""
    norms, log = {}, Telemetry.on_train_batch_end

    def spy(self, trainer, module, *rest):
        parts = {"localiser": 0.0, "rest": 0.0}
        for name, parameter in module.net.named_parameters():
            part = "localiser" if ".localisation." in name or ".regression." in name else "rest"
            parts[part] += parameter.grad.double().square().sum().item()
        norms[module.steps_done] = parts
        log(self, trainer, module, *rest)

    monkeypatch.setattr(Telemetry, "on_train_batch_end", spy)
    tracked, untracked = (
        run(settings_of("mnist_r", "st_fcn_tps", f"wandb.mode={mode}", localiser_lr_multiplier=0.1))
        for mode in ("offline", "disabled")
    )
    for name in ("curve", "metrics", "per_draw", "test_wrong"):
        assert tracked[name] == untracked[name]
    history = history_of(*run_folders(tmp_path))
    for step in (50, 100):
        assert history["optim/lr_localiser"][step] == pytest.approx(0.1 * history["optim/lr_rest"][step])
        for part, square in norms[step].items():
            assert history[f"optim/grad_norm_{part}"][step] == pytest.approx(math.sqrt(square), rel=1e-5)


def test_a_stopped_run_is_preempted_and_goes_on_as_the_same_run(offline_environment, toy_mnist, settings_of, tmp_path):
    settings = settings_of("mnist_r", "fcn", "wandb.mode=offline", steps=STEPS)
    with pytest.raises(OutOfTime):
        run(settings, deadline=time.time())
    assert run(settings)["status"] == "ok"
    folders = run_folders(tmp_path)
    stopped, finished = (json.loads(leet(folder, "--summary")) for folder in folders)
    assert stopped["run_id"] == finished["run_id"]
    assert (stopped["state"], stopped["summary"]["status"]) == ("failed", "stopped")
    assert "preempting" in {json.loads(line)["type"] for line in leet(folders[0]).splitlines()}
    assert (finished["state"], finished["summary"]["status"]) == ("finished", "ok")
    together = [*history_of(folders[0])["train/loss"], *history_of(folders[1])["train/loss"]]
    assert together == list(range(50, STEPS + 1, 50))


def test_every_run_of_a_process_is_closed_as_what_it_was(
    offline_environment, toy_mnist, settings_of, tmp_path, monkeypatch
):
    """Diverged, failed, and then one that is well."""

    def broken(*_):
        raise RuntimeError("broken")

    ruinous = settings_of("mnist_r", "fcn", "seed=0", "wandb.mode=offline", optimiser={"lr": 1e30})
    assert run(ruinous)["status"] == "diverged"
    with monkeypatch.context() as patch:
        patch.setattr("stn.tasks.classification.Classification.chunk_metrics", broken)
        with pytest.raises(RuntimeError, match="broken"):
            run(settings_of("mnist_r", "fcn", "seed=1", "wandb.mode=offline"))
    run(settings_of("mnist_r", "fcn", "seed=2", "wandb.mode=offline", steps=STEPS))
    ends = {}
    for folder in run_folders(tmp_path):
        shown = json.loads(leet(folder, "--summary"))
        ends[shown["config"]["seed"]] = (shown["state"], shown["exit_code"], shown["summary"]["status"])
    assert ends == {0: ("failed", 1, "diverged"), 1: ("failed", 1, "failed"), 2: ("finished", 0, "ok")}


def test_a_resumed_run_continues_the_same_wandb_run(offline_environment, settings_of):
    settings = settings_of("mnist_r", "fcn", "wandb.mode=offline")
    first, again = (
        options(settings, {}),
        options(settings.changed(output_dir=settings.output_dir / "elsewhere", device="auto"), {}),
    )
    assert first["id"] == again["id"]
    assert first["resume"] == "allow"
    assert first["group"] == "mnist_r/fcn"  # seeds of one cell
    assert first["mode"] == "offline"
    changes = [
        {"seed": 1},
        {"protocol": "quick"},
        {"results_dir": settings.results_dir / "sweeps"},
        {"data": "standin"},
    ]
    assert len({first["id"], *(options(settings.changed(**change), {})["id"] for change in changes)}) == 5


def test_what_replaces_a_record_is_another_wandb_run(offline_environment, toy_mnist, settings_of):
    settings = settings_of("mnist_r", "fcn", "wandb.mode=offline")
    first = options(settings, {})["id"]
    run(settings_of("mnist_r", "fcn"))
    longer = settings.changed(recipe=settings.recipe | {"steps": settings.recipe["steps"] + 1})
    ids = {options(one, {})["id"] for one in (settings.changed(force=True), longer)}
    assert len(ids) == 1  # of the same record
    assert first not in ids


def test_pictures_are_six_at_most_from_the_start_to_the_end():
    logged = []

    class Counted(WarpPictures):
        def _log(self, trainer, module):
            logged.append(module.steps_done)

    for chunks, expected in ((26, 6), (9, 6), (80, 6), (3, 4), (1, 2)):
        logged.clear()
        pictures, loader = Counted(None), range(chunks)
        module = SimpleNamespace(
            recipe=SimpleNamespace(steps=50 * chunks), train_dataloader=lambda loader=loader: loader
        )
        for module.steps_done in range(0, 50 * chunks + 1, 50):
            (pictures.on_train_batch_end if module.steps_done else pictures.on_train_start)(None, module)
        assert (len(logged), logged[0], logged[-1]) == (expected, 0, 50 * chunks)


def test_a_full_disk_costs_the_artifact_and_not_the_end_of_the_run(
    offline_environment, toy_mnist, settings_of, monkeypatch, caplog
):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stn.trained.write", full)
    settings = settings_of("mnist_r", "fcn", "wandb.mode=offline", "wandb.artifacts=true")
    assert run(settings)["status"] == "ok"
    assert "no W&B artifact" in caplog.text


def test_a_sweep_is_a_group(offline_environment, settings_of):
    plain = settings_of("mnist_r", "fcn", "wandb.mode=offline")
    departed = plain.changed(protocol="smoke-0123abcd")
    assert options(departed, {})["group"] == "sweep of mnist_r/fcn, smoke"
    assert options(departed, {})["job_type"] == "smoke-0123abcd"
    assert options(plain.changed(data="standin"), {})["group"] == "mnist_r/fcn standin"
    for one in (plain, departed):
        assert options(one.changed(wandb=one.wandb.model_dump() | {"group": "rates"}), {})["group"] == "rates"


def test_what_w_and_b_says_is_what_the_record_says(offline_environment, toy_mnist, settings_of, tmp_path):
    """A last step that ruins the net is seen in the test alone, and a net that guesses by its loss."""
    runs = [
        settings_of("mnist_r", "fcn", "wandb.mode=offline", steps=1, optimiser=SGD | {"lr": 1e30}, schedule=STEP),
        settings_of("mnist_r", "cnn", "wandb.mode=offline", optimiser={"lr": 0.0}),
    ]
    records = {record["model"]: (record["status"], record["reason"]) for record in map(run, runs)}
    told, states = {}, set()
    for folder in run_folders(tmp_path):
        shown = json.loads(leet(folder, "--summary"))
        states.add(shown["state"])
        told[shown["config"]["model"]["name"]] = (shown["summary"]["status"], shown["summary"]["reason"])
    assert told == records
    assert states == {"failed"}  # so that no panel averages them
    assert {model: status for model, (status, _) in told.items()} == {"fcn": "diverged", "cnn": "collapsed"}


# -- when W&B does not do what it should ----------------------------------------------------------------------------


def test_without_a_login_nothing_is_recorded_and_one_line_says_what_to_do(
    offline_environment, toy_mnist, settings_of, tmp_path, monkeypatch
):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_MODE")
    settings = settings_of("mnist_r", "fcn")
    before = run(settings)
    online = settings.changed(wandb=settings.wandb.model_dump() | {"mode": "online"})
    with pytest.raises(NotStarted, match=r"W&B did not start .*`wandb login`.*wandb\.mode=offline") as error:
        run(online)
    assert "\n" not in str(error.value)
    assert read_record(settings.record_file) == before


def test_wandbs_end_in_the_middle_does_not_end_the_run(
    offline_environment, toy_mnist, settings_of, tmp_path, monkeypatch, caplog
):
    """Its service process is killed after the first chunk."""
    log, killed = Telemetry.on_train_batch_end, []

    def kill(self, trainer, module, *rest):
        log(self, trainer, module, *rest)
        if not killed:
            killed.extend(_kill_children("wandb-core"))
            time.sleep(0.5)

    monkeypatch.setattr(Telemetry, "on_train_batch_end", kill)
    record = run(settings_of("mnist_r", "st_fcn_affine", "wandb.mode=offline", steps=STEPS))
    assert killed
    assert record["status"] == "ok"
    assert "the run goes on and is tracked offline" in caplog.text
    first, second = run_folders(tmp_path)
    shown = json.loads(leet(second, "--summary"))
    assert (shown["state"], shown["summary"]["status"]) == ("finished", "ok")
    assert shown["run_id"] == second.name.rpartition("-")[2] == first.name.rpartition("-")[2]
    assert max(history_of(second)["train/loss"]) == STEPS


def _kill_children(name):
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        if head.endswith(f"({name}") and int(rest.split()[1]) == os.getpid():
            os.kill(pid := int(path.parent.name), 9)
            yield pid


def test_what_fails_around_a_run_is_not_its_result(offline_environment, toy_mnist, settings_of, monkeypatch):
    def broken(*_):
        raise RuntimeError("no such terminal")

    settings = settings_of("mnist_r", "fcn", "wandb.mode=offline")
    monkeypatch.setattr(Telemetry, "on_train_batch_end", broken)
    with pytest.raises(Interrupted, match="no such terminal; nothing is recorded"):
        run(settings)
    assert not settings.record_file.exists()


def test_a_good_record_is_not_replaced_by_a_failure(toy_mnist, settings_of, monkeypatch):
    def broken(*_):
        raise RuntimeError("broken")

    settings = settings_of("mnist_r", "fcn")
    before = run(settings)
    monkeypatch.setattr("stn.tasks.classification.Classification.chunk_metrics", broken)
    with pytest.raises(RuntimeError, match="broken"):
        run(settings)
    assert read_record(settings.record_file) == before
    run_two = settings.changed(seed=1)
    with pytest.raises(RuntimeError, match="broken"):
        run(run_two)
    assert read_record(run_two.record_file)["status"] == "failed"


def test_every_file_lies_below_the_output_folder(toy_data_dir, tmp_path):
    """With a home folder that takes nothing."""
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    call = [sys.executable, VERB, "experiments.train", "task=mnist_r", "model=fcn", "protocol=smoke", "progress=false"]
    call += [f"data_dir={toy_data_dir}", "results_dir=results", "output_dir=outputs", "device=cpu"]
    call += ["wandb.artifacts=true", "loggers=[csv]", "protocol.mnist.steps=60"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"TOY_DATA_DIR": str(toy_data_dir), "HOME": str(home), "WANDB_MODE": "offline"}
    result = subprocess.run(call, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert (result.returncode, result.stderr) == (0, "")
    assert "wandb sync" in result.stdout
    assert [path for path in home.rglob("*") if path.is_file() and "matplotlib" not in path.parts] == []
    assert {path.name for path in tmp_path.iterdir()} <= {"home", "results", "outputs"}
    (folder,) = run_folders(tmp_path)
    assert "artifact" in {json.loads(line)["type"] for line in leet(folder).splitlines()}
    (rows,) = (tmp_path / "outputs").rglob("csv/metrics.csv")
    assert "train/loss" in rows.read_text().splitlines()[0]


def test_a_wandb_agent_gives_a_run_its_id(offline_environment, toy_mnist, settings_of, tmp_path, monkeypatch):
    for name, value in (("SWEEP_ID", "s1"), ("RUN_ID", "fromagent"), ("SWEEP_PARAM_PATH", str(tmp_path / "none.yaml"))):
        monkeypatch.setenv(f"WANDB_{name}", value)
    run(settings_of("mnist_r", "fcn", "wandb.mode=offline"))
    (folder,) = run_folders(tmp_path)
    assert json.loads(leet(folder, "--summary"))["run_id"] == "fromagent"


def test_a_run_without_tracking_does_not_import_wandb(toy_data_dir, tmp_path):
    call = [sys.executable, VERB, "experiments.train", "task=mnist_r", "model=fcn", "protocol=smoke", "progress=false"]
    call += [f"data_dir={toy_data_dir}", "results_dir=results", "output_dir=outputs", "device=cpu"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment["TOY_DATA_DIR"] = str(toy_data_dir)
    result = subprocess.run(call, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "mnist_r fcn smoke seed 0: ok"
    assert "test/error_pct" in result.stdout
    assert lines[-1] == "wandb imported: False"
    assert record_path(tmp_path / "results", RunKey("mnist_r", "fcn", "smoke", 0)).exists()
    assert not list(tmp_path.rglob("*wandb*"))


def test_the_confusion_matrix_of_many_classes_is_a_picture():
    labels, predicted = torch.tensor([0, 0, 0, 0, 59]), torch.tensor([0, 0, 0, 1, 59])
    (picture,) = confusion(labels, predicted, 60).values()
    pixels = np.asarray(picture.image)
    assert pixels.shape[:2] == (60, 60)
    assert pixels[59, 59] == 0  # all of them
    assert pixels[0, 0] == pytest.approx(64, abs=1)
    assert pixels[0, 1] == pytest.approx(191, abs=1)
    assert (pixels[1:59] == 255).all()
