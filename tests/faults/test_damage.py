"""Damaged and hostile files are refused in a line, never read as something else, and run no code."""

import gzip
import logging
import os
import random
import zipfile

import pytest
import torch
from damage import REFUSED, WRONG, damage, flipped, torn

from stn.data import mnist
from stn.data.errors import DataError
from stn.results.records import RecordError, read_record
from stn.saved import load, save
from tests.tiny import run


class Evil:
    """Leaves a file when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("change", [flipped, torn])
def test_a_damaged_file_of_tensors_is_refused(tmp_path, change):
    file = tmp_path / "weights.pt"
    save({"weight": torch.randn(40, 40), "steps": 3}, file)
    counts, line = damage(file, change, lambda: str(load(file)), DataError, 60, random.Random(3))
    assert counts[WRONG] == 0
    assert counts[REFUSED] > 50
    assert str(file) in line
    assert line.endswith("delete it")


def test_a_flipped_bit_among_the_numbers_is_one_that_torch_alone_does_not_see(tmp_path):
    file = tmp_path / "weights.pt"
    save({"weight": torch.ones(100)}, file)
    with zipfile.ZipFile(file) as content:
        (name,) = (name for name in content.namelist() if name.endswith("data/0"))
        assert len(content.read(name)) == 400
    ones = torch.ones(100).numpy().tobytes()
    damaged = bytearray(file.read_bytes())
    damaged[damaged.index(ones) + 2] ^= 1
    file.write_bytes(bytes(damaged))
    assert torch.load(file, weights_only=True)["weight"][0] != 1  # why `load` looks at the checksum itself
    with pytest.raises(DataError, match="wrong checksum"):
        load(file)


def test_a_pickled_checkpoint_is_refused_and_its_code_is_not_run(toy_mnist, settings_of, tmp_path, caplog):
    settings = settings_of("mnist_r", "fcn", steps=50, batch_size=4)
    checkpoint = settings.folder / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    torch.save({"config_hash": Evil(tmp_path / "owned")}, checkpoint)
    seen = []
    with caplog.at_level(logging.WARNING, logger="stn.train.checkpoints"):
        run(settings, progress=seen.append)
    assert seen == [50]
    assert "damaged checkpoint, starting again" in caplog.text
    assert not (tmp_path / "owned").exists()
    torch.save(Evil(tmp_path / "owned"), checkpoint)
    with pytest.raises(DataError, match="no file of tensors"):
        load(checkpoint)
    assert not (tmp_path / "owned").exists()


def test_a_changed_record_is_refused(toy_mnist, settings_of):
    settings = settings_of("mnist_r", "fcn", steps=50, batch_size=4)
    run(settings)
    path = settings.record_file
    for change in (flipped, torn):
        counts, line = damage(path, change, lambda: read_record(path), RecordError, 40, random.Random(3))
        assert counts[WRONG] == 0
        assert "restore the file, or delete it" in line
    text = path.read_text().replace('"checksum"', '"checksun"')
    path.write_text(text)
    with pytest.raises(RecordError, match="unknown key 'checksun'"):
        read_record(path)


def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "MAX_BYTES", 1 << 20)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(1 << 24)))
    with pytest.raises(DataError, match=r"not MNIST's train-images-idx3-ubyte \(1048576 bytes unpacked"):
        mnist.prepare_mnist(tmp_path)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [tmp_path / "train-images-idx3-ubyte.gz"]
