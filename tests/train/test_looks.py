"""What is shown of a run's spatial transformers: something for every family, and no trace of having looked."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stn.data.distortions import distortion
from stn.data.mnist import Digits
from stn.data.streams import AddedDigits, Batch, DistortedDigits
from stn.data.volumes import ExtrudedDigits
from stn.nets.colocalisation import Localisers, WindowBounds
from stn.nets.cub import MultiStreamTransformer
from stn.nets.mnist import Architecture, Cnn
from stn.nets.svhn import NumberReader
from stn.nets.volumes import volume_network
from stn.tasks.birds import WindowStatistics
from stn.tasks.classification import Classification
from stn.tasks.colocalisation import Colocalisation, Scenes
from stn.tasks.volume_statistics import VolumeStatistics
from stn.tasks.warp_statistics import WarpStatistics
from stn.watch.snapshots import looked_at as look

N = 8
RTS = {"name": "rts", "rotation_deg": 45, "scale": [0.7, 1.2], "canvas": 42}


@pytest.fixture
def digits(toy_digits):
    part = toy_digits["test"]
    return Digits(part.images[:N], part.labels[:N])


def classification(net, stream, statistics):
    return Classification(net, stream, SimpleNamespace(steps=1), 0, statistics)


def pictures(n_channels, side_px, **extra):
    """A stream of one random test batch."""
    images = torch.rand(N, n_channels, side_px, side_px, generator=torch.Generator().manual_seed(1))
    return SimpleNamespace(test_batch=lambda draw, start: Batch(images, **extra))


def mnist(digits):
    net = Architecture("cnn", "affine", "fc").build((1, 42, 42), (4, 4), 10, 2)
    return classification(net, DistortedDigits(distortion(**RTS), digits, digits), WarpStatistics)


def addition(digits):
    net = Architecture("fcn", "affine", "fc", transformers=2).build((2, 42, 42), (4, 4), 19, 1)
    return classification(net, AddedDigits(distortion(**RTS), digits, digits), WarpStatistics)


def mnist3d(digits):
    net = volume_network(True, "affine3d")((1, 28, 28, 28), (4, 4), 10)
    return classification(net, ExtrudedDigits(digits, digits, 28), VolumeStatistics)


def svhn(_):
    labels = torch.tensor([[1, 9, 10, 10, 10]] * N)
    return classification(NumberReader(64, 2, "fc", width=0.1), pictures(3, 64, labels=labels), WarpStatistics)


def cub(_):
    net = MultiStreamTransformer("small", 2, 5, image_px=56, crop_px=28, width=4)
    parts = torch.tensor([[10.0, 10, 1], [40, 40, 1]]).expand(N, -1, -1)
    stream = pictures(3, 56, labels=torch.zeros(N, dtype=torch.int64), parts=parts)
    return classification(net, stream, lambda: WindowStatistics(("beak", "back"), 56, net.scale))


def coloc(_):
    net = Localisers(2, (1, 32, 32), WindowBounds(0.2, 1.0, 0.6, 1.0), crop_px=12)
    scenes = Scenes(torch.rand(N, 2, 1, 32, 32), torch.tensor([4.0, 4, 20, 20]).expand(N, 2, 4))
    recipe = SimpleNamespace(crop_px=12, antialias=False, steps=1, fit_steps=0)
    return Colocalisation(net, None, scenes, scenes, ("a", "b"), recipe, 0)


# family -> warps in the picture, of which so many per image; the shapes of their inputs and outputs
FAMILIES = {
    mnist: (6, 1, (42, 42), (42, 42)),
    addition: (8, 4, (42, 42), (42, 42)),
    mnist3d: (2, 1, (28, 28, 28), (14, 28, 28)),
    svhn: (6, 1, (64, 64, 3), (64, 64, 3)),  # the second transformer, behind a convolution, has no picture
    cub: (6, 2, (56, 56, 3), (28, 28, 3)),
    coloc: (2, 1, (32, 32), (12, 12)),
}


@pytest.mark.parametrize("make", FAMILIES, ids=lambda make: make.__name__)
def test_every_family_has_something_to_show_and_looking_leaves_no_trace(make, digits, tmp_path):
    module = make(digits)
    module.net.train()
    before = {name: value.clone() for name, value in module.net.state_dict().items()}
    random = torch.get_rng_state()
    found = look(module)
    assert torch.equal(random, torch.get_rng_state())
    assert all(layer.training for layer in module.net.modules())
    assert all(torch.equal(before[name], value) for name, value in module.net.state_dict().items())

    n, per_image, shape_in, shape_out = FAMILIES[make]
    assert (len(found.warps), found.per_image) == (n, per_image)
    assert {(warp.input.shape, warp.output.shape) for warp in found.warps} == {(shape_in, shape_out)}
    assert all(np.isfinite(value) for value in found.statistics.values())
    assert found.draw(tmp_path / "warps.png", make.__name__).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("make", [mnist, addition, svhn], ids=lambda make: make.__name__)
def test_an_untrained_transformer_is_shown_as_the_identity(make, digits):
    for warp in look(make(digits)).warps:
        np.testing.assert_allclose(warp.output, warp.input, atol=1e-5)


def test_windows_are_shown_where_they_are(digits):
    """Those of an untrained net for birds, half as wide as the image, lie side by side."""
    left, right = look(cub(digits)).warps[:2]
    for warp, x in ((left, -0.5), (right, 0.5)):
        np.testing.assert_allclose(warp.grid.mean(axis=(0, 1)), [x, 0], atol=1e-6)
        assert np.abs(warp.grid - warp.grid.mean(axis=(0, 1))).max() < 0.5


def test_theta_is_described_by_mean_and_spread(digits):
    module = mnist(digits)
    (transformer,) = module.net.transformers
    with torch.no_grad():
        transformer.regression.bias[2] = 0.25  # every image moves by the same
    statistics = look(module).statistics
    assert statistics["theta_mean_2"] == pytest.approx(0.25)
    assert statistics["theta_mean_0"] == pytest.approx(1)
    assert statistics["theta_std_2"] == pytest.approx(0, abs=1e-6)


def test_a_net_without_a_transformer_has_nothing_to_show(digits):
    stream = DistortedDigits(distortion(**RTS), digits, digits)
    assert look(classification(Cnn((1, 42, 42), (4, 4)), stream, WarpStatistics)) is None
    plain = MultiStreamTransformer("small", 0, 5, image_px=56, crop_px=56, width=4)
    assert look(classification(plain, pictures(3, 56, labels=torch.zeros(N)), None)) is None
    labels = torch.zeros(N, 5, dtype=torch.int64)
    assert look(classification(NumberReader(64, width=0.1), pictures(3, 64, labels=labels), WarpStatistics)) is None
