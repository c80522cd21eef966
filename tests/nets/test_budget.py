import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from stn.nets.budget import MAX_DIFFERENCE, TOLERANCE, count_parameters, solve_widths


def test_only_learnable_parameters_count():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    assert count_parameters(net) == (12 + 4) + (4 + 4) + (8 + 2)
    net[0].weight.requires_grad_(False)
    net.register_buffer("constant", torch.zeros(100))
    assert count_parameters(net) == 4 + 8 + 10


def test_widths_that_meet_the_budget_exactly_are_found():
    assert solve_widths(lambda w: w[0] * w[1], 400) == (20, 20)
    assert solve_widths(lambda w: w[0] + w[1], 2) == (1, 1)


def test_equal_widths_are_preferred_to_a_closer_count():
    # 99·99 = 9801 is 0.5 % off, 98·100 = 9800 would be exact.
    assert solve_widths(lambda w: w[0] * w[1], 9800) == (99, 99)


def test_widths_differ_only_where_equal_ones_miss():
    # 10·10 and 11·11 are 9 % off 110.
    assert sorted(solve_widths(lambda w: w[0] * w[1], 110)) == [10, 11]


def test_the_widths_differ_by_up_to_four_in_either_order():
    # 1000 a + 100 b: (1, 1) gives 1100, (1, 4) 1400, (2, 2) 2200.
    assert solve_widths(lambda w: 1000 * w[0] + 100 * w[1], 1500) == (1, 5)
    assert solve_widths(lambda w: 100 * w[0] + 1000 * w[1], 1500) == (5, 1)


@given(st.tuples(st.integers(1, 900), st.integers(0, 60), st.integers(1, 900), st.integers(0, 400)), st.data())
def test_widths_are_those_of_a_search_of_all(coefficients, data):
    per_a, per_ab, per_b, constant = coefficients

    def parameters(widths):
        a, b = widths
        return per_a * a + per_ab * a * b + per_b * b + constant

    budget = data.draw(st.integers(1, parameters((60, 60))))
    assume(budget > constant)

    def rank(widths):
        return abs(widths[0] - widths[1]), abs(parameters(widths) / budget - 1)

    every = [(a, b) for a in range(1, 70) for b in range(1, 70) if abs(a - b) <= MAX_DIFFERENCE]
    fitting = [widths for widths in every if rank(widths)[1] <= TOLERANCE]
    if fitting:
        assert rank(solve_widths(parameters, budget)) == min(map(rank, fitting))
    else:
        with pytest.raises(ValueError, match="no layer widths"):
            solve_widths(parameters, budget)


@pytest.mark.parametrize("budget", [20, 777])
def test_a_budget_that_no_widths_meet_is_refused_with_the_nearest(budget):
    with pytest.raises(ValueError, match=f"no layer widths give {budget} parameters within 2%") as error:
        solve_widths(lambda w: 100 * (w[0] + w[1]) + 1_000 * w[0] * w[1], budget)
    assert "(1, 1), gives 1200" in str(error.value)
    assert "\n" not in str(error.value)
