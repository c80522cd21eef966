"""The networks of Table 2 against the paper's notation, read and counted here by another way."""

import re

import pytest
import torch
from torch import nn

from stn.nets.budget import count_parameters
from stn.nets.svhn import NumberReader
from stn.tasks.recipe import is_localiser

CNN = (
    "conv[48,5,1,2]-max[2,2]-conv[64,5,1,2]-conv[128,5,1,2]-max[2,2]-conv[160,5,1,2]-conv[192,5,1,2]-max[2,2]-"
    "conv[192,5,1,2]-conv[192,5,1,2]-max[2,2]-conv[192,5,1,2]-fc[3072]-fc[3072]-fc[3072]"
)
SINGLE = "conv[32,5,1,2]-max[2,2]-conv[32,5,1,2]-fc[32]-fc[32]"
MULTI = "fc[32]-fc[32]"
MODELS = {"cnn": (0, None), "single": (1, "conv"), "multi": (4, "fc")}


def read(notation):
    """[("conv", [48, 5, 1, 2]), …]"""
    return [
        (name, [int(n) for n in numbers.split(",")]) for name, numbers in re.findall(r"(\w+)\[([\d,]+)\]", notation)
    ]


def parameters(notation, channels, side):
    """Parameters of a chain of layers; the number of features it ends with; the input (channels, side) of each conv."""
    total, features, conv_inputs = 0, None, []
    for name, numbers in read(notation):
        if name == "conv":
            filters, size, stride, pad = numbers
            conv_inputs.append((channels, side))
            total += filters * (channels * size * size + 1)
            channels, side = filters, (side + 2 * pad - size) // stride + 1
        elif name == "max":
            size, stride = numbers
            side = (side - size) // stride + 1
        else:
            features = channels * side * side if features is None else features
            total += numbers[0] * (features + 1)
            features = numbers[0]
    return total, features, conv_inputs


def expected(model, side):
    total, features, conv_inputs = parameters(CNN, 3, side)
    total += 5 * 11 * (features + 1)
    transformers, _ = MODELS[model]
    for channels, map_side in conv_inputs[:transformers]:
        localiser, out, _ = parameters(SINGLE if model == "single" else MULTI, channels, map_side)
        total += localiser + 6 * (out + 1)
    return total


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("model", MODELS)
def test_a_network_has_the_parameters_of_the_papers_notation(model, side):
    with torch.device("meta"):
        net = NumberReader(side, *MODELS[model])
    assert count_parameters(net) == expected(model, side)


def test_the_cnn_has_the_papers_layers_in_order():
    with torch.device("meta"):
        net = NumberReader(64)
    found = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            assert module.kernel_size[0] == module.kernel_size[1]
            found.append(("conv", [module.out_channels, module.kernel_size[0], module.stride[0], module.padding[0]]))
        elif isinstance(module, nn.MaxPool2d):
            found.append(("max", [module.kernel_size, module.stride]))
        elif isinstance(module, nn.Linear):
            found.append(("fc", [module.out_features]))
    assert found == [*read(CNN), ("fc", [55])]
    assert sum(name != "max" for name, _ in read(CNN)) == 11


def test_dropout_is_behind_every_layer_but_the_first_and_the_localisers():
    with torch.device("meta"):
        net = NumberReader(64, 4, "fc", dropout=0.5)
    rates = [m.p for convolve in net.convolutions for m in convolve if isinstance(m, nn.Dropout)]
    assert rates == [0] + 7 * [0.5]
    assert [m.p for m in net.hidden if isinstance(m, nn.Dropout)] == 3 * [0.5]
    assert not any(isinstance(m, nn.Dropout) for m in net.spatial_transformers.modules())


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def small(model, **options):
    torch.manual_seed(1)
    return NumberReader(32, *MODELS[model], width=0.125, **options).eval()


@pytest.mark.parametrize("model", ["single", "multi"])
def test_training_begins_at_the_cnn_itself(images, model):
    """Transformers at the identity change nothing."""
    net, cnn = small(model), small("cnn")
    cnn.load_state_dict({n: p for n, p in net.state_dict().items() if not n.startswith("spatial_transformers")})
    logits, warps = net.observe(images)
    assert torch.allclose(logits, cnn(images), atol=1e-5)
    sizes = [(3, 32), (8, 16), (8, 16), (16, 8)][: len(net.spatial_transformers)]
    assert [tuple(w.image.shape) for w in warps] == [(4, c, side, side) for c, side in sizes]
    assert logits.shape == (4, 5, 11)
    assert torch.equal(net(images), logits)


@pytest.mark.parametrize("model", ["single", "multi"])
def test_transformers_stand_before_their_convolutions_and_are_trained_as_localisers(images, model):
    net = small(model).train()
    for transformer in net.spatial_transformers:
        nn.init.normal_(transformer.regression.weight, std=0.05)
    logits, warps = net.observe(images)
    for warped in warps:
        assert warped.theta.std(0).min() > 0
    logits.logsumexp(-1).sum().backward()
    localisers = [(n, p) for n, p in net.named_parameters() if is_localiser(n)]
    assert all(p.grad.abs().sum() > 0 for _, p in localisers)
    layers = 4 if model == "single" else 2
    assert len(localisers) == len(net.spatial_transformers) * 2 * (layers + 1)
    assert all(n.startswith("spatial_transformers") for n, _ in localisers)


def test_the_brightness_of_an_image_does_not_matter_and_outside_reads_its_mean(images):
    net = small("single")
    assert torch.allclose(net(images / 2), net(images / 2 + 0.25), atol=1e-4)
    with torch.no_grad():
        net.spatial_transformers[0].regression.bias.copy_(torch.tensor([0.0, 0, 5, 0, 0, 0]))  # far to the right
    _, (warped,) = net.observe(images)
    assert warped.image.abs().max() == 0  # the mean that was subtracted


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((40,), "multiple of 16"),
        ((64, 9, "fc"), "transformers"),
        ((64, 1, "deep"), "localisation"),
        ((64, 0, "fc"), "null"),
    ],
)
def test_what_cannot_be_is_refused(arguments, named):
    with pytest.raises(ValueError, match=named), torch.device("meta"):
        NumberReader(*arguments)
