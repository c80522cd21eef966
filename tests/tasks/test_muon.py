"""Muon: orthogonal steps for inner weights, AdamW's for the others."""

import copy

import pytest
import torch
from torch import nn

from stn.families.mnist import network
from stn.tasks.muon import ADAM_RMS, Muon, orthogonal
from stn.tasks.recipe import MuonAdamW, inner_weights, parts_of

LR, DECAY = 0.01, 0.1


def made(generator, *shape, scale=1.0):
    return nn.Parameter(scale * torch.randn(*shape, generator=generator))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("shape", [(20, 20), (20, 30), (20, 90), (90, 20), (30, 20), (1, 50)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_orthogonal_keeps_the_singular_vectors_and_makes_the_values_about_one(generator, shape, scale):
    left, values, right = torch.linalg.svd(torch.randn(*shape, generator=generator), full_matrices=False)
    values = values.clamp(min=0.05 * values.max())  # five rounds do not lift a value from zero
    found = left.T @ orthogonal(scale * (left * values) @ right) @ right.T
    assert ((found.diagonal() > 0.65) & (found.diagonal() < 1.25)).all()
    torch.testing.assert_close(found, found.diagonal().diag(), rtol=0, atol=1e-4)


def test_a_step_is_torchs_muon_but_for_its_bfloat16(generator):
    weight, gradients = made(generator, 24, 64), [torch.randn(24, 64, generator=generator) for _ in range(4)]
    theirs = nn.Parameter(weight.detach().clone())
    ours = Muon([{"params": [weight], "lr": LR, "orthogonal": True}], weight_decay=DECAY, fused=True)
    reference = torch.optim.Muon([theirs], lr=LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        for p, optimiser in ((weight, ours), (theirs, reference)):
            p.grad = gradient.clone()
            optimiser.step()
    size = LR * ADAM_RMS
    torch.testing.assert_close(weight, theirs, rtol=0, atol=0.1 * size)


def test_a_weight_without_a_gradient_stays(generator):
    moved, kept = made(generator, 4, 6), made(generator, 4, 6)
    before = kept.detach().clone()
    optimiser = Muon([{"params": [moved, kept], "lr": LR, "orthogonal": True}], weight_decay=DECAY, fused=True)
    moved.grad = torch.ones_like(moved)
    optimiser.step()
    assert torch.equal(kept, before)


def test_filters_are_rows_of_a_matrix_and_biases_take_adamws_steps(generator):
    filters, bias = made(generator, 8, 3, 5, 5), made(generator, 8)
    matrix, other = (nn.Parameter(p.detach().clone()) for p in (filters.flatten(1), bias))
    groups = [{"params": [filters], "lr": LR, "orthogonal": True}, {"params": [bias], "lr": LR / 2}]
    both = Muon(groups, weight_decay=DECAY, fused=True)
    muon = Muon([{"params": [matrix], "lr": LR, "orthogonal": True}], weight_decay=DECAY)
    adamw = torch.optim.AdamW([other], lr=LR / 2, weight_decay=DECAY, fused=True)
    for _ in range(3):
        filters.grad, bias.grad = torch.randn_like(filters), torch.randn_like(bias)
        matrix.grad, other.grad = filters.grad.flatten(1).clone(), bias.grad.clone()
        for optimiser in (both, muon, adamw):
            optimiser.step()
    torch.testing.assert_close(filters.flatten(1), matrix)
    torch.testing.assert_close(bias, other, rtol=0, atol=0)


def test_a_loaded_state_goes_on_as_if_never_saved(generator):
    net = nn.Sequential(nn.Linear(30, 12), nn.ReLU(), nn.Linear(12, 4))
    recipe, inputs = MuonAdamW(name="muon", lr=LR, weight_decay=DECAY), torch.randn(16, 30, generator=generator)

    def steps(net, optimiser, n):
        for _ in range(n):
            optimiser.zero_grad()
            net(inputs).square().mean().backward()
            optimiser.step()

    def made_for(net):
        return recipe.of([{"params": list(net.parameters()), "lr": LR}], net)

    optimiser = made_for(net)
    steps(net, optimiser, 3)
    resumed, state = copy.deepcopy(net), copy.deepcopy(optimiser.state_dict())
    steps(net, optimiser, 3)
    other = made_for(resumed)
    other.load_state_dict(state)
    steps(resumed, other, 3)
    for a, b in zip(net.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("model", ["fcn", "st_fcn_tps", "st_cnn_affine", "st2_fcn_affine"])
def test_inner_weights_are_all_but_the_layers_of_outputs(settings_of, model):
    task = "addition" if model.startswith("st2") else "mnist_rts"
    net = network(settings_of(task, model)).net
    named = {name: p for name, p in net.named_parameters() if name.endswith("weight")}
    outputs = {name for name, p in named.items() if p not in inner_weights(net)}
    *_, last = named
    assert outputs == {last, *(name for name in named if "regression" in name)}
    rates = {"localiser": 0.1, "rest": 0.2}
    groups = [{"params": params, "lr": rates[part]} for part, params in parts_of(net).items()]
    optimiser = MuonAdamW(name="muon", lr=0.2, weight_decay=0.0).of(groups, net)
    assert {p for group in optimiser.param_groups for p in group["params"]} == set(net.parameters())
    for group in optimiser.param_groups:
        assert all((p in inner_weights(net)) == group["orthogonal"] for p in group["params"])
        assert all(
            (group["lr"] == 0.1) == any(p is q for q in parts_of(net).get("localiser", [])) for p in group["params"]
        )
