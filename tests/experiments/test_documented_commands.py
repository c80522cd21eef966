"""Every command that README and docs show is one that the verbs take, exactly as it stands; the short ones are run."""

import re
import shlex
import subprocess
import sys
from functools import cache

import pytest

from experiments import cli, reproduce, sweep, train
from experiments.config import CONF, compose_config, resolved, run_of
from experiments.grid import jobs_of
from stn.data.mnist import holdout
from stn.families import network
from stn.many import search as searching
from stn.results.records import read_records
from stn.settings import check_batch

ROOT = CONF.parent
PAGES = ["README.md", "CONTRIBUTING.md", "data/README.md", "results/bench/README.md", "docs/*.md"]
SMALL = ["protocol.mnist.steps=20", "protocol.mnist.batch_size=4", "device=cpu", "progress=false", "stack=false"]


def shown():
    """The commands of all pages: code between backquotes, and lines of indented blocks, that begin like one."""
    for page in sorted(path for pattern in PAGES for path in ROOT.glob(pattern)):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for code in re.findall(r"`([^`]+)`|^ {4}(.+)$", text, re.MULTILINE):
            command = " ".join("".join(code).partition("  #")[0].split())
            if re.match(r"make [a-z]|(srun .*)?python -m experiments\.", command):
                yield page.relative_to(ROOT).as_posix(), command


COMMANDS = sorted(set(shown()))
TARGETS = sorted(set(re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)))


@cache
def _made(command):
    """What `make` would call, of the verbs."""
    call = [*shlex.split(command), "--dry-run", "--no-print-directory"]
    said = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return re.findall(r"python\"? -m (experiments\.[^<\n]+)", said)


def _verbs(command):
    """(verb, arguments) of each verb that a command calls."""
    calls = _made(command) if command.startswith("make ") else [command.partition("python -m ")[2]]
    for call in calls:
        verb, *arguments = shlex.split(call)
        yield verb.removeprefix("experiments."), arguments


def _check(verb, arguments):
    """Raises where the verb would refuse these arguments before it does anything."""
    flags, overrides = cli.command_line(arguments, verb)
    assert flags == []
    if verb == "train":
        for job in jobs_of(overrides):
            network(run_of(compose_config("train", job)))
        return
    config = compose_config(verb, overrides)
    if verb == "reproduce":
        settings = resolved(cli.OmegaConf.merge(config, {"protocol": None})) | {"protocol": config.protocol.name}
        check_batch(settings)
        assert reproduce._cells(reproduce._spec(settings), settings)
        return
    if verb == "sweep":
        search = sweep._search(config)
        searching.check(search)
        network(search.run)
        return
    wanted = cli.named(config, verb)
    cli.check_kinds(wanted, cli.keys(verb))


def test_the_pages_show_commands():
    assert {verb for _, command in COMMANDS for verb, _ in _verbs(command)} >= {
        "train",
        "reproduce",
        "sweep",
        "prepare",
    }
    assert {page for page, _ in COMMANDS} >= {"README.md", "docs/clusters.md"}


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_is_taken_as_it_stands(page, command):
    assert "…" not in command
    for verb, arguments in _verbs(command):
        _check(verb, arguments)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_of_make_calls_verbs_that_take_its_arguments(target):
    given = "ARGS='sweep=localiser task=mnist_e'" if target == "sweep" else ""
    for verb, arguments in _verbs(f"make {target} {given}"):
        _check(verb, arguments)


def _trains_here(command):
    return re.match(r"python -m experiments\.train .*task=mnist_", command)


@pytest.mark.parametrize(
    "command", [command for page, command in COMMANDS if page == "README.md" and _trains_here(command)]
)
def test_a_training_of_the_readme_ends_in_its_records(command, toy_mnist, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("stn.tasks.classification.GUESSING_MARGIN", -10)
    monkeypatch.setattr("stn.families.mnist.holdout", lambda train: holdout(train, 100))
    places = [f"{name}_dir={tmp_path / name}" for name in ("results", "output")]
    ((_, arguments),) = _verbs(command)
    monkeypatch.setattr(sys, "argv", ["train", *arguments, *SMALL, *places])
    cli.main(train.train)
    _, overrides = cli.command_line(arguments, "train")
    records = read_records(tmp_path / "results" / "sweeps")
    assert len(records) == len(jobs_of(overrides))
    assert {record["status"] for record in records} <= {"ok", "collapsed"}  # in so few steps an ST may leave the image


def test_the_help_of_make_names_every_target():
    said = subprocess.run(
        ["make", "help", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[0] for line in said.splitlines()} == {*TARGETS}


@pytest.mark.parametrize(("name", "path"), [("stn", "/conda/envs/stn/bin/python"), ("base", ".venv/bin/python")])
def test_make_uses_the_conda_environment_of_environment_yml_when_it_is_active(name, path):
    call = ["make", "-n", "-B", "tables", f"CONDA_DEFAULT_ENV={name}", "CONDA_PREFIX=/conda/envs/stn"]
    said = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"{path} -m experiments.tables" in said.replace('"', "")
    assert ("venv .venv" in said) == (name == "base")
