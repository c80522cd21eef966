"""Trained networks: a run's weights with the record that says how to build their network, also as one small file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stn.data.errors import DataError
from stn.families import network
from stn.results.records import DATA_KINDS, read_record, record_path, records_root, run_key, sweeps_dir
from stn.saved import load, replace, weights_sha256
from stn.settings import Experiment

SUFFIX = ".safetensors"
SET_APART = [kind for kind in DATA_KINDS if kind != "real"]  # whose runs have folders of their own
NOT_KEPT = ("curve", "test_wrong", "per_draw")  # of the record, in a model file


class Trained(NamedTuple):
    """The weights of a run, with its record."""

    record: Mapping[str, Any]
    weights: dict[str, Tensor]

    @property
    def experiment(self) -> Experiment:
        return Experiment(**self.record["config"])

    @property
    def name(self) -> str:
        return "_".join(str(part) for part in (*run_key(self.record)[:3], f"seed{self.record['seed']}"))

    def net(self) -> nn.Module:
        """The network, with these weights, in evaluation mode. Raises: DataError where the weights do not fit."""
        net = network(self.experiment).net
        try:
            net.load_state_dict(self.weights)
        except RuntimeError as error:
            told = " ".join(str(error).split())[:200]
            raise DataError(f"these weights are of another network than their record says ({told})") from error
        return net.eval()


def find(
    source: str | Path | Mapping[str, Any],
    results_dir: str | Path | None = None,
    output_dir: str | Path | None = None,
) -> Trained:
    """As `stn.load`, but weights and record. `results_dir`: where the record of a run's folder is looked for."""
    if isinstance(source, Mapping):
        return _of_record(source, Path(output_dir or "outputs"))
    path = Path(source)
    if path.suffix == SUFFIX:
        return read(path)
    if path.suffix == ".json":
        return _of_record(read_record(path), Path(output_dir or _root(path) / "outputs"))
    folder = path.parent if path.name == "weights.pt" else path
    if not (folder / "weights.pt").is_file():
        what = "no trained weights" if path.exists() else "no such file or folder"
        raise DataError(f"{path}: {what}; allowed: a {SUFFIX} file, a run's record (.json), its folder with weights.pt")
    record = _record_of(folder, Path(results_dir or _root(folder) / "results"))
    return Trained(record, weights_of(record, folder))


def read(path: Path) -> Trained:
    """A model file. Raises: DataError, one line, for one that is torn, or another's."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})["record"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"{path} is no model file of this project ({type(error).__name__}: {reason})") from error
    return Trained(record, {name: _widened(tensor) for name, tensor in weights.items()})


def write(trained: Trained, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Puts weights, as `dtype` where they are floats, and record into one file (safetensors: no code is in it)."""
    from safetensors.torch import save

    kept = {name: value for name, value in trained.record.items() if name not in NOT_KEPT}
    weights = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in trained.weights.items()
    }
    replace(path, memoryview(save(weights, {"format": "pt", "record": json.dumps(kept)})))
    return path


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _root(path: Path) -> Path:
    """The folder that holds results and outputs, from a path in one of them: what stands before …/runs/… ."""
    parts = path.absolute().parts
    if "runs" not in parts:
        raise DataError(f"{path}: neither a record or a run's folder (…/runs/<task>/<model>/…) nor a {SUFFIX} file")
    above = Path(*parts[: len(parts) - 1 - parts[::-1].index("runs")])
    while above.name in ("sweeps", *SET_APART):
        above = above.parent
    return above.parent


def _of_record(record: Mapping[str, Any], output_dir: Path) -> Trained:
    path = record_path(records_root(output_dir, record["data"]), run_key(record))
    return Trained(record, weights_of(record, path.with_suffix("")))


def _record_of(folder: Path, results_dir: Path) -> Mapping[str, Any]:
    parts = folder.absolute().parts  # …/[data/]runs/<task>/<model>/<protocol>/<seed>
    relative = Path(*parts[-4:]).with_suffix(".json")
    data = next((part for part in parts[-6:-5] if part in SET_APART), "real")
    places = [records_root(where, data) / "runs" / relative for where in (results_dir, sweeps_dir(results_dir))]
    for place in places:
        if place.exists():
            return read_record(place)
    raise DataError(f"{folder}: there is no record of this run at {' or '.join(map(str, places))}")


def weights_of(record: Mapping[str, Any], folder: Path) -> dict[str, Tensor]:
    """What the run of this record left in its folder.

    Raises: DataError, one line, where there is nothing, or it is of another training (not told of older records).
    """
    path = folder / "weights.pt"
    if not path.exists():
        raise DataError(f"{path}: no such file; the run that leaves it there has to be trained first")
    weights = load(path)
    if record.get("weights_sha256") not in (None, weights_sha256(weights)):
        told = f"not the weights that the record of {run_key(record)} was measured with"
        raise DataError(f"{path}: {told}: train it again, or delete them")
    return weights
