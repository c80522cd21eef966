import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stn.nets import frequency
from stn.nets.frequency import FrequencyConv2d, FrequencyConvolution, pays
from stn.nets.layers import conv_pool

# (N, C, F, H, W, k): odd and even sides, of both; a kernel that fills the map; one image; a 1x1 kernel.
SIZES = [(2, 3, 2, 7, 8, 3), (1, 2, 3, 6, 6, 5), (2, 2, 2, 5, 5, 5), (2, 1, 2, 7, 9, 4), (3, 2, 2, 8, 6, 1)]
SECOND_LAYER = [10, 17, 26]  # px: what the CNN's 7x7 layer sees on R, RTS and TC


def operands(n, c, f, h, w, k, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = (n, c, h, w), (f, c, k, k), (f,)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def by_frequency(*operands):
    return FrequencyConvolution.apply(*operands)[0]


def output_and_gradients(convolution, operands):
    output = convolution(*operands)
    torch.manual_seed(1)
    wanted = torch.randn(output.shape, dtype=torch.float64).to(output.dtype)
    return output, *torch.autograd.grad(output, operands, wanted)


@pytest.mark.parametrize("sizes", SIZES)
def test_it_is_the_convolution_and_its_gradients_are_those_of_its_numbers(sizes):
    given = operands(*sizes)
    found, expected = (output_and_gradients(way, given) for way in (by_frequency, F.conv2d))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(by_frequency, given)


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_gradients_that_are_wanted_are_computed(needed):
    given = [operand.detach().requires_grad_(n) for operand, n in zip(operands(*SIZES[0]), needed, strict=True)]
    wanted = [operand for operand in given if operand.requires_grad]
    (found,) = torch.autograd.grad(by_frequency(*given).square().sum(), wanted)
    (expected,) = torch.autograd.grad(F.conv2d(*given).square().sum(), wanted)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("side", SECOND_LAYER)
def test_in_float32_its_errors_are_no_larger_than_the_direct_ones(side):
    exact = operands(64, 64, 64, side, side, 7)
    rounded = [operand.detach().float().requires_grad_() for operand in exact]
    exact = [operand.double().detach().requires_grad_() for operand in rounded]
    truth = output_and_gradients(F.conv2d, exact)

    def errors(convolution):
        found = output_and_gradients(convolution, rounded)
        return [((a - b).norm() / b.norm()).item() for a, b in zip(found, truth, strict=True)]

    frequency_errors, direct_errors = errors(by_frequency), errors(F.conv2d)
    assert max(frequency_errors) < 5e-7
    assert max(frequency_errors) <= max(direct_errors)


def test_a_second_derivative_is_refused():
    given = operands(*SIZES[0])
    (gradient,) = torch.autograd.grad(by_frequency(*given).square().sum(), given[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("batch", [0, 1, 128])
@pytest.mark.parametrize("side", SECOND_LAYER)
def test_the_layer_is_nn_conv2d_whichever_way_it_takes(side, batch, monkeypatch):
    taken = []
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(frequency, "by_frequency", lambda *of: taken.append(ask(*of)) or taken[-1])
    layer, image = FrequencyConv2d(64, 48, 7), torch.randn(batch, 64, side, side)
    plain = nn.Conv2d(64, 48, 7)
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(image), plain(image), rtol=1e-4, atol=1e-5)
    assert taken == [batch == 128]


ask = frequency.by_frequency


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_as_large_as_the_map_is_a_matrix_product_and_the_same_convolution(memory_format, monkeypatch):
    layer, image = FrequencyConv2d(3, 4, 5).double(), torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    layer.to(memory_format=memory_format)
    given = image, layer.weight, layer.bias
    wanted = output_and_gradients(F.conv2d, given)

    def convolved(image, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (image,))

    monkeypatch.setattr(F, "conv2d", None)  # it is not asked
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", None)
    for a, b in zip(output_and_gradients(convolved, given), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_networks_of_table_1_take_it_where_it_pays():
    """64 filters, 128 images: never on a map of 8 px or less, always on R's 10 px and more."""
    assert [pays((128, 64, side, side), (64, 64, 7, 7)) for side in (7, 8, 10, 17, 26)] == [False] * 2 + [True] * 3
    assert isinstance(conv_pool(64, 64, 7)[0], FrequencyConv2d)


def test_layers_of_few_channels_do_not_take_it():
    """Measured: the frequency domain takes three times as long in co-localisation's localisers, 8 to 8 filters."""
    assert not pays((50, 8, 40, 40), (8, 8, 5, 5))
    assert not pays((64, 16, 40, 40), (16, 16, 5, 5))  # 1.6 times as long
    assert pays((64, 32, 40, 40), (32, 32, 7, 7))  # half as long


def test_autocast_other_types_and_processors_without_mkl_go_the_direct_way(monkeypatch):
    image, weight = torch.empty(128, 64, 17, 17), torch.empty(64, 64, 7, 7)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert frequency.by_frequency(image, weight)
    assert not frequency.by_frequency(image.double(), weight.double())
    assert not frequency.by_frequency(image.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not frequency.by_frequency(image, weight)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not frequency.by_frequency(image, weight)
