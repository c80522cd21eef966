"""Carry run records between machines: python -m experiments.records pack=records.tar.gz, then merge=records.tar.gz

`pack` writes all records into one archive; `merge` adds those of an archive to the results: all of them, or none when
one differs from a record that is there.
"""

from pathlib import Path

from experiments.cli import main
from stn.results import archive


def records(settings: dict) -> None:
    if (settings["pack"] is None) == (settings["merge"] is None):
        raise ValueError("give either pack=<archive> or merge=<archive>")
    results_dir = Path(settings["results_dir"])
    if settings["pack"]:
        print(f"{archive.pack(results_dir, Path(settings['pack']))} records in {settings['pack']}")
        return
    merged = archive.merge(Path(settings["merge"]), results_dir)
    print(f"{len(merged.new)} new records, {len(merged.known)} were there already; now run `make tables`")


if __name__ == "__main__":
    main(records)
