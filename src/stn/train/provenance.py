"""Where a run was made: versions, device, git revision. Part of its record."""

import functools
import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from stn.nets.frequency import FrequencyConv2d

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    named = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            named[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            named[name] = "not installed"
    return named


def arithmetic(net: nn.Module) -> dict[str, str]:
    """How the numbers were computed: the CPU's `instructions` and, of a net that could compute `convolutions` in the
    frequency domain and did or did not, which. To be asked when the net was trained.
    """
    how = {"instructions": instructions()}
    ways = {layer.way for layer in net.modules() if isinstance(layer, FrequencyConv2d)} - {None}
    return how | ({"convolutions": " and ".join(sorted(ways))} if ways else {})


def instructions() -> str:
    """Of the CPU: those that torch's vector kernels use; and bf16 where oneDNN has it in hardware."""
    used = torch.backends.cpu.get_cpu_capability()
    held_back = used == "AVX2" and torch.cpu.get_capabilities().get("avx512_f")
    bf16 = ", bf16" if computes_bf16() else ""
    return used + bf16 + (" of a processor with AVX512, held back" if held_back else "")


def computes_bf16() -> bool:
    """Whether the CPU multiplies in bf16, rather than in float32 what it converts back and forth."""
    has = torch.cpu.get_capabilities()
    in_hardware = any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return in_hardware and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # False: oneDNN was told not to


def cost_of_bf16(device: torch.device) -> str | None:
    """One line for a CPU that has no bf16; None elsewhere."""
    if device.type != "cpu" or computes_bf16():
        return None
    return (
        f"precision=bf16: this processor ({instructions()}) does not compute in bf16 but imitates it; a network with "
        "convolutions takes ten times as long as in float32"
    )


def check_device(device: str) -> None:
    """Raises: ValueError for device=cuda where there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: no CUDA device is here; give device=cpu")


def uses_cuda(device: str) -> bool:
    """Whether a run whose `device` setting this is (auto, cpu or cuda) would compute on a GPU of this machine."""
    return device != "cpu" and torch.cuda.is_available()


def device_name(device: torch.device, count: int = 1) -> str:
    """The processor's or the GPU's name; where `count` processes train together, as many times that."""
    if count > 1:
        return f"{count} x {device_name(device)}"
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@functools.cache
def code_state() -> dict:
    """`git_state` of the code that this process runs: as it was when first asked for, whatever is checked out later."""
    return git_state()


def joined(states: Sequence[dict]) -> dict:
    """Of the code that trained a run, as one: "A, then B" where another revision went on with it."""
    revisions = dict.fromkeys(state["revision"] for state in states)
    known = [state["dirty"] for state in states if state["dirty"] is not None]
    named = ", then ".join(revision or "unknown" for revision in revisions)
    return {"revision": named if any(revisions) else None, "dirty": any(known) if known else None}


def git_state() -> dict:
    """`revision` and `dirty` of the checkout this code was imported from; None where there is no git or no checkout.

    A repository that merely holds an environment into which this code was installed is not its checkout.
    `dirty` looks at code and configuration only: records that other runs are writing do not count.
    """
    root = Path(__file__).resolve().parents[3]
    try:
        _git(root, "ls-files", "--error-unmatch", str(Path(__file__).resolve()))
        revision = _git(root, "rev-parse", "HEAD")
        dirty = _git(root, "status", "--porcelain", "--", "src", "conf", "experiments", "requirements.lock")
    except (OSError, subprocess.CalledProcessError):
        return {"revision": None, "dirty": None}
    return {"revision": revision, "dirty": bool(dirty)}


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True).stdout.strip()
