"""Carry run records between machines: python -m experiments.records pack|merge records.tar.gz [--results-dir results]

`pack` writes all records into one archive; `merge` adds those of an archive to the results: all of them, or none when
one differs from a record that is there.
"""

import argparse
from pathlib import Path

from experiments.cli import main
from stn.results.archive import merge, pack


def records() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["pack", "merge"])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--results-dir", default="results")
    wanted = parser.parse_args()
    if wanted.action == "pack":
        print(f"{pack(wanted.results_dir, wanted.archive)} records in {wanted.archive}")
        return
    merged = merge(wanted.archive, wanted.results_dir)
    print(f"{len(merged.new)} new records, {len(merged.known)} were there already; now run `make tables`")


if __name__ == "__main__":
    main(records)
