"""Runs on volumes end in records like those on images."""

import pytest
from PIL import Image

from experiments.config import compose_run
from experiments.galleries import snapshots_of
from experiments.galleries.volumes import volumes
from stn.families import network
from stn.results.records import read_record, unpack_wrong
from tests.tiny import run, unread

MODELS = ("st3d_cnn", "projection_cnn", "cnn3d")


@pytest.fixture
def tiny(toy_mnist, tmp_path):
    """Call it with a model: settings of a run on volumes of 24^3 that writes below tmp_path."""

    def make(model: str, *overrides: str) -> dict:
        sizes = {"size_voxels": 24, "budget_fraction": 0.17, "batch_size": 8, "steps": 20}
        return compose_run(
            [
                *("task=mnist3d", f"model={model}", "protocol=smoke", "device=cpu", "progress=false"),
                *(f"protocol.mnist3d.{name}={value}" for name, value in sizes.items()),
                *("task.volume.digit_voxels=20", "task.volume.thickness_voxels=6"),
                *(f"results_dir={tmp_path / 'results'}", f"output_dir={tmp_path / 'outputs'}"),
                *overrides,
            ]
        )

    return make


@pytest.mark.parametrize("model", MODELS)
def test_every_model_ends_in_one_ok_record(monkeypatch, tiny, model):
    monkeypatch.setattr("stn.tasks.classification.GUESSING_MARGIN", -10)  # twenty steps teach nothing
    settings = tiny(model, "protocol.mnist3d.test_draws=2")
    run(settings)
    record = read_record(settings.record_file)
    assert (record["status"], record["reason"]) == ("ok", None)
    wrong = unpack_wrong(record["test_wrong"])
    assert wrong.shape == (2, 300)
    assert record["metrics"]["test/error_pct"] == pytest.approx(100 * wrong.mean(), rel=1e-5)
    assert ("test/tilt_after_deg" in record["metrics"]) == (model == "st3d_cnn")
    assert 0.9 < record["metrics"].get("test/grid_inside", 1.0) <= 1
    assert len(record["data_checksums"]) == 4


def test_each_key_is_read(tiny, monkeypatch):
    monkeypatch.setattr("stn.families.mnist3d.prepare", lambda run: None)
    assert unread(tiny("st3d_cnn"), monkeypatch) == set()


def test_the_transformer_learns(tiny):
    """On strongly turned plates: the loss falls below guessing, and its theta differs from volume to volume."""
    record = run(tiny("st3d_cnn", "protocol.mnist3d.steps=150", "protocol.mnist3d.batch_size=16"))
    assert record["status"] == "ok"
    assert record["metrics"]["test/error_pct"] < 75  # chance: 90
    assert record["metrics"]["test/theta_std_2"] > 0.01


def test_the_gallery_shows_digits_that_the_transformer_alone_gets_right(monkeypatch, tiny, tmp_path):
    monkeypatch.setattr("stn.tasks.classification.GUESSING_MARGIN", -10)
    settings = [tiny(model) for model in ("st3d_cnn", "projection_cnn")]
    records = [run(each) for each in settings]
    wanted = {"protocol": "smoke", "data": "real", "data_dir": "data", "output_dir": str(tmp_path / "outputs")}
    monkeypatch.setattr("experiments.galleries.volumes.DIGITS", 1)
    monkeypatch.setattr("experiments.galleries.compose_run", lambda _: settings[0])
    gallery, animation = volumes(tmp_path / "figures", records, wanted)
    assert gallery == tmp_path / "figures" / "gallery_mnist3d_smoke.png"
    assert gallery.stat().st_size > 5000
    with Image.open(animation) as frames:
        assert frames.n_frames == len(snapshots_of(records[0], wanted)["step"]) > 1
    assert list(volumes(tmp_path / "figures", records[:1], wanted)) == []


def test_a_digit_larger_than_the_volume_is_refused_in_one_line(tiny):
    with pytest.raises(ValueError, match="a digit of 28 voxels, 6 deep, is larger than a volume of 24"):
        run(tiny("cnn3d", "task.volume.digit_voxels=28"))


def test_a_model_for_images_is_refused(tiny):
    with pytest.raises(
        ValueError, match=r"^model=st_cnn_affine is no model of mnist3d: missing key 'model.projection'$"
    ):
        network(tiny("st_cnn_affine"))


@pytest.mark.parametrize("angles", ["[60,60]", "[60,60,60,60]", "[-60,60,60]"])
def test_there_are_three_angles(tiny, angles):
    with pytest.raises(ValueError, match=r"^task\.volume\.rotation_deg"):
        network(tiny("cnn3d", f"task.volume.rotation_deg={angles}"))


def test_an_unknown_setting_of_the_volume_is_refused(tiny):
    with pytest.raises(ValueError, match=r"^unknown key 'task.volume.depth_voxels'$"):
        run(tiny("cnn3d", "+task.volume.depth_voxels=28"))


@pytest.mark.parametrize("protocol", ["smoke", "quick", "fast", "paper"])
def test_the_paper_has_volumes_of_60(protocol):
    settings = compose_run(["task=mnist3d", "model=cnn3d", f"protocol={protocol}"])
    side = 60 if protocol == "paper" else 32
    assert network(settings).in_shape == (1, side, side, side)
