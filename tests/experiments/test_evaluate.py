"""Trained weights are something: tested again they say what their record says, as a file, too; one line loads them."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image

import stn
from experiments import evaluate, export
from experiments.config import CONF, compose_config
from stn.data.errors import DataError
from stn.saved import load, save
from stn.train.evaluation import evaluate as measure
from stn.trained import SUFFIX, find, read, write
from tests.tiny import run

ROOT = CONF.parent
MODELS = ROOT / "examples" / "models"


@pytest.fixture
def trained(toy_mnist, settings_of):
    """A run that has ended: its settings and record."""
    settings = settings_of("mnist_r", "st_fcn_affine", steps=300)
    return settings, run(settings)


def test_weights_tested_again_say_what_their_record_says(trained, tmp_path):
    settings, record = trained
    sources = [record, settings.record_file, settings.folder, settings.folder / "weights.pt"]
    for source in sources:
        again = find(source, settings.results_dir, settings.output_dir)
        assert again.record == record
        same = evaluate.run_of_weights(again, {"data_dir": "nowhere"})
        assert (same.config, same.key) == (settings.config, settings.key)
    before = {path: path.stat().st_mtime_ns for path in settings.results_dir.rglob("*")}
    module = measure(again, same)
    for name in ("test/error_pct", "test/loss", "test/grid_inside"):
        assert module.metrics[name] == pytest.approx(record["metrics"][name], rel=1e-6)
    assert before == {path: path.stat().st_mtime_ns for path in settings.results_dir.rglob("*")}


def test_weights_of_changed_settings_are_found_with_their_record(toy_mnist, settings_of):
    usual = settings_of("mnist_r", "fcn")
    variant = settings_of("mnist_r", "fcn", steps=20).variant(of=usual)
    record = run(variant)
    for source in (variant.record_file, variant.folder):
        assert find(source, output_dir=variant.output_dir).record == record
    assert find(variant.folder, usual.results_dir).record == record


def test_a_model_file_is_whole_in_itself_and_half_as_wide_as_good(trained, tmp_path):
    settings, record = trained
    weights = find(record, output_dir=settings.output_dir)
    exact, half = (write(weights, tmp_path / f"{dtype}{SUFFIX}", dtype) for dtype in (torch.float32, torch.float16))
    assert half.stat().st_size < 0.6 * exact.stat().st_size
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    nets = [stn.load(source) for source in (exact, half)] + [stn.load(record, settings.output_dir)]
    logits = [net(images) for net in nets]
    assert torch.equal(logits[0], logits[2])
    assert torch.allclose(logits[0], logits[1], atol=0.05)
    assert not any(net.training for net in nets)
    module = measure(read(half), evaluate.run_of_weights(read(half), {}))
    assert module.metrics["test/error_pct"] == pytest.approx(record["metrics"]["test/error_pct"], abs=0.5)


def test_images_that_the_weights_were_trained_on_are_not_held_out(trained):
    settings, record = trained
    weights = find(record, output_dir=settings.output_dir)
    with pytest.raises(ValueError, match=r"^evaluate=heldout: these weights were trained on all"):
        evaluate.run_of_weights(weights, {}, part="heldout")
    held_out = weights._replace(record={**record, "config": {**record["config"], "evaluate": "heldout"}})
    for part in (None, "heldout"):
        assert evaluate.run_of_weights(held_out, {}, part=part).evaluate == "heldout"


def test_weights_are_tested_on_any_task_they_fit(trained, settings_of):
    settings, record = trained
    weights = find(record, output_dir=settings.output_dir)
    module = measure(weights, evaluate.run_of_weights(weights, {}, "mnist_p"))
    assert module.metrics["test/error_pct"] != record["metrics"]["test/error_pct"]
    for task, told in (
        ("mnist_tc", r"images of \(1, 60, 60\), these weights fit \(1, 28, 28\)"),
        ("svhn_64", "weights of mnist_r fit tasks of the family mnist only"),
    ):
        with pytest.raises(ValueError, match=told):
            measure(weights, evaluate.run_of_weights(weights, {}, task))


def test_the_verb_draws_and_records_nothing(trained, tmp_path, capsys):
    settings, _ = trained
    wanted = {"weights": str(settings.folder), "task": "mnist_p", "evaluate": None, "data_dir": "d", "device": "cpu"}
    wanted |= {"results_dir": str(settings.results_dir), "output_dir": str(settings.output_dir), "threads": 1}
    records = {path: path.read_bytes() for path in settings.results_dir.rglob("*.json")}
    evaluate.evaluate(wanted)
    said = capsys.readouterr().out
    picture = Path(said.splitlines()[-1].removeprefix("wrote "))
    assert "test/error_pct" in said
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 300
    assert picture.is_relative_to(settings.output_dir)
    assert {path: path.read_bytes() for path in settings.results_dir.rglob("*.json")} == records


@pytest.mark.parametrize("source", ["nowhere", "nowhere.json", f"nowhere{SUFFIX}"])
def test_what_is_not_there_is_one_line(source, tmp_path):
    with pytest.raises((DataError, ValueError), match="nowhere") as error:
        stn.load(tmp_path / source)
    assert "\n" not in str(error.value)


def test_another_file_is_no_model(tmp_path):
    path = tmp_path / f"x{SUFFIX}"
    path.write_bytes(b"12345678")
    with pytest.raises(DataError, match="no model file"):
        stn.load(path)


def test_weights_of_another_network_are_refused(trained):
    settings, record = trained
    weights = find(record, output_dir=settings.output_dir)
    other = weights._replace(weights={name: tensor[:1] for name, tensor in weights.weights.items()})
    with pytest.raises(DataError, match="another network"):
        other.net()


def test_weights_of_another_training_are_not_taken_for_the_records(trained):
    settings, record = trained
    file = settings.folder / "weights.pt"
    other = {name: tensor.clone() for name, tensor in load(file).items()}
    other["transformers.0.regression.bias"][0] += 1e-6
    save(other, file)
    for source in (record, settings.record_file, settings.folder):
        with pytest.raises(DataError, match=f"not the weights that the record of {settings.key} "):
            find(source, settings.results_dir, settings.output_dir)
    older = {name: value for name, value in record.items() if name != "weights_sha256"}
    assert find(older, output_dir=settings.output_dir).weights.keys() == other.keys()


def test_export_writes_models_with_a_card_and_the_example_reads_one(trained, settings_of, tmp_path):
    settings, record = trained
    run(settings_of("mnist_r", "cnn"))
    run(settings_of("mnist_p", "fcn"))
    wanted = {"table": "table1", "protocol": "smoke", "models": [], "seed": 0, "data": "real", "data_dir": "d"}
    wanted |= {"results_dir": str(settings.results_dir), "output_dir": str(settings.output_dir)}
    export.export(wanted | {"out": str(tmp_path / "models")})
    files = {path.name for path in (tmp_path / "models").iterdir()}
    assert files == {
        "README.md",
        *(f"{name}{SUFFIX}" for name in ("mnist_r_st_fcn_affine", "mnist_r_cnn", "mnist_p_fcn")),
    }
    card = (tmp_path / "models" / "README.md").read_text(encoding="utf-8")
    assert all(name in card for name in files - {"README.md"})
    assert f"{record['metrics']['test/error_pct']:.2f}" in card
    committed = (MODELS / "README.md").read_text(encoding="utf-8")
    for said in ("Of each column the best model and the plain CNN. Made by", card[card.index("The best is chosen") :]):
        assert said in card
        assert said in committed
    example = runpy.run_path(str(ROOT / "examples" / "turn_digits.py"))
    read_as = example["turn"](tmp_path / "models" / f"mnist_r_st_fcn_affine{SUFFIX}", tmp_path / "turned.png")
    assert len(read_as) == 10
    with Image.open(tmp_path / "turned.png") as drawn:
        assert drawn.size[0] > 300


def test_a_card_of_chosen_models_names_no_best_and_a_missing_one_leaves_all_as_it_was(trained, settings_of, tmp_path):
    settings, _ = trained
    plain = settings_of("mnist_r", "cnn")
    run(plain)
    wanted = {"table": "table1", "protocol": "smoke", "seed": 0, "data": "real", "data_dir": "d"}
    wanted |= {"results_dir": str(settings.results_dir), "output_dir": str(settings.output_dir)}
    export.export(wanted | {"models": ["cnn"], "out": str(tmp_path / "models")})
    assert "best" not in (tmp_path / "models" / "README.md").read_text(encoding="utf-8")
    (plain.folder / "weights.pt").unlink()
    with pytest.raises(DataError, match="no such file"):
        export.export(wanted | {"models": ["st_fcn_affine", "cnn"], "out": str(tmp_path / "others")})
    assert not (tmp_path / "others").exists()


def test_the_models_that_are_committed_are_small_and_on_the_card():
    files = sorted(MODELS.glob(f"*{SUFFIX}"))
    sizes = [path.stat().st_size for path in files]
    assert all(size <= 1e6 for size in sizes)
    assert sum(sizes) <= 10e6
    card = (MODELS / "README.md").read_text(encoding="utf-8") if files else ""
    assert all(path.name in card for path in files)


def test_the_example_reads_its_digits_with_a_committed_model(tmp_path, monkeypatch, capsys):
    picture = tmp_path / "turned.png"
    monkeypatch.setattr("sys.argv", ["turn_digits.py", str(MODELS / f"mnist_rts_st_cnn_tps{SUFFIX}"), str(picture)])
    runpy.run_path(str(ROOT / "examples" / "turn_digits.py"), run_name="__main__")
    read = json.loads(capsys.readouterr().out.partition(";")[0].removeprefix("read "))
    assert sum(digit == place for place, digit in enumerate(read)) >= 9  # one drawing of each, distorted
    assert picture.exists()


def test_the_example_names_a_model_that_is_not_there_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["turn_digits.py", str(tmp_path / f"none{SUFFIX}")])
    with pytest.raises(SystemExit, match=r"^error: .*none.*: no such file$"):
        runpy.run_path(str(ROOT / "examples" / "turn_digits.py"), run_name="__main__")


def test_a_sweep_of_wandb_is_told_settings_that_there_are():
    import yaml

    sweep = yaml.safe_load((ROOT / "docs" / "sweep.yaml").read_text(encoding="utf-8"))
    fixed = [word for word in sweep["command"] if "=" in word and "$" not in word]
    chosen = [f"{name}={(space.get('values') or [space['min']])[0]}" for name, space in sweep["parameters"].items()]
    recipe = compose_config("train", [*fixed, *chosen]).protocol.mnist
    assert json.dumps(recipe.optimiser.lr) in chosen[0]
    assert "evaluate=heldout" in fixed
    assert sweep["metric"]["name"] == "heldout/error_pct"  # as the record and W&B's summary name it then
