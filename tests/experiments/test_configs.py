"""conf/: everything composes, names mean one thing, and the numbers of the paper are the paper's."""

import functools
import re
import tomllib

import pytest
import yaml

from experiments.cli import named
from experiments.config import CONF, compose_config, compose_run, options
from experiments.prepare import prepare
from stn import families
from stn.data.distortions import distortion
from stn.families import FAMILIES
from stn.nets.budget import TOLERANCE, build_within_budget, count_parameters
from stn.nets.mnist import Architecture, Cnn
from stn.results.tables import load_table

ROOT = CONF.parent
DATA_SETS = families.data_sets()
THE_PAPERS = {"addition", "coloc", "cub", "cub_coloc", "mnist", "mnist3d", "svhn"}  # families
PROTOCOLS = ("smoke", "quick", "fast", "paper")
MNIST = ("mnist_r", "mnist_rts", "mnist_p", "mnist_e", "mnist_tc")
TABLE_1_MODELS = [f"st_{c}_{t}" for c in ("fcn", "cnn") for t in ("affine", "projective", "tps")] + ["fcn", "cnn"]


@functools.cache
def composed(task, model, protocol):
    return compose_run([f"task={task}", f"model={model}", f"protocol={protocol}"])


@functools.cache
def parameters(architecture, canvas, classes, pool, budget):
    """Tasks and protocols that ask for the same network share it."""
    net, _ = build_within_budget(lambda widths: architecture.build((1, *canvas), widths, classes, pool), budget)
    return count_parameters(net)


@pytest.mark.parametrize("data_set", ["cub", "svhn"])
def test_preparing_a_data_set_prepares_every_task_that_shows_its_pictures(monkeypatch, data_set):
    prepared = []
    monkeypatch.setattr(families, "prepare", lambda run: prepared.append(run.task.name))
    monkeypatch.setattr(families, "data_sets", lambda: {name: s._replace(fetch=print) for name, s in DATA_SETS.items()})
    prepare(named(compose_config("prepare", [f"dataset={data_set}", "protocol=part"]), "prepare"))
    shown = {task for task in options("task") if task.startswith(data_set)}
    assert set(prepared) == shown - {"cub_pretrain", "svhn_64_drawn", "svhn_64_both"}  # these are (partly) drawn


@pytest.mark.parametrize("model", TABLE_1_MODELS)
@pytest.mark.parametrize("task", MNIST)
def test_every_cell_composes_and_its_network_is_within_the_budget_of_every_protocol(task, model):
    settings = composed(task, model, "paper")
    assert (settings.task.name, settings.model.name) == (task, model)
    recipes = [composed(task, "fcn", protocol).recipe for protocol in PROTOCOLS]
    assert recipes[-1] == settings.recipe  # a recipe does not depend on the model
    architecture = Architecture(**settings.model.model_dump(exclude={"name"}))
    canvas = distortion(**settings.task.distortion).canvas
    for fraction in {recipe["budget_fraction"] for recipe in recipes}:
        budget = round(settings.task.budget * fraction)
        found = parameters(architecture, canvas, 10, settings.task.st_output_pool, budget)
        assert abs(found / budget - 1) <= TOLERANCE


def test_budgets_are_the_papers_around_400k_but_on_28_px_those_of_a_cnn_with_its_most_filters():
    budgets = {task: composed(task, "fcn", "paper").task.budget for task in (*MNIST, "addition")}
    assert {task: budgets.pop(task) for task in ("mnist_rts", "mnist_tc", "addition")} == dict.fromkeys(
        ("mnist_rts", "mnist_tc", "addition"), 400_000
    )
    assert set(budgets.values()) == {count_parameters(Cnn((1, 28, 28), (64, 64)))}
    for protocol in ("fast", "modern", "paper"):
        assert composed("mnist_r", "fcn", protocol).recipe["budget_fraction"] == 1


@pytest.mark.parametrize("path", sorted(CONF.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_file_is_called_what_it_defines(path):
    content = yaml.safe_load(path.read_text())
    if path.parent.name in ("task", "model", "protocol", "table"):
        assert content["name"] == path.stem
    assert re.fullmatch(r"[a-z0-9_]+", path.stem)


@pytest.mark.parametrize("protocol", options("protocol"))
def test_a_protocol_says_in_a_line_what_it_is_and_names_every_setting_of_the_paper(protocol):
    content = yaml.safe_load((CONF / "protocol" / f"{protocol}.yaml").read_text())
    assert all(len(note.splitlines()) == 1 for note in content["notes"].values())
    families = content["notes"].keys()
    assert families <= FAMILIES.keys() & content.keys()
    if protocol in PROTOCOLS:
        assert families >= THE_PAPERS
    assert content.keys() - {"name", "notes", *FAMILIES} <= {"steps_of", "batch_of", "optimiser_of"}
    assert all(content.get(name, {}).keys() <= {"fcn", "cnn"} for name in ("batch_of", "optimiser_of"))
    by_task = content.get("steps_of", {})
    assert by_task.keys() <= set(options("task"))
    of_models = [by_model for by_model in by_task.values() if isinstance(by_model, dict)]  # else of all models
    assert all(by_model.keys() <= set(options("model")) for by_model in of_models)
    paper = yaml.safe_load((CONF / "protocol" / "paper.yaml").read_text())
    for family in families & paper.keys():
        assert content[family].keys() - {"augmentation"} == paper[family].keys()  # which the paper has none of
        assert {"name", "lr", "weight_decay"} <= content[family]["optimiser"].keys()


# -- the paper's numbers (Sect. 4.1, App. A.4) ----------------------------------------------------------------------


def test_the_papers_protocol_has_the_papers_numbers():
    assert composed("mnist_r", "fcn", "paper").recipe == {
        "budget_fraction": 1,
        "batch_size": 256,
        "steps": 150_000,
        "optimiser": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": False, "weight_decay": 0},
        "schedule": {"name": "step", "every": 50_000, "factor": 0.1},
        "localiser_lr_multiplier": 1,
        "padding": "zeros",
        "antialias": False,
        "test_draws": 10,
        "label_smoothing": 0,
        "distortion_ramp": 0,
    }


@pytest.mark.parametrize(
    ("task", "distorted", "pool"),
    [
        ("mnist_r", {"name": "r", "rotation_deg": 90}, 1),
        ("mnist_rts", {"name": "rts", "rotation_deg": 45, "scale": [0.7, 1.2], "canvas": 42, "max_shift_px": 7}, 2),
        ("mnist_p", {"name": "p", "scale": [0.75, 1.0], "sigma_px": 3}, 1),
        ("mnist_e", {"name": "e", "scale": [0.75, 1.0], "sigma_px": 1.5}, 1),
        ("mnist_tc", {"name": "tc", "canvas": 60, "n_patches": 6, "patch_px": 6}, 2),
    ],
)
def test_a_task_has_the_papers_distortion(task, distorted, pool):
    settings = composed(task, "fcn", "paper").task
    assert settings.distortion == distorted
    assert settings.st_output_pool == pool


@pytest.mark.parametrize("model", TABLE_1_MODELS)
def test_a_model_is_what_its_name_says(model):
    *st, classifier, transformation = model.split("_") if "_" in model else (model, None)
    settings = composed("mnist_r", model, "paper").model.model_dump()
    localisation = {"fcn": "fc", "cnn": "conv"}[classifier] if st else None
    assert settings == {
        "name": model,
        "classifier": classifier,
        "transformation": transformation,
        "localisation": localisation,
    }


TABLE_1 = """
fcn               2.1 5.2 3.1 3.2 13.2
cnn               1.2 0.8 1.5 1.4 3.5
st_fcn_affine     1.2 0.8 1.5 2.7 2.0
st_fcn_projective 1.3 0.9 1.4 2.6 -
st_fcn_tps        1.1 0.8 1.4 2.4 -
st_cnn_affine     0.7 0.5 0.8 1.2 1.7
st_cnn_projective 0.8 0.6 0.8 1.3 -
st_cnn_tps        0.7 0.5 0.8 1.1 -
"""


def test_table_1_has_the_papers_numbers():
    wanted = {}
    for model, *numbers in map(str.split, TABLE_1.strip().splitlines()):
        wanted[model] = {task: float(n) for task, n in zip(MNIST, numbers, strict=True) if n != "-"}
    spec = load_table(CONF / "table" / "table1.yaml")
    assert spec.reference == wanted
    assert spec.tasks == MNIST
    assert spec.models == tuple(wanted)
    assert spec.lower_is_better


def test_table_5_has_the_papers_numbers():
    reference = load_table(CONF / "table" / "table5.yaml").reference
    assert [reference[f"digit{k}"]["coloc_t"] for k in range(10)] == [100] * 10
    assert [reference[f"digit{k}"]["coloc_tc"] for k in range(10)] == [81, 82, 88, 75, 94, 84, 93, 85, 89, 87]


@pytest.mark.parametrize(("model", "batch_size"), [("fcn", 256), ("st_fcn_affine", 256), ("cnn", 128)])
@pytest.mark.parametrize("task", [*MNIST, "addition"])
def test_modern_is_the_papers_networks_in_at_most_a_tenth_of_its_images(task, model, batch_size):
    modern, paper = (composed(task, model, protocol).recipe for protocol in ("modern", "paper"))
    assert modern["batch_size"] == batch_size
    assert 10 * modern["steps"] <= paper["steps"]
    assert batch_size <= paper["batch_size"]
    assert modern["budget_fraction"] == paper["budget_fraction"]


@pytest.mark.parametrize(("task", "n_patches"), [("coloc_t", 0), ("coloc_tc", 16)])
def test_co_localisation_is_the_papers(task, n_patches):
    for protocol in PROTOCOLS:
        settings = composed(task, "coloc_st", protocol)
        assert settings.recipe["encoder_protocol"] == protocol
    assert settings.recipe["images_per_class"] == 100
    assert settings.recipe["alpha"] == 1
    assert (settings.task.clutter["canvas"], settings.task.clutter["n_patches"]) == (84, n_patches)


# -- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", options("table"))
def test_every_row_and_column_of_a_table_can_be_run(table):
    spec = load_table(CONF / "table" / f"{table}.yaml")
    assert set(spec.tasks) <= set(options("task"))
    assert set(spec.models) <= set(options("model"))


@pytest.mark.parametrize("table", options("table"))
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_reproduce_composes_for_every_table(table, protocol):
    config = compose_config("reproduce", [f"table={table}", f"protocol={protocol}"])
    assert config.table.name == table
    assert config.protocol.name == protocol
    assert load_table(CONF / "table" / f"{table}.yaml").metric == config.table.metric


def test_all_models_add_by_one_recipe_and_no_protocol_wants_other_bits_than_all_cpus_have():
    for protocol in PROTOCOLS:
        assert composed("addition", "cnn", protocol).recipe == composed("addition", "st2_fcn_tps", protocol).recipe
    for protocol in (*PROTOCOLS, "modern"):
        assert composed("mnist_tc", "cnn", protocol).precision == "float32"


# -- environments ---------------------------------------------------------------------------------------------------


def test_the_conda_environment_is_the_lock_and_the_python_that_the_project_asks_for():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    lock = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert pip == lock
    (python,) = (entry for entry in environment["dependencies"] if str(entry).startswith("python="))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={python.removeprefix('python=')}"


def test_the_lock_pins_every_dependency_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {re.split(r"==", line)[0] for line in (ROOT / "requirements.lock").read_text().splitlines()}
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        assert re.match(r"[\w-]+", requirement)[0] in pinned
