"""Tables: records -> one row per cell -> Markdown, CSV and LaTeX, byte-equal for equal records."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stn.results.claims import ClaimResult, check_claims, judge_claims
from stn.results.records import RecordError, run_key
from stn.results.spec import Column, Row, TableSpec, read_spec
from stn.results.statistics import VERDICT_RULE, t_interval, verdict

Record = Mapping[str, Any]

FORMATS = ("md", "csv", "tex")
NO_NUMBER = "–"  # the paper has no number; in place of a cell: and so nothing is run
CLAIMS_NOTE = (
    "Differences are paired over test images and seeds, in points of error; below zero, the first model is better. "
    "The interval that decides is over digits and seeds; p-values are not corrected for the number of parts."
)


def load_table(path: Path) -> TableSpec:
    """A table of conf/table, checked down to the arguments of its claims. Raises: TableError."""
    spec = read_spec(path)
    check_claims(spec)
    return spec


def select(spec: TableSpec, records: Iterable[Record], protocol: str, data: str = "real") -> list[Record]:
    """The records that fill cells of this table, of one protocol and one kind of data; real and stand-in never mix."""
    return [
        record
        for record in records
        if spec.only in (None, data)
        and record["protocol"] == protocol
        and record["data"] == data
        and spec.has_cell(record["model"], record["task"])
    ]


def table_cells(spec: TableSpec, records: Iterable[Record], protocol: str, data: str = "real") -> pd.DataFrame:
    """One row per cell: mean and 95 % interval over the seeds of its ok runs, beside the paper's number.

    Collapsed, diverged and failed runs are counted (`n_bad`, `bad`), never averaged. A cell without an ok
    run has no mean, and its verdict says why.

    Raises: RecordError when runs of one cell differ in more than the seed, or runs of one task were not
    tested on the same images.
    """
    spec = spec if data == "real" else spec.without_paper()
    chosen = select(spec, records, protocol, data)
    _check_alike(chosen, ("task", "model"), ("config_hash",))
    tested = [record for record in chosen if record["status"] == "ok"]
    _check_alike(tested, ("task",), ("n_test", "test_draws", "data_checksums"))
    cells = [
        _cell(row, column, paper, [r for r in chosen if (r["model"], r["task"]) == (row.model, column.task)], spec)
        for row, column, paper in spec.cells()
    ]
    # object, or pandas turns every None into a NaN
    return pd.DataFrame(cells, dtype=object).astype({"n": int, "n_bad": int, "paper": float})


def render_table(
    spec: TableSpec, records: Iterable[Record], protocol: str, out_dir: Path, data: str = "real"
) -> list[Path]:
    """Write `<name>_<protocol>.md/.csv/.tex` (`…_standin.…` for stand-in data) and return their paths.

    Numbers of the paper and of others stand beside real data only.
    """
    spec = spec if data == "real" else spec.without_paper()
    chosen = select(spec, records, protocol, data)
    cells = table_cells(spec, chosen, protocol, data)
    title, note = describe(spec, chosen, cells, protocol, data)
    stem = table_stem(spec.name, protocol, data)
    texts = {
        "md": markdown(spec, cells, judge_claims(spec, chosen), title, note),
        "csv": csv(spec, cells, protocol, data),
        "tex": latex(spec, cells, title, note, stem),
    }
    paths = [out_dir / f"{stem}.{suffix}" for suffix in FORMATS]
    out_dir.mkdir(parents=True, exist_ok=True)
    for path, suffix in zip(paths, FORMATS, strict=True):
        path.write_text(texts[suffix], encoding="utf-8", newline="\n")
    return paths


def table_stem(name: str, protocol: str, data: str) -> str:
    """File name, without suffix, of a rendered table."""
    return f"{name}_{protocol}" + ("" if data == "real" else f"_{data}")


def describe(
    spec: TableSpec, records: Sequence[Record], cells: pd.DataFrame, protocol: str, data: str
) -> tuple[str, str]:
    """Title and one line below it: data, protocol with its note, seeds, test images times draws.

    The note is that of the most recent record: not being part of a run's hash, it may have been reworded.
    """
    title = f"{spec.title}, {spec.unit}, protocol {protocol}"
    if data == "standin":
        title += " – STAND-IN DATA, not comparable with the paper"
    elif data == "subset":
        title += f" – REAL DATA, PART: {spec.part}; not comparable with the paper"
    newest = max(records, key=lambda record: record["finished_at"], default={"config": {}})
    protocol_note = newest["config"].get("protocol_note") or "no note"
    tests = sorted({(r["n_test"], r["test_draws"]) for r in records if r["status"] == "ok"})
    counts = sorted(set(cells["n"]) - {0})
    seeds = "none" if not counts else " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    better = "lower" if spec.lower_is_better else "higher"
    parts = [
        f"Protocol {protocol}: {protocol_note}".rstrip("."),
        f"Seeds per cell: {seeds}",
        "Test: " + (" / ".join(f"{n} images × {draws} draws" for n, draws in tests) or "none"),
        f"Cells: ours, mean ± 95 % interval over seeds{' (paper)' if has_paper(cells) else ''}; {better} is better",
    ]
    return title, ". ".join(parts) + "."


def has_paper(cells: pd.DataFrame) -> bool:
    """Whether any cell has a number of the paper's to stand beside."""
    return bool(cells["paper"].notna().any())


def cell_text(cell: Mapping[str, Any], expected_n: int) -> str:
    """ "0.92 ± 0.05", with the number of ok and bad runs behind it where it is not what it should be."""
    value, notes = _value_and_notes(cell, expected_n)
    return f"{value} ({notes})" if notes else value


def markdown(spec: TableSpec, cells: pd.DataFrame, claims: Sequence[ClaimResult], title: str, note: str) -> str:
    """Overview, claims, the tested parts of the claims, and every cell in detail."""
    blocks = [f"# {title}", note, _pipe(overview(spec, cells))]
    if claims:
        blocks += ["## Claims", CLAIMS_NOTE, _pipe(_claims_frame(claims))]
        blocks += ["## Claims, part by part", _pipe(_parts_frame(claims))]
    blocks += ["## Cells", VERDICT_RULE, _pipe(_detail_frame(cells))]
    return "\n\n".join(blocks) + "\n"


def csv(spec: TableSpec, cells: pd.DataFrame, protocol: str, data: str) -> str:
    """Tidy: one line a cell."""
    tidy = cells.assign(seeds=[" ".join(map(str, seeds)) for seeds in cells["seeds"]])
    for name in ("mean", "half_width", "difference"):
        tidy[name] = [None if value is None else f"{value:.6g}" for value in cells[name]]
    for position, (name, value) in enumerate([("table", spec.name), ("protocol", protocol), ("data", data)]):
        tidy.insert(position, name, value)
    return tidy.to_csv(index=False, lineterminator="\n")


def latex(spec: TableSpec, cells: pd.DataFrame, title: str, note: str, stem: str) -> str:
    """The overview for a paper (package booktabs); its label is that of the file, one per protocol and kind of data."""
    frame = overview(spec, cells).map(_escape)
    frame.columns = [_escape(name) for name in frame.columns]
    return frame.to_latex(
        index=False,
        escape=False,
        column_format="l" + "c" * len(spec.columns),
        caption=_escape(f"{title}. {note}"),
        label=f"tab:{stem}",
        position="t",
    )


def overview(spec: TableSpec, cells: pd.DataFrame) -> pd.DataFrame:
    """One row per model, per column "ours (paper)"; then the cited rows, which nobody ran here.

    The brackets hold notes alone in a table to which the paper has no number.
    """
    expected_n, papers = int(cells["n"].max()), has_paper(cells)
    texts = {}
    for cell in cells.to_dict("records"):
        value, notes = _value_and_notes(cell, expected_n)
        bracket = "; ".join(filter(None, [papers and _paper(cell["paper"]), notes]))
        texts[cell["row"], cell["task"]] = f"{value} ({bracket})" if bracket else value
    rows = [[row.label, *(texts.get((row.name, task), NO_NUMBER) for task in spec.tasks)] for row in spec.rows]
    for label, numbers in spec.cited.items():
        cited = [f"({_paper(numbers[task])})" if task in numbers else NO_NUMBER for task in spec.tasks]
        rows.append([f"{label} (cited)", *cited])
    return pd.DataFrame(rows, columns=["model", *(column.label for column in spec.columns)])


def _cell(row: Row, column: Column, paper: float | None, runs: Sequence[Record], spec: TableSpec) -> dict[str, Any]:
    ok = sorted((r for r in runs if r["status"] == "ok"), key=run_key)
    statuses = sorted(Counter(r["status"] for r in runs if r["status"] != "ok").items())
    bad = ", ".join(f"{count} {status}" for status, count in statuses)
    mean, half_width = t_interval([_metric(r, row.metric) for r in ok]) if ok else (None, None)
    difference = None
    if not ok:
        decided = bad or "missing"
    elif paper is None:
        decided = NO_NUMBER
    else:
        difference = round(mean - paper, 9) + 0.0  # neither -2e-16 nor -0.0
        decided = verdict(mean, half_width, paper, spec.lower_is_better)
    return {
        "row": row.name,
        "model": row.model,
        "label": row.label,
        "task": column.task,
        "column": column.label,
        "metric": row.metric,
        "n": len(ok),
        "n_bad": len(runs) - len(ok),
        "bad": bad,
        "mean": mean,
        "half_width": half_width,
        "paper": paper,
        "difference": difference,
        "verdict": decided,
        "n_params": next((r["n_params"] for r in [*ok, *runs] if r["n_params"] is not None), None),
        "seeds": [r["seed"] for r in ok],
    }


def _check_alike(records: Iterable[Record], within: Sequence[str], equal: Sequence[str]) -> None:
    """Records that agree on the keys `within` must agree on the keys `equal`."""
    first: dict[tuple[Any, ...], Record] = {}
    for record in records:
        other = first.setdefault(tuple(record[name] for name in within), record)
        for name in equal:
            if record[name] != other[name]:
                values = f"{other[name]!r} and {record[name]!r}"
                raise RecordError(f"{run_key(other)} and {run_key(record)} differ in {name}: {values}")


def _metric(record: Record, name: str) -> float:
    value = record["metrics"].get(name)
    if value is None:
        raise RecordError(f"{run_key(record)}: an ok run without the metric {name!r}")
    return float(value)


def _paper(value: float) -> str:
    return NO_NUMBER if pd.isna(value) else f"{value:.1f}"


def _value_and_notes(cell: Mapping[str, Any], expected_n: int) -> tuple[str, str]:
    if not cell["n"]:
        return cell["bad"] or "missing", ""
    value = f"{cell['mean']:.2f}"
    if cell["half_width"] is not None:
        value += f" ± {cell['half_width']:.2f}"
    if not cell["n_bad"] and cell["n"] == expected_n:
        return value, ""
    return value, ", ".join(filter(None, [f"n={cell['n']}", cell["bad"]]))


def _detail_frame(cells: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for cell in cells.to_dict("records"):
        difference = "" if cell["difference"] is None else f"{cell['difference']:+.2f}"
        n_params = "" if cell["n_params"] is None else f"{int(cell['n_params'])}"
        seeds = " ".join(map(str, cell["seeds"]))
        ours = cell_text(cell, expected_n=cell["n"])
        paper, decided = _paper(cell["paper"]), cell["verdict"]
        place = [cell["label"], cell["column"]]
        rows.append([*place, ours, cell["n"], seeds, paper, difference, decided, n_params])
    names = ["model", "column", "ours", "n", "seeds", "paper", "difference", "verdict", "parameters"]
    return pd.DataFrame(rows, columns=names)


def _claims_frame(claims: Sequence[ClaimResult]) -> pd.DataFrame:
    rows = []
    for claim in claims:
        seeds = " to ".join(str(n) for n in dict.fromkeys(claim.n_seeds))
        rows.append([claim.statement, f"**{claim.outcome}**", claim.evidence, seeds])
    return pd.DataFrame(rows, columns=["claim", "outcome", "evidence", "seeds"])


def _parts_frame(claims: Sequence[ClaimResult]) -> pd.DataFrame:
    rows = [
        [claim.id, part.label, part.outcome, part.evidence, part.n_seeds] for claim in claims for part in claim.parts
    ]
    return pd.DataFrame(rows, columns=["claim", "part", "outcome", "evidence", "seeds"])


def _pipe(frame: pd.DataFrame) -> str:
    return frame.astype(str).to_markdown(index=False, disable_numparse=True)


_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", "×": r"$\times$", "÷": r"$\div$", "≈": r"$\approx$"}
    | {"θ": r"$\theta$", "σ": r"$\sigma$", "–": "--"}
)


def _escape(text: str) -> str:
    return str(text).translate(_LATEX)
