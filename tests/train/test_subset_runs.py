"""data=subset end to end: a listed part of the real data, here of stand-ins in their place, to records and tables."""

import hashlib
import re
import shutil

import pytest
import torch

import stn
from experiments.config import CONF, compose_run
from stn.data import cub, cub_annotations, svhn, svhn_standin
from stn.data.cub_annotations import FORMS
from stn.data.cub_standin import write_standin as write_birds
from stn.data.digit_struct import read_digit_struct
from stn.data.errors import DataError
from stn.data.subset import Part
from stn.families import build, network, prepare
from stn.families import cub as cub_family
from stn.families import svhn as svhn_family
from stn.results.records import read_record
from stn.results.tables import load_table, render_table, select
from tests.tiny import run

N_TRAIN, N_TEST = 20, 8


def listed(folder, names, **checksums):
    return Part("toy", {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in names}, checksums)


@pytest.fixture(scope="module")
def numbers_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers")
    for split, n, seed in (("train", N_TRAIN + 5, 5), ("test", N_TEST + 5, 6)):
        svhn_standin.write_standin(folder / "SVHN" / split, n, seed)
        (folder / "SVHN" / split / "standin.json").unlink()
    return folder


@pytest.fixture
def numbers(numbers_dir, tmp_path, monkeypatch):
    """Call it with a model and overrides: a tiny run on a part of numbers that pass for real ones."""
    chosen = {"train": N_TRAIN, "test": N_TEST}
    names = [f"{split}/{k + 1}.png" for split, n in chosen.items() for k in range(n)]
    root = numbers_dir / "SVHN"
    read = {split: read_digit_struct(root / split / "digitStruct.mat")[:n] for split, n in chosen.items()}
    part = listed(root, names, boxes_sha256=svhn._boxes_sha256(read))
    monkeypatch.setattr(svhn_family, "read_part", lambda name: part)
    monkeypatch.setattr(svhn_family, "PART", "toy")

    def make(model, *overrides, task="svhn_64", **recipe):
        settings = compose_run(
            [
                *(f"task={task}", f"model={model}", "protocol=part", "data=subset", f"data_dir={numbers_dir}"),
                *("task.standin.train=40", "task.standin.test=12"),
                *(f"results_dir={tmp_path / 'results'}", f"output_dir={tmp_path / 'outputs'}"),
                *("device=cpu", "progress=false", *overrides),
            ]
        )
        return settings.changed(recipe=settings.recipe | {"steps": 6, "batch_size": 4, "width": 0.05} | recipe)

    return make


def test_a_run_on_a_part_has_a_record_of_its_own_and_a_table_that_says_so(numbers, tmp_path):
    settings = numbers("svhn_st_single")
    prepare(settings)
    run(settings)
    path = tmp_path / "results" / "subset" / "runs" / "svhn_64" / "svhn_st_single" / "part" / "seed0.json"
    record = read_record(path)
    assert (record["data"], record["n_test"], record["config"]["data"]) == ("subset", N_TEST, "subset")
    assert record["config"]["recipe"]["augmentation"] == {"shift": 0.08, "zoom": 0.2, "contrast": 0.3, "inverted": 0.5}
    assert {"test/box_kept_share", "test/box_fill_before", "test/box_fill_after"} <= record["metrics"].keys()
    image = torch.rand(1, 3, 64, 64)
    logits = [stn.load(source)(image) for source in (path, settings.folder, settings.folder / "weights.pt")]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    record = record | {"status": "ok"}
    for name in ("table2", "table2boxes"):
        spec = load_table(CONF / "table" / f"{name}.yaml")
        text = render_table(spec, [record], "part", tmp_path, "subset")[0].read_text()
        title = text.splitlines()[0]
        assert title.endswith(
            "REAL DATA, PART: 2 000 of 33 402 training and 1 000 of 13 068 test numbers; not comparable with the paper"
        )
        assert "(paper)" not in text.splitlines()[2]
        assert "Goodfellow" not in text


def test_a_table_of_one_kind_of_data_takes_no_other(numbers):
    settings = numbers("svhn_st_single")
    prepare(settings)
    run(settings)
    record = read_record(settings.record_file)
    spec = load_table(CONF / "table" / "table2boxes.yaml")
    assert select(spec, [record], "part", "subset") == [record]
    assert select(spec, [record | {"data": "standin"}], "part", "standin") == []


def test_the_box_of_the_whole_crop_is_unchanged_before_training(numbers):
    """With an untrained transformer, the identity, all of the box is kept and it fills as much as before."""
    settings = numbers("svhn_st_single", steps=6)
    prepare(settings)
    module = build(settings).module
    statistics = module.statistics()
    batch = module.stream.test_batch(0, 0)
    statistics.add(module.net.observe(batch.images)[1], batch)
    summary = statistics.summary()
    assert summary["box_kept_share"] == 1
    assert summary["box_fill_after"] == pytest.approx(summary["box_fill_before"], rel=1e-4)
    assert 0.3 < summary["box_fill_before"] < 1


def test_training_crops_are_augmented_and_test_crops_are_not(numbers):
    changed = numbers("svhn_cnn")
    plain = numbers("svhn_cnn", augmentation=None)
    prepare(plain)
    streams = [build(settings).module.stream for settings in (plain, changed)]
    assert [bool(any(stream.augmentation)) for stream in streams] == [False, True]
    first, second = (stream.test_batch(0, 0).images for stream in streams)
    assert first.equal(second)


@pytest.mark.parametrize(("train_on", "sizes"), [("drawn", [40]), ("both", [40, N_TRAIN, N_TRAIN])])
def test_drawn_numbers_can_be_learned_from_and_real_ones_tested_on(numbers, train_on, sizes):
    settings = numbers("svhn_cnn", task=f"svhn_64_{train_on}")
    prepare(settings)
    built = build(settings)
    stream = built.module.stream
    assert [len(part) for part in stream.train] == sizes
    assert [part.standin for part in stream.train] == [True] + [False] * (len(sizes) - 1)
    assert (len(stream.test), stream.test.standin) == (N_TEST, False)
    assert "drawn/train_64/images.npy" in built.data_checksums
    train, test = svhn_family.splits(settings.changed(evaluate="heldout"))
    assert len(test) == N_TRAIN // 4
    own = {image.numpy().tobytes() for part in train if not part.standin for image in part.images}
    assert not own & {image.numpy().tobytes() for image in test.images}


def test_where_few_numbers_are_drawn_they_are_repeated(numbers):
    settings = numbers("svhn_cnn", "task.standin.train=4", task="svhn_64_both")
    prepare(settings)
    train, _ = svhn_family.splits(settings)
    assert [part.standin for part in train] == [True] * round(N_TRAIN / 4) + [False]


def test_drawn_numbers_beside_themselves_are_refused(numbers):
    settings = numbers("svhn_cnn", "data=standin", task="svhn_64_both")
    with pytest.raises(ValueError, match=r"^data=standin: svhn_64_both trains on drawn .* allowed: real, subset$"):
        network(settings)


def test_a_picture_too_many_is_named_when_the_run_is_prepared(numbers, numbers_dir):
    settings = numbers("svhn_cnn")
    prepare(settings)
    extra = numbers_dir / "subset" / "toy" / "SVHN" / "train" / "99.png"
    shutil.copy(numbers_dir / "SVHN" / "train" / "1.png", extra)
    try:
        with pytest.raises(
            DataError, match=r"99\.png is not of the part toy: delete (\S+), and it is made anew"
        ) as error:
            prepare(settings)
    finally:
        shutil.rmtree(re.search(r"delete (\S+),", str(error.value))[1])
    prepare(settings)  # the advice is good


# Birds


@pytest.fixture
def birds(tmp_path, monkeypatch):
    """Call it with a task and a model: a tiny run on two of four species that pass for real ones."""
    whole = write_birds(tmp_path / "data", n_classes=4, n_per_class=8, seed=3, size_px=64)
    (whole / "standin.json").unlink()
    monkeypatch.setattr(cub_annotations, "OFFICIAL_COUNTS", (4, 32, 16, 15))
    photographs = sorted(str(p.relative_to(whole)) for k in (1, 4) for p in (whole / "images").glob(f"00{k}.*/*.jpg"))
    part = listed(whole, [*FORMS, *photographs])
    monkeypatch.setattr(cub_family, "read_part", lambda name: part)
    monkeypatch.setattr(cub_family, "PART", "toy")
    monkeypatch.setattr(cub_family, "PART_CLASSES", 2)

    def make(task, model, **recipe):
        settings = compose_run(
            [
                *(f"task={task}", f"model={model}", "protocol=part", "data=subset", f"data_dir={tmp_path / 'data'}"),
                *(f"results_dir={tmp_path / 'results'}", f"output_dir={tmp_path / 'outputs'}"),
                *("device=cpu", "progress=false"),
            ]
        )
        return settings.changed(recipe=settings.recipe | recipe)

    return make


def test_birds_of_a_part_are_classified_among_its_own_species(birds, tmp_path):
    tiny = {"backbone": {"name": "small", "width": 4}, "pretrained": None, "crop_px": 28, "shorter_side_px": 32}
    settings = birds("cub_448", "cub_st2", steps=6, batch_size=4, **tiny)
    prepare(settings)
    assert network(settings).net.classifier.out_features == 2
    run(settings)
    record = read_record(tmp_path / "results" / "subset" / "runs" / "cub_448" / "cub_st2" / "part" / "seed0.json")
    assert (record["data"], record["n_test"]) == ("subset", 8)
    assert (tmp_path / "data" / "subset" / "toy" / cub.ROOT / "part.md5").is_file()


def test_co_localisation_takes_the_species_of_a_part(birds):
    settings = birds("cub_coloc", "coloc_st", species=2, images_per_species=4, batch_size=4, image_px=32, crop_px=32)
    prepare(settings)
    module = build(settings).module
    assert list(module.names) == ["001_Standin_Bird_001", "004_Standin_Bird_004"]
    assert module.scenes["train"].images.shape[:2] == (4, 2)


def test_protocols_that_pretrain_on_drawn_birds_are_refused(birds):
    settings = birds("cub_224", "cub_cnn", pretrained="cub_pretrain")
    with pytest.raises(ValueError, match=r"^data=subset: this protocol pre-trains on drawn birds; .*protocol=part"):
        network(settings)
