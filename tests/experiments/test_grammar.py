"""Every verb reads key=value, explains itself, and works in any folder, whatever signs are in its name."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from experiments import cli
from experiments.config import CONF, compose_config, keys, options, quoted, resolved

ROOT = CONF.parent
VERBS = sorted(path.stem for path in CONF.glob("*.yaml"))
ODD = [
    "a=b",
    "a,b",
    "f(x)",
    "two words",
    "Größe",
    "it's",
    'say "x"',
    "back\\slash",
    "ends\\",
    "[1]",
    "{a}",
    "a:b",
    "~x",
]


def verb_of(name):
    """The function that `python -m experiments.<name>` calls."""
    return getattr(__import__(f"experiments.{name}", fromlist=[name]), name)


def ended(monkeypatch, capsys, name, *arguments):
    """(exit status, what it said on stdout, on stderr) of a verb."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    status = 0
    try:
        cli.main(verb_of(name))
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def test_every_module_that_is_a_command_is_a_verb():
    commands = {p.stem for p in (ROOT / "experiments").glob("*.py") if "__main__" in p.read_text(encoding="utf-8")}
    assert commands == set(VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_help_says_what_a_verb_does_and_names_its_groups_and_keys(monkeypatch, capsys, name):
    status, said, error = ended(monkeypatch, capsys, name, "--help")
    assert (status, error) == (0, "")
    assert f"python -m experiments.{name}" in said.splitlines()[0]
    assert all(f"  {key}:" in said for key in keys(name))
    assert not any(said.count(f"\n  {key}:") > 1 for key in keys(name))
    groups = cli.described(name)[0]
    assert all(option in said for group in groups for option in options(group))
    assert "defaults" not in said
    assert "hydra:" not in said
    above_a_key = re.findall(r"(?<=\n)#.*", (CONF / f"{name}.yaml").read_text(encoding="utf-8").partition("\n\n")[2])
    assert all(f"  {line}" in said for line in above_a_key)


def test_a_reader_who_has_had_enough_of_the_help_hears_no_complaint():
    command = [sys.executable, "-m", "experiments.train", "--help"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


def test_help_needs_no_torch_and_no_hydra():
    code = (
        "import sys, types, experiments.cli as c; sys.argv = ['train', '--help']; m = types.ModuleType('m', 'd');"
        "sys.modules['m'] = m; f = lambda: None; f.__module__, f.__name__ = 'm', 'train'; c.main(f);"
        "sys.exit(bool({'torch', 'hydra'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("name", VERBS)
def test_an_unknown_key_is_one_line_with_those_there_are(monkeypatch, capsys, name):
    given = {"train": ["task=mnist_r", "model=fcn"], "sweep": ["sweep=localiser"]}.get(name, [])
    status, said, error = ended(monkeypatch, capsys, name, *given, "nonesuch=1")
    assert (status, said, len(error.splitlines())) == (2, "", 1)
    assert "nonesuch" in error
    assert all(key in error for key in keys(name))


@pytest.mark.parametrize("name", VERBS)
def test_no_key_has_the_name_of_a_group(name):
    """Hydra takes `task=…` for the group's option, and a key of that name could not be set at all."""
    assert not {folder.name for folder in CONF.iterdir() if folder.is_dir()} & set(keys(name))


def test_a_benchmark_can_be_told_its_task():
    assert cli.named(compose_config("bench", ["task=mnist_rts"]), "bench")["task"] == "mnist_rts"
    assert cli.named(compose_config("bench_svhn", ["task=svhn_128"]), "bench_svhn")["task"] == "svhn_128"


@pytest.mark.parametrize("name", sorted(set(VERBS) - {"train", "reproduce", "sweep"}))
@pytest.mark.parametrize("word", ["mnist", "--check", "=1"])
def test_a_word_that_is_no_key_and_value_is_refused_in_a_line(monkeypatch, capsys, name, word):
    status, said, error = ended(monkeypatch, capsys, name, word)
    assert (status, said, len(error.splitlines())) == (2, "", 1)
    assert word in error


@pytest.mark.parametrize(
    ("name", "argument", "named"),
    [
        ("prepare", "dataset=imagenet", "dataset must be one of cub, mnist, svhn, got 'imagenet'"),
        ("prepare", "data=drawn", "dataset must be one of cub, mnist, svhn, got None"),
        ("figures", "table=table9", "table=table9 does not exist; allowed: table1"),
        ("figures", "data=drawn", "data must be one of real, subset, standin, got 'drawn'"),
        ("tables", "check=perhaps", "check must be true or false, got 'perhaps'"),
        ("records", "results_dir=results", "give either pack=<archive> or merge=<archive>"),
        ("bench", "what=[loop,speed]", "precision, convolutions, growth, stacks, got 'speed'"),
        ("bench", "what=[stacks]", "what=stacks: they take turns on a CPU; give device=cuda"),
        ("bench_svhn", "repeats=few", "repeats must be an integer, got 'few'"),
        ("dashboard", "wandb.project=3", "wandb.project must be a name, got 3"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_a_line(monkeypatch, capsys, name, argument, named):
    status, said, error = ended(monkeypatch, capsys, name, argument)
    assert (status, said, len(error.splitlines())) == (2, "", 1)
    assert named in error


def test_every_key_has_its_words():
    for name in VERBS:
        for block in yaml.compose((CONF / f"{name}.yaml").read_text(encoding="utf-8")).value:
            assert block[0].value in (*cli.described(name)[1], "defaults", "hydra")


# -- folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ODD)
@pytest.mark.parametrize("name", ["train", "reproduce", "tables"])
def test_a_folder_is_taken_as_it_is_written(folder, name):
    given = {"train": ["task=mnist_r", "model=fcn"]}.get(name, [])
    for written in (folder, f"/tmp/{folder}", f"{folder}/x"):
        _, overrides = cli.command_line([*given, f"results_dir={written}"], name)
        assert compose_config(name, overrides).results_dir == written


@pytest.mark.parametrize("folder", ODD)
def test_a_quoted_text_is_read_whole(folder):
    assert compose_config("tables", [f"results_dir={quoted(folder)}"]).results_dir == folder


def test_quotes_of_the_users_own_and_interpolations_stay():
    _, overrides = cli.command_line(["results_dir='a,b'", "readme=${results_dir}/x.md", "conf_dir=null"], "tables")
    wanted = resolved(compose_config("tables", overrides))
    assert (wanted["results_dir"], wanted["readme"], wanted["conf_dir"]) == ("a,b", "a,b/x.md", None)


def test_folders_that_are_not_given_are_the_checkouts(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert cli.command_line(["check=true"], "tables") == ([], ["check=true"])
    monkeypatch.chdir(tmp_path)
    _, overrides = cli.command_line(["results_dir=here"], "sweep")
    wanted = compose_config("sweep", ["sweep=localiser", *overrides])
    folders = (wanted.data_dir, wanted.results_dir, wanted.output_dir)
    assert folders == (str(ROOT / "data"), "here", str(ROOT / "outputs"))


def test_a_command_works_from_another_folder(tmp_path):
    call = [sys.executable, "-m", "experiments.tables", "check=true"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "LC_ALL": "C", "PYTHONUTF8": "0"}
    result = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    assert "files up to date" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_key_value_is_told_from_what_is():
    given = ["task=mnist_r", "--multirun", "seed=0,1", "~model", "+x.y=1"]
    flags, overrides = cli.command_line([*given, *(f"{name}=x" for name in keys("train") if "dir" in name)], "train")
    assert flags == ["--multirun"]
    assert overrides[:4] == ["task=mnist_r", "seed=0,1", "~model", "+x.y=1"]
