import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stn.nets.budget import build_within_budget, count_parameters
from stn.nets.frequency import FrequencyConv2d
from stn.nets.layers import FEW_CHANNELS, BlockMean, InputConv2d, conv_pool, flat_features
from stn.nets.localisation import ConvolutionalLocalisation, FullyConnectedLocalisation
from stn.nets.mnist import Architecture, Cnn, Fcn

MODELS = {
    "fcn": Architecture("fcn"),
    "cnn": Architecture("cnn"),
    "st_fcn_affine": Architecture("fcn", "affine", "fc"),
    "st_fcn_projective": Architecture("fcn", "projective", "fc"),
    "st_fcn_tps": Architecture("fcn", "tps", "fc"),
    "st_cnn_affine": Architecture("cnn", "affine", "conv"),
    "st_cnn_projective": Architecture("cnn", "projective", "conv"),
    "st_cnn_tps": Architecture("cnn", "tps", "conv"),
}
THETA = {"affine": 6, "projective": 8, "tps": 32}
# Canvas of R, P and E; of RTS; of TC: and how much the ST's output is pooled there.
POOL = {28: 1, 42: 2, 60: 2}
# Side of the CNN's last map, by hand: (n - 8) / 2, up, (- 6) / 2, up.
LAST_MAP = {28: 2, 42: 6, 60: 10, 21: 1, 30: 3}


def fcn_parameters(n_in, a, b):
    return n_in * a + a + a * b + b + b * 10 + 10


def cnn_parameters(side, a, b):
    return (81 * a + a) + (49 * a * b + b) + (b * LAST_MAP[side] ** 2 * 10 + 10)


def fc_localisation_parameters(canvas):
    return (canvas**2 * 32 + 32) + 2 * (32 * 32 + 32)


def conv_localisation_parameters(canvas):
    """Half size, conv 5x5, pool (up), conv 5x5, fc 20."""
    side = (canvas // 2 - 4 + 1) // 2 - 4
    return (25 * 20 + 20) + (25 * 20 * 20 + 20) + (side**2 * 20 * 20 + 20)


def parameters_by_hand(name, canvas, widths):
    architecture = MODELS[name]
    side = canvas // POOL[canvas] if architecture.transformation else canvas
    total = fcn_parameters(side**2, *widths) if architecture.classifier == "fcn" else cnn_parameters(side, *widths)
    if architecture.transformation:
        fc = architecture.localisation == "fc"
        total += fc_localisation_parameters(canvas) if fc else conv_localisation_parameters(canvas)
        total += ((32 if fc else 20) + 1) * THETA[architecture.transformation]
    return total


def within_budget(name, canvas, pool, budget):
    return build_within_budget(lambda widths: MODELS[name].build((1, canvas, canvas), widths, 10, pool), budget)


def layers(net, kinds):
    return [m for m in net.modules() if isinstance(m, kinds)]


@pytest.mark.parametrize("budget", [400_000, 208_586])
@pytest.mark.parametrize("canvas", POOL)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_within_two_percent_of_the_budget_and_counts_as_by_hand(name, canvas, budget):
    net, widths = within_budget(name, canvas, POOL[canvas], budget)
    assert count_parameters(net) == parameters_by_hand(name, canvas, widths)
    assert abs(count_parameters(net) / budget - 1) <= 0.02
    assert abs(widths[0] - widths[1]) <= 4


def test_the_cnn_whose_parameters_are_the_budget_is_the_one_that_is_built():
    for canvas in POOL:
        budget = cnn_parameters(canvas, 64, 64)
        assert within_budget("cnn", canvas, POOL[canvas], budget)[1] == (64, 64)


@pytest.mark.parametrize(("canvas", "budget", "at_least"), [(28, 208_586, 128), (42, 400_000, 128), (60, 400_000, 100)])
def test_fully_connected_widths_are_the_papers_or_nearly_so_on_the_largest_canvas(canvas, budget, at_least):
    """128-256 units in the paper; behind an ST, whose output is pooled, there are more."""
    _, widths = within_budget("fcn", canvas, POOL[canvas], budget)
    assert all(at_least <= w <= 256 for w in widths)


@pytest.mark.parametrize("canvas", POOL)
@pytest.mark.parametrize("name", MODELS)
def test_models_map_a_batch_to_ten_logits_and_all_their_parameters_get_a_gradient(name, canvas):
    torch.manual_seed(0)
    net = MODELS[name].build((1, canvas, canvas), (8, 8), 10, POOL[canvas])
    for start in (False, True):
        if start and MODELS[name].transformation:  # away from the zero weights, which pass nothing on
            nn.init.normal_(net.transformers[0].regression.weight, std=0.01)
        net.zero_grad()
        logits = net(torch.rand(3, 1, canvas, canvas))
        assert logits.shape == (3, 10)
        logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    silent = [n for n, p in net.named_parameters() if p.grad.abs().sum() == 0]
    assert silent == []


def test_the_fcn_has_two_hidden_layers():
    net = Fcn((1, 28, 28), (30, 20))
    assert [(m.in_features, m.out_features) for m in layers(net, nn.Linear)] == [(784, 30), (30, 20), (20, 10)]
    assert len(layers(net, nn.ReLU)) == 2
    assert not isinstance(net[-1], nn.ReLU)


@pytest.mark.parametrize("block", [2, 3])
def test_a_block_mean_is_an_average_pooling(block):
    image = torch.randn(2, 3, 4 * block + 1, 5 * block)
    torch.testing.assert_close(BlockMean(block)(image), F.avg_pool2d(image, block))


def test_the_cnn_is_conv9_pool_conv7_pool_classifier():
    net = Cnn((1, 28, 28), (30, 20), classes=19)
    kinds = (nn.Conv2d, nn.MaxPool2d, nn.Linear)
    order = [nn.Conv2d, nn.MaxPool2d, nn.Conv2d, nn.MaxPool2d, nn.Linear]
    assert [next(k for k in kinds if isinstance(m, k)) for m in layers(net, kinds)] == order
    first, second = layers(net, nn.Conv2d)
    assert (first.kernel_size, first.stride, first.padding, first.out_channels) == ((9, 9), (1, 1), (0, 0), 30)
    assert (second.kernel_size, second.stride, second.padding, second.out_channels) == ((7, 7), (1, 1), (0, 0), 20)
    assert all(p.kernel_size == 2 and p.stride == 2 and p.ceil_mode for p in layers(net, nn.MaxPool2d))
    assert layers(net, nn.Linear)[0].out_features == 19


@pytest.mark.parametrize("side", LAST_MAP)
def test_the_cnns_last_map_rounds_up(side):
    assert layers(Cnn((1, side, side), (2, 3)), nn.Linear)[0].in_features == 3 * LAST_MAP[side] ** 2


def test_the_fully_connected_localisation_has_three_layers_of_32():
    net = FullyConnectedLocalisation((2, 5, 7))
    assert [(m.in_features, m.out_features) for m in layers(net, nn.Linear)] == [(70, 32), (32, 32), (32, 32)]
    assert len(layers(net, nn.ReLU)) == 3
    assert net(torch.rand(4, 2, 5, 7)).shape == (4, net.out_features) == (4, 32)


@pytest.mark.parametrize("canvas", POOL)
def test_the_convolutional_localisation_looks_at_half_the_size(canvas):
    net = ConvolutionalLocalisation((1, canvas, canvas))
    seen = []
    layers(net, nn.Conv2d)[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.rand(4, 1, canvas, canvas)
    assert net(image).shape == (4, net.out_features) == (4, 20)
    half = F.interpolate(image, scale_factor=0.5, mode="bilinear", align_corners=False)
    torch.testing.assert_close(seen[0], half, rtol=0, atol=1e-6)
    assert [(m.kernel_size, m.out_channels) for m in layers(net, nn.Conv2d)] == [((5, 5), 20)] * 2
    assert [m.out_features for m in layers(net, nn.Linear)] == [20]


@pytest.mark.parametrize("size", [(20, 20), (21, 15)])
def test_relu_after_the_pooling_is_relu_before_it(size):
    torch.manual_seed(0)
    block = conv_pool(2, 5, 7)
    image = torch.randn(3, 2, *size)
    pooled_last = F.max_pool2d(F.relu(block[0](image)), 2, ceil_mode=True)
    assert torch.equal(block(image), pooled_last)


def conv_gradients(conv, image):
    """Output, and gradients to image, weight and bias, of a convolution of an image that has a gradient."""
    image = image.detach().requires_grad_()
    out = conv(image)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return out, *torch.autograd.grad((out * upstream).sum(), (image, conv.weight, conv.bias))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "kernel"), [(1, 9), (2, 5), (4, (3, 1))])
def test_the_convolution_of_a_warped_image_is_torchs_in_value_and_in_all_gradients(channels, kernel, memory_format):
    torch.manual_seed(0)
    conv = InputConv2d(channels, 6, kernel).double().to(memory_format=memory_format)
    reference = nn.Conv2d(channels, 6, kernel).double()
    reference.load_state_dict(conv.state_dict())
    image = torch.rand(3, channels, 11, 14, dtype=torch.float64).contiguous(memory_format=memory_format)
    for ours, torchs in zip(conv_gradients(conv, image), conv_gradients(reference, image), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)
    # An image without a gradient, as of a network without a transformer; the two memory formats round differently.
    (ours, torchs) = (torch.autograd.grad(c(image).square().sum(), tuple(c.parameters())) for c in (conv, reference))
    for a, b in zip((conv(image), *ours), (reference(image), *torchs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_gradients_that_are_wanted_are_computed(monkeypatch, needed):
    torch.manual_seed(0)
    conv = InputConv2d(1, 6, 9)
    image = torch.rand(3, 1, 20, 20)
    given = [t.detach().requires_grad_(n) for t, n in zip((image, *conv.parameters()), needed, strict=True)]
    (expected,) = torch.autograd.grad(F.conv2d(*given).square().sum(), [t for t in given if t.requires_grad])
    conv.weight, conv.bias = (nn.Parameter(t.detach(), t.requires_grad) for t in given[1:])
    if not any(needed[1:]):  # a frozen network
        monkeypatch.setattr("stn.nets.layers._to_weight_and_bias", None)
    operand = given[0] if needed[0] else next(p for p in conv.parameters() if p.requires_grad)
    (found,) = torch.autograd.grad(conv(given[0]).square().sum(), operand)
    torch.testing.assert_close(found, expected)


def test_under_autocast_the_convolution_of_a_warped_image_rounds_its_operands_and_nothing_else():
    torch.manual_seed(0)
    conv, reference = InputConv2d(1, 6, 9), nn.Conv2d(1, 6, 9)
    for ours, torchs in zip(conv.parameters(), reference.parameters(), strict=True):
        ours.data = ours.data.bfloat16().float()
        torchs.data.copy_(ours.data)
    image = torch.rand(3, 1, 20, 20).bfloat16().float()
    exact = conv_gradients(reference, image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = conv_gradients(conv, image)
    for ours, torchs in zip(rounded, exact, strict=True):
        assert (ours.float() - torchs).abs().max() < 0.01 * torchs.abs().max()


@pytest.mark.parametrize("name", ["st_cnn_affine", "st_cnn_tps"])
def test_a_training_step_runs_under_autocast(name):
    torch.manual_seed(0)
    net = MODELS[name].build((1, 28, 28), (4, 4), 10, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net(torch.rand(2, 1, 28, 28))
    logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_images_of_few_channels_alone_take_the_faster_convolution():
    assert type(conv_pool(1, 4, 3)[0]) is type(conv_pool(FEW_CHANNELS, 4, 3)[0]) is InputConv2d
    assert type(conv_pool(FEW_CHANNELS + 1, 4, 3)[0]) is FrequencyConv2d


@pytest.mark.parametrize("canvas", POOL)
@pytest.mark.parametrize("name", [n for n, a in MODELS.items() if a.transformation])
def test_an_untrained_st_shows_the_classifier_the_pooled_image(name, canvas):
    torch.manual_seed(0)
    pool = POOL[canvas]
    net = MODELS[name].build((1, canvas, canvas), (6, 6), 10, pool)
    image = torch.rand(2, 1, canvas, canvas)
    pooled = image.unflatten(3, (-1, pool)).unflatten(2, (-1, pool)).mean(dim=(3, 5))
    assert pooled.shape[2] == {28: 28, 42: 21, 60: 30}[canvas]
    torch.testing.assert_close(net(image), net.classifier(pooled), rtol=0, atol=1e-4)
    logits, (warped,) = net.observe(image)
    torch.testing.assert_close(logits, net(image), rtol=0, atol=0)
    torch.testing.assert_close(warped.image, image, rtol=0, atol=1e-5)


def test_padding_and_antialias_reach_the_transformer():
    net = Architecture("fcn", "affine", "fc", padding="border", antialias=True).build((1, 28, 28), (4, 4), 10, 1)
    assert (net.transformers[0].padding, net.transformers[0].antialias) == ("border", True)
    assert net.transformers[0].out_size == (28, 28)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(name):
    def weights(seed):
        torch.manual_seed(seed)
        return within_budget(name, 28, 1, 80_000)[0].state_dict()

    first, again, other = weights(3), weights(3), weights(4)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    weight = next(key for key in first if key.endswith("weight") and "regression" not in key)
    assert not torch.equal(first[weight], other[weight])


def test_solving_for_the_widths_draws_no_random_numbers():
    torch.manual_seed(0)
    _, widths = within_budget("st_fcn_tps", 28, 1, 80_000)
    after = torch.rand(3)
    torch.manual_seed(0)
    MODELS["st_fcn_tps"].build((1, 28, 28), widths, 10, 1)
    assert torch.equal(torch.rand(3), after)


@pytest.mark.parametrize(("name", "side"), [("cnn", 8), ("cnn", 15), ("st_cnn_affine", 14), ("st_cnn_tps", 25)])
def test_a_canvas_too_small_is_refused_in_one_line(name, side):
    """The CNN needs 21 px; an ST-CNN's localisation net, which sees half of them, 26."""
    with pytest.raises(ValueError, match=f"{side}x{side} px is too small for this network") as error:
        MODELS[name].build((1, side, side), (4, 4), 10, 1)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="too small"):
        within_budget(name, side, 1, 80_000)


def test_a_canvas_of_21_px_is_just_large_enough_for_the_cnn():
    with pytest.raises(ValueError, match="too small"):
        Cnn((1, 20, 20), (2, 2))
    assert Cnn((1, 21, 21), (2, 2))(torch.rand(1, 1, 21, 21)).shape == (1, 10)


def test_flat_features_counts_numbers_per_image():
    assert flat_features(nn.Flatten(), (3, 4, 5)) == 60
    assert flat_features(nn.Conv2d(3, 7, 2), (3, 4, 5)) == 7 * 3 * 4
