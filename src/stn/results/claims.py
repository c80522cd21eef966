"""The paper's claims as statements tested on the records.

A claim is one of the classes of `stn.results.spec`; its `kind` says how it is judged (`KINDS`). It is tested
part by part (a pair of models on a task, say); every part is decided by a 95 % interval, no p-value is
corrected for the number of parts, so of twenty true "no difference" parts one may appear decided.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from stn.results.records import unpack_wrong
from stn.results.spec import BestOf, Claim, Improves, MetricAtLeast, MetricBelow, TableError, TableSpec, WithinMargin
from stn.results.statistics import PairedDifference, paired_difference, t_interval

ONE_SEED = "one seed and so no interval"
OUTCOMES = ("holds", "fails", "undecided", "missing")


class PartResult(NamedTuple):
    """One tested statement of a claim."""

    label: str
    outcome: str
    evidence: str
    n_seeds: int


class ClaimResult(NamedTuple):
    """A claim with its overall outcome; `n_seeds` is the least and the most of its parts that have records."""

    id: str
    statement: str
    outcome: str
    evidence: str
    n_seeds: tuple[int, int]
    parts: tuple[PartResult, ...]


@dataclass(frozen=True)
class Runs:
    """The records of one table, protocol and kind of data, by cell."""

    spec: TableSpec
    by_cell: Mapping[tuple[str, str], Mapping[int, Mapping[str, Any]]]  # (model, task) -> seed -> record

    def ok(self, model: str, task: str) -> dict[int, Mapping[str, Any]]:
        records = self.by_cell.get((model, task), {})
        return {seed: record for seed, record in sorted(records.items()) if record["status"] == "ok"}

    def left_out(self, *cells: tuple[str, str]) -> str:
        """The runs that a comparison does without, since a mean over survivors is not the whole truth."""
        bad = [
            f"{model} seed {seed} {record['status']}"
            for model, task in cells
            for seed, record in sorted(self.by_cell.get((model, task), {}).items())
            if record["status"] != "ok"
        ]
        return f"; left out: {', '.join(bad)}" if bad else ""

    def difference(self, a: str, b: str, task: str) -> PairedDifference | None:
        """Error of a minus error of b on task over their common seeds; None when there is none."""
        runs_a, runs_b = self.ok(a, task), self.ok(b, task)
        seeds = [
            seed
            for seed in runs_a.keys() & runs_b.keys()
            if runs_a[seed]["test_wrong"] is not None and runs_b[seed]["test_wrong"] is not None
        ]
        if not seeds:
            return None
        wrong = [[unpack_wrong(runs[seed]["test_wrong"]) for seed in sorted(seeds)] for runs in (runs_a, runs_b)]
        return paired_difference(*wrong)


def judge_claims(spec: TableSpec, records: Iterable[Mapping[str, Any]]) -> list[ClaimResult]:
    """Test every claim of a table on the records of one protocol and one kind of data."""
    by_cell: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for record in records:
        by_cell.setdefault((record["model"], record["task"]), {})[record["seed"]] = record
    runs = Runs(spec, by_cell)
    results = []
    for claim in spec.claims:
        parts = tuple(KINDS[claim.kind](claim, runs))
        seeds = [part.n_seeds for part in parts if part.outcome != "missing"] or [0]
        evidence = parts[0].evidence if len(parts) == 1 else _count(parts)
        outcome = _overall(part.outcome for part in parts)
        span = (min(seeds), max(seeds))
        results.append(ClaimResult(claim.id, claim.statement, outcome, evidence, span, parts))
    return results


def check_claims(spec: TableSpec) -> None:
    """Raises: TableError for a claim with nothing to test."""
    for claim in spec.claims:
        if not list(KINDS[claim.kind](claim, Runs(spec, {}))):
            raise TableError(f"{spec.path}: claim {claim.id!r} tests nothing: none of its cells has a reference value")


def _overall(outcomes: Iterable[str]) -> str:
    """One failing part fails the claim; else all must be there, be decided, and hold."""
    outcomes = set(outcomes)
    return next(outcome for outcome in ("fails", "missing", "undecided", "holds") if outcome in outcomes)


def _count(parts: Sequence[PartResult]) -> str:
    counts = Counter(part.outcome for part in parts)
    others = [f"{counts[o]} {o}" for o in OUTCOMES[1:] if counts[o]]
    return f"holds in {counts['holds']} of {len(parts)} cells" + (f" ({', '.join(others)})" if others else "")


def _side(low: float, high: float, bound: float = 0.0) -> str:
    """Is a quantity below a bound, as far as its interval tells?"""
    return "holds" if high < bound else "fails" if low > bound else "undecided"


def _p(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def _interval(d: PairedDifference) -> str:
    both = f"{d.mean_pp:+.2f} pp, 95 % [{d.low_pp:+.2f}, {d.high_pp:+.2f}]"
    return f"{both} (digits alone [{d.digits_low_pp:+.2f}, {d.digits_high_pp:+.2f}])"


Verdict = tuple[str, str]  # outcome, evidence


def _improves(claim: Claim, d: PairedDifference) -> Verdict:
    """a has fewer errors than b."""
    return _side(d.low_pp, d.high_pp), f"{_interval(d)}, {_p(d.p_value)}"


def _equivalent(claim: WithinMargin, d: PairedDifference) -> Verdict:
    """The interval of the difference lies within ±margin; fails when it lies outside."""
    margin = claim.margin_pp
    inside = -margin <= d.low_pp and d.high_pp <= margin
    outside = d.low_pp > margin or d.high_pp < -margin
    return "holds" if inside else "fails" if outside else "undecided", f"{_interval(d)}, margin ±{margin:g} pp"


def _no_worse(claim: WithinMargin, d: PairedDifference) -> Verdict:
    """a has fewer errors than b plus the margin (non-inferiority)."""
    return _side(d.low_pp, d.high_pp, claim.margin_pp), f"{_interval(d)}, margin +{claim.margin_pp:g} pp"


def _pairs(rule: Callable[[Claim, PairedDifference], Verdict], claim: Improves, runs: Runs) -> Iterator[PartResult]:
    """The rule on every pair [a, b] and task where the table has both cells."""
    for task in claim.tasks:
        for a, b in claim.pairs:
            if not (runs.spec.has_cell(a, task) and runs.spec.has_cell(b, task)):
                continue
            label, left_out = f"{a} – {b}, {task}", runs.left_out((a, task), (b, task))
            d = runs.difference(a, b, task)
            if d is None:
                yield PartResult(label, "missing", "no common seed with an ok run" + left_out, 0)
                continue
            outcome, evidence = rule(claim, d)
            yield PartResult(label, outcome, evidence + left_out, d.n_seeds)


def _best_of(claim: BestOf, runs: Runs) -> Iterator[PartResult]:
    """Each of `models` has fewer errors than each of `among` (but itself); a part names the rival that decides: one
    that is better for certain, else the one whose interval reaches furthest.
    """
    for task in claim.tasks:
        for model in claim.models:
            rivals = [m for m in claim.among if m != model and runs.spec.has_cell(m, task)]
            if not rivals or not runs.spec.has_cell(model, task):
                continue
            label = f"{model} best of {len(rivals) + 1}, {task}"
            left_out = runs.left_out(*((m, task) for m in [model, *rivals]))
            differences = {rival: runs.difference(model, rival, task) for rival in rivals}
            known = {rival: d for rival, d in differences.items() if d is not None}
            if not known:
                yield PartResult(label, "missing", "no common seed with an ok run" + left_out, 0)
                continue
            outcome = _overall(_improves(claim, d)[0] if d else "missing" for d in differences.values())
            foremost = max(known, key=lambda rival: (known[rival].low_pp > 0, known[rival].high_pp))
            absent = [rival for rival in rivals if rival not in known]
            missing = f"; missing: {', '.join(absent)}" if absent else ""
            evidence = f"foremost rival {foremost}: {_improves(claim, known[foremost])[1]}{missing}{left_out}"
            yield PartResult(label, outcome, evidence, min(d.n_seeds for d in known.values()))


def _metric_below(claim: MetricBelow, values: np.ndarray) -> Verdict:
    """Metric `metric` of a run is below `share` of metric `below` of the same run: t-interval of the difference over
    seeds.
    """
    mean, half_width = t_interval(values[:, 0] - claim.share * values[:, 1])
    a, b = values.mean(axis=0)
    evidence = f"{a:.2f} against " + (f"{b:.2f}" if claim.share == 1 else f"{claim.share:g} × {b:.2f}")
    if half_width is None:
        return "undecided", f"{evidence}, {ONE_SEED}"
    low, high = mean - half_width, mean + half_width
    return _side(low, high), f"{evidence}, difference {mean:+.2f}, 95 % [{low:+.2f}, {high:+.2f}]"


def _metric_at_least(claim: MetricAtLeast, values: np.ndarray) -> Verdict:
    """Metric `metric` of a model is a number or more: t-interval over seeds."""
    mean, half_width = t_interval(values[:, 0])
    if half_width is None:
        return "undecided", f"{mean:.2f}, {ONE_SEED}"
    low, high = mean - half_width, mean + half_width
    outcome = "holds" if low >= claim.at_least else "fails" if high < claim.at_least else "undecided"
    return outcome, f"{mean:.2f}, 95 % [{low:.2f}, {high:.2f}], wanted {claim.at_least:g} or more"


def _metrics(
    rule: Callable[[Claim, np.ndarray], Verdict], claim: MetricBelow | MetricAtLeast, runs: Runs
) -> Iterator[PartResult]:
    """The rule on the metrics (seeds, names) of every cell of the claim."""
    names = (claim.metric, claim.below) if isinstance(claim, MetricBelow) else (claim.metric,)
    for task in claim.tasks:
        for model in claim.models:
            if not runs.spec.has_cell(model, task):
                continue
            label, left_out = f"{model}, {task}", runs.left_out((model, task))
            rows = [[record["metrics"].get(name) for name in names] for record in runs.ok(model, task).values()]
            values = np.array([row for row in rows if None not in row])
            if not len(values):
                lacking = "both metrics" if len(names) > 1 else "the metric"
                yield PartResult(label, "missing", f"no ok run with {lacking}{left_out}", 0)
                continue
            outcome, evidence = rule(claim, values)
            yield PartResult(label, outcome, evidence + left_out, len(values))


KINDS: dict[str, Callable[[Any, Runs], Iterable[PartResult]]] = {
    "improves": partial(_pairs, _improves),
    "equivalent": partial(_pairs, _equivalent),
    "no_worse": partial(_pairs, _no_worse),
    "best_of": _best_of,
    "metric_below": partial(_metrics, _metric_below),
    "metric_at_least": partial(_metrics, _metric_at_least),
}
