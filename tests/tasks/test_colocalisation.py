"""The loss of App. A.2, windows against boxes, and the training of localisers on the simplest objects there are."""

import copy
import pickle

import numpy as np
import pytest
import torch

from stn.nets.colocalisation import ColocalisationLocalisation, Localisers, WindowBounds
from stn.nets.windows import window_boxes_px
from stn.tasks import window_search
from stn.tasks.colocalisation import crops, iou, misses, pair_loss
from stn.tasks.window_search import fit_windows, search_windows, squared_distances

BOUNDS = WindowBounds(scale_min=0.2, scale_max=1.0, initial_scale=0.6, max_shift=1.0)


def test_squared_distances_are_those_of_all_pairs():
    a, b = torch.randn(2, 4, 7), torch.randn(2, 5, 7)
    assert torch.allclose(squared_distances(a, b), torch.cdist(a, b) ** 2, atol=1e-4)
    far = a + 1000  # rounding must not make a distance negative
    assert (squared_distances(far, far) >= 0).all()


def test_squared_distances_are_exact_under_autocast():
    a = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) + 3
    with torch.autocast("cpu", torch.bfloat16):
        assert squared_distances(a, a).diagonal().max() < 1e-3


def test_the_loss_is_the_papers_sum_over_pairs():
    e, random = np.random.default_rng(0).normal(size=(2, 5, 3))
    terms = [
        max(0.0, ((e[n] - e[m]) ** 2).sum() - ((e[n] - random[n]) ** 2).sum() + 1.0)
        for n in range(5)
        for m in range(5)
        if n != m
    ]
    loss, between, to_random = pair_loss(torch.tensor(e), torch.tensor(random), alpha=1.0)
    assert loss.item() == pytest.approx(np.mean(terms))
    assert 0 in terms  # the hinge is at work
    assert between.item() == pytest.approx(
        np.mean([((e[n] - e[m]) ** 2).sum() for n in range(5) for m in range(5) if n != m])
    )
    assert to_random.item() == pytest.approx(((e - random) ** 2).sum(1).mean())


def test_classes_do_not_mix_in_the_loss():
    e, random = torch.randn(2, 3, 6, 4)
    together = pair_loss(e, random, 1.0)[0]
    assert torch.allclose(together, torch.stack([pair_loss(*pair, 1.0)[0] for pair in zip(e, random, strict=True)]))


def test_the_gradient_reaches_the_own_crop_alone():
    """Numbers 0 and 1: e_0 is pushed by e_1 as a constant, and by its random crop."""
    e = torch.tensor([[0.0], [2.0]], requires_grad=True)
    random = torch.tensor([[-0.5], [2.5]], requires_grad=True)
    pair_loss(e, random, alpha=1.0)[0].backward()
    # d/de_0 of mean((e_0 - 2)² - (e_0 + 0.5)² + 1) over two pairs: (-4 - 1) / 2
    assert e.grad[:, 0].tolist() == pytest.approx([-2.5, 2.5])
    assert random.grad is None


@pytest.mark.parametrize(
    ("other", "wanted"),
    [((0, 0, 4, 4), 1.0), ((2, 0, 6, 4), 8 / 24), ((4, 0, 8, 4), 0.0), ((9, 9, 10, 10), 0.0), ((1, 1, 3, 3), 4 / 16)],
)
def test_iou_of_boxes(other, wanted):
    assert iou(torch.tensor([0.0, 0, 4, 4]), torch.tensor(other).float()).item() == pytest.approx(wanted)


def test_a_window_box_is_what_the_crop_shows():
    """The crop of a window whose box is whole pixels is that part of the image, pixel by pixel."""
    image = torch.rand(1, 1, 1, 84, 84)
    window = torch.tensor([[[28 / 84, (10 + 14) / 42 - 1, (30 + 14) / 42 - 1]]])
    assert window_boxes_px(window, 84)[0, 0].tolist() == pytest.approx([10, 30, 38, 58], abs=1e-4)
    assert torch.allclose(crops(image, window, 28, False)[0, 0], image[0, 0, 0, 30:58, 10:38], atol=1e-4)


def test_every_wrong_window_is_wrong_in_one_way():
    box = torch.tensor([28.0, 28, 56, 56])
    scale, shift = torch.tensor([1 / 3, 0.9, 0.15, 0.3, 0.3]), torch.tensor([0, 0, 0, 0.2, 0.9])
    windows = torch.stack([scale, shift, torch.zeros(5)], dim=1)
    found = misses(windows, box.expand(5, 4), 84)
    assert {name: wrong.tolist() for name, wrong in found.items()} == {
        "loose": [False, True, False, False, False],
        "tight": [False, False, True, False, False],
        "shifted": [False, False, False, True, False],
        "off": [False, False, False, False, True],
    }


# -- windows --------------------------------------------------------------------------------------------------------


def test_windows_stay_within_their_bounds_and_start_in_the_middle():
    windows = BOUNDS.windows(1e3 * torch.randn(200, 3))
    assert (windows[:, 0] >= 0.2).all()
    assert (windows[:, 0] <= 1.0).all()
    assert windows[:, 1:].abs().max() <= 1
    assert BOUNDS.windows(BOUNDS.raw(0.37)).tolist() == pytest.approx([0.37, 0, 0], abs=1e-6)
    random = BOUNDS.at_random(torch.full((500,), 0.4), torch.Generator().manual_seed(0))
    assert (random[:, 0] == 0.4).all()
    assert random[:, 1:].min() < -0.9
    assert random[:, 1:].max() > 0.9


@pytest.mark.parametrize(
    "changes", [{"scale_min": 0.0}, {"scale_max": 0.5}, {"initial_scale": 0.2}, {"max_shift": 0.0}]
)
def test_bounds_that_are_none_are_refused(changes):
    numbers = {"scale_min": 0.2, "scale_max": 1.0, "initial_scale": 0.6, "max_shift": 1.0}
    with pytest.raises(ValueError, match="scale_min < initial_scale"):
        WindowBounds(**numbers | changes)


def test_the_localisation_net_has_the_papers_layers():
    net = ColocalisationLocalisation((1, 84, 84))
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    linear = [m for m in net.modules() if isinstance(m, torch.nn.Linear)]
    assert [(m.out_channels, m.kernel_size) for m in convolutions] == [(8, (5, 5))] * 2
    assert sum(isinstance(m, torch.nn.MaxPool2d) for m in net.modules()) == 2
    assert [m.out_features for m in linear] == [8, 8, 8, 8]


def test_localisers_start_in_the_middle_see_their_own_class_and_can_be_standardised():
    torch.manual_seed(0)
    net = Localisers(2, (1, 40, 40), BOUNDS, crop_px=12)
    images = torch.rand(9, 2, 1, 40, 40) * 0.1
    assert torch.allclose(net(images), BOUNDS.windows(BOUNDS.raw(0.6)).expand(9, 2, 3))
    net.standardise(images)
    first = net.transformers[1].localisation[0][0](images[:, 1])
    assert first.mean((0, 2, 3)).abs().max() < 1e-3
    assert torch.allclose(first.std((0, 2, 3)), torch.ones(8), atol=1e-3)
    torch.nn.init.normal_(net.transformers[1].regression.weight)
    changed = images.clone()
    changed[:, 0] = 0
    assert torch.equal(net(changed)[:, 1], net(images)[:, 1])


# -- the search -----------------------------------------------------------------------------------------------------


def test_the_search_finds_the_one_thing_that_all_images_share():
    """A bright square somewhere, in every second image another, half as bright; the encoder sees small pictures."""
    generator = torch.Generator().manual_seed(3)
    images, boxes = torch.zeros(20, 1, 48, 48), torch.zeros(20, 4)
    for i, (image, box) in enumerate(zip(images, boxes, strict=True)):
        if i % 2:
            left, top = torch.randint(0, 32, (2,), generator=generator).tolist()
            image[0, top + 2 : top + 14, left + 2 : left + 14] = torch.linspace(0.25, 0.5, 12)
        left, top = torch.randint(0, 32, (2,), generator=generator).tolist()
        image[0, top + 2 : top + 14, left + 2 : left + 14] = torch.linspace(0.5, 1, 12)
        box.copy_(torch.tensor([left, top, left + 16, top + 16]))

    def encode(images, windows):
        return crops(images[:, None], windows[:, None], 8, True).flatten(1)

    bounds = WindowBounds(scale_min=0.28, scale_max=0.4, initial_scale=0.335, max_shift=0.75)
    windows = search_windows(encode, images, bounds, generator, n_windows=80, n_prototypes=80)
    found = iou(window_boxes_px(windows, 48), boxes) > 0.5
    assert found.float().mean() > 0.7
    at_random = bounds.at_random(torch.full((20,), 1 / 3), generator)
    assert iou(window_boxes_px(at_random, 48), boxes).median() < 0.2


def places() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (6, 2, 1, 40, 40) of a square at six places, and the windows (6, 2, 3) around it."""
    images = torch.zeros(6, 2, 1, 40, 40)
    for i in range(6):
        images[i, :, 0, 5 * i : 5 * i + 10, 5:20] = 1
    windows = torch.stack([torch.full((6,), 0.4), torch.zeros(6), torch.linspace(-0.6, 0.6, 6)], dim=1)
    return images, windows[:, None].expand(-1, 2, -1)


def fitted(net: Localisers, images: torch.Tensor, windows: torch.Tensor) -> list[float]:
    """How far the windows are from those wanted, of what it was before, class by class."""
    before = (net(images) - windows).square().mean((0, 2))
    fit_windows(net, images, windows, steps=150, batch_size=6, seed=0, before_step=lambda step: None)
    return ((net(images) - windows).square().mean((0, 2)) / before).tolist()


def test_localisers_can_be_fitted_to_windows():
    torch.manual_seed(0)
    images, windows = places()
    net = Localisers(2, (1, 40, 40), BOUNDS, crop_px=12)
    net.standardise(images)
    steps = []
    before = (net(images) - windows).square().mean().item()
    fit_windows(net, images, windows, steps=150, batch_size=6, seed=0, before_step=steps.append)
    assert steps == list(range(-150, 0))
    assert (net(images) - windows).square().mean().item() < 0.05 * before


def test_a_localiser_that_cannot_learn_begins_anew(monkeypatch):
    torch.manual_seed(0)
    images, windows = places()
    dead = Localisers(2, (1, 40, 40), BOUNDS, crop_px=12)
    dead.standardise(images)
    with torch.no_grad():
        dead.transformers[1].localisation[0][0].bias.fill_(-1e3)  # no unit of its first layer is ever above zero
    again = copy.deepcopy(dead)
    first, second = fitted(dead, images, windows)
    assert first < 0.05
    assert second < 0.05
    monkeypatch.setattr(window_search, "FIT_STARTS", 1)
    first, second = fitted(again, images, windows)
    assert first < 0.05
    assert second > 0.5


def test_boxes_without_area_have_no_overlap_and_windows_can_be_pickled():
    point = torch.tensor([1.0, 1, 1, 1])
    assert iou(point, point).item() == 0
    transformation = WindowBounds(0.2, 0.8, 0.5, 1.0).transformation()
    again = pickle.loads(pickle.dumps(transformation))
    assert torch.equal(again.grid(torch.zeros(1, 3), (4, 4)), transformation.grid(torch.zeros(1, 3), (4, 4)))
