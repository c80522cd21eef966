"""Claims: each kind holds, fails, is undecided and is missing where it should be."""

import numpy as np
import pytest

from stn.results.claims import judge_claims
from stn.results.tables import load_table

AFFINE, TPS = "st_fcn_affine", "st_fcn_tps"


@pytest.fixture
def judge(small_table):
    """The result of one claim, given as YAML lines after its statement."""

    def run(arguments: str, records):
        head, _ = small_table().read_text(encoding="utf-8").split("claims:")
        path = small_table()
        path.write_text(f"{head}claims:\n  - {{id: c, statement: s., {arguments}}}\n", encoding="utf-8")
        return judge_claims(load_table(path), records)[0]

    return run


@pytest.fixture
def runs(record):
    """Runs of a model on R, one per number of wrong digits, the same digits as far as they go."""

    def make(model, *wrongs, **changes):
        return [record(model, seed=seed, wrong=wrong, **changes) for seed, wrong in enumerate(wrongs)]

    return make


IMPROVES = f"kind: improves, tasks: [mnist_r], pairs: [[{AFFINE}, fcn]]"


@pytest.mark.parametrize(
    ("affine", "outcome"),
    [((10, 12, 11), "holds"), ((90, 92, 91), "fails"), ((50, 52, 48), "undecided"), ((10, 60, 20), "undecided")],
)
def test_improves(judge, runs, affine, outcome):
    result = judge(IMPROVES, runs("fcn", 50, 52, 51) + runs(AFFINE, *affine))
    assert result.outcome == outcome
    assert result.n_seeds == (3, 3)


def test_improves_states_its_numbers(judge, runs):
    result = judge(IMPROVES, runs("fcn", 50, 50) + runs(AFFINE, 10, 10))
    assert result.evidence.startswith("-4.00 pp, 95 % [-5.2")
    assert result.evidence.endswith("p < 0.001")


def test_only_common_seeds_are_compared(judge, record):
    records = [record("fcn", seed=0), record("fcn", seed=1), record(AFFINE, seed=1, wrong=5)]
    assert judge(IMPROVES, records).n_seeds == (1, 1)
    result = judge(IMPROVES, [record("fcn", seed=0), record(AFFINE, seed=1, wrong=5)])
    assert (result.outcome, result.n_seeds) == ("missing", (0, 0))


def test_bad_runs_are_named(judge, runs, bad):
    records = runs("fcn", 50, 52, 51) + runs(AFFINE, 10, 12) + [bad(model=AFFINE, seed=2)]
    result = judge(IMPROVES, records)
    assert (result.outcome, result.n_seeds) == ("holds", (2, 2))
    assert result.evidence.endswith("left out: st_fcn_affine seed 2 collapsed")


def test_without_records_a_claim_is_missing(judge):
    for arguments in (
        IMPROVES,
        f"kind: best_of, tasks: [mnist_r], models: [{TPS}], among: [{AFFINE}]",
        "kind: metric_below, tasks: [mnist_r], models: [fcn], metric: a, below: b",
    ):
        result = judge(arguments, [])
        assert (result.outcome, result.n_seeds) == ("missing", (0, 0))


def test_a_record_without_per_image_errors_is_missing(judge, runs):
    result = judge(IMPROVES, runs("fcn", 50, test_wrong=None) + runs(AFFINE, 10))
    assert result.outcome == "missing"


def test_parts_are_counted(judge, runs, record):
    arguments = f"kind: improves, tasks: [mnist_r, mnist_e], pairs: [[{AFFINE}, fcn], [{TPS}, fcn]]"
    records = runs("fcn", 50, 50) + runs(AFFINE, 10, 10) + runs(TPS, 50, 50)
    result = judge(arguments, records)
    assert result.evidence == "holds in 1 of 3 cells (1 undecided, 1 missing)"  # the table has no TPS on E
    assert result.outcome == "missing"
    assert [part.outcome for part in result.parts] == ["holds", "undecided", "missing"]
    assert judge(arguments, runs("fcn", 50, 50) + runs(TPS, 90, 90)).outcome == "fails"  # one failure is enough


@pytest.mark.parametrize(
    ("affine", "margin", "outcome"),
    [(51, 2.0, "holds"), (51, 0.1, "undecided"), (99, 2.0, "fails"), (5, 2.0, "fails"), (70, 2.0, "undecided")],
)
def test_equivalent(judge, runs, affine, margin, outcome):
    arguments = f"kind: equivalent, tasks: [mnist_r], pairs: [[{AFFINE}, fcn]], margin_pp: {margin}"
    assert judge(arguments, runs("fcn", 50, 50) + runs(AFFINE, affine, affine)).outcome == outcome


@pytest.mark.parametrize(("affine", "outcome"), [(5, "holds"), (51, "holds"), (60, "undecided"), (99, "fails")])
def test_no_worse(judge, runs, affine, outcome):
    arguments = f"kind: no_worse, tasks: [mnist_r], pairs: [[{AFFINE}, fcn]], margin_pp: 1.0"
    assert judge(arguments, runs("fcn", 50, 50) + runs(AFFINE, affine, affine)).outcome == outcome


BEST = f"kind: best_of, tasks: [mnist_r], models: [{TPS}], among: [{AFFINE}, fcn, {TPS}]"


@pytest.mark.parametrize(
    ("affine", "outcome", "foremost"),
    [(40, "holds", AFFINE), (11, "undecided", AFFINE), (2, "fails", AFFINE), (90, "holds", "fcn")],
)
def test_best_of(judge, runs, affine, outcome, foremost):
    result = judge(BEST, runs("fcn", 50, 50) + runs(AFFINE, affine, affine) + runs(TPS, 10, 10))
    assert result.outcome == outcome
    assert result.evidence.startswith(f"foremost rival {foremost}: ")


def test_the_rival_that_leaves_it_open_is_named_not_the_nearest(judge, runs):
    result = judge(BEST, runs("fcn", 41, 90) + runs(AFFINE, 40, 40) + runs(TPS, 10, 10))
    assert result.outcome == "undecided"
    assert result.evidence.startswith("foremost rival fcn: ")


def test_the_rival_that_is_better_for_certain_is_named_with_the_fewest_seeds_and_what_was_left_out(judge, runs, bad):
    """The other's interval reaches further up, over two seeds that disagree."""
    records = runs(TPS, 10, 10, 10) + runs(AFFINE, 2, 2, 2) + runs("fcn", 5, 100) + [bad(model="fcn", seed=2)]
    result = judge(BEST, records)
    assert (result.outcome, result.n_seeds) == ("fails", (2, 2))
    assert result.evidence.startswith(f"foremost rival {AFFINE}: +0.80 pp")
    assert result.evidence.endswith("; left out: fcn seed 2 collapsed")


def test_best_of_with_a_rival_missing(judge, runs):
    result = judge(BEST, runs(AFFINE, 40, 40) + runs(TPS, 10, 10))
    assert result.outcome == "missing"
    assert result.evidence.endswith("missing: fcn")


@pytest.mark.parametrize(
    ("after", "outcome"),
    [
        ((20.0, 21.0, 22.0), "holds"),
        ((60.0, 61.0, 62.0), "fails"),
        ((20.0, 61.0, 22.0), "undecided"),
        ((20.0,), "undecided"),
    ],
)
def test_metric_below(judge, record, after, outcome):
    arguments = (
        f"kind: metric_below, tasks: [mnist_r], models: [{AFFINE}], metric: test/after_deg, below: test/before_deg"
    )
    error = {"test/error_pct": 5.0, "test/before_deg": 52.0}
    records = [record(AFFINE, seed=k, metrics=error | {"test/after_deg": a}) for k, a in enumerate(after)]
    result = judge(arguments, records)
    assert (result.outcome, result.n_seeds) == (outcome, (len(after),) * 2)
    assert "against 52.00" in result.evidence


@pytest.mark.parametrize(("share", "outcome"), [(0.5, "fails"), (0.9, "holds"), (0.7, "undecided")])
def test_metric_below_a_share(judge, record, share, outcome):
    metrics = [{"test/error_pct": 5.0, "test/before_deg": 50.0, "test/after_deg": after} for after in (34, 35, 36)]
    records = [record(AFFINE, seed=k, metrics=values) for k, values in enumerate(metrics)]
    cell = f"tasks: [mnist_r], models: [{AFFINE}], metric: test/after_deg, below: test/before_deg"
    result = judge(f"kind: metric_below, {cell}, share: {share}", records)
    assert result.outcome == outcome
    assert f"35.00 against {share:g} × 50.00, difference {35 - share * 50:+.2f}" in result.evidence


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ((99, 99, 99), "holds"),
        ((99, 98, 99), "holds"),
        ((90, 97, 99), "undecided"),
        ((90, 91, 90), "fails"),
        ((99,), "undecided"),
    ],
)
def test_metric_at_least(judge, record, bad, values, outcome):
    records = [record(AFFINE, seed=seed, metrics={"m": float(value)}) for seed, value in enumerate(values)]
    result = judge(f"kind: metric_at_least, tasks: [mnist_r], models: [{AFFINE}], metric: m, at_least: 96", records)
    assert result.outcome == outcome
    left_out = judge(
        f"kind: metric_at_least, tasks: [mnist_r], models: [{AFFINE}], metric: m, at_least: 96",
        [*records, bad(model=AFFINE, seed=7)],
    )
    assert (left_out.outcome, left_out.evidence) == (outcome, f"{result.evidence}; left out: {AFFINE} seed 7 collapsed")
    without = [record(AFFINE, metrics={"other": 1.0})]
    assert (
        judge(f"kind: metric_at_least, tasks: [mnist_r], models: [{AFFINE}], metric: m, at_least: 96", without).outcome
        == "missing"
    )


def test_the_pairing_decides(judge, record):
    """Two models whose errors sit on the same hard digits differ more surely than two whose errors do not."""
    rng = np.random.default_rng(0)
    order = rng.permutation(1000)
    same = [order < 40, order < 55]
    apart = [order < 40, (order >= 40) & (order < 95)]
    outcomes = []
    for a, b in (same, apart):
        records = [record(m, wrong=np.tile(w, (2, 1))) for m, w in ((AFFINE, a), ("fcn", b))]
        outcomes.append(judge(IMPROVES, records).outcome)
    assert outcomes == ["holds", "undecided"]
