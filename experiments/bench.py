"""Measure what Lightning costs per step: python -m experiments.bench [--task mnist_r] [--models fcn st_cnn_affine]

Writes results/bench/loop.json; ratios within one run, since machines are shared and noisy.
"""

import argparse
import json
from pathlib import Path

from experiments.cli import main
from experiments.config import compose_run


def bench() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="mnist_r")
    parser.add_argument("--models", nargs="+", default=["fcn", "st_fcn_affine", "cnn", "st_cnn_affine"])
    parser.add_argument("--protocol", default="fast")
    parser.add_argument("--chunks", type=int, default=8, help="of 50 steps, per repeat")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--results-dir", default="results")
    wanted = parser.parse_args()
    import torch

    from stn.train.benchmark import loop_overhead
    from stn.train.provenance import device_name, git_state, versions

    torch.set_num_threads(1)
    rows = {}
    for model in wanted.models:
        overrides = [f"task={wanted.task}", f"model={model}", f"protocol={wanted.protocol}"]
        settings = compose_run([*overrides, f"data_dir={wanted.data_dir}"])
        rows[model] = loop_overhead(settings, wanted.chunks, wanted.repeats)
        print("{:16} bare {bare_ms:8.2f} ms/step   Lightning {lightning_ms:8.2f}   ratio {ratio:.3f}".format(
            model, **rows[model]
        ))  # fmt: skip
    record = {
        "what": "LightningModule's loop against a bare PyTorch loop of the same steps, 1 CPU thread",
        "task": wanted.task,
        "protocol": wanted.protocol,
        "steps_per_repeat": wanted.chunks * 50,
        "models": rows,
        "device": device_name(torch.device("cpu")),
        "versions": versions(),
        "git": git_state(),
    }
    path = Path(wanted.results_dir) / "bench" / "loop.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main(bench)
