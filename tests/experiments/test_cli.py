"""Wrong input gives one line that names what is allowed; changed settings get a protocol name of their own."""

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import reproduce
from experiments.cli import explain
from experiments.config import CONF, compose_config, compose_run, options, run_of
from stn.families import build, mnist
from stn.results.records import flat

ROOT = Path(__file__).parents[2]
VERB = ROOT / "tests" / "train" / "toy_verb.py"
CELL = ["task=mnist_rts", "model=st_cnn_tps"]


def of(*overrides):
    """The run that experiments.train makes of these."""
    return run_of(compose_config("train", list(overrides)))


def line_of(config, call, *arguments):
    """The one line that a user reads instead of the traceback of `call`."""
    with pytest.raises(Exception) as error:  # noqa: PT011, whatever kind: its line is what counts
        call(*arguments)
    line = explain(error.value, config)
    assert line is not None, f"taken for a bug: {error.value!r}"
    assert line.strip() == line != ""
    assert "\n" not in line
    return line


@pytest.mark.parametrize("group", ["task", "model", "protocol"])
def test_an_unknown_name_of_a_group_lists_the_known_ones(group):
    overrides = [o for o in CELL if not o.startswith(group)] + [f"{group}=nonesuch"]
    line = line_of("train", compose_run, overrides)
    assert "nonesuch" in line
    assert all(name in line for name in options(group))


@pytest.mark.parametrize(("given", "missing"), [(CELL[:1], "model"), (CELL[1:], "task")])
def test_a_missing_group_lists_its_names(given, missing):
    line = line_of("train", compose_run, given)
    assert line.startswith(f"{missing}=")
    assert "is missing" in line
    assert all(name in line for name in options(missing))


@pytest.mark.parametrize(
    ("override", "named", "hint", "allowed"),
    [
        ("sead=1", "sead", "seed", ["seed", "data_dir", "wandb"]),
        ("protocol.mnist.optimiser.learning_rate=1", "learning_rate", None, ["lr", "weight_decay", "name"]),
        ("protocol.mnist.batchsize=1", "batchsize", "batch_size", ["batch_size"]),
        ("protocol.svhm.steps=1", "svhm", "svhn", ["mnist", "coloc"]),
        ("wandb.mod=offline", "mod", "mode", ["mode", "project"]),
        ("task.distortion.canvass=50", "canvass", None, ["rotation_deg"]),
        ("xyz=1", "xyz", None, ["seed", "task", "model"]),
    ],
)
def test_an_unknown_key_is_named_with_its_neighbours(override, named, hint, allowed):
    line = line_of("train", compose_run, [*CELL, override])
    assert named in line
    assert all(name in line for name in allowed)
    assert ("did you mean" in line) == (hint is not None)
    assert hint is None or f"did you mean {hint}?" in line


def test_a_setting_inside_a_number_is_refused():
    line = line_of("train", compose_run, [*CELL, "protocol.mnist.steps.x=1"])
    assert line.startswith("protocol.mnist.steps has no settings of its own")


def test_the_neighbours_of_an_unknown_key_are_those_of_the_chosen_protocol():
    cell = ["task=svhn_64", "model=svhn_cnn,svhn_st_single", "protocol=part"]
    with pytest.raises(Exception, match="Could not override") as error:
        compose_config("train", [cell[0], "model=svhn_cnn", cell[2], "protocol.svhn.augment.shift=0.1"])
    line = explain(error.value, "train", cell)
    assert "did you mean augmentation?" in line
    assert "width" in line


def test_a_key_that_only_one_of_the_chosen_options_has_is_said_to_be_theirs():
    key, chosen = "protocol.svhn.augmentation.shift", ["task=svhn_64", "model=svhn_cnn", "protocol=part,fast"]
    with pytest.raises(Exception, match="Could not override") as error:
        compose_config("train", [*chosen[:2], "protocol=fast", f"{key}=0.1"])
    assert explain(error.value, "train", chosen) == f"{key} is a setting of some of {' '.join(chosen)} only"


@pytest.mark.parametrize(("override", "named"), [("sed=1", "seeds"), ("worker=1", "workers"), ("tabel=x", "table")])
def test_an_unknown_key_of_reproduce_is_compared_with_its_own_settings(override, named):
    assert f"did you mean {named}?" in line_of("reproduce", compose_config, "reproduce", [override])


@pytest.mark.parametrize(
    "broken", ["=", "seed", "seed=", "seed=[1", "protocol.mnist=3", "task=", "+seed=1", "~model", "recipe=fast"]
)
def test_text_that_is_no_override_ends_in_one_line(toy_mnist, broken):
    line_of("train", lambda: build(of(*CELL, broken)))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("protocol.mnist.optimiser.lr=fast", ["protocol.mnist.optimiser.lr", "a number", "'fast'"]),
        ("protocol.mnist.steps=1e3", ["protocol.mnist.steps", "an integer", "1000.0"]),
        ("protocol.mnist.steps=null", ["protocol.mnist.steps", "an integer", "None"]),
        ("protocol.mnist.antialias=1", ["protocol.mnist.antialias", "true or false", "1"]),
        ("protocol.mnist.optimiser.name=adam", ["sgd", "adamw", "'adam'"]),
        ("protocol.mnist.schedule.name=linear", ["step", "one_cycle", "'linear'"]),
        ("protocol.mnist.padding=mirror", ["zeros, border", "'mirror'"]),
        ("seed=one", ["seed", "integer", "'one'"]),
        ("seed=-1", ["seed", "0 or more", "-1"]),
        ("threads=0", ["threads", "more than 0", "got 0"]),
        ("device=gpu", ["device", "auto, cpu, cuda", "'gpu'"]),
        ("evaluate=train", ["evaluate", "test, heldout", "'train'"]),
        ("wandb.mode=on", ["wandb.mode", "disabled, offline, online"]),
        ("task.distortion.name=x", ["distortion", "'r', 'rts', 'rts_ink', 'p', 'e', 'tc'", "'x'"]),
        ("model.transformation=spline", ["transformation", "affine", "tps", "'spline'"]),
    ],
)
def test_a_value_that_cannot_be_is_named_with_what_is_allowed(toy_mnist, override, named):
    line = line_of("train", lambda: build(of(*CELL, override)))
    assert all(part in line for part in named), line


@pytest.mark.parametrize(
    ("cell", "named"),
    [
        (["task=mnist_rts", "model=st_cnn_tps", "task.distortion.canvas=20"], "20x20 px is too small"),
        (["task=mnist_rts", "model=cnn", "task.distortion.canvas=12"], "12x12 px is too small"),
        (
            ["task=mnist_tc", "model=fcn", "task.distortion.canvas=20"],
            "distortion.canvas must be an integer, 28 or more",
        ),
        (["task=mnist_r", "model=st_fcn_tps", "protocol.mnist.budget_fraction=0.1"], "no layer widths give"),
    ],
)
def test_a_pair_that_cannot_be_is_refused_before_training(toy_mnist, cell, named):
    assert named in line_of("train", lambda: build(compose_run(cell)))


def test_missing_data_say_what_to_do(tmp_path):
    settings = compose_run([*CELL, f"data_dir={tmp_path}"])
    assert "python -m experiments.prepare" in line_of("train", build, settings)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["tasks=[mnist_r,mnist_x]"], ["mnist_x", "mnist_r, mnist_rts"]),
        (["models=[resnet]"], ["resnet", "fcn, cnn"]),
        (["seeds=two"], ["seeds", "an integer", "'two'"]),
        (["workers=0"], ["workers", "more than 0", "got 0"]),
        (["time_budget_s=10m"], ["time_budget_s", "a number", "'10m'"]),
        (["stack=perhaps"], ["stack", "auto, True, False", "'perhaps'"]),
    ],
)
def test_reproduce_refuses_what_cannot_be_before_it_does_anything(overrides, named):
    verb = inspect.unwrap(reproduce.reproduce)
    line = line_of("reproduce", verb, compose_config("reproduce", [*overrides, "dry_run=true"]))
    assert all(part in line for part in named)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("protocol.svhn.steps=3", "protocol.svhn.steps: mnist_rts/st_cnn_tps/fast/seed0 does not read it"),
        ("protocol.addition.optimiser.lr=3", "protocol.addition.optimiser.lr: "),
        ("protocol.notes.svhn=x", "protocol.notes.svhn: "),
        ("+protocol.mnist.optimiser.momentum=0.9", "unknown key 'protocol.mnist.optimiser.momentum'"),
        ("+protocol.mnist.lr=0.1", "unknown key 'protocol.mnist.lr'"),
        (
            "protocol.mnist.optimiser.momentum=0.9",
            "no setting 'momentum' in protocol.mnist.optimiser; allowed: lr, name",
        ),
        ("+task.classes=11", "unknown key 'task.classes'"),
        ("+model.windows=2", "unknown key 'model.windows'"),
    ],
)
def test_a_setting_that_the_run_does_not_read_is_refused(toy_mnist, override, named):
    assert named in line_of("train", lambda: build(of(*CELL, override)))


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ("mnist_r fcn", "steps_of.mnist_tc.cnn"),
        ("mnist_r fcn", "batch_of.cnn"),
        ("mnist_r fcn", "optimiser_of.cnn.lr"),
        ("addition cnn", "optimiser_of.cnn.lr"),
    ],
)
def test_a_setting_of_another_cell_is_refused(toy_mnist, cell, name):
    task, model = cell.split()
    overrides = (f"task={task}", f"model={model}", "protocol=modern", f"protocol.{name}=3")
    assert f"protocol.{name}: " in line_of("train", lambda: build(of(*overrides)))


@pytest.mark.parametrize(
    ("task", "model", "name", "read"),
    [
        ("mnist_r", "st_cnn_tps", "batch_of.cnn", "batch_size"),
        ("mnist_tc", "cnn", "steps_of.mnist_tc.cnn", "steps"),
        ("addition", "cnn", "batch_of.cnn", "batch_size"),
        ("mnist_p", "cnn", "optimiser_of.cnn.lr", "optimiser.lr"),
        ("addition", "cnn", "addition.optimiser.lr", "optimiser.lr"),
    ],
)
def test_a_setting_of_the_own_cell_counts(task, model, name, read):
    run = of(f"task={task}", f"model={model}", "protocol=modern", f"protocol.{name}=9")
    assert flat(run.recipe)[read] == 9
    assert run.protocol != "modern"


def test_a_protocol_can_be_given_another_optimiser_and_schedule():
    sgd = ["protocol.mnist.optimiser.name=sgd", "+protocol.mnist.optimiser={momentum: 0.9, nesterov: false}"]
    step = ["protocol.mnist.schedule.name=step", "~protocol.mnist.schedule.warmup_fraction"]
    run = of(*CELL, *sgd, *step, "+protocol.mnist.schedule={every: 9, factor: 0.1}")
    *_, recipe = run.read(mnist.Task, mnist.Model, mnist.Recipe)
    assert [type(part).__name__ for part in (recipe.optimiser, recipe.schedule)] == ["Sgd", "Step"]


def test_a_bug_is_not_taken_for_the_users_error():
    assert explain(KeyError("x")) is None
    assert explain(RuntimeError("shapes")) is None


# -- the commands themselves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (["experiments.train", "task=mnist_r", "model=vgg"], "model=vgg does not exist; allowed: cnn"),
        (
            ["experiments.train", *CELL, "protocol.mnist.optimiser.lr=-1", "data_dir=nowhere"],
            "protocol.mnist.optimiser.lr must be 0 or more",
        ),
        (
            ["experiments.train", "task=mnist3d", "model=cnn"],
            "missing key 'model.projection'; its models: cnn3d, projection_cnn, st3d_cnn",
        ),
        (["experiments.reproduce", "table=table9"], "table=table9 does not exist; allowed: table1"),
        (["experiments.figures", "table=table1", "protocol=part"], "no record of table1 at protocol=part"),
        (["experiments.export", "models=[cnn,vgg]"], "models=vgg: no record of it; allowed: cnn, fcn"),
        (
            ["experiments.reproduce", "table=table2", "protocol=modern"],
            "this protocol says nothing about svhn tasks; allowed: protocol=fast, paper, part, quick, smoke",
        ),
    ],
)
def test_a_command_ends_in_one_line_and_status_2(tmp_path, call, named):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    result = subprocess.run(
        [sys.executable, "-m", *call], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert named in result.stderr
    assert list(tmp_path.iterdir()) == []


# -- variants -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 3])
def test_unchanged_settings_keep_their_protocol(seed):
    settings = [*CELL, "protocol=fast", f"seed={seed}"]
    assert of(*settings) == compose_run(settings)


@pytest.mark.parametrize(
    "override",
    [
        "protocol_note=reworded",
        "data_dir=/elsewhere",
        "results_dir=/other",
        "output_dir=/scratch",
        "device=cpu",
        "threads=2",
        "progress=false",
        "wandb.mode=offline",
        "protocol.mnist.optimiser.lr=0.005",  # what it is already
        "protocol.mnist.optimiser.weight_decay=0",  # 0.0
        "protocol.mnist.localiser_lr_multiplier=1",  # 1.0
    ],
)
def test_notes_paths_and_places_make_no_variant(override):
    settings = [*CELL, "protocol=fast", override]
    assert of(*settings) == compose_run(settings)


@pytest.mark.parametrize(
    "override",
    [
        "protocol.mnist.optimiser.lr=0.004",
        "protocol.mnist.antialias=true",
        "task.distortion.rotation_deg=30",
        "task.st_output_pool=1",
        "model.localisation=fc",
        "evaluate=heldout",
    ],
)
def test_a_changed_setting_gets_a_protocol_and_a_folder_of_its_own(tmp_path, override):
    plain = compose_run([*CELL, "protocol=fast", f"results_dir={tmp_path}"])
    changed = compose_run([*CELL, "protocol=fast", f"results_dir={tmp_path}", override])
    variant = of(*CELL, "protocol=fast", f"results_dir={tmp_path}", override)
    assert variant.protocol.startswith("fast-")
    assert variant.results_dir == tmp_path / "sweeps"
    assert variant.record_file != plain.record_file
    assert not variant.record_file.is_relative_to(tmp_path / "runs")  # where the tables look
    assert variant.recipe == changed.recipe


@pytest.mark.parametrize("key", ["weight_decay", "lerning_rate"])
def test_a_setting_of_the_shared_ones_that_is_not_read_is_refused(key):
    cell = ["task=mnist_r", "model=cnn", "protocol=modern", f"+protocol.optimiser_of.cnn.{key}=64"]
    assert line_of("train", of, *cell).startswith(f"protocol.optimiser_of.cnn.{key}: mnist_r/cnn/modern/seed0 does not")


@pytest.mark.parametrize("group", ["model", "protocol"])
def test_a_copied_file_that_kept_its_name_is_refused(monkeypatch, tmp_path, group):
    shutil.copytree(CONF, tmp_path / "conf")
    kept = {"model": "fcn", "protocol": "fast"}[group]
    shutil.copy(CONF / group / f"{kept}.yaml", tmp_path / "conf" / group / "mine.yaml")
    monkeypatch.setattr("experiments.config.CONF", tmp_path / "conf")
    cell = [o for o in ("task=mnist_r", "model=fcn", "protocol=fast") if not o.startswith(group)]
    line = line_of("train", compose_run, [*cell, f"{group}=mine"])
    assert line == f"conf/{group}/mine.yaml: its name must be mine, as the file's, got '{kept}'"
    (tmp_path / "conf" / group / "mine.yaml").write_text("name: [")
    assert "mine.yaml" in line_of("train", compose_run, [*cell, f"{group}=mine"])


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("tasks=mnist_r,mnist_e", "tasks=mnist_r,mnist_e: several values are tasks=[mnist_r,mnist_e]"),
        ("dry_run=no", "dry_run must be true or false, got 'no'"),
        ("retry=maybe", "retry must be true or false, got 'maybe'"),
        ("models=vgg", "models=vgg not in table1; allowed: fcn, cnn, st_fcn_affine"),
        ("data=standin", "data=standin: mnist_r has only data=real"),
        ("force=true time_budget_s=1", "force=true begins anew each time"),
    ],
)
def test_reproduce_refuses_what_it_cannot_do(override, line, tmp_path):
    places = [f"{name}_dir={tmp_path}" for name in ("data", "results", "output")]
    said = line_of("reproduce", lambda: reproduce.reproduce(compose_config("reproduce", [*places, *override.split()])))
    assert said.startswith(line)


def test_variants_differ_by_setting_and_agree_over_seeds():
    def name(*overrides):
        return of(*CELL, *overrides).protocol

    names = [
        name("protocol.mnist.optimiser.lr=0.1"),
        name("protocol.mnist.optimiser.lr=0.2"),
        name("protocol.mnist.steps=5"),
    ]
    assert len(set(names)) == 3
    assert name("protocol.mnist.optimiser.lr=0.1", "seed=4") == names[0]


def test_a_setting_younger_than_the_records_leaves_their_hash_as_it_was():
    """None of the distortion's growth or of the labels' smoothing is what all runs before them had."""
    plain = of(*CELL, "protocol=fast")
    assert plain.recipe.keys() > {"label_smoothing", "distortion_ramp"}
    assert plain.config["recipe"].keys().isdisjoint({"label_smoothing", "distortion_ramp"})
    changed = of(*CELL, "protocol=fast", "protocol.mnist.distortion_ramp=0.3")
    assert changed.config["recipe"] == plain.config["recipe"] | {"distortion_ramp": 0.3}
    assert changed.protocol_note == f"{plain.protocol_note}; but distortion_ramp=0.3"


def test_the_note_of_a_variant_ends_with_what_it_departs_in():
    plain = of(*CELL, "protocol=fast")
    variant = of(*CELL, "protocol=fast", "protocol.mnist.steps=20", "protocol.mnist.optimiser.lr=0.1", "precision=bf16")
    assert variant.protocol_note == f"{plain.protocol_note}; but steps=20, optimiser.lr=0.1, precision=bf16"


def test_the_note_of_a_variant_names_what_was_taken_away():
    cell = ("task=svhn_64", "model=svhn_cnn", "protocol=part", "data=subset")
    note = of(*cell, "~protocol.svhn.augmentation").protocol_note
    assert note.startswith(f"{of(*cell).protocol_note}; but augmentation.shift=None, ")


def test_a_time_budget_ends_with_a_status_of_its_own_and_says_how_to_go_on(toy_data_dir, tmp_path):
    call = [sys.executable, VERB, "experiments.train", "task=mnist_r", "model=fcn", "protocol=smoke", "device=cpu"]
    call += ["progress=false", f"data_dir={toy_data_dir}", "results_dir=results", "output_dir=outputs"]
    environment = os.environ | {"TOY_DATA_DIR": str(toy_data_dir)}
    goes_on = "after step 50 of 150; the same command goes on"
    for budget, said, status in (("time_budget_s=0", goes_on, 75), ("seed=0", "seed 0: ok", 0)):
        result = subprocess.run(
            [*call, budget], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300
        )
        assert (result.returncode, result.stderr) == (status, "")
        assert said in result.stdout
    assert len(list((tmp_path / "results").rglob("*.json"))) == 1
