"""Measure speed: python -m experiments.bench what=[loop,step]

loop: what Lightning's loop costs, against a bare PyTorch loop of the same steps.
step: a training step beside a plain eager loop, that loop fed by a DataLoader, and stacks of replicas; the shares of
its parts; the achieved part of the machine's speed in matrix products.
precision: the error of whole runs in that precision beside float32, seed by seed, on held-out training digits;
convolutions: the same with those in the frequency domain beside direct ones. Both only on demand, since they train.
growth: the CNN's step against canvas, batch and replicas, on the CPU; with a figure.
Writes results/bench/<what>_<cpu|cuda>.json; ratios within one run, since machines are shared and noisy.
"""

import json
from pathlib import Path
from types import SimpleNamespace

from experiments.cli import main, one_of
from experiments.config import compose_run, quoted
from stn.results.bench_figures import growth_figure
from stn.settings import RunSettings

MODELS = {
    "loop": ["fcn", "st_fcn_affine", "cnn", "st_cnn_affine"],
    "step": ["fcn", "cnn"] + [f"st_{c}_{t}" for c in ("fcn", "cnn") for t in ("affine", "projective", "tps")],
    "precision": ["fcn", "cnn", "st_fcn_affine", "st_cnn_affine"],
    "convolutions": ["cnn"],
    "growth": ["cnn"],
}


def bench(settings: dict) -> None:
    wanted = SimpleNamespace(**settings)
    for what in wanted.what:
        one_of({"what": what}, "what", MODELS)
    one_of(settings, "device", ("cpu", "cuda"))
    one_of(settings, "precision", ("bf16", "tf32"))
    import torch

    from stn.train.provenance import device_name, git_state, instructions, versions

    if wanted.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: no CUDA device is here; allowed: cpu")
    torch.set_num_threads(wanted.threads)
    for what in wanted.what:
        rows = {}
        for model in wanted.models or MODELS[what]:
            overrides = [f"task={wanted.task}", f"model={model}", f"protocol={wanted.protocol}"]
            overrides += [f"data_dir={quoted(wanted.data_dir)}", f"device={wanted.device}"]
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
        path.write_text(json.dumps(_rounded(record), indent=1) + "\n", encoding="utf-8")
        print(f"wrote {path}")
        if what == "growth":
            print(f"wrote {growth_figure(path.with_suffix('.png'), record)}")


def _loop(settings: RunSettings, wanted: SimpleNamespace) -> dict:
    from stn.bench.loop import loop_overhead

    return loop_overhead(settings, chunks=8, repeats=wanted.repeats)


def _step(settings: RunSettings, wanted: SimpleNamespace) -> dict:
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


def _precision(settings: RunSettings, wanted: SimpleNamespace) -> dict:
    from stn.bench.numbers import precision_effect

    return precision_effect(settings, wanted.precision, wanted.seeds)


def _convolutions(settings: RunSettings, wanted: SimpleNamespace) -> dict:
    from stn.bench.numbers import convolution_effect

    return convolution_effect(settings, wanted.seeds)


def _growth(settings: RunSettings, wanted: SimpleNamespace) -> dict:
    from stn.bench.growth import growth

    return growth(wanted.repeats)


MEASURES = {"loop": _loop, "step": _step, "precision": _precision, "convolutions": _convolutions, "growth": _growth}


def _rounded(value):
    """Four significant digits are more than a shared machine gives."""
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main(bench)
