"""Write one page with all results, self-contained: python -m experiments.report

Tables, claims and curves come from the records, galleries and animations from results/figures. Needs no server and no
network. Exits with 1 when something could not be shown, such as a damaged record; the page says what.
"""

import sys
from pathlib import Path

from experiments.cli import main
from stn.results.report import write_report


def report(settings: dict) -> None:
    results_dir = Path(settings["results_dir"])
    path = Path(settings["out"] or results_dir / "report.html")
    problems = write_report(results_dir, Path(settings["conf_dir"]), path)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main(report)
