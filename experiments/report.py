"""Write one page with all results, self-contained: python -m experiments.report [--out results/report.html]

Tables, claims and curves come from the records, galleries and animations from results/figures. Needs no server and no
network. Exits with 1 when something could not be shown, such as a damaged record; the page says what.
"""

import argparse
import sys
from pathlib import Path

from experiments.cli import main
from experiments.config import CONF
from stn.results.report import write_report


def report() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results-dir", type=Path, default=Path("results"))
    parser.add_argument("--conf", type=Path, default=CONF, help="folder with table/*.yaml")
    parser.add_argument("--out", type=Path, help="default: report.html in the results folder")
    wanted = parser.parse_args()
    path = wanted.out or wanted.results_dir / "report.html"
    problems = write_report(wanted.results_dir, wanted.conf, path)
    print(f"{path} ({path.stat().st_size / 1e6:.2f} MB)")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main(report)
