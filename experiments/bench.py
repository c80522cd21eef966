"""Measure speed: python -m experiments.bench what=[loop,step]

loop: what Lightning's loop costs, against a bare PyTorch loop of the same steps.
step: a training step beside a plain eager loop, and that loop fed by a DataLoader; the shares of its parts; the
achieved part of the machine's speed in matrix products.
precision: the error of whole runs in that precision beside float32, seed by seed, on held-out training digits;
convolutions: the same with those in the frequency domain beside direct ones. Both only on demand, since they train.
growth: the CNN's step against canvas and batch, on the CPU; with a figure.
stacks: steps one by one, as CUDA graphs, and of several runs side by side; on CUDA.
Writes results/bench/<what>_<cpu|cuda>.json, with avx2 behind it on a CPU without AVX512, and task and protocol where
they are not mnist_r and fast; ratios within one run, since machines are shared and noisy.
"""

import json
from pathlib import Path
from types import SimpleNamespace

from experiments.cli import main, one_of
from experiments.config import compose_run, quoted
from stn.results.bench_figures import growth_figure
from stn.settings import RunSettings

USUAL_TASK, USUAL_PROTOCOL = "mnist_r", "fast"
GROWTH = ("cpu", USUAL_TASK, ["cnn"])
MODELS = {
    "loop": ["fcn", "st_fcn_affine", "cnn", "st_cnn_affine"],
    "step": ["fcn", "cnn"] + [f"st_{c}_{t}" for c in ("fcn", "cnn") for t in ("affine", "projective", "tps")],
    "precision": ["fcn", "cnn", "st_fcn_affine", "st_cnn_affine"],
    "convolutions": ["cnn"],
    "growth": ["cnn"],
    "stacks": ["fcn", "st_fcn_affine", "cnn", "st_cnn_affine"],
}


def bench(settings: dict) -> None:
    options = SimpleNamespace(**settings)
    for what in options.what:
        one_of({"what": what}, "what", MODELS)
    one_of(settings, "device", ("cpu", "cuda"))
    if options.threads < 1:
        raise ValueError(f"threads must be 1 or more, got {options.threads}")
    one_of(settings, "precision", ("bf16", "tf32"))
    import torch

    from stn.train.provenance import check_device, device_name, git_state, instructions, versions

    check_device(options.device)
    if options.device == "cpu" and "stacks" in options.what:
        raise ValueError("what=stacks: they take turns on a CPU; give device=cuda")
    if "growth" in options.what and (options.device, options.task, options.models or ["cnn"]) != GROWTH:
        raise ValueError("what=growth is about the CNN on the CPU: it takes no other device, task or models")
    torch.set_num_threads(options.threads)
    runs = {what: _runs(options.models or MODELS[what], options) for what in options.what}
    paths = {what: _path(what, instructions(), options) for what in options.what}
    for what, path in paths.items():  # before anything is measured
        _refuse_a_loss(path, runs[what])
    for what in options.what:
        rows = {}
        for model, run in runs[what].items():
            rows[model] = measured(what, run, options)
            print(model, json.dumps(_rounded(rows[model])), flush=True)
        record = {
            "what": what,
            "task": options.task,
            "protocol": options.protocol,
            "models": rows,
            "device": device_name(torch.device(options.device)),
            "instructions": instructions(),
            "threads": options.threads,
            "versions": versions(),
            "git": git_state(),
        }
        write(paths[what], _rounded(record))
        if what == "growth":
            print(f"wrote {growth_figure(paths[what].with_suffix('.png'), record)}")


def _runs(models: list[str], options: SimpleNamespace) -> dict[str, RunSettings]:
    common = [f"task={options.task}", f"protocol={options.protocol}"]
    common += [f"data_dir={quoted(options.data_dir)}", f"device={options.device}"]
    return {model: compose_run([f"model={model}", *common]) for model in models}


def _path(what: str, instructions: str, options: SimpleNamespace) -> Path:
    """Where its record goes: what measures something else has another name."""
    held_back = options.device == "cpu" and not instructions.startswith("AVX512")
    names = [what, options.device, *(["avx2"] if held_back else [])]
    names += [options.task] if options.task != USUAL_TASK else []
    names += [options.protocol] if options.protocol != USUAL_PROTOCOL else []
    return bench_file(options.results_dir, "_".join(names))


def _refuse_a_loss(path: Path, runs: dict[str, RunSettings]) -> None:
    """Raises: ValueError where the record that is there has models that would not be measured anew."""
    there = json.loads(path.read_text(encoding="utf-8"))["models"] if path.exists() else {}
    if lost := [model for model in there if model not in runs]:
        more = ",".join([*runs, *lost])
        raise ValueError(f"{path} also has {', '.join(lost)}: give models=[{more}], or another results_dir")


def measured(what: str, run: RunSettings, options: SimpleNamespace) -> dict:
    """What is measured of one model."""
    from stn.bench import growth, loop, numbers, stacks, step

    match what:
        case "loop":
            return loop.loop_overhead(run, chunks=8, repeats=options.repeats)
        case "precision":
            return numbers.precision_effect(run, options.precision, options.seeds)
        case "convolutions":
            return numbers.convolution_effect(run, options.seeds)
        case "growth":
            return growth.growth(options.repeats)
        case "stacks":
            return stacks.stacks(run, tuple(options.replicas), options.chunks, options.repeats)
    contenders = step.measure(run, options.seconds, options.repeats)
    flop, peak = step.step_flop(run), step.peak_flop_per_s(options.device)
    return {
        "contenders": contenders,
        "shares_ms": step.shares(run),
        "flop_per_step": flop,
        "peak_flop_per_s": peak,
        "peak_fraction": flop / peak / (contenders["ours"]["ms"] / 1000),
    }


def bench_file(results_dir: str, name: str) -> Path:
    """Where a measurement of this name has its record."""
    return Path(results_dir) / "bench" / f"{name}.json"


def write(path: Path, record: dict) -> None:
    """Puts the record of a measurement there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def _rounded(value):
    """Four significant digits are more than a shared machine gives."""
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main(bench)
