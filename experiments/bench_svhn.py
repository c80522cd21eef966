"""Measure the speed claim of Sect. 4.2, ST-CNN against CNN: python -m experiments.bench_svhn

The paper: ST-CNN Multi is 6 % slower than the CNN, forward and backward. Writes results/bench/<task>_<cpu|cuda>.json;
ratios within one run, since machines are shared and noisy. Networks of the paper's width, no data needed.
"""

from types import SimpleNamespace

from experiments.bench import bench_file, write
from experiments.cli import main, one_of
from experiments.config import compose_run

MODELS = ("svhn_cnn", "svhn_st_single", "svhn_st_multi")


def bench_svhn(settings: dict) -> None:
    options = SimpleNamespace(**settings)
    one_of(settings, "task", ("svhn_64", "svhn_128"))
    one_of(settings, "device", ("cpu", "cuda"))
    import torch

    from stn.bench.networks import step_ratios
    from stn.families import network
    from stn.tasks.training import allow_tf32
    from stn.train.provenance import check_device, device_name, git_state, versions

    check_device(options.device)
    torch.set_num_threads(1)
    allow_tf32(False)
    built = {m: network(compose_run([f"task={options.task}", f"model={m}", "protocol=paper"])) for m in MODELS}
    images = torch.rand(options.batch_size, *built[MODELS[0]].in_shape, device=options.device)
    rows = step_ratios({model: network.net for model, network in built.items()}, images, options.repeats)
    for model, row in rows.items():
        print("{:16} {ms:9.1f} ms/step   {ratio:.3f} times the CNN's".format(model, **row))
    record = {
        "what": "forward and backward pass at the paper's width, as multiples of the CNN's; the paper: Multi 1.06",
        "task": options.task,
        "batch_size": options.batch_size,
        "models": rows,
        "device": device_name(torch.device(options.device)),
        "threads": 1,
        "versions": versions(),
        "git": git_state(),
    }
    write(bench_file(options.results_dir, f"{options.task}_{options.device}"), record)


if __name__ == "__main__":
    main(bench_svhn)
