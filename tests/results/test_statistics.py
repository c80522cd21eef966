"""Statistics against scipy, hand-computed values, and the coverage they promise."""

import numpy as np
import pytest
from scipy import stats

from stn.results.statistics import bootstrap_interval, paired_difference, t_interval, verdict


def test_t_interval_by_hand():
    mean, half_width = t_interval([5.0, 5.2, 5.4])  # s = 0.2, t(2) = 4.3027, 4.3027 * 0.2 / sqrt(3)
    assert mean == pytest.approx(5.2)
    assert half_width == pytest.approx(0.49683, abs=1e-5)


def test_t_interval_is_scipys():
    values = np.random.default_rng(0).normal(size=7)
    mean, half_width = t_interval(values.tolist())
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (mean - half_width, mean + half_width) == pytest.approx((low, high))


def test_one_seed_has_no_interval():
    assert t_interval([1.5]) == (1.5, None)


@pytest.mark.parametrize(
    ("mean", "half_width", "paper", "lower", "expected"),
    [
        (0.70, None, 0.7, True, "match"),
        (0.85, None, 0.7, True, "match"),  # 0.15 points
        (0.86, None, 0.7, True, "worse"),
        (0.54, None, 0.7, True, "better"),
        (0.86, 0.2, 0.7, True, "undecided"),  # within our noise, which is no match
        (0.86, 0.1, 0.7, True, "worse"),
        (0.80, 0.2, 0.7, True, "match"),
        (74.0, 9.0, 82.3, False, "undecided"),
        (5.95, None, 5.2, True, "match"),  # 15 % of 5.2 is 0.78
        (6.05, None, 5.2, True, "worse"),
        (84.9, None, 82.3, False, "match"),  # 15 % of the error, 17.7, is 2.655
        (85.1, None, 82.3, False, "better"),
        (79.5, None, 82.3, False, "worse"),
        (99.9, None, 100.0, False, "match"),
        (99.8, None, 100.0, False, "worse"),
    ],
)
def test_verdict(mean, half_width, paper, lower, expected):
    assert verdict(mean, half_width, paper, lower) == expected


def images(p: float, n: int = 2000, draws: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((draws, n)) < p


def test_difference_of_one_seed_by_hand():
    a, b = np.zeros((2, 100), bool), np.zeros((2, 100), bool)
    b[:, :4] = True  # four digits wrong in both draws
    b[0, 4] = True  # and one in one of two
    d = paired_difference([a], [b])
    assert d.mean_pp == pytest.approx(-4.5)
    # per digit: four of -100, one of -50, 95 of 0; sum of squares about the mean, plus 100² for the pseudo-digit
    squares = 4 * 95.5**2 + 45.5**2 + 95 * 4.5**2 + 100**2
    half_width = stats.t.ppf(0.975, 99) * np.sqrt(squares) / 100
    assert (d.low_pp, d.high_pp) == pytest.approx((-4.5 - half_width, -4.5 + half_width))
    assert d.p_value == pytest.approx(2 * stats.t.cdf(-4.5 / (np.sqrt(squares) / 100), 99))
    assert d.n_seeds == 1


def test_difference_is_antisymmetric():
    a, b = [images(0.02, seed=s) for s in (1, 2, 3)], [images(0.03, seed=s) for s in (4, 5, 6)]
    ab, ba = paired_difference(a, b), paired_difference(b, a)
    assert ab.mean_pp == pytest.approx(-ba.mean_pp)
    assert (ab.low_pp, ab.high_pp) == pytest.approx((-ba.high_pp, -ba.low_pp))
    assert ab.p_value == pytest.approx(ba.p_value)


def test_equal_models_do_not_differ_and_still_have_an_interval():
    a = images(0.02)
    d = paired_difference([a, a], [a, a])
    assert d.mean_pp == 0
    assert d.p_value == 1
    assert d.low_pp < 0 < d.high_pp


def test_seeds_that_disagree_widen_the_interval():
    def first(k: int) -> np.ndarray:
        return np.tile(np.arange(2000) < k, (2, 1))

    b = [first(100)] * 3
    agree = paired_difference([first(k) for k in (79, 80, 81)], b)
    disagree = paired_difference([first(k) for k in (40, 80, 120)], b)
    assert agree.mean_pp == pytest.approx(-1.0)
    assert disagree.mean_pp == pytest.approx(-1.0)
    assert agree.high_pp < 0 < disagree.high_pp
    # by digit a third of -100, of -100 and so on: 40 are wrong in all seeds, 40 in two of them, 20 in one (against 100)
    by_digit = np.concatenate([np.zeros(40), np.full(40, -100 / 3), np.full(20, -200 / 3), np.full(20, 100 / 3)])
    squares = ((by_digit + 1) ** 2).sum() + (2000 - len(by_digit)) + 100**2
    digits, seeds = np.sqrt(squares) / 2000, np.std([-3, -1, 1], ddof=1) / np.sqrt(3)
    half_width = np.hypot(stats.t.ppf(0.975, 1999) * digits, stats.t.ppf(0.975, 2) * seeds)
    assert disagree.high_pp == pytest.approx(-1 + half_width)


@pytest.mark.parametrize("ks", [(79, 80, 81), (60, 80, 90), (99, 100, 101)])
def test_p_value_says_what_the_interval_says(ks):
    wrong = [np.tile(np.arange(2000) < k, (2, 1)) for k in (*ks, 100, 100, 100)]
    d = paired_difference(wrong[:3], wrong[3:])
    assert (d.p_value < 0.05) == (d.high_pp < 0)


def test_draws_of_a_digit_are_one_unit():
    once = images(0.05, draws=1)
    other = images(0.06, draws=1, seed=1)
    d1 = paired_difference([once], [other])
    d4 = paired_difference([np.tile(once, (4, 1))], [np.tile(other, (4, 1))])
    assert d4 == d1  # repeating an image four times tells nothing new


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="must both be"):
        paired_difference([images(0.1)], [images(0.1, draws=2)])


def test_bootstrap_is_scipys_and_repeats():
    values = np.random.default_rng(1).integers(-3, 4, size=300).astype(float)
    ours = bootstrap_interval(values, resamples=5000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert ours == bootstrap_interval(values, resamples=5000)


def coverage(simulate, truth: float, repeats: int = 200) -> float:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(repeats):
        d = paired_difference(*simulate(rng), resamples=200)
        hits += d.low_pp <= truth <= d.high_pp
    return hits / repeats


def test_interval_covers_over_digits():
    def simulate(rng):
        hard = rng.random(800) < 0.05  # digits that both models find hard
        return [[(rng.random((2, 800)) < p) | (hard & (rng.random((2, 800)) < 0.5))] for p in (0.01, 0.02)]

    truth = -100 * 0.01 * (1 - 0.05 * 0.5)
    assert 0.92 <= coverage(simulate, truth) <= 0.99


def test_interval_covers_over_seeds():
    def simulate(rng):
        ps = rng.normal([[0.04], [0.06]], 0.01, size=(2, 3))  # training noise beyond that of the digits
        return [[rng.random((2, 500)) < p for p in row] for row in ps]

    assert 0.92 <= coverage(simulate, -2.0) <= 1.0
