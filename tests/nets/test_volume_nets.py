import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from stn.data.volumes import extrude, rotation_matrix
from stn.nets.budget import build_within_budget, count_parameters
from stn.nets.volumes import VolumeLocalisation, volume_network

MODELS = {
    "st3d_cnn": volume_network(True, "affine3d"),
    "projection_cnn": volume_network(True),
    "cnn3d": volume_network(False),
}
# By hand, for volumes of 32 and of 60: side of the CNN's last map, of the 3D CNN's, and of the localisation net's.
CNN_MAP, CNN3D_MAP, LOCALISATION_MAP = {32: 3, 60: 10}, {32: 2, 60: 5}, {32: 4, 60: 4}


def cnn_parameters(side, a, b):
    return (81 * a + a) + (49 * a * b + b) + (CNN_MAP[side] ** 2 * b * 10 + 10)


def parameters_by_hand(name, side, a, b):
    if name == "cnn3d":
        return (125 * a + a) + (125 * a * b + b) + (CNN3D_MAP[side] ** 3 * b * 10 + 10)
    localisation = (125 * 8 + 8) + (27 * 8 * 16 + 16) + (LOCALISATION_MAP[side] ** 3 * 16 * 32 + 32) + (32 * 12 + 12)
    return cnn_parameters(side, a, b) + (localisation if name == "st3d_cnn" else 0)


@pytest.mark.parametrize(("side", "budget"), [(32, 120_000), (32, 211_786), (60, 211_786)])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_within_two_percent_of_the_budget_and_counts_as_by_hand(name, side, budget):
    net, widths = build_within_budget(lambda widths: MODELS[name]((1, side, side, side), widths, 10), budget)
    assert count_parameters(net) == parameters_by_hand(name, side, *widths)
    assert abs(count_parameters(net) / budget - 1) <= 0.02


@pytest.mark.parametrize("name", MODELS)
def test_models_map_a_batch_to_logits_and_all_their_parameters_get_a_gradient(name):
    torch.manual_seed(0)
    net = MODELS[name]((2, 24, 24, 24), (8, 8), 7)
    for module in net.modules():
        if hasattr(module, "regression"):  # away from the zero weights, which pass nothing on
            nn.init.normal_(module.regression.weight, std=0.01)
    logits = net(torch.rand(3, 2, 24, 24, 24))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    assert [n for n, p in net.named_parameters() if not p.grad.isfinite().all() or not p.grad.abs().sum()] == []


@pytest.mark.parametrize("name", ["st3d_cnn", "projection_cnn"])
def test_an_untrained_network_classifies_the_mean_over_the_depth(name):
    """The transformer's slices then lie half-way between two of the volume, and so have the same mean."""
    torch.manual_seed(0)
    net = MODELS[name]((1, 24, 24, 24), (4, 4), 10)
    volume = torch.rand(2, 1, 24, 24, 24)
    flat = torch.from_numpy(volume.numpy().mean(axis=2))
    classifier = net.classifier if name == "st3d_cnn" else net[1]
    torch.testing.assert_close(net(volume), classifier(flat), rtol=0, atol=1e-5)


def test_the_transformer_can_turn_a_tilted_digit_to_the_viewer():
    """theta = [R | shift] undoes R and the shift: what is projected then is the plate face on."""
    torch.manual_seed(0)
    blob = gaussian_filter(np.random.default_rng(0).random((1, 28, 28)), (0, 3, 3))
    blob = (blob - blob.min()) / np.ptp(blob) * np.outer(np.hanning(28), np.hanning(28))
    digit = torch.from_numpy((255 * blob).astype(np.uint8))
    rotation = rotation_matrix(*torch.tensor([[40.0], [-35.0], [50.0]]))
    shift, scale, size = torch.tensor([[0.1, -0.05, 0.08]]), (20 / 48, 8 / 48), (48, 48, 48)
    tilted = extrude(digit, rotation, shift, size, scale)
    upright = extrude(digit, torch.eye(3)[None], torch.zeros(1, 3), size, scale)
    net = MODELS["st3d_cnn"]((1, *size), (4, 4), 10)
    with torch.no_grad():
        theta = torch.cat([rotation, shift[:, :, None]], dim=2)
        net.transformer.regression.bias.copy_((theta - torch.eye(3, 4)).flatten())
        logits, (warped,) = net.observe(tilted)
        seen, wanted, raw = (volume.mean(2) for volume in (warped.image, upright, tilted))
        torch.testing.assert_close(logits, net(tilted), rtol=0, atol=0)
    assert warped.image.shape == (1, 1, 24, 48, 48)
    assert (seen - wanted).abs().max() < 0.15 * wanted.max()
    assert (raw - wanted).abs().max() > 0.5 * wanted.max()


@pytest.mark.parametrize(("side", "seen"), [(24, 12), (32, 16), (60, 15)])
def test_the_localisation_net_sees_a_small_volume(side, seen):
    net = VolumeLocalisation((1, side, side, side))
    convolution = next(m for m in net.modules() if isinstance(m, nn.Conv3d))
    shapes = []
    convolution.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    assert net(torch.rand(2, 1, side, side, side)).shape == (2, net.out_features) == (2, 32)
    assert shapes == [(2, 1, seen, seen, seen)]


@pytest.mark.parametrize("name", MODELS)
def test_a_volume_too_small_is_refused_in_one_line(name):
    with pytest.raises(ValueError, match="16x16 px is too small for this network") as error:
        build_within_budget(lambda widths: MODELS[name]((1, 16, 16, 16), widths, 10), 32)
    assert "\n" not in str(error.value)


def test_a_network_that_there_is_none_of_is_refused():
    with pytest.raises(ValueError, match="must be null or, with projection: true, affine3d; got 'affine3d' with"):
        volume_network(False, "affine3d")
    with pytest.raises(ValueError, match="got 'tps' with projection: True"):
        volume_network(True, "tps")
