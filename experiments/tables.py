"""Render every table from the committed records alone: python -m experiments.tables"""

import re
import sys
import tempfile
from pathlib import Path

from experiments.cli import main
from stn.results.bench_table import bench_table
from stn.results.records import DATA_KINDS, read_records, records_root, sweeps_dir
from stn.results.spec import NAME
from stn.results.sweeps import sweeps_of, sweeps_page
from stn.results.tables import FORMATS, load_table, render_table, select

SWEEPS = "sweeps.md"
RENDERED = re.compile(rf"{NAME}_[A-Za-z0-9_-]+\.({'|'.join(FORMATS)})|bench_step_\w+\.md|{re.escape(SWEEPS)}")


def render_all(results_dir: Path, conf_dir: Path, out_dir: Path) -> list[Path]:
    """Every table × (protocol, data) that has a record in a cell, the benchmarks, and a page of the sweeps."""
    records = _records(results_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for spec in [load_table(path) for path in sorted((conf_dir / "table").glob("*.yaml"))]:
        for protocol, data in sorted({(r["protocol"], r["data"]) for r in records}):
            if select(spec, records, protocol, data):
                paths += render_table(spec, records, protocol, out_dir, data)
    for measured in sorted((results_dir / "bench").glob("step_*.json")):
        paths.append(out_dir / f"bench_{measured.stem}.md")
        paths[-1].write_text(bench_table(measured), encoding="utf-8", newline="\n")
    if sweeps := sweeps_of(_records(sweeps_dir(results_dir))):
        paths.append(out_dir / SWEEPS)
        paths[-1].write_text(sweeps_page(sweeps), encoding="utf-8", newline="\n")
    return paths


def _records(results_dir: Path) -> list[dict]:
    """Of all kinds of data."""
    return [record for data in DATA_KINDS for record in read_records(records_root(results_dir, data))]


def embed(text: str, tables: dict[str, Path]) -> str:
    """`text` with every block ``<!-- table: NAME --> … <!-- end of table -->`` holding the head of NAME.md.

    The head is the title, the note and the overview: all that stands before the claims. A block whose table is not
    among `tables` is left as it is.
    """

    def block(match: re.Match) -> str:
        path = tables.get(f"{match[1]}.md")
        if path is None:
            return match[0]
        head = path.read_text(encoding="utf-8").split("\n## ")[0].removeprefix("# ").strip()
        title, _, rest = head.partition("\n")
        return f"<!-- table: {match[1]} -->\n**{title}**\n{rest}\n<!-- end of table -->"

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end of table -->", block, text, flags=re.DOTALL)


def rendered_files(folder: Path) -> dict[str, Path]:
    """The files in a folder that are named like a rendered table; any others are left alone."""
    return {path.name: path for path in sorted(folder.glob("*")) if RENDERED.fullmatch(path.name)}


def differences(rendered: dict[str, Path], committed: dict[str, Path]) -> list[str]:
    """One line for every committed table that is missing, superfluous, or not what the records give."""
    lines = [f"missing: {name}" for name in rendered.keys() - committed.keys()]
    lines += [f"superfluous: {name}" for name in committed.keys() - rendered.keys()]
    lines += [
        f"differs: {name}"
        for name in rendered.keys() & committed.keys()
        if rendered[name].read_bytes() != committed[name].read_bytes()
    ]
    return sorted(lines)


def check(results_dir: Path, conf_dir: Path, pages: list[Path]) -> int:
    """Compare the committed tables, and those in the pages, with what the records give; status 1 when they differ."""
    with tempfile.TemporaryDirectory() as folder:
        render_all(results_dir, conf_dir, Path(folder))
        rendered = rendered_files(Path(folder))
        lines = differences(rendered, rendered_files(results_dir / "tables"))
        for page in pages:
            if embed(page.read_text(encoding="utf-8"), rendered) != page.read_text(encoding="utf-8"):
                lines.append(f"differs: a table in {page.name}")
    print("\n".join(lines) or f"{len(rendered)} files up to date")
    return 1 if lines else 0


def render(results_dir: Path, conf_dir: Path, pages: list[Path]) -> int:
    """Render into results/tables and the pages; remove the tables that the records no longer give."""
    paths = render_all(results_dir, conf_dir, results_dir / "tables")
    for path in paths:
        print(f"wrote {path}")
    for name, path in rendered_files(results_dir / "tables").items():
        if name not in {written.name for written in paths}:
            path.unlink()
            print(f"removed {path}")
    for page in pages:
        text = page.read_text(encoding="utf-8")
        page.write_text(embed(text, rendered_files(results_dir / "tables")), encoding="utf-8", newline="\n")
    return 0


def tables(settings: dict) -> None:
    results_dir, conf_dir, readme = (Path(settings[name]) for name in ("results_dir", "conf_dir", "readme"))
    for folder in (results_dir, conf_dir / "table"):
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
    pages = [page for page in (readme, *sorted((readme.parent / "docs").glob("*.md"))) if page.exists()]
    sys.exit((check if settings["check"] else render)(results_dir, conf_dir, pages))


if __name__ == "__main__":
    main(tables)
