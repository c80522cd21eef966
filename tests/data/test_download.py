import functools
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stn.data import download
from stn.data.download import MARKER, extract_tar, fetch, is_extracted, verify
from stn.data.errors import DataError
from tests.errors import check_error
from tests.processes import wait_until

CONTENT = bytes(range(256)) * 4000  # about 1 MB
MD5 = hashlib.md5(CONTENT).hexdigest()
SOURCE_ROOT = Path(download.__file__).parents[2]


class Site:
    """One file under /file, and how the server misbehaves."""

    def __init__(self):
        self.content = CONTENT
        self.ranges = True
        self.wrong_range = False
        self.drop_after = []  # bytes sent before the connection is cut, one per coming request
        self.announce = True
        self.status = None
        self.requests = []  # the Range header of each
        self.before = lambda: None  # called before a file is sent


class Handler(BaseHTTPRequestHandler):
    def __init__(self, site, *args):
        self.site = site
        super().__init__(*args)

    def do_GET(self):
        site, asked = self.site, self.headers.get("Range")
        site.requests.append(asked)
        if site.status or self.path != "/file":
            return self.send_error(site.status or 404)
        site.before()
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and site.ranges else 0
        if asked and start >= len(site.content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            shown = 0 if site.wrong_range else start
            self.send_header("Content-Range", f"bytes {shown}-{len(site.content) - 1}/{len(site.content)}")
        body = site.content[start:]
        if site.announce:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: site.drop_after.pop(0)] if site.drop_after else body)

    def log_message(self, *args):
        pass


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, *args):
        """The client has hung up, as some tests have it do."""


@pytest.fixture
def site(monkeypatch):
    site = Site()
    with QuietServer(("127.0.0.1", 0), functools.partial(Handler, site)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(download, "RETRY_WAIT_S", 0)
        site.url = f"http://127.0.0.1:{server.server_port}/file"
        yield site
        server.shutdown()
        thread.join()


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_file_is_fetched_once(site, tmp_path, size):
    target = tmp_path / "sub" / "file"
    assert fetch([site.url], target, MD5, size) == target
    assert target.read_bytes() == CONTENT
    assert fetch([site.url], target, MD5, size) == target
    assert (site.requests, names(target.parent)) == ([None], ["file"])


def test_a_cut_connection_is_resumed_within_the_call(site, tmp_path):
    site.drop_after = [100_000, 0, 300_000]
    fetch([site.url], tmp_path / "file", MD5, len(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert site.requests == [None, "bytes=100000-", "bytes=100000-", "bytes=400000-"]


def test_a_dead_connection_is_resumed_by_the_next_call(site, tmp_path):
    site.drop_after = [70_000, 0, 0, 0]
    with pytest.raises(DataError) as error:
        fetch([site.url], tmp_path / "file", MD5, len(CONTENT))
    check_error(error, "stopped at 70000 bytes", tmp_path / "file", MD5, len(CONTENT), site.url)
    assert names(tmp_path) == ["file.part"]
    site.requests.clear()
    fetch([site.url], tmp_path / "file", MD5, len(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert (site.requests, names(tmp_path)) == (["bytes=70000-"], ["file"])


@pytest.mark.parametrize("fault", ["ignores Range", "answers another range"])
def test_a_server_without_usable_ranges_starts_over(site, tmp_path, fault):
    site.ranges, site.wrong_range = fault != "ignores Range", fault != "ignores Range"
    (tmp_path / "file.part").write_bytes(CONTENT[:5000])
    fetch([site.url], tmp_path / "file", MD5, len(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert site.requests == ["bytes=5000-"] + [None] * (fault != "ignores Range")


def test_a_part_of_something_else_is_dropped_and_fetched_again(site, tmp_path):
    for part, requests in (
        (b"x" * 5000, ["bytes=5000-", None]),
        (CONTENT + b"too long", [f"bytes={len(CONTENT) + 8}-", None]),
        (b"x" * len(CONTENT), [None]),
    ):
        site.requests.clear()
        (tmp_path / "file.part").write_bytes(part)
        fetch([site.url], tmp_path / "file", MD5, len(CONTENT))
        assert site.requests == requests
        assert (tmp_path / "file").read_bytes() == CONTENT
        (tmp_path / "file").unlink()


def test_a_complete_part_needs_no_request(site, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    fetch([site.url], tmp_path / "file", MD5, len(CONTENT))
    assert (site.requests, names(tmp_path)) == ([], ["file"])


@pytest.mark.parametrize(
    ("change", "announce", "part"),
    [
        (lambda c: c[:-1] + b"x", True, "gave another file (md5"),
        (lambda c: c[:-1], True, "gave another file (1023999 bytes, expected 1024000"),
        (lambda c: c[:-1], False, "gave another file (no byte after the first 1023999)"),
        (lambda c: c + b"x", True, f"{len(CONTENT) + 1} bytes announced, expected {len(CONTENT)}"),
        (lambda c: c + b"x" * 3_000_000, False, f"more than {len(CONTENT)} bytes"),
        (lambda c: b"", True, "gave another file (0 bytes"),
    ],
)
def test_a_wrong_file_is_never_used(site, tmp_path, change, announce, part):
    site.content, site.announce = change(CONTENT), announce
    with pytest.raises(DataError) as error:
        fetch([site.url], tmp_path / "file", MD5, len(CONTENT))
    check_error(error, part, site.url, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    assert len(site.requests) < 10


@pytest.mark.parametrize(("status", "shown", "requests"), [(404, "HTTP 404", 1), (403, "HTTP 403", 1), (503, "503", 3)])
def test_http_errors_are_named(site, tmp_path, status, shown, requests):
    site.status = status
    with pytest.raises(DataError) as error:
        fetch([site.url], tmp_path / "file", MD5)
    check_error(error, shown, site.url, tmp_path / "file", MD5)
    assert len(site.requests) == requests
    assert names(tmp_path) == []


def test_the_next_address_is_tried(site, tmp_path):
    for bad in (site.url.replace("/file", "/none"), "http://127.0.0.1:1/file", "no address"):
        fetch([bad, site.url], tmp_path / "file", MD5)
        assert (tmp_path / "file").read_bytes() == CONTENT
        (tmp_path / "file").unlink()
    with pytest.raises(DataError, match="no address given"):
        fetch([], tmp_path / "file", MD5)


def test_a_wrong_local_file_is_named_and_kept(site, tmp_path):
    target = tmp_path / "file"
    for bad, part in ((CONTENT[:-1], f"{len(CONTENT) - 1} bytes, expected"), (CONTENT[:-1] + b"x", "md5")):
        target.write_bytes(bad)
        for attempt in (
            lambda: fetch([site.url], target, MD5, len(CONTENT)),
            lambda: verify(target, MD5, len(CONTENT)),
        ):
            with pytest.raises(DataError) as error:
                attempt()
            check_error(error, target, part, "delete or replace it")
        assert target.read_bytes() == bad
    assert site.requests == []
    with pytest.raises(DataError, match="cannot be read"):
        verify(tmp_path / "none", MD5)
    (tmp_path / "a file").write_text("")
    with pytest.raises(DataError, match="cannot write to"):
        fetch([site.url], tmp_path / "a file" / "file", MD5)


def test_two_processes_download_once(site, tmp_path):
    """The first waits for its content until the second has begun to wait for the lock."""
    script = "from pathlib import Path; from stn.data.download import fetch; import sys; Path(sys.argv[1]).touch(); "
    script += f"fetch([{site.url!r}], Path({str(tmp_path / 'to' / 'file')!r}), {MD5!r})"
    env = os.environ | {"PYTHONPATH": str(SOURCE_ROOT)}
    begun = [tmp_path / "begun" / name for name in "ab"]
    begun[0].parent.mkdir()
    site.before = lambda: (wait_until(lambda: all(file.exists() for file in begun), 60), time.sleep(0.5))
    both = [subprocess.Popen([sys.executable, "-c", script, file], env=env, stderr=-1, text=True) for file in begun]
    for process in both:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert (len(site.requests), names(tmp_path / "to")) == (1, ["file"])
    assert (tmp_path / "to" / "file").read_bytes() == CONTENT


# Archives


def member(name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, io.BytesIO(content)


def archive_of(path, *members):
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            content.seek(0)
            tar.addfile(info, content)
    return path


GOOD = (member("train", type=tarfile.DIRTYPE), member("train/1.png", b"one"), member("./train/sub/2.png", b"three"))


def extract(archive, folder):
    return extract_tar(archive, folder, root="train")


def test_an_archive_is_extracted_once_and_marked(tmp_path):
    archive = archive_of(tmp_path / "a.tar.gz", *GOOD, member("notes.txt", b"not under train"))
    folder = extract(archive, tmp_path / "out" / "train")
    assert folder == tmp_path / "out" / "train"
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {
        MARKER,
        "1.png",
        "sub/2.png",
    }
    assert (folder / "sub" / "2.png").read_bytes() == b"three"
    assert json.loads((folder / MARKER).read_text()) == {"archive": "a.tar.gz", "files": 2, "bytes": 8}
    assert (is_extracted(folder), names(folder.parent)) == (True, ["train"])
    archive.unlink()
    assert extract(archive, folder) == folder  # without opening it


@pytest.mark.parametrize(
    "damage", ["a file is gone", "a file is shorter", "the marker is gone", "the marker is foreign"]
)
def test_a_tree_that_is_not_whole_is_noticed(tmp_path, damage):
    archive = archive_of(tmp_path / "a.tar.gz", *GOOD)
    folder = extract(archive, tmp_path / "train")
    path = folder / (MARKER if "marker" in damage else "1.png")
    path.unlink() if damage.endswith("gone") else path.write_text("1")
    assert not is_extracted(folder)
    with pytest.raises(DataError) as error:
        extract(archive, folder)
    check_error(error, folder, "delete it or move it away")


HOSTILE = {  # what is left of it to us: the md5 of an archive is checked before it is unpacked
    "parent": ([member("train/../../evil", b"x")], "outside the destination"),
    "link outside": ([member("train/l", type=tarfile.SYMTYPE, linkname="/etc")], "is a link to an absolute path"),
    "through a link": (
        [member("train/l", type=tarfile.SYMTYPE, linkname="../.."), member("train/l/evil", b"x")],
        "outside the destination",
    ),
    "device": ([member("train/d", type=tarfile.CHRTYPE)], "is a special file"),
    "file as folder": ([member("train/a", b"1"), member("train/a/b", b"2")], "cannot be extracted"),
    "nothing": ([member("other/a", b"1")], "has no files under train/"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_makes_nothing(tmp_path, kind):
    members, part = HOSTILE[kind]
    archive = archive_of(tmp_path / "a.tar.gz", *members)
    with pytest.raises(DataError) as error:
        extract(archive, tmp_path / "sub" / "train")
    check_error(error, archive, part)
    assert names(tmp_path) == ["a.tar.gz", "sub"]
    assert names(tmp_path / "sub") == []


def test_a_size_that_the_archive_does_not_have_is_noticed(tmp_path):
    info, content = member("train/a", b"abc")
    raw = info.tobuf()[:124] + b"00000017777\0" + info.tobuf()[136:]  # claims 8191 bytes
    raw = raw[:148] + b"%06o\0 " % (256 + sum(raw[:148]) + sum(raw[156:512])) + raw[156:]
    with download.gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(raw + content.read().ljust(512, b"\0"))
    with pytest.raises(DataError, match="truncated"):
        extract(tmp_path / "a.tar.gz", tmp_path / "train")


@pytest.mark.parametrize("damage", ["truncated", "empty", "no gzip", "missing"])
def test_a_damaged_archive_makes_nothing(tmp_path, damage):
    random = b"".join(hashlib.sha256(bytes([k])).digest() for k in range(100))
    archive = archive_of(tmp_path / "a.tar.gz", member("train/1.png", random))
    good = archive.read_bytes()
    bad = {
        "truncated": good[: len(good) // 2],
        "empty": b"",
        "no gzip": b"<html>",
        "missing": b"",
    }[damage]
    archive.write_bytes(bad)
    if damage == "missing":
        archive.unlink()
    with pytest.raises(DataError) as error:
        extract(archive, tmp_path / "train")
    check_error(error, archive)
    assert names(tmp_path) == ["a.tar.gz"] * (damage != "missing")
