"""The family svhn: from stand-in pictures to one record, and Table 2's numbers."""

import math
from datetime import timedelta

import numpy as np
import pytest
import torch

from experiments.config import CONF, compose_run
from experiments.galleries import warps
from stn import families
from stn.bench.networks import step_ratios
from stn.data.errors import DataError
from stn.data.svhn import NumberCrops, load_svhn
from stn.data.svhn_stream import NumberStream
from stn.families.svhn import data_folder
from stn.many.cost import run_cost
from stn.nets.svhn import NumberReader
from stn.results.records import read_record, unpack_wrong
from stn.results.tables import load_table
from stn.tasks.classification import cross_entropy
from stn.train import checkpoints
from stn.train.stopped import Interrupted
from tests.tiny import run, unread
from tests.train.two_steps import train_two_steps

MODELS = ("svhn_cnn", "svhn_st_single", "svhn_st_multi")
N = {"train": 40, "test": 12}


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """A data folder for stand-ins, drawn and cut out by the first run that asks."""
    return tmp_path_factory.mktemp("svhn")


@pytest.fixture
def svhn_settings(drawn, tmp_path):
    """Call it with a model and overrides: resolved settings of a tiny run on tiny stand-ins."""

    def make(model="svhn_st_single", *overrides, task="svhn_64", protocol="smoke", **recipe):
        tiny = {"steps": 10, "batch_size": 4} | recipe
        run = compose_run(
            [
                *(f"task={task}", f"model={model}", f"protocol={protocol}", "data=standin", f"data_dir={drawn}"),
                *(f"task.standin.{split}={n}" for split, n in N.items()),
                *(f"results_dir={tmp_path / 'results'}", f"output_dir={tmp_path / 'outputs'}"),
                *("device=cpu", "progress=false"),
                *overrides,
            ]
        )
        return run.changed(recipe=run.recipe | tiny)

    return make


# -- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "task", "transformers"),
    [("svhn_cnn", "svhn_64", 0), ("svhn_st_single", "svhn_64", 1), ("svhn_st_multi", "svhn_128", 4)],
)
def test_a_run_on_stand_ins_ends_in_one_record_among_the_stand_ins(svhn_settings, tmp_path, model, task, transformers):
    settings = svhn_settings(model, task=task)
    families.prepare(settings)
    run(settings)
    record = read_record(settings.record_file)
    assert list((tmp_path / "results").rglob("*.json")) == [settings.record_file]
    assert settings.record_file.is_relative_to(tmp_path / "results" / "standin")
    assert (record["data"], record["n_test"], record["steps"]) == ("standin", N["test"], 10)
    assert record["metrics"]["test/error_pct"] == pytest.approx(100 * unpack_wrong(record["test_wrong"]).mean())
    looks = [name for name in record["metrics"] if name.endswith("grid_inside")]
    assert len(looks) == transformers
    px = settings.task.crop_px
    assert record["data_checksums"].keys() == {
        f"{split}_{px}/{name}.npy" for split in N for name in ("images", "labels")
    }


@pytest.mark.parametrize(("model", "transformers"), [("svhn_st_single", 1), ("svhn_st_multi", 4)])
def test_the_gallery_shows_what_the_transformer_on_the_input_makes_of_house_numbers(
    monkeypatch, svhn_settings, tmp_path, model, transformers
):
    settings = svhn_settings(model)
    families.prepare(settings)
    record = run(settings)
    drawn = {}
    monkeypatch.setattr(warps, "warp_gallery", lambda path, shown, *_, **__: drawn.update({path: shown}) or path)
    monkeypatch.setattr("experiments.galleries.compose_run", lambda _: settings)
    (path,) = warps.house_numbers(tmp_path, [record], settings.model_dump())
    assert path.name == f"gallery_svhn_64_{model}_smoke_standin.png"
    assert len(drawn[path]) == min(warps.HOUSE_NUMBERS, N["test"])
    module = families.build(settings).module
    module.net.load_state_dict(torch.load(settings.folder / "weights.pt", weights_only=True))
    module.net.eval()
    images = module.stream.test_batch(0, 0).images[:2]
    with torch.no_grad():
        _, warped = module.net.observe(images)
    assert len(warped) == transformers
    expected = warped[0].image + images.mean(dim=(1, 2, 3), keepdim=True)  # which the network subtracts
    for shown, image in zip(drawn[path][:2], expected, strict=True):
        np.testing.assert_allclose(shown.output, image.permute(1, 2, 0).clamp(0, 1), atol=1e-5)


def test_each_key_is_read(svhn_settings, monkeypatch):
    assert unread(svhn_settings(), monkeypatch) == set()


def test_a_network_learns_the_stand_ins_by_heart(svhn_settings):
    settings = svhn_settings(
        "svhn_st_single", steps=100, batch_size=16, optimiser={"name": "adamw", "lr": 0.002, "weight_decay": 0.0}
    )
    families.prepare(settings)
    losses = run(settings)["curve"]["train/loss"]
    guessing = families.build(settings).module.stream.guessing_loss
    assert losses[-1] < 0.75 * guessing


def test_an_interrupted_run_with_dropout_ends_at_the_numbers_of_an_uninterrupted_one(svhn_settings, monkeypatch):
    settings = svhn_settings("svhn_st_single", steps=60, batch_size=2, dropout=0.5)
    families.prepare(settings)
    whole = run(settings)
    monkeypatch.setattr(checkpoints, "EVERY", timedelta(0))

    def stop(steps):
        raise SystemError("interrupted")

    with pytest.raises(Interrupted, match="interrupted"):
        run(settings, progress=stop)
    assert (settings.folder / "last.ckpt").exists()
    seen = []
    resumed = run(settings, progress=seen.append)
    assert seen == [60]
    for name in ("metrics", "curve", "test_wrong"):
        assert resumed[name] == whole[name]


@pytest.mark.parametrize("model", MODELS)
def test_a_step_at_full_size_trains_every_parameter(svhn_settings, model):
    """The paper's widths and recipe."""
    settings = svhn_settings(model, protocol="paper", steps=2, batch_size=2)
    families.prepare(settings)
    assert settings.recipe["width"] == 1
    loss, untouched = train_two_steps(families.build(settings).module)
    assert math.isfinite(loss)
    assert untouched == []


@pytest.mark.parametrize("model", MODELS)
def test_128_px_cost_more_than_64(svhn_settings, model):
    costs = [run_cost(svhn_settings(model, task=task)) for task in ("svhn_64", "svhn_128")]
    assert 3 < costs[1] / costs[0] < 5


# -- data -----------------------------------------------------------------------------------------------------------


def test_stand_ins_are_drawn_once_and_held_out_numbers_are_not_trained_on(svhn_settings):
    settings = svhn_settings("svhn_cnn", "evaluate=heldout")
    families.prepare(settings)
    picture = next(data_folder(settings).rglob("1.png"))
    before = picture.stat().st_mtime_ns
    families.prepare(settings)
    assert picture.stat().st_mtime_ns == before
    stream = families.build(settings).module.stream
    train = load_svhn(data_folder(settings), "train", 64)
    assert (len(stream.labels), stream.n_test) == (30, 10)
    assert torch.equal(torch.cat([stream.labels, stream.test.labels]), train.labels)


@pytest.mark.parametrize("call", [families.prepare, families.build])
def test_without_the_real_pictures_one_line_says_how_to_get_them(svhn_settings, tmp_path, call):
    settings = svhn_settings("svhn_cnn", "data=real", f"data_dir={tmp_path}")
    with pytest.raises(DataError, match="make data-svhn") as error:
        call(settings)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_all_of_svhn_is_refused_as_real(svhn_settings, monkeypatch):
    settings = svhn_settings("svhn_cnn")
    families.prepare(settings)
    real = svhn_settings("svhn_cnn", "data=real", f"data_dir={data_folder(settings)}")
    for call in (families.prepare, families.build):
        with pytest.raises(DataError, match="data=real: the SVHN train that is there is drawn"):
            call(real)
    monkeypatch.setattr("stn.data.svhn_crops.read_mark", lambda folder: None)  # as if they were photographs
    with pytest.raises(DataError, match=f"train that is there has {N['train']} pictures instead of 33402: delete it"):
        families.build(real)
    monkeypatch.setattr("stn.data.svhn.PICTURES", N)
    with pytest.raises(DataError, match="SVHN extra is not in"):
        families.build(real)


def test_extra_is_joined_to_train(svhn_settings, drawn, monkeypatch):
    """Stand-in folders in the place of the real ones."""
    monkeypatch.setattr("stn.families.svhn.check_real", lambda crops, split: None)
    settings = svhn_settings("svhn_cnn")
    families.prepare(settings)
    real = svhn_settings("svhn_cnn", "data=real", f"data_dir={data_folder(settings)}")
    extra = data_folder(settings) / "SVHN" / "extra"
    extra.symlink_to("test")
    try:
        built = families.build(real)
    finally:
        extra.unlink()
    stream = built.module.stream
    assert "extra_64/images.npy" in built.data_checksums
    assert len(stream.labels) == N["train"] + N["test"]
    index = torch.tensor([0, 39, 40, 51, 3])
    pictures = torch.cat([load_svhn(data_folder(settings), split, 64).images for split in ("train", "test")])
    assert torch.equal(stream._gather(index), pictures[index])


def toy_numbers(labels, px=2):
    labels = torch.tensor(labels)
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, px, px, 3).contiguous()
    boxes_px = torch.zeros(len(labels), 5, 4)
    return NumberCrops(images, labels, (labels < 10).sum(1), boxes_px, standin=True, source_pictures=len(labels))


def test_a_batch_is_pictures_with_their_labels_scaled_to_one():
    numbers = toy_numbers([[i % 10, i // 10, 10, 10, 10] for i in range(100)])
    stream = NumberStream([numbers], numbers)
    stream.to("cpu")
    batch = stream.draw(64, torch.Generator().manual_seed(3))
    assert (batch.images.shape, batch.images.dtype) == ((64, 3, 2, 2), torch.float32)
    place = (batch.images[:, 0, 0, 0] * 255).round().long()
    assert torch.equal(batch.labels[:, 0] + 10 * batch.labels[:, 1], place)
    assert len(place.unique()) > 30
    assert torch.equal(stream.test_batch(0, 0).images[7], torch.full((3, 2, 2), 7 / 255))


def test_guessing_loss_is_that_of_the_best_constant_logits():
    numbers = toy_numbers([[1, 2, 10, 10, 10]] * 3 + [[2, 10, 10, 10, 10]])
    stream = NumberStream([numbers], numbers)
    logits = torch.zeros(5, 11, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=200)

    def closure():
        optimiser.zero_grad()
        loss = cross_entropy(logits.expand(4, 5, 11), numbers.labels)
        loss.backward()
        return loss

    optimiser.step(closure)
    assert stream.guessing_loss == pytest.approx(closure().item(), abs=1e-3)


@pytest.mark.parametrize(
    ("recipe", "named"), [({"test_draws": 2}, "test_draws"), ({"dropout": 1.0}, "dropout"), ({"width": 0.0}, "width")]
)
def test_recipes_that_cannot_be(svhn_settings, recipe, named):
    with pytest.raises(ValueError, match=f"protocol.svhn.{named}"):
        families.network(svhn_settings("svhn_cnn", **recipe))


# -- the paper's numbers (Sect. 4.2, App. A.5) ----------------------------------------------------------------------


def test_the_papers_protocol_has_the_papers_numbers():
    recipe = compose_run(["task=svhn_64", "model=svhn_cnn", "protocol=paper"]).recipe
    assert recipe == {
        **{"width": 1, "dropout": 0.5, "padding": "zeros", "antialias": False},
        **{"batch_size": 128, "steps": 400_000, "localiser_lr_multiplier": 0.1},
        "optimiser": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": False, "weight_decay": 5e-4},
        "schedule": {"name": "step", "every": 80_000, "factor": 0.1},
    }


def test_table_2_has_the_papers_numbers():
    spec = load_table(CONF / "table" / "table2.yaml")
    assert spec.tasks == ("svhn_64", "svhn_128")
    assert {name: tuple(row.values()) for name, row in spec.reference.items()} == {
        "svhn_cnn": (4.0, 5.6),
        "svhn_st_single": (3.7, 3.9),
        "svhn_st_multi": (3.6, 3.9),
    }
    assert [tuple(row.values()) for row in spec.cited.values()] == [(4.0,), (3.9, 4.5)]


@pytest.mark.parametrize("task", ["svhn_64", "svhn_128"])
def test_a_task_has_its_size(task):
    assert f"svhn_{compose_run([f'task={task}', 'model=svhn_cnn']).task.crop_px}" == task


# -- speed ----------------------------------------------------------------------------------------------------------


def test_step_ratios_are_of_the_first_net_turn_by_turn(monkeypatch):
    nets = {name: NumberReader(32, width=width) for name, width in (("narrow", 0.125), ("wide", 0.25))}
    seconds = iter([9.0, 1.0, 1.0, 2.0, 3.0, 9.0, 2.0, 8.0])  # the first turn does not count
    monkeypatch.setattr("stn.bench.networks._step_s", lambda net, images: next(seconds))
    rows = step_ratios(nets, torch.rand(2, 3, 32, 32), repeats=3)
    assert rows["narrow"] == {"ms": 2000, "ratio": 1, "ratios": [1, 1, 1]}
    assert rows["wide"] == {"ms": 8000, "ratio": 3, "ratios": [2, 3, 4]}
    monkeypatch.undo()
    assert step_ratios(nets, torch.rand(2, 3, 32, 32), repeats=1)["wide"]["ms"] > 0
