"""Measure speed: python -m experiments.bench [loop] [step] [precision] [convolutions] [--models fcn …] [--device cuda]

loop: what Lightning's loop costs, against a bare PyTorch loop of the same steps.
step: a training step beside a plain eager loop, that loop fed by a DataLoader, and stacks of replicas; the shares of
its parts; the achieved part of the machine's speed in matrix products.
precision: the error of whole runs in --precision beside float32, seed by seed, on held-out training digits;
convolutions: the same with those in the frequency domain beside direct ones. Both only on demand, since they train.
Writes results/bench/<what>_<cpu|cuda>.json; ratios within one run, since machines are shared and noisy.
"""

import argparse
import json
from pathlib import Path

from experiments.cli import main
from experiments.config import compose_run
from stn.settings import RunSettings

MODELS = {
    "loop": ["fcn", "st_fcn_affine", "cnn", "st_cnn_affine"],
    "step": ["fcn", "cnn"] + [f"st_{c}_{t}" for c in ("fcn", "cnn") for t in ("affine", "projective", "tps")],
    "precision": ["fcn", "cnn", "st_fcn_affine", "st_cnn_affine"],
    "convolutions": ["cnn"],
}
USUAL = ("loop", "step")


def bench() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"of {', '.join(MODELS)}; by default {' and '.join(USUAL)}")
    parser.add_argument("--task", default="mnist_r")
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--protocol", default="fast")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--replicas", type=int, nargs="*", default=[3, 12], help="of the stacks that are measured")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement of a step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=["bf16", "tf32"], default="bf16")
    parser.add_argument("--seeds", type=int, default=3, help="of each run whose error is compared")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--results-dir", default="results")
    wanted = parser.parse_args()
    if unknown := set(wanted.what) - set(MODELS):
        raise ValueError(f"nothing called {', '.join(sorted(unknown))} to measure; allowed: {', '.join(MODELS)}")
    import torch

    from stn.train.provenance import device_name, git_state, instructions, versions

    if wanted.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no CUDA device is here; allowed: cpu")
    torch.set_num_threads(wanted.threads)
    for what in wanted.what or USUAL:
        rows = {}
        for model in wanted.models or MODELS[what]:
            overrides = [f"task={wanted.task}", f"model={model}", f"protocol={wanted.protocol}"]
            overrides += [f"data_dir={wanted.data_dir}", f"device={wanted.device}"]
            rows[model] = MEASURES[what](compose_run(overrides), wanted)
            print(model, json.dumps(_rounded(rows[model])), flush=True)
        record = {
            "what": what,
            "task": wanted.task,
            "protocol": wanted.protocol,
            "models": rows,
            "device": device_name(torch.device(wanted.device)),
            "instructions": instructions(),
            "threads": wanted.threads,
            "versions": versions(),
            "git": git_state(),
        }
        path = Path(wanted.results_dir) / "bench" / f"{what}_{wanted.device}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_rounded(record), indent=1) + "\n")
        print(f"wrote {path}")


def _loop(settings: RunSettings, wanted: argparse.Namespace) -> dict:
    from stn.bench.loop import loop_overhead

    return loop_overhead(settings, chunks=8, repeats=wanted.repeats)


def _step(settings: RunSettings, wanted: argparse.Namespace) -> dict:
    from stn.bench.step import measure, peak_flop_per_s, shares, step_flop

    contenders = measure(settings, tuple(wanted.replicas), wanted.seconds, wanted.repeats)
    flop, peak = step_flop(settings), peak_flop_per_s(wanted.device)
    return {
        "contenders": contenders,
        "shares_ms": shares(settings),
        "flop_per_step": flop,
        "peak_flop_per_s": peak,
        "peak_fraction": flop / peak / (contenders["ours"]["ms"] / 1000),
    }


def _precision(settings: RunSettings, wanted: argparse.Namespace) -> dict:
    from stn.bench.numbers import precision_effect

    return precision_effect(settings, wanted.precision, wanted.seeds)


def _convolutions(settings: RunSettings, wanted: argparse.Namespace) -> dict:
    from stn.bench.numbers import convolution_effect

    return convolution_effect(settings, wanted.seeds)


MEASURES = {"loop": _loop, "step": _step, "precision": _precision, "convolutions": _convolutions}


def _rounded(value):
    """Four significant digits are more than a shared machine gives."""
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main(bench)
