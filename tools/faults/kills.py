"""What is killed at random moments, and what must be there afterwards.

A scenario's `task` may be killed and called again at will. `parts(folder)` reads what it has finished, by name, and
raises for anything torn; after a kill each part must be as an uninterrupted call leaves it, in the end all be there.
"""

import hashlib
import json
import random
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from zygote import Child, command, take_for_mnist

from experiments.config import compose_run
from stn.results.records import read_records, run_key, write_records

TIMES = ("wall_s", "images_per_s", "finished_at", "git")  # of a record: what differs between equal runs


class Scenario(NamedTuple):
    title: str
    task: Callable[..., None]
    arguments: tuple
    parts: Callable[[Path], dict[str, str]]


class Outcome(NamedTuple):
    """Kills, how many of them found something finished, calls to the end, and temporary files that were then left."""

    kills: int
    with_parts: int
    ends: int
    leftovers: int


def harass(scenario: Scenario, folder: Path, kills: int, chance: random.Random) -> Outcome:
    """Kills the task at uniformly random moments, calls it again until it ends, then begins anew, `kills` in all.

    Raises: AssertionError for a part that differs from that of an uninterrupted call, or is missing at the end.
    """
    Child(folder / "warm", print).wait()  # the server's start is not the task's time
    ended = Child(folder / "whole", scenario.task, *scenario.arguments).wait()
    assert ended.status == 0, ended.said
    wanted = scenario.parts(folder / "whole")
    assert wanted
    killed = with_parts = ends = leftovers = 0
    while killed < kills:
        place = folder / f"place{ends}"
        while True:
            child = Child(place, scenario.task, *scenario.arguments)
            if killed == kills or not child.kill_after(chance.uniform(0, ended.wall_s)):
                break
            killed += 1
            found = scenario.parts(place)
            assert found.items() <= wanted.items(), f"{scenario.title}: {found.items() - wanted.items()}"
            with_parts += bool(found)
        last = child.wait()
        assert last.status == 0, last.said
        assert scenario.parts(place) == wanted
        ended, ends = last, ends + 1  # how long it takes changes with what else the machine does
        leftovers += len(hidden(place))
    return Outcome(killed, with_parts, ends, leftovers)


def hidden(folder: Path) -> list[Path]:
    """What a killed process left under a temporary name."""
    return [path for path in folder.rglob(".*") if not path.name.startswith(".extracted")]


# -- runs -----------------------------------------------------------------------------------------------------------


def small_run(digits: Path, model: str = "st_fcn_affine", seed: int = 0, steps: int = 300) -> list[str]:
    """Overrides of a run of a second or two, which writes below the current folder."""
    small = [f"protocol.mnist.{name}={value}" for name, value in {"steps": steps, "batch_size": 8}.items()]
    places = [f"data_dir={digits}", "results_dir=results", "output_dir=outputs"]
    return ["task=mnist_r", f"model={model}", "protocol=smoke", f"seed={seed}", *small, *places, "device=cpu"]


def train_runs(digits: Path, stacks: list[list[list[str]]]) -> None:
    """Trains stacks of runs as a worker does, with a checkpoint after every chunk."""
    import stn.train.checkpoints
    from stn.many.pool import train_stack

    take_for_mnist(digits)
    stn.train.checkpoints.EVERY = timedelta(0)
    for stack in stacks:
        train_stack([compose_run([*overrides, "progress=false"]) for overrides in stack], None, None)


def record_parts(folder: Path) -> dict[str, str]:
    """Every record, but for times."""
    records = [*read_records(folder / "results"), *read_records(folder / "results" / "sweeps")]
    return {str(run_key(record)): numbers(record) for record in records}


def numbers(record: dict) -> str:
    return json.dumps({name: value for name, value in record.items() if name not in TIMES}, sort_keys=True)


def write_many(like: dict, n: int) -> None:
    """Writes the same `n` records again and again: one that is there is replaced by its equal."""
    for _ in range(3):
        for seed in range(n):
            record = like | {"seed": seed}
            write_records({Path("results/runs", *map(str, run_key(record)[:3]), f"seed{seed}.json"): record})


def reproduce(digits: Path) -> None:
    """The verb on three runs of Table 1, one after the other."""
    places = [f"data_dir={digits}", "results_dir=results", "output_dir=outputs", "device=cpu"]
    cells = ["tasks=[mnist_r]", "models=[fcn,st_fcn_affine,st_fcn_tps]"]
    command(digits, "experiments.reproduce", "table=table1", "protocol=smoke", *cells, *places)


# -- data -----------------------------------------------------------------------------------------------------------


def write_archive(folder: Path, archive: Path) -> Path:
    """The .tar.gz of a split folder, its members under the folder's name as in the official archives."""
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(folder, folder.name)
    return archive


def prepare_svhn() -> None:
    """Draws a split, unpacks an archive of it beside it, cuts out its numbers."""
    from stn.data.download import extract_tar
    from stn.data.svhn_crops import build_crops
    from stn.data.svhn_standin import write_standin

    split = write_standin(Path("drawn/train"), 60, 1)
    archive = Path("train.tar.gz")
    if not archive.exists():
        write_archive(split, Path("unfinished.tar.gz")).rename(archive)
    unpacked = extract_tar(archive, Path("unpacked/train"), root="train")
    build_crops(unpacked, 64, Path("crops/train_64"))


def prepare_birds() -> None:
    """Draws birds, decodes them into a cache."""
    from stn.data.cub_annotations import read_annotations
    from stn.data.cub_images import cache_images
    from stn.data.cub_standin import write_standin

    root = write_standin(Path("birds"), n_classes=3, n_per_class=6, size_px=80)
    cache_images(read_annotations(root), Path("cache/cub_32px"), 32, workers=1)


def folders_of(*names: str) -> Callable[[Path], dict[str, str]]:
    """A reader of parts that are whole folders, or files, which appear at once."""
    return lambda folder: {name: digest(folder / name) for name in names if (folder / name).exists()}


def digest(path: Path) -> str:
    """Of all names and bytes below a path; the archive's own time stamps do not count."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    both = hashlib.sha256()
    for file in files:
        both.update(str(file.relative_to(path)).encode() + hashlib.sha256(file.read_bytes()).digest())
    return both.hexdigest()


def unzip_mnist(zipped: Path, digits: Path) -> None:
    from stn.data.mnist import prepare_mnist

    take_for_mnist(digits)
    Path("data").mkdir(exist_ok=True)
    for path in zipped.glob("*.gz"):
        if not (Path("data") / path.name).exists():
            (Path("data") / path.name).symlink_to(path)
    prepare_mnist(Path("data"))


def download(url: str, md5: str, size: int) -> None:
    from stn.data.download import fetch

    fetch([url], Path("data/file"), md5, size)


@contextmanager
def slow_site(content: bytes, pieces: int = 40, pause_s: float = 0.02) -> Iterator[str]:
    """The address of a file, which comes in pieces; from where the reader asks for."""

    class Reply(BaseHTTPRequestHandler):
        def do_GET(self):
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            step = -(-len(content) // pieces)
            try:
                for at in range(start, len(content), step):
                    self.wfile.write(content[at : at + step])
                    pause.wait(pause_s)
            except OSError:  # the reader was killed
                pass

        def log_message(self, *_):
            pass

    pause = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Reply)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/file"
    finally:
        server.shutdown()
        server.server_close()
