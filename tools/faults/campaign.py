"""The long, counted campaign of faults: python tools/faults/campaign.py [--kills 240] [--only kills,…] --out docs

Writes what it counted to <out>/faults.json and puts it into the table of <out>/faults.md. Stops at the first part that
is lost, doubled, torn or other than it should be: a table that is written counts no such part.
"""

import argparse
import functools
import gzip
import hashlib
import io
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import kills
import places
from damage import REFUSED, UNHARMED, WRONG, damage, flipped, torn
from kills import Scenario, folders_of, harass, record_parts, small_run, train_runs
from zygote import Child, write_toy_digits

from stn.data.errors import DataError
from stn.results.records import RecordError, read_record

START, END = "<!-- counted by tools/faults/campaign.py -->", "<!-- end -->"
BITS = 300


class Row(NamedTuple):
    """One line of the table."""

    fault: str
    how: str
    times: int
    happened: str
    seen: str


def main() -> None:
    sections = {
        "kills": killed,
        "sweep": killed_sweep,
        "twice": twice,
        "bits": bits,
        "data": data_bits,
        "disk": full_disk,
    }
    sections |= {"locked": read_only}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(sections), help="some of the sections: " + ", ".join(sections))
    parser.add_argument("--out", type=Path, required=True)
    wanted = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    found = read(wanted.out)
    for name in wanted.only.split(","):
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            digits = write_toy_digits(Path(folder) / "digits")
            Child(Path(folder) / "warm", print).wait()
            rows = list(sections[name](Path(folder), digits, wanted.kills, random.Random(wanted.seed)))
        found[name] = [row._asdict() | {"seen": _anywhere(row.seen.replace(folder, "…"))} for row in rows]
        print(f"{name}: {len(rows)} rows, {time.monotonic() - started:.0f} s", flush=True)
        write(wanted.out, found)


def _anywhere(seen: str) -> str:
    """A message without the names of this machine's temporary files."""
    return re.sub(re.escape(tempfile.gettempdir()) + r"/[^/'` ]+", "…", seen)


def read(out: Path) -> dict[str, list[dict]]:
    path = out / "faults.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(out: Path, found: dict[str, list[dict]]) -> None:
    """The counts as JSON, and as the table between the marks of the page, if there is one."""
    (out / "faults.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = out / "faults.md"
    if not page.exists():
        return
    lines = ["| fault | how it is made | times | what happened | what the user sees |", "|:--|:--|--:|:--|:--|"]
    for row in (row for rows in found.values() for row in rows):
        lines.append("| " + " | ".join(str(value).replace("|", "\\|") for value in row.values()) + " |")
    before, _, rest = page.read_text(encoding="utf-8").partition(START)
    page.write_text(
        before + START + "\n\n" + "\n".join(lines) + "\n\n" + END + rest.partition(END)[2], encoding="utf-8"
    )


# -- kill -9 --------------------------------------------------------------------------------------------------------


def killed(folder: Path, digits: Path, n: int, chance: random.Random) -> Iterator[Row]:
    """kill -9 at a uniformly random moment between the start and the end of what an uninterrupted call takes."""
    zipped = folder / "zipped"
    zipped.mkdir()
    for path in digits.iterdir():
        (zipped / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    content = random.Random(1).randbytes(1 << 20)
    sizes = (hashlib.md5(content).hexdigest(), len(content))
    stack = [[small_run(digits, "fcn", seed, steps=200) for seed in range(3)]]
    whole = Child(folder / "like", train_runs, digits, [[small_run(digits, "fcn", steps=50)]]).wait()
    assert whole.status == 0, whole.said
    (like,) = (read_record(path) for path in (folder / "like" / "results").rglob("seed*.json"))
    raw = [f"data/MNIST/raw/{path.name}" for path in digits.iterdir()]
    with kills.slow_site(content) as url:
        for share, scenario in (
            (0.22, Scenario("training", train_runs, (digits, [[small_run(digits, steps=200)]]), record_parts)),
            (0.10, Scenario("training of a stack of 3 runs", train_runs, (digits, stack), record_parts)),
            (0.10, Scenario("`experiments.reproduce`, 3 runs and a table", kills.reproduce, (digits,), record_parts)),
            (0.20, Scenario("writing of records", kills.write_many, (like, 200), record_parts)),
            (0.10, Scenario("SVHN: drawing, unpacking, cropping", kills.prepare_svhn, (), folders_of(*SVHN))),
            (0.10, Scenario("CUB: drawing, decoding", kills.prepare_birds, (), folders_of(*CUB))),
            (0.05, Scenario("MNIST: unpacking", kills.unzip_mnist, (zipped, digits), folders_of(*raw))),
            (0.05, Scenario("download", kills.download, (url, *sizes), folders_of("data/file"))),
        ):
            place = folder / scenario.task.__name__ / str(share)
            found = harass(scenario, place, round(share * n), chance)
            yield Row(
                f"kill -9: {scenario.title}",
                "at a random moment, then the same call again",
                found.kills,
                f"{found.ends} calls to the end, each with the numbers and bytes of an uninterrupted one; "
                f"{found.with_parts} kills left something finished, whole each time; "
                f"{found.leftovers} temporary files left at the end",
                "nothing: the same command goes on",
            )


SVHN = ("drawn/train", "unpacked/train", "crops/train_64")
CUB = ("birds/CUB_200_2011", "cache/cub_32px")


def killed_sweep(folder: Path, digits: Path, n: int, chance: random.Random) -> Iterator[Row]:
    try:
        import optuna  # noqa: F401
    except ImportError:
        print("optuna is not installed: no sweep")
        return
    from sweeps import TRIALS, harass_sweep

    done, ends = harass_sweep(folder / "sweep", digits, round(0.08 * n), chance)
    yield Row(
        f"kill -9: `experiments.sweep`, {TRIALS} trials",
        "at a random moment, then the same call again",
        done,
        f"{ends} searches to the end, {TRIALS} complete trials each, none lost or doubled; each record has the numbers "
        "of the same run trained alone",
        "nothing: the same command goes on",
    )


def twice(folder: Path, digits: Path, n: int, chance: random.Random) -> Iterator[Row]:
    rounds, busy = max(3, n // 40), ""
    whole = Child(folder / "whole", kills.reproduce, digits).wait()
    assert whole.status == 0, whole.said
    wanted = record_parts(folder / "whole")
    refused = 0
    for k in range(rounds):
        place = folder / f"both{k}"
        trained, *ended = places.two_at_once(place, digits, chance)
        assert sorted(trained) == sorted(wanted), trained
        refused += sum(end.status == 1 for end in ended)
        last = Child(place, kills.reproduce, digits).wait()
        assert (last.status, record_parts(place)) == (0, wanted), last.said
        busy = next(
            (line for end in ended for line in end.said.splitlines() if "another process" in line), busy
        ).strip()
    yield Row(
        "the same table by two commands at once",
        "the second starts up to 2 s after the first",
        rounds,
        f"each of the {len(wanted)} runs trained once in every round, no torn record; {refused} of {2 * rounds} "
        "commands ended with status 1, since a run was the other's",
        f"`{busy}`",
    )


# -- damaged files --------------------------------------------------------------------------------------------------


def bits(folder: Path, digits: Path, n: int, chance: random.Random) -> Iterator[Row]:
    """Of checkpoints, weights and records: read by this process, for only reading is at stake."""
    from stn.saved import load

    runs = [[small_run(digits, steps=100)]]
    whole = Child(folder / "run", train_runs, digits, runs).wait()
    assert whole.status == 0, whole.said
    child = Child(folder / "half", train_runs, digits, [[small_run(digits, steps=100_000)]])
    while not (found := list((folder / "half").rglob("last.ckpt"))):
        assert not child.process.join(0.05)
        assert child.process.exitcode is None
    child.kill_after(0)
    (weights,) = (folder / "run").rglob("weights.pt")
    (record,) = (folder / "run" / "results").rglob("seed*.json")
    for name, file in (("checkpoint", found[0]), ("weights", weights)):
        read = functools.partial(numbers_in, file, load)
        yield damaged_row(f"{name}: one bit flipped", "random bit", file, flipped, read, DataError, BITS, chance)
        yield damaged_row(f"{name}: cut off", "random length", file, torn, read, DataError, BITS // 3, chance)
    read = functools.partial(read_record, record)
    yield damaged_row("record: one bit flipped", "random bit", record, flipped, read, RecordError, BITS, chance)
    yield damaged_row("record: cut off", "random length", record, torn, read, RecordError, BITS // 3, chance)


def numbers_in(file: Path, load: Callable[[Path], object]) -> bytes:
    """All that is in a file of tensors, as bytes that can be compared."""
    import torch

    packed = io.BytesIO()
    torch.save(load(file), packed)
    return packed.getvalue()


def damaged_row(fault: str, how: str, file: Path, change, read, refusal, times: int, chance, after=None) -> Row:
    counts, line = damage(file, change, read, refusal, times, chance, *([after] if after else []))
    assert counts[WRONG] == 0, f"{fault}: {counts}"
    told = ", ".join(f"{counts[kind]} {kind}" for kind in (REFUSED, UNHARMED, WRONG))
    return Row(fault, how, times, told, f"`{line[:240]}`")


def data_bits(folder: Path, digits: Path, n: int, chance: random.Random) -> Iterator[Row]:
    """Of archives, caches and the digits themselves."""
    from stn.data import mnist
    from stn.data.download import extract_tar

    for task in (kills.prepare_svhn, kills.prepare_birds):
        ended = Child(folder / task.__name__, task).wait()
        assert ended.status == 0, ended.said
    svhn, birds = folder / "prepare_svhn", folder / "prepare_birds"
    wanted = kills.digest(svhn / "unpacked/train")

    def unpack() -> str:
        shutil.rmtree(folder / "again", ignore_errors=True)
        return kills.digest(extract_tar(svhn / "train.tar.gz", folder / "again", root="train"))

    assert unpack() == wanted
    for name, change, times in (("one bit flipped", flipped, BITS // 3), ("cut off", torn, BITS // 6)):
        archive = svhn / "train.tar.gz"
        yield damaged_row(f"archive: {name}", "then unpacked", archive, change, unpack, DataError, times, chance)
    for title, place, task, cache in (
        ("SVHN", svhn, kills.prepare_svhn, "crops/train_64"),
        ("CUB", birds, kills.prepare_birds, "cache/cub_32px"),
    ):
        yield rebuilt(title, place, task, cache, chance)
    take = folder / "mnist"
    shutil.copytree(digits, take)
    for path in take.iterdir():
        mnist.MNIST_MD5[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    file = take / "train-images-idx3-ubyte"
    read = lambda: mnist.load_mnist(take, "train").images.numpy().tobytes()  # noqa: E731
    for name, change, times in (("one bit flipped", flipped, BITS // 3), ("cut off", torn, BITS // 6)):
        yield damaged_row(f"MNIST's images: {name}", "then loaded", file, change, read, DataError, times, chance)


def rebuilt(title: str, place: Path, task: Callable, cache: str, chance: random.Random) -> Row:
    """A cache is not the user's: it is made anew."""
    wanted = kills.digest(place / cache)
    files = sorted((place / cache).iterdir())
    contents = [kills.digest(path) for path in files if path.suffix != ".json"]
    times, whole = BITS // 10, 0
    here = Path.cwd()
    os.chdir(place)
    try:
        for k in range(times):
            file = files[k % len(files)]
            file.write_bytes((flipped if k % 2 else torn)(file.read_bytes(), chance))
            task()
            whole += kills.digest(place / cache) == wanted
            same = [kills.digest(path) for path in files if path.suffix != ".json"]
            assert same == contents, f"{title}: {file.name}"
    finally:
        os.chdir(here)
    how = "one bit of one file flipped, or the file cut off"
    told = f"the arrays whole again {times} times; {times - whole} manifests kept a flipped bit that no check reads"
    return Row(f"cache of {title}: damaged", how, times, told, "nothing: it is built anew")


# -- places ---------------------------------------------------------------------------------------------------------


def full_disk(folder: Path, digits: Path, n: int, chance: random.Random) -> Iterator[Row]:
    """A disk of a random size below what the task needs; then there is room, and the same call again."""
    if not places.can_mount(folder / "try"):
        print("mounting is not allowed: no full disk")
        return
    run = (digits, *small_run(digits, steps=100))
    for title, task, arguments, parts in (
        ("training", places.train_command, run, record_parts),
        ("SVHN: drawing, unpacking, cropping", places.said_in_a_line, (kills.prepare_svhn,), folders_of(*SVHN)),
        ("CUB: drawing, decoding", places.said_in_a_line, (kills.prepare_birds,), folders_of(*CUB)),
    ):
        base = folder / title.split(":")[0]
        whole = Child(base / "whole", task, *arguments).wait()
        assert whole.status == 0, whole.said
        wanted, needs = parts(base / "whole"), sum(p.stat().st_size for p in (base / "whole").rglob("*") if p.is_file())
        lines, times, fitted = set(), max(4, n // 24), 0
        for k in range(times):
            disk = base / f"disk{k}"
            with places.small_disk(disk, 64 + chance.randrange(max(1, needs // 1024 * 9 // 10))) as resize:
                ended = Child(disk, task, *arguments, said=base / "said.txt").wait()
                if ended.status == 0:
                    fitted += 1
                else:
                    lines.add(one_line(ended))
                found = parts(disk)
                assert found.items() <= wanted.items()
                resize(1 << 18)
                ended = Child(disk, task, *arguments, said=base / "said.txt").wait()
                assert (ended.status, parts(disk)) == (0, wanted), ended.said
        yield Row(
            f"disk full: {title}",
            "a file system of a random size, too small",
            times,
            f"{times - fitted} ended with status 2 and one line, {fitted} fitted; nothing torn; with room the same "
            "command ended as if nothing had been",
            f"`{max(lines, key=len)}`",
        )


def one_line(ended) -> str:
    """The line of a command that ended in an error of the user's; libraries may have warned before it."""
    assert ended.status == 2, (ended.status, ended.said)
    *before, line = ended.said.splitlines()
    assert line.startswith("error: "), ended.said
    assert not any(told.startswith(("Traceback", "error")) for told in before), ended.said
    return line


def read_only(folder: Path, digits: Path, n: int, chance: random.Random) -> Iterator[Row]:
    """Folders whose mode allows no writing, to a process without root's privileges."""
    run = (digits, *small_run(digits, steps=100))
    for title, locked, task, arguments in (
        ("results", "results", places.train_command, run),
        ("outputs", "outputs", places.train_command, run),
        ("data", ".", places.said_in_a_line, (kills.prepare_svhn,)),
    ):
        place = folder / title
        (place / locked).mkdir(parents=True)
        (place / locked).chmod(0o555)
        child = Child(place, places.without_privileges, task, *arguments, said=folder / "said.txt")
        ended = child.wait()
        (place / locked).chmod(0o755)
        files = [path for path in place.rglob("*") if path.is_file() and path.suffix != ".lock"]
        assert not files, files
        yield Row(f"read-only {title} folder", "mode 555", 1, "ended before training, status 2", f"`{one_line(ended)}`")


if __name__ == "__main__":
    main()
