"""Co-localisation of birds on a few small stand-ins."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.config import compose_run
from experiments.galleries import windows
from stn.data.cub import load_cub
from stn.data.errors import DataError
from stn.families import build, cub_coloc, needs, prepare
from stn.families.cub_coloc import load_encoder, scenes, standin
from stn.nets.backbones import backbone
from stn.nets.bird_encoder import BackboneActivations, SpeciesActivations
from stn.nets.cub import MultiStreamTransformer
from stn.nets.windows import window_boxes_px
from stn.results.records import read_record, unpack_wrong
from stn.settings import RunSettings
from stn.tasks.birds import BirdColocalisation, square_windows
from tests.tiny import run, unread


@pytest.fixture(scope="session")
def birds_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("coloc_birds")


@pytest.fixture
def settings_of_birds(tmp_path, birds_dir):
    def make(*overrides: str, **recipe) -> RunSettings:
        run = compose_run(
            [
                *("task=cub_coloc", "model=coloc_st", "protocol=smoke", "data=standin", f"data_dir={birds_dir}"),
                *(f"results_dir={tmp_path / 'results'}", f"output_dir={tmp_path / 'outputs'}"),
                *("device=cpu", "progress=false", *overrides),
            ]
        )
        return run.changed(recipe=run.recipe | recipe)

    make.folder = tmp_path / "figures"
    make.folder.mkdir()
    return make


def test_a_run_ends_in_a_record_with_corloc_and_its_baselines(monkeypatch, settings_of_birds):
    monkeypatch.setattr(BirdColocalisation, "collapse", lambda self, loss: None)
    settings = settings_of_birds()
    run(settings)
    record = read_record(settings.record_file)
    metrics, species, n = record["metrics"], 2, 4
    assert (record["status"], record["n_test"]) == ("ok", species * n)
    wrong = unpack_wrong(record["test_wrong"])
    assert metrics["test/correct_pct"] == pytest.approx(100 * (1 - wrong.mean()))
    by_species = [value for name, value in metrics.items() if name.startswith("test/correct_pct_0")]
    assert np.mean(by_species) == pytest.approx(metrics["test/correct_pct"])
    assert record["data_checksums"].keys() == {"annotations_sha256", "encoder_sha256"}
    assert all(metrics[f"test/loss_{windows}"] > 0 for windows in ("found", "true"))
    assert {"test/correct_searched_pct", "test/correct_fitted_pct"} <= metrics.keys()

    # the two baselines, by counting pixels
    train = standin(settings).load(settings, "train", 48)
    boxes = scenes(train, [0, 1], n, 48).boxes_px.flatten(0, 1).round().long()
    truth = torch.zeros(len(boxes), 48, 48)
    for mask, (x0, y0, x1, y1) in zip(truth, boxes.tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    width, height = (boxes[:, 2:] - boxes[:, :2]).float().mean(0).tolist()
    centre = torch.zeros(48, 48)
    centre[round(24 - height / 2) : round(24 + height / 2), round(24 - width / 2) : round(24 + width / 2)] = 1
    for name, guess in (("whole_image", torch.ones(48, 48)), ("centre_box", centre)):
        overlap = (truth * guess).sum((1, 2)) / (truth + guess).clamp(max=1).sum((1, 2))
        sure = (overlap - 0.5).abs() > 0.05  # boxes were rounded
        low, high = (100 * found.float().mean().item() for found in ((overlap > 0.5) & sure, (overlap > 0.5) | ~sure))
        assert low - 1e-3 <= metrics[f"test/correct_{name}_pct"] <= high + 1e-3

    # the figure: a line of the birds of each species
    wanted = {name: getattr(settings, name) for name in ("data_dir", "output_dir", "data")} | {"protocol": "smoke"}
    monkeypatch.setattr(windows, "BIRDS", 2)
    paths = list(windows.species(settings_of_birds.folder, [record], wanted))
    assert [path.name for path in paths] == ["windows_cub_coloc_smoke_standin.png"]
    assert paths[0].exists()


def test_each_key_is_read(monkeypatch, settings_of_birds):
    monkeypatch.setattr(BirdColocalisation, "collapse", lambda self, loss: None)
    assert unread(settings_of_birds(), monkeypatch) == set()


def test_more_species_than_there_are_is_refused(settings_of_birds, monkeypatch):
    settings = settings_of_birds()
    prepare(settings)

    def of_one_species(data_dir, split, size_px):
        birds = load_cub(data_dir, split, size_px)
        return replace(birds, classes=birds.classes[:1])

    monkeypatch.setattr("stn.families.cub.load_cub", of_one_species)
    with pytest.raises(DataError, match=r"^protocol\.cub_coloc\.species is 2, but these birds are of 1 species$"):
        build(settings)


def test_a_species_may_have_fewer_unseen_photographs_than_training_ones(settings_of_birds, monkeypatch):
    settings = settings_of_birds()
    prepare(settings)
    monkeypatch.setattr(cub_coloc, "load_encoder", lambda settings: (torch.nn.Identity(), {}))
    whole = build(settings).module.scenes
    n = whole["train"].images.shape[0]

    def without_a_test_bird(data_dir, split, size_px):
        birds = load_cub(data_dir, split, size_px)
        of_the_first = (birds.labels == 0).nonzero()[: n - 1, 0]
        others = (birds.labels != 0).nonzero()[:, 0]
        return birds if split == "train" else birds.take(torch.cat([of_the_first, others]))

    monkeypatch.setattr("stn.families.cub.load_cub", without_a_test_bird)
    scenes_of = build(settings).module.scenes
    assert [len(scenes_of[split].images) for split in ("train", "unseen")] == [n, n - 1]


def test_scenes_are_of_one_species_each_and_too_few_photographs_are_said(settings_of_birds):
    settings = settings_of_birds()
    prepare(settings)
    train = standin(settings).load(settings, "train", 48)
    found = scenes(train, [1, 0], 3, 48)
    assert found.images.shape == (3, 2, 3, 48, 48)
    of_species_1 = (train.labels == 1).nonzero()[0, 0]
    rows, columns = train.sizes_px[of_species_1].tolist()
    top, left = (rows - 48) // 2, (columns - 48) // 2
    wanted = train.image(int(of_species_1))[top : top + 48, left : left + 48].permute(2, 0, 1) / 255
    assert torch.equal(found.images[0, 0], wanted)
    with pytest.raises(
        DataError, match=r"Bird_001 has 4 training photographs, but protocol\.cub_coloc\.images_per_species is 5"
    ):
        scenes(train, [0], 5, 48)


def test_the_encoder_is_frozen_and_says_where_in_a_crop_something_is():
    torch.manual_seed(0)
    encoder = BackboneActivations(backbone("efficientnet_lite0"))
    crops = torch.rand(2, 3, 64, 64, requires_grad=True)
    layers = encoder(crops)
    assert [tuple(layer.shape) for layer in layers] == [(2, 40, 4, 4), (2, 112, 2, 2), (2, 320, 1, 1)]
    assert not any(p.requires_grad for p in encoder.parameters())
    layers[0][0, :, 0, 0].sum().backward()  # the top left cell of the first crop sees mostly its own corner
    reach = crops.grad.abs().sum(1)
    assert reach[1].max() == 0
    assert reach[0, :32, :32].sum() > 10 * reach[0, 32:, 32:].sum()


def test_missing_real_birds_are_said_in_a_line(tmp_path, settings_of_birds):
    with pytest.raises(DataError, match=r"CUB-200-2011 is not in .*: run `make data-cub`"):
        prepare(settings_of_birds("data=real", f"data_dir={tmp_path}"))


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        ({"species": 1}, "protocol.cub_coloc.species"),
        ({"crop_px": 16}, "protocol.cub_coloc: crop_px must be 32 or more"),
        ({"encoder": "vgg"}, "protocol.cub_coloc.encoder"),
        ({"scale_min": 0.9}, "scale_min"),
    ],
)
def test_impossible_settings_are_named(settings_of_birds, recipe, named):
    with pytest.raises(ValueError, match=named):
        build(settings_of_birds(**recipe))


@pytest.fixture
def cub_cnn():
    torch.manual_seed(3)
    return MultiStreamTransformer("small", 0, 7, image_px=42, crop_px=42, width=4).eval()


def test_the_encoder_of_drawn_birds_gives_the_class_scores_of_the_net_it_was(cub_cnn):
    encoder = SpeciesActivations.from_weights(cub_cnn.state_dict())
    pictures = torch.rand(3, 3, 42, 42)
    maps, scores = encoder(pictures)
    with torch.no_grad():
        torch.testing.assert_close(scores, cub_cnn(pictures))
        torch.testing.assert_close(maps, cub_cnn.streams[0](pictures))
    assert not any(p.requires_grad for p in encoder.parameters())
    assert encoder(pictures[:, :, :28, :28])[0].shape == (3, 16, 2, 2)


@pytest.mark.parametrize("other", [{}, {"streams.0.net.0.weight": torch.zeros(4, 3, 3, 3)}])
def test_weights_of_another_net_are_refused_as_encoder(other):
    with pytest.raises(ValueError, match="not those of a cub_cnn"):
        SpeciesActivations.from_weights(other)


def test_a_run_with_the_encoder_of_drawn_birds_needs_that_run_and_drawn_birds(settings_of_birds, cub_cnn):
    settings = settings_of_birds(encoder="cub_pretrain")
    assert needs(settings) == [("cub_pretrain", "cub_cnn", "smoke", 0)]
    assert needs(settings_of_birds()) == []
    with pytest.raises(
        DataError, match=r"experiments\.train task=cub_pretrain model=cub_cnn protocol=smoke data=standin"
    ):
        load_encoder(settings)
    path = settings.folder_of(*needs(settings)) / "weights.pt"
    path.parent.mkdir(parents=True)
    torch.save(cub_cnn.state_dict(), path)
    (_, checksum), (_, again) = load_encoder(settings), load_encoder(settings.changed(seed=4))
    assert checksum == again
    assert list(checksum) == ["encoder cub_pretrain/cub_cnn/smoke/seed0"]
    with pytest.raises(ValueError, match="data=real: this protocol compares crops by a net trained on drawn birds"):
        needs(settings_of_birds("data=real", encoder="cub_pretrain"))


def test_square_windows_have_the_middles_and_the_areas_of_the_boxes():
    boxes = torch.tensor([[[10.0, 20, 50, 30], [0.0, 0, 96, 96]]])
    squares = window_boxes_px(square_windows(boxes, 96), 96)
    torch.testing.assert_close(squares, torch.tensor([[[20.0, 15, 40, 35], [0.0, 0, 96, 96]]]))
