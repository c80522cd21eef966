"""What a record says about where it was made."""

import importlib.metadata
import os
import platform
import subprocess
import sys

import pytest
import torch

from stn.nets.mnist import Cnn, Fcn
from stn.train import provenance
from stn.train.provenance import arithmetic, code_state, device_name, git_state, joined, versions
from tests import tiny


def test_versions_are_those_installed(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", (*provenance.PACKAGES, "no-such-package"))
    found = versions()
    assert found.pop("python") == platform.python_version()
    assert found.pop("no-such-package") == "not installed"
    assert found == {n: importlib.metadata.version(n) for n in ("torch", "torchvision", "pytorch-lightning", "numpy")}


def test_which_way_convolutions_went_and_with_which_instructions(monkeypatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert arithmetic(Fcn((1, 42, 42), (8, 64))).keys() == {"instructions"}
    net = Cnn((1, 42, 42), (8, 64))
    with torch.no_grad():
        net(torch.rand(1, 1, 42, 42))
    assert "convolutions" not in arithmetic(net)  # how it was tested is not how it was trained
    net(torch.rand(1, 1, 42, 42))
    assert arithmetic(net)["convolutions"] == "direct"
    net = Cnn((1, 42, 42), (64, 64))
    net(torch.rand(64, 1, 42, 42))
    assert arithmetic(net)["convolutions"] == "frequency"


def test_a_processor_that_may_not_use_bf16_says_what_it_costs():
    code = "import torch; from stn.train.provenance import cost_of_bf16; print(cost_of_bf16(torch.device('cpu')))"
    imitated = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    found = subprocess.run([sys.executable, "-c", code], env=imitated, capture_output=True, text=True, check=True)
    assert "does not compute in bf16" in found.stdout
    assert "this processor (AVX2" in found.stdout
    assert len(found.stdout.splitlines()) == 1


def test_the_cpu_has_a_name():
    name = device_name(torch.device("cpu"))
    assert name == name.strip() != ""
    assert len(name.splitlines()) == 1


@pytest.fixture
def checkout(monkeypatch, tmp_path):
    """A git checkout of a project whose provenance.py is the one asked."""
    module = tmp_path / "src" / "stn" / "train" / "provenance.py"
    for path in (module, tmp_path / "conf" / "train.yaml", tmp_path / "results" / "runs" / "a.json"):
        path.parent.mkdir(parents=True)
        path.write_text("1\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]

    def git(*arguments):
        call = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "all")
    monkeypatch.setattr(provenance, "__file__", str(module))
    tmp_path.joinpath("head").write_text(git("rev-parse", "HEAD"))
    code_state.cache_clear()
    yield tmp_path
    code_state.cache_clear()


def test_git_state_is_the_revision_of_a_clean_checkout(checkout):
    assert git_state() == {"revision": (checkout / "head").read_text(), "dirty": False}


def test_a_process_keeps_the_state_of_the_code_it_began_with(checkout):
    before = code_state()
    (checkout / "conf" / "train.yaml").write_text("2")
    assert (code_state(), git_state()["dirty"]) == (before, True)


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ([("a", False)], ("a", False)),
        ([("a", False), ("b", False)], ("a, then b", False)),
        ([("a", False), ("a", True)], ("a", True)),
        ([("a", False), (None, None)], ("a, then unknown", False)),
        ([(None, None)], (None, None)),
    ],
)
def test_the_code_of_a_run_is_all_that_trained_it(states, said):
    given = [{"revision": revision, "dirty": dirty} for revision, dirty in states]
    assert joined(given) == {"revision": said[0], "dirty": said[1]}


def test_new_records_do_not_make_a_checkout_dirty(checkout):
    (checkout / "results" / "runs" / "b.json").write_text("2")
    (checkout / "results" / "runs" / "a.json").write_text("2")
    assert git_state()["dirty"] is False


@pytest.mark.parametrize("changed", ["src/stn/train/provenance.py", "conf/train.yaml", "src/stn/new.py"])
def test_changed_code_and_configuration_make_a_checkout_dirty(checkout, changed):
    (checkout / changed).write_text("2")
    assert git_state()["dirty"] is True


def test_without_git_or_a_checkout_the_state_is_unknown(monkeypatch, tmp_path, checkout):
    unknown = {"revision": None, "dirty": None}
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert git_state() == unknown
    monkeypatch.undo()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    elsewhere = tmp_path.parent / "elsewhere" / "src" / "stn" / "train"
    elsewhere.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(elsewhere / "provenance.py"))
    assert git_state() == unknown


def test_the_repository_around_an_environment_is_not_the_checkout(monkeypatch, checkout):
    installed = checkout / ".venv" / "lib" / "python3" / "site-packages" / "stn" / "train"
    installed.mkdir(parents=True)
    (installed / "provenance.py").touch()
    monkeypatch.setattr(provenance, "__file__", str(installed / "provenance.py"))
    assert git_state() == {"revision": None, "dirty": None}


def test_training_in_bf16_says_before_it_starts_what_that_costs_here(toy_mnist, settings_of, monkeypatch, caplog):
    monkeypatch.setattr(provenance, "computes_bf16", lambda: False)
    tiny.run(settings_of("mnist_r", "fcn", steps=2))
    assert caplog.messages == []
    tiny.run(settings_of("mnist_r", "fcn", steps=2).changed(precision="bf16"))
    assert [message for message in caplog.messages if "ten times as long as in float32" in message] == caplog.messages
    assert len(caplog.messages) == 1
    assert provenance.cost_of_bf16(torch.device("cuda")) is None
