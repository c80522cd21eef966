"""Table 3 end to end on a few small stand-in birds."""

import hashlib
import math
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from experiments import reproduce
from experiments.config import CONF, compose_config, compose_run, resolved, run_of
from experiments.galleries.windows import birds
from stn.data.cub import center_crop, load_cub, prepare_cub
from stn.data.cub_standin import write_standin
from stn.data.errors import DataError
from stn.families import build, needs, network, prepare
from stn.families import cub as cub_family
from stn.nets.backbones import backbone
from stn.results.records import read_record, unpack_wrong
from stn.results.tables import load_table
from stn.settings import RunSettings
from stn.tasks.birds import BirdClassification
from stn.train import checkpoints
from stn.train.stopped import Interrupted
from tests.tiny import run, unread
from tests.train.two_steps import train_two_steps

N_TEST = 20
PX = {"cub_224": 28, "cub_448": 56}


@pytest.fixture(scope="session")
def birds_dir(tmp_path_factory):
    """Two species of twenty birds, as small as the small backbone allows."""
    return tmp_path_factory.mktemp("birds")


def small(width):
    return {"name": "small", "width": width}


@pytest.fixture
def cub_settings(tmp_path, birds_dir):
    def make(task: str, model: str, *overrides: str, **recipe) -> RunSettings:
        tiny = {"steps": 20, "batch_size": 8, "standin_birds": 20, "standin_px": 48, "backbone": small(4)} | recipe
        run = compose_run(
            [
                f"task={task}",
                f"model={model}",
                "protocol=smoke",
                *(f"{name}={value}" for name, value in (("data", "standin"), ("data_dir", birds_dir))),
                f"results_dir={tmp_path / 'results'}",
                f"output_dir={tmp_path / 'outputs'}",
                "device=cpu",
                "progress=false",
                *overrides,
            ]
        )
        return run.changed(recipe=run.recipe | tiny)

    return make


@pytest.fixture
def anything_is_ok(monkeypatch):
    """A few steps teach nothing; that is not what these tests are about."""
    monkeypatch.setattr(BirdClassification, "collapse", lambda self, loss: None)


@pytest.mark.parametrize(
    ("task", "model"), [("cub_224", "cub_cnn"), ("cub_224", "cub_st2"), ("cub_448", "cub_st2"), ("cub_448", "cub_st4")]
)
def test_every_cell_of_table_3_ends_in_one_record(cub_settings, anything_is_ok, task, model):
    settings = cub_settings(task, model, dropout=0.5)
    run(settings)
    path = settings.record_file
    assert path.is_relative_to(Path(settings.results_dir) / "standin" / "runs" / task / model)
    record = read_record(path)
    assert (record["status"], record["data"], record["n_test"], record["test_draws"]) == ("ok", "standin", N_TEST, 1)
    metrics = record["metrics"]
    assert metrics["test/accuracy_pct"] == pytest.approx(100 - 100 * unpack_wrong(record["test_wrong"]).mean())
    windows = {"cub_cnn": 0, "cub_st2": 2, "cub_st4": 4}[model]
    assert sum(name.endswith("grid_inside") for name in metrics) == windows
    assert ("test/head_share" in metrics) == (windows > 0)
    assert all(math.isfinite(value) for value in metrics.values())
    assert record["data_checksums"].keys() == {"annotations_sha256"}
    assert record["widths"] == {"descriptor": max(windows, 1) * 16}
    assert build(settings).module.stream.shape == (3, PX[task], PX[task])


def test_each_key_is_read(cub_settings, anything_is_ok, monkeypatch):
    milestones = {"name": "milestones", "at": [5, 9], "factor": 0.1}
    assert unread(cub_settings("cub_224", "cub_st2", schedule=milestones), monkeypatch) == set()


def test_it_learns_to_tell_two_species(cub_settings):
    record = run(cub_settings("cub_224", "cub_cnn", steps=200, batch_size=16, backbone=small(8)))
    assert record["status"] == "ok"
    assert record["metrics"]["train/loss"] < math.log(2) - 0.2


def test_an_interrupted_run_ends_at_the_same_numbers_with_dropout_too(monkeypatch, cub_settings, anything_is_ok):
    settings = cub_settings("cub_224", "cub_st2", steps=120, batch_size=2, dropout=0.5)
    whole = run(settings)
    monkeypatch.setattr(checkpoints, "EVERY", timedelta(0))

    def stop(steps):
        if steps == 100:
            raise RuntimeError("stopped here")

    with pytest.raises(Interrupted, match="stopped here"):
        run(settings, progress=stop)
    seen = []
    resumed = run(settings, progress=seen.append)
    assert seen[0] > 50
    for name in ("metrics", "test_wrong", "curve"):
        assert resumed[name] == whole[name]


def test_held_out_birds_are_training_birds_that_are_not_trained_on(cub_settings):
    stream = build(cub_settings("cub_224", "cub_cnn", "evaluate=heldout")).module.stream
    settings = cub_settings("cub_224", "cub_cnn")
    folder = cub_family.standin(settings).folder(settings)
    everything = load_cub(folder, "train", 32)
    fitted, heldout = (set(birds.offsets.tolist()) for birds in (stream.train, stream.test))
    assert not fitted & heldout
    assert fitted | heldout == set(everything.offsets.tolist())
    assert stream.test.labels.unique().tolist() == [0, 1]
    assert torch.equal(stream.test.image(1), everything.image(6))


def test_the_stream_serves_crops_with_their_labels_and_parts(cub_settings):
    stream = build(cub_settings("cub_224", "cub_cnn")).module.stream
    stream.test_batch_size = 8
    batches = [stream.test_batch(0, start) for start in range(0, N_TEST, 8)]
    assert [len(batch.labels) for batch in batches] == [8, 8, 4]
    whole = center_crop(stream.test, torch.arange(N_TEST), 28)
    assert torch.equal(torch.cat([batch.images for batch in batches]), whole.images / 255)
    assert torch.equal(torch.cat([batch.parts for batch in batches]), whole.parts)
    assert torch.equal(torch.cat([batch.labels for batch in batches]), stream.test.labels)
    one, same, other = (stream.draw(6, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.images, other.images)
    assert one.images.shape == (6, 3, 28, 28)
    assert one.parts.shape == (6, 15, 3)


# -- pretrained weights ---------------------------------------------------------------------------------------------


def test_streams_and_localiser_begin_with_the_pretrained_weights_and_the_record_has_their_checksum(
    tmp_path, cub_settings, anything_is_ok
):
    torch.manual_seed(5)
    weights = tmp_path / "some.pth"
    torch.save(backbone("small", None, 4).net.state_dict(), weights)
    settings = cub_settings("cub_224", "cub_st2", pretrained=str(weights))
    net = build(settings).module.net
    wanted = torch.load(weights, weights_only=True)
    for features in (*net.streams, net.localisation[0]):
        assert all(torch.equal(value, wanted[name]) for name, value in features.net.state_dict().items())
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert run(settings)["data_checksums"]["backbone_sha256"] == digest


def test_missing_weights_are_said_in_a_line_before_anything_is_generated(tmp_path, cub_settings):
    settings = cub_settings("cub_224", "cub_st2", f"data_dir={tmp_path}", pretrained="googlenet-1378be20.pth")
    for call in (prepare, build):
        with pytest.raises(DataError, match=r"googlenet-1378be20.pth is not there: put .* there, or set protocol.cub"):
            call(settings)
    assert list(tmp_path.iterdir()) == []


def test_networks_begin_with_the_run_on_other_species_that_they_name(cub_settings, anything_is_ok):
    other = cub_settings("cub_pretrain", "cub_cnn", pretrained="cub_pretrain")  # of the protocol: not for itself
    settings = cub_settings("cub_448", "cub_st2", pretrained="cub_pretrain")
    prepare(settings)
    with pytest.raises(
        DataError, match=r"make it: python -m experiments.train task=cub_pretrain model=cub_cnn protocol=smoke data=s"
    ):
        build(settings)
    run(other)
    trained = torch.load(other.folder / "weights.pt", weights_only=True)
    built = build(settings)
    for features in (*built.module.net.streams, built.module.net.localisation[0]):
        for name, value in features.state_dict().items():
            assert torch.equal(value, trained[f"streams.0.{name}"])
    longer = settings.changed(recipe=settings.recipe | {"steps": 21})
    identities = [build(one).data_checksums["pretraining"] for one in (settings, longer)]
    assert built.data_checksums["pretraining"] == identities[0] != identities[1]
    pictures = [build(one).module.stream.test.pixels[:3000] for one in (other, cub_settings("cub_224", "cub_cnn"))]
    assert not torch.equal(*pictures)


def test_reproduce_first_trains_what_the_cells_begin_with_unless_it_is_there(tmp_path, monkeypatch):
    overrides = ["protocol=quick", "data=standin", f"data_dir={tmp_path}", "device=cpu", "wandb.mode=disabled"]
    overrides += [f"results_dir={tmp_path / 'results'}", f"output_dir={tmp_path / 'outputs'}"]
    config = compose_config("reproduce", overrides)
    wanted = resolved(OmegaConf.merge(config, {"protocol": None})) | {"protocol": "quick"}
    cells = [reproduce._compose("cub_224", model, seed, wanted) for model in ("cub_cnn", "cub_st2") for seed in (0, 1)]
    (first,) = reproduce._needed(cells, wanted, {})
    assert str(first.key) == "cub_pretrain/cub_cnn/quick/seed0"
    assert reproduce._needed([first], wanted, {}) == []  # itself begins with random weights
    monkeypatch.setattr(reproduce, "_state", lambda settings, listed: "done")
    assert reproduce._needed(cells, wanted, {}) == [first]  # a record without weights is not enough
    (first.folder).mkdir(parents=True)
    (first.folder / "weights.pt").touch()
    assert reproduce._needed(cells, wanted, {}) == []
    paper = [reproduce._compose("cub_224", "cub_cnn", 0, wanted | {"protocol": "paper"})]
    assert reproduce._needed(paper, wanted, {}) == []


def test_the_command_that_makes_them_writes_where_they_are_looked_for():
    settings = ["task=cub_pretrain", "model=cub_cnn", "protocol=quick", "data=standin"]
    assert run_of(compose_config("train", settings)) == compose_run(settings)


def test_there_are_no_real_birds_of_other_species(tmp_path, cub_settings):
    for task, pretrained in (("cub_pretrain", None), ("cub_224", "cub_pretrain")):
        settings = cub_settings(task, "cub_cnn", "data=real", f"data_dir={tmp_path}", pretrained=pretrained)
        for call in (needs, prepare, build):
            with pytest.raises(ValueError, match=r"data=real: this protocol pre-trains on drawn birds; give data=s"):
                call(settings)


# -- what cannot be run ---------------------------------------------------------------------------------------------


def test_missing_real_birds_are_not_downloaded_in_passing(tmp_path, cub_settings):
    settings = cub_settings("cub_224", "cub_cnn", "data=real", f"data_dir={tmp_path}")
    with pytest.raises(DataError, match=r"CUB-200-2011 is not in .*: run `make data-cub` .*data=standin"):
        prepare(settings)
    with pytest.raises(DataError, match="CUB-200-2011 is not in"):
        build(settings)


@pytest.mark.parametrize("task", ["cub_224", "cub_coloc"])
def test_real_birds_without_a_file_are_named_and_not_downloaded(tmp_path, monkeypatch, task):
    write_standin(tmp_path, 2, 4, size_px=48)
    (tmp_path / "CUB_200_2011" / "images.txt").unlink()
    monkeypatch.setattr("stn.data.cub.fetch", lambda *_: pytest.fail("a download"))
    model = {"cub_224": "cub_cnn", "cub_coloc": "coloc_st"}[task]
    settings = compose_run([f"task={task}", f"model={model}", "protocol=fast", f"data_dir={tmp_path}"])
    with pytest.raises(DataError, match=r"CUB_200_2011/images.txt"):
        prepare(settings)


def test_standin_birds_are_never_taken_for_real_ones(tmp_path, cub_settings):
    write_standin(tmp_path, 2, 4, size_px=48)
    settings = cub_settings("cub_224", "cub_cnn", "data=real", f"data_dir={tmp_path}")
    prepare_cub(tmp_path, settings.recipe["shorter_side_px"])
    for call in (prepare, build):
        with pytest.raises(DataError, match=r"data=real: the birds in .* are standin"):
            call(settings)


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        (
            {"backbone": {"name": "vgg"}},
            "protocol.cub.backbone.name must be one of small, googlenet, efficientnet_lite0",
        ),
        ({"backbone": {"name": "googlenet", "width": 4}}, "unknown key 'protocol.cub.backbone.width'"),
        ({"test_draws": 2}, "unknown key 'protocol.cub.test_draws'"),
        ({"shorter_side_px": 20}, "protocol.cub: shorter_side_px must be crop_px or more, got 20"),
        ({"dropout": 1.0}, "protocol.cub.dropout must be less than 1"),
        ({"pretrained": 3}, r"protocol.cub.pretrained must be a text, got 3"),
    ],
)
def test_impossible_settings_are_named(cub_settings, recipe, named):
    with pytest.raises(ValueError, match=named):
        build(cub_settings("cub_224", "cub_cnn", **recipe))


def test_a_model_of_another_table_is_refused(cub_settings):
    with pytest.raises(ValueError, match=r"^model=fcn is no model of cub_224: missing key 'model.windows'$"):
        network(cub_settings("cub_224", "fcn"))


# -- the paper's settings -------------------------------------------------------------------------------------------


def test_the_papers_protocol_has_the_papers_numbers():
    recipe = compose_run(["task=cub_448", "model=cub_st4", "protocol=paper"]).recipe
    wanted = {"batch_size": 256, "steps": 30_000, "localiser_lr_multiplier": 1e-4, "dropout": 0.7}
    wanted |= {"crop_px": 224, "shorter_side_px": 256, "window_scale": 0.5, "backbone": {"name": "googlenet"}}
    sgd = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-5}
    wanted["optimiser"] = sgd
    wanted["schedule"] = {"name": "milestones", "at": [10_000, 20_000, 25_000], "factor": 0.1}
    assert {name: recipe[name] for name in wanted} == wanted


def test_table_3_has_the_papers_numbers():
    spec = load_table(CONF / "table" / "table3.yaml")
    assert spec.reference == {
        "cub_cnn": {"cub_224": 82.3},
        "cub_st2": {"cub_224": 83.1, "cub_448": 83.9},
        "cub_st4": {"cub_448": 84.1},
    }
    assert sorted(v for row in spec.cited.values() for v in row.values()) == [66.7, 74.9, 75.7, 80.9, 81.0]
    assert (spec.metric, spec.lower_is_better) == ("test/accuracy_pct", False)


@pytest.mark.parametrize(("task", "model", "px"), [("cub_224", "cub_cnn", 224), ("cub_448", "cub_st4", 448)])
def test_the_papers_network_is_built_from_its_settings(task, model, px):
    settings = compose_run([f"task={task}", f"model={model}", "protocol=paper"])
    with torch.device("meta"):
        net, widths, in_shape = network(settings)
    assert in_shape == (3, px, px)
    assert (net.classifier.out_features, net.n_windows) == (200, settings.model.windows)
    assert widths == {"descriptor": 1024 * max(1, settings.model.windows)}


def test_a_step_of_the_papers_largest_network_trains_every_layer(cub_settings):
    """Four windows at 448 px, a GoogLeNet each, and the paper's recipe."""
    paper = compose_run(["task=cub_448", "model=cub_st4", "protocol=paper"]).recipe
    same = ("backbone", "crop_px", "optimiser", "schedule", "localiser_lr_multiplier", "dropout")
    recipe = {name: paper[name] for name in same} | {"pretrained": None}
    recipe["schedule"] = recipe["schedule"] | {"at": [1]}
    sizes = {"steps": 2, "batch_size": 2, "standin_birds": 4, "standin_px": 512, "shorter_side_px": 256}
    loss, untouched = train_two_steps(build(cub_settings("cub_448", "cub_st4", **sizes, **recipe)).module)
    assert math.isfinite(loss)
    assert untouched == []


# -- the figure -----------------------------------------------------------------------------------------------------


def test_the_figure_has_a_line_per_trained_model_with_windows(tmp_path, monkeypatch, cub_settings, anything_is_ok):
    settings = [cub_settings("cub_224", "cub_cnn"), cub_settings("cub_224", "cub_st2")]
    records = [run(one) for one in settings]
    wanted = {name: getattr(settings[0], name) for name in ("data_dir", "output_dir", "data")} | {"protocol": "smoke"}
    recipe = settings[0].recipe

    def with_tiny_recipe(overrides):
        return compose_run(overrides).changed(recipe=recipe)

    monkeypatch.setattr("experiments.galleries.compose_run", with_tiny_recipe)
    (path,) = birds(tmp_path, records, wanted)
    assert path.name == "gallery_cub_224_smoke_standin.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(birds(tmp_path, records[:1], wanted)) == []  # the CNN has no windows
    assert list(birds(tmp_path, records, wanted | {"output_dir": str(tmp_path / "elsewhere")})) == []
