"""Tables: a golden file read by a human, and what may not happen to a cell."""

from pathlib import Path

import pandas as pd
import pytest

from stn.results.records import RecordError
from stn.results.spec import TableError
from stn.results.tables import cell_text, load_table, overview, render_table, table_cells

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("golden_table.md")


@pytest.fixture
def golden_records(record, bad):
    """R: FCN 5.0 5.2 5.4, ST-FCN Aff 1.0 1.2 and a collapse, ST-FCN TPS 1.1 once. E: FCN failed, ST-FCN Aff missing."""
    records = [record("fcn", "mnist_r", seed, wrong=50 + 2 * seed) for seed in range(3)]
    records += [record("st_fcn_affine", "mnist_r", seed, wrong=10 + 2 * seed, n_params=120000) for seed in range(2)]
    records += [bad("collapsed", model="st_fcn_affine", task="mnist_r", seed=2, n_params=120000)]
    records += [record("st_fcn_tps", "mnist_r", 0, wrong=11, n_params=121000)]
    records += [bad("failed", model="fcn", task="mnist_e", seed=seed, n_params=None) for seed in range(2)]
    return records


def cell(cells: pd.DataFrame, model: str, task: str) -> dict:
    return cells[(cells["model"] == model) & (cells["task"] == task)].to_dict("records")[0]


def test_golden(tmp_path, small_table, golden_records):
    """Checked by hand: 5.2 ± 4.303 * 0.2 / √3 = 0.497, 1.1 ± 12.706 * 0.1 = 1.27, the differences and verdicts."""
    paths = render_table(load_table(small_table()), golden_records, "fast", tmp_path)
    assert [path.name for path in paths] == [f"tablegolden_fast.{suffix}" for suffix in ("md", "csv", "tex")]
    assert paths[0].read_text(encoding="utf-8") == GOLDEN.read_text(encoding="utf-8")


def test_rendering_twice_is_byte_equal(tmp_path, small_table, golden_records):
    spec = load_table(small_table())
    first = render_table(spec, golden_records, "fast", tmp_path / "a")
    second = render_table(spec, golden_records[::-1], "fast", tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_csv_has_one_line_a_cell(tmp_path, small_table, golden_records):
    path = render_table(load_table(small_table()), golden_records, "fast", tmp_path)[1]
    frame = pd.read_csv(path)
    assert len(frame) == 5
    first, last = frame.iloc[0], frame.iloc[-1]
    assert (first["model"], first["task"], first["seeds"], first["mean"]) == ("fcn", "mnist_r", "0 1 2", 5.2)
    assert first["half_width"] == pytest.approx(0.496828)
    assert (last["model"], last["n"], last["verdict"], last["paper"]) == ("st_fcn_tps", 1, "match", 1.1)


def test_latex_is_escaped(tmp_path, small_table, golden_records):
    path = render_table(load_table(small_table(("R}", "R_1 & 2}"))), golden_records, "fast", tmp_path)[2]
    text = path.read_text(encoding="utf-8")
    assert r"R\_1 \& 2" in text
    assert r"5.20 $\pm$ 0.50 (2.1)" in text
    assert r"\toprule" in text
    assert text.isascii()
    assert r"\% error, protocol fast" in text


def test_each_protocol_of_a_table_has_a_latex_label_of_its_own(tmp_path, small_table, record):
    spec = load_table(small_table())
    records = [record(), record(protocol="modern"), record(data="standin")]
    cases = [("fast", "real"), ("modern", "real"), ("fast", "standin")]
    texts = [render_table(spec, records, name, tmp_path, data)[2].read_text(encoding="utf-8") for name, data in cases]
    for text, label in zip(texts, ("golden_fast", "golden_modern", "golden_fast_standin"), strict=True):
        assert text.count(r"\label{tab:table" + label + "}") == 1


def test_cells(small_table, golden_records):
    cells = table_cells(load_table(small_table()), golden_records, "fast")
    affine = cell(cells, "st_fcn_affine", "mnist_r")
    assert (affine["n"], affine["n_bad"], affine["bad"], affine["seeds"]) == (2, 1, "1 collapsed", [0, 1])
    assert affine["mean"] == pytest.approx(1.1)  # the collapsed run is not in it
    assert cell_text(affine, expected_n=3) == "1.10 ± 1.27 (n=2, 1 collapsed)"
    assert affine["n_params"] == 120000
    tps = cell(cells, "st_fcn_tps", "mnist_r")
    assert tps["half_width"] is None
    assert cell_text(tps, expected_n=1) == "1.10"
    failed = cell(cells, "fcn", "mnist_e")
    assert (failed["mean"], failed["verdict"], cell_text(failed, 3)) == (None, "2 failed", "2 failed")
    missing = cell(cells, "st_fcn_affine", "mnist_e")
    assert (missing["n"], missing["n_bad"], missing["verdict"]) == (0, 0, "missing")
    assert cell_text(missing, 3) == "missing"


def test_no_cell_without_a_reference_value(small_table, golden_records, record):
    spec = load_table(small_table())
    records = [*golden_records, record("st_fcn_tps", "mnist_e")]
    table = overview(spec, table_cells(spec, records, "fast")).set_index("model")
    assert table.loc["ST-FCN TPS", "E"] == "–"
    assert table.loc["Maxout (cited)"].tolist() == ["(4.0)", "–"]


def test_a_cell_can_be_without_a_number_of_the_paper(tmp_path, small_table, record, bad):
    path = small_table(("st_fcn_tps: {mnist_r: 1.1}", "st_fcn_tps: {mnist_r: null, mnist_e: null}"))
    spec = load_table(path)
    records = [record("st_fcn_tps", seed=seed, wrong=50 + 2 * seed) for seed in range(2)]
    cells = table_cells(spec, records, "fast")
    found = cell(cells, "st_fcn_tps", "mnist_r")
    assert (found["n"], found["mean"], found["difference"], found["verdict"]) == (2, pytest.approx(5.1), None, "–")
    assert cell(cells, "st_fcn_tps", "mnist_e")["verdict"] == "missing"
    assert overview(spec, cells).set_index("model").loc["ST-FCN TPS"].tolist() == ["5.10 ± 1.27 (–)", "missing (–)"]
    failed = table_cells(spec, [bad("failed", model="st_fcn_tps", task="mnist_r")], "fast")
    assert cell(failed, "st_fcn_tps", "mnist_r")["verdict"] == "1 failed"
    markdown, csv, _ = render_table(spec, records, "fast", tmp_path)
    line = next(x for x in markdown.read_text(encoding="utf-8").splitlines() if x.startswith("| ST-FCN TPS | R"))
    assert [entry.strip() for entry in line.strip("|").split("|")][5:8] == ["–", "", "–"]
    frame = pd.read_csv(csv).set_index(["model", "task"])
    assert frame.loc[("st_fcn_tps", "mnist_r"), ["paper", "difference"]].isna().all()


def test_records_of_one_cell_must_share_their_settings(small_table, record):
    records = [record(seed=0), record(seed=1, config_hash="f" * 16)]
    with pytest.raises(RecordError) as error:
        table_cells(load_table(small_table()), records, "fast")
    assert "mnist_r/fcn/fast/seed0 and mnist_r/fcn/fast/seed1 differ in config_hash" in str(error.value)


def test_a_table_has_the_note_of_the_record_that_ended_last(tmp_path, small_table, record):
    old = record("fcn")
    new = record(
        "st_fcn_affine",
        finished_at="2025-02-01T00:00:00+00:00",
        config=old["config"] | {"protocol_note": "40 000 steps"},
    )
    markdown, _, _ = render_table(load_table(small_table()), [new, old], "fast", tmp_path)
    assert "\nProtocol fast: 40 000 steps. Seeds" in markdown.read_text(encoding="utf-8")


@pytest.mark.parametrize("changes", [{"data_checksums": {"mnist": "11"}}, {"n_test": 500, "test_draws": 4}])
def test_models_must_be_tested_on_the_same_images(small_table, record, changes):
    records = [record("fcn"), record("st_fcn_affine", **changes)]
    with pytest.raises(RecordError, match="mnist_r/fcn/fast/seed0 and mnist_r/st_fcn_affine/fast/seed0 differ in"):
        table_cells(load_table(small_table()), records, "fast")


def test_an_ok_run_without_the_metric(small_table, record):
    with pytest.raises(RecordError, match="without the metric 'test/error_pct'"):
        table_cells(load_table(small_table()), [record(metrics={"train/loss": 1.0})], "fast")


def test_real_and_standin_never_mix(tmp_path, small_table, record):
    spec = load_table(small_table())
    records = [record(seed=0, wrong=50), record(seed=1, wrong=500, data="standin")]
    assert cell(table_cells(spec, records, "fast"), "fcn", "mnist_r")["mean"] == 5.0
    real, standin = (render_table(spec, records, "fast", tmp_path, data)[0] for data in ("real", "standin"))
    assert "STAND-IN" not in real.read_text(encoding="utf-8")
    assert standin.name == "tablegolden_fast_standin.md"
    title = standin.read_text(encoding="utf-8").splitlines()[0]
    assert "STAND-IN DATA, not comparable with the paper" in title
    text = standin.read_text(encoding="utf-8")
    assert "| 50.00 " in text
    assert "2.1" not in text  # the paper's
    assert "cited" not in text


def test_protocols_never_mix(small_table, record):
    records = [record(seed=0, wrong=50), record(seed=1, wrong=500, protocol="smoke")]
    cells = table_cells(load_table(small_table()), records, "fast")
    assert cell(cells, "fcn", "mnist_r")["seeds"] == [0]


def test_a_row_can_be_a_metric_of_a_run(small_table, record):
    rows = "  - {model: fcn, label: FCN}\n"
    split = rows + "  - {model: fcn, label: digit 0, name: digit_0, metric: test/digit_0_pct}\n"
    reference = "  fcn: {mnist_r: 2.1, mnist_e: 3.2}\n"
    path = small_table((rows, split), (reference, reference + "  digit_0: {mnist_r: 7}\n"))
    given = record(metrics={"test/error_pct": 5.0, "test/digit_0_pct": 7.0})
    cells = table_cells(load_table(path), [given], "fast")
    assert cells[cells["row"] == "digit_0"]["mean"].tolist() == [7.0]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("unit:", "units:", "missing key 'unit'"),
        ("cited:", "quoted:", "unknown key 'quoted'"),
        ("true", "lower", "lower_is_better must be true or false"),
        ("name: tablegolden", "name: table1", "must be the file's"),
        ("label: R}", "label: R, width: 3}", "unknown key 'columns[0].width'"),
        ("{model: fcn, label: FCN}", "fcn", "rows[0] must be a mapping"),
        ("task: mnist_e", "task: mnist_r", "columns has 'mnist_r' twice"),
        ("  st_fcn_tps: {mnist_r: 1.1}", "", "'st_fcn_tps' must be both in rows and in reference"),
        ("mnist_r: 4.0", "mnist_x: 4.0", "cited.Maxout has 'mnist_x', which is no column"),
        ("mnist_r: 4.0", "mnist_r: four", "must be a number, got 'four'"),
        ("mnist_r: 4.0", "mnist_r: null", "must be a number, got None"),
        ("{mnist_r: 1.1}", "{mnist_r: one}", "must be a number, got 'one'"),
        (
            "kind: improves",
            "kind: betters",
            "claims[0].kind must be one of improves, equivalent",
        ),
        ("    margin_pp: 0.2\n", "", "missing key 'claims[1].margin_pp'"),
        ("margin_pp: 0.2", "margin_pp: 0", "claims[1].margin_pp must be more than 0, got 0"),
        ("pairs: [[st_fcn_tps, st_fcn_affine]]", "pairs: [[tps, fcn]]", "claim 'tps_no_worse' has 'tps', allowed: fcn"),
        ("pairs: [[st_fcn_tps, st_fcn_affine]]", "pairs: [[st_fcn_tps]]", "missing key 'claims[1].pairs[0][1]'"),
        ("tasks: [mnist_r]", "tasks: [mnist_e]", "tests nothing"),
        ("tasks: [mnist_r]", "tasks: []", "tasks must have 1 or more entries, got []"),
        ("id: tps_no_worse", "id: st_improves", "claims has 'st_improves' twice"),
        ("title:", "title: [", "not YAML"),
    ],
)
def test_a_wrong_table_is_refused(small_table, old, new, says):
    path = small_table((old, new))
    with pytest.raises(TableError) as error:
        load_table(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_no_table_file(tmp_path):
    with pytest.raises(TableError, match="cannot be read"):
        load_table(tmp_path / "table9.yaml")


def test_table_1_has_the_papers_numbers():
    spec = load_table(ROOT / "conf" / "table" / "table1.yaml")
    numbers = {task: [spec.reference[row.name].get(task) for row in spec.rows] for task in spec.tasks}
    assert numbers == {
        "mnist_r": [2.1, 1.2, 1.2, 1.3, 1.1, 0.7, 0.8, 0.7],
        "mnist_rts": [5.2, 0.8, 0.8, 0.9, 0.8, 0.5, 0.6, 0.5],
        "mnist_p": [3.1, 1.5, 1.5, 1.4, 1.4, 0.8, 0.8, 0.8],
        "mnist_e": [3.2, 1.4, 2.7, 2.6, 2.4, 1.2, 1.3, 1.1],
        "mnist_tc": [13.2, 3.5, 2.0, None, None, 1.7, None, None],
    }
    assert len(spec.cells()) == 36
    assert len(spec.claims) == 8
