"""Intervals, the verdict on a cell, and paired comparisons.

*Units*: rates in percent, differences in percentage points.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

CONFIDENCE = 0.95
TOLERANCE_PP = 0.15
TOLERANCE_RELATIVE = 0.15
VERDICT_RULE = (
    f"A cell is a match when it differs from the paper by no more than {TOLERANCE_PP} points or "
    f"{100 * TOLERANCE_RELATIVE:g} % of the paper's error; beyond that, undecided while its interval holds the paper's "
    "number."
)


def t_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half-width of its 95 % interval over seeds, Student t; None when fewer than two values.

    t and not ±2 standard errors: with three seeds the factor is 4.30, since the spread itself is a guess.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error


def verdict(mean: float, half_width: float | None, paper: float, lower_is_better: bool) -> str:
    """The one rule that compares a cell with the paper: "match", "better", "worse" or "undecided".

    "match" when |ours - paper| is at most the larger of 0.15 points (the paper rounds to 0.1 and gives no
    spread: half a step of rounding and as much of its own noise) and 15 % of the paper's error (what budgets,
    momentum and other unstated settings move). For an accuracy the 15 % are of the error it leaves, 100 - paper:
    15 % of 82.3 would let anything match. Beyond that, "undecided" when it is at most our interval's half-width:
    our noise proves no match, and no difference either.
    """
    paper_error = paper if lower_is_better else 100 - paper
    difference = abs(mean - paper) - 1e-9  # 1.35 - 1.2 is 0.15000000000000013
    if difference <= max(TOLERANCE_PP, TOLERANCE_RELATIVE * paper_error):
        return "match"
    if difference <= (half_width or 0.0):
        return "undecided"
    return "better" if (mean < paper) == lower_is_better else "worse"


class PairedDifference(NamedTuple):
    """Error of a minus error of b on the same digits, in percentage points: below zero, a is better."""

    mean_pp: float
    low_pp: float  # 95 % interval over test digits and seeds together: the one that decides claims
    high_pp: float
    p_value: float  # two-sided, of no difference: 1 - the confidence at which the interval reaches 0
    digits_low_pp: float  # 95 % bootstrap interval over test digits alone: these trained networks
    digits_high_pp: float
    n_seeds: int


def paired_difference(
    wrong_a: Sequence[np.ndarray], wrong_b: Sequence[np.ndarray], resamples: int = 2000
) -> PairedDifference:
    """Paired comparison of two models over common seeds; `wrong_a[s]`, `wrong_b[s]` are bool (draws, n_test).

    Two things vary: which digits are in the test set and which seed trained the networks. Draws of one
    digit are not independent, so a digit with all its draws is one unit; seeds are crossed with digits.
    With d[s, i] the difference on digit i, averaged over draws:

    - digits: standard error over i of mean_s d[s, i], with half a pseudo-digit of ±100 points added on each side
      (Agresti and Min, Statistics in Medicine 24, 2005: keeps paired intervals honest at few discordant
      images, and never of zero width). The bootstrap over digits is given beside it, as a check.
    - seeds: standard error over s of mean_i d[s, i].

    Each gives a half-width by its own t, with n_test - 1 and n_seeds - 1 degrees of freedom, and the
    half-widths add in quadrature (Graybill and Wang, JASA 75, 1980). Pooling the variances with one effective
    number of degrees of freedom (Welch, Satterthwaite) covered about 90 % in simulation where three
    seeds are the noise; this covers 95 % or more, at the price of width: the interaction of seed and
    digit is counted in both. With one seed the interval speaks of these two trained networks only.
    """
    a, b = np.stack(wrong_a), np.stack(wrong_b)
    if a.shape != b.shape or a.ndim != 3:
        raise ValueError(f"a and b must both be (draws, n_test) per seed, given {a.shape[1:]} and {b.shape[1:]}")
    n_seeds, draws, n_test = a.shape
    counts = a.sum(axis=1, dtype=np.int64) - b.sum(axis=1, dtype=np.int64)  # (seeds, digits), in draws
    by_digit = 100.0 * counts.sum(axis=0) / (draws * n_seeds)
    mean = float(by_digit.mean())

    by_seed = 100.0 * counts.mean(axis=1) / draws
    digits_error = math.sqrt(float(np.sum((by_digit - mean) ** 2)) + 100.0**2) / n_test
    seeds_error = float(np.std(by_seed, ddof=1)) / math.sqrt(n_seeds) if n_seeds > 1 else 0.0

    def half_width(p: float) -> float:
        digits = digits_error * stats.t.isf(p / 2, max(n_test - 1, 1))
        return math.hypot(digits, seeds_error * stats.t.isf(p / 2, max(n_seeds - 1, 1)))

    half = half_width(1 - CONFIDENCE)
    return PairedDifference(
        mean,
        mean - half,
        mean + half,
        _touching_level(half_width, abs(mean)),
        *bootstrap_interval(by_digit, resamples),
        n_seeds,
    )


def _touching_level(half_width: Callable[[float], float], distance: float) -> float:
    """The p at which an interval of half-width(p) just reaches that far; not resolved below 1e-9."""
    lowest = 1e-9
    if distance >= half_width(lowest):
        return lowest
    return float(optimize.brentq(lambda p: half_width(p) - distance, lowest, 1.0))


def bootstrap_interval(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of values, reproducible.

    Drawing n of n values with replacement draws, for the few distinct values there are, multinomial
    counts: the same distribution at a thousandth of the work.
    """
    distinct, counts = np.unique(values, return_counts=True)
    n = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    low, high = np.quantile(drawn @ distinct / n, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
