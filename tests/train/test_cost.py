"""The cost of a run orders runs: what is more arithmetic costs more."""

import pytest

from stn.many.cost import OVERHEAD_FLOP_PER_PIXEL, run_cost
from stn.nets.budget import build_within_budget
from stn.nets.mnist import Fcn
from tests.tiny import MUON


@pytest.fixture
def cost(settings_of):
    return lambda task, model, on_cpu=True, **recipe: run_cost(settings_of(task, model, **recipe), on_cpu)


def test_the_cost_of_the_fcn_is_that_of_its_matrix_products(cost):
    _, (a, b) = build_within_budget(lambda widths: Fcn((1, 28, 28), widths, 10), round(0.57 * 208_586))
    forward = 2 * (784 * a + a * b + b * 10)
    assert cost("mnist_r", "fcn", steps=10, batch_size=4) == 10 * 4 * (3 * forward + OVERHEAD_FLOP_PER_PIXEL * 28 * 28)


def test_the_cost_grows_with_steps_and_batch_size(cost):
    once = cost("mnist_r", "st_fcn_tps", steps=10, batch_size=4)
    assert cost("mnist_r", "st_fcn_tps", steps=20, batch_size=4) == 2 * once
    assert cost("mnist_r", "st_fcn_tps", steps=10, batch_size=12) == 3 * once


def test_muons_products_cost_the_same_for_every_batch(cost):
    plain, with_muon = (
        [cost("mnist_r", "fcn", steps=10, batch_size=n, budget_fraction=1.0, **more) for n in (4, 256)]
        for more in ({}, {"optimiser": MUON})
    )
    a = 208  # units of both layers
    wide, square = 2 * 2 * a * a * 784 + (5 + 4 + 8) * 2 * a**3, 5 * 3 * 2 * a**3
    assert [more - less for more, less in zip(with_muon, plain, strict=True)] == [10 * (wide + square)] * 2


def test_a_larger_canvas_and_more_layers_cost_more(cost):
    assert cost("mnist_r", "fcn") < cost("mnist_r", "cnn") < cost("mnist_rts", "cnn") < cost("mnist_tc", "cnn")
    assert cost("mnist_r", "cnn", budget_fraction=0.5) < cost("mnist_r", "cnn", budget_fraction=1.0)


def test_a_convolution_in_the_frequency_domain_costs_what_it_takes(cost):
    directly = cost("mnist_rts", "cnn", on_cpu=False, batch_size=128)
    assert 2 < directly / cost("mnist_rts", "cnn", batch_size=128) < 3  # 2.5, by results/bench
    assert cost("mnist_rts", "cnn", batch_size=1) == directly / 128  # of few images there is nothing to gain


def test_a_pooled_transformer_output_costs_less_than_the_whole_canvas(cost):
    assert cost("mnist_rts", "st_cnn_affine") < cost("mnist_rts", "cnn")
