"""Test trained weights: python -m experiments.evaluate weights=examples/models/mnist_rts_st_cnn_tps.safetensors

On their own task or any other that they fit (same family, images and labels of the same shape). Prints what a record
would state and draws what the spatial transformers do; no record is written, so nothing slips into a table.
"""

from pathlib import Path

from experiments.cli import main
from experiments.config import compose_config, of_run
from stn.settings import RunSettings, run_settings

REMOTE = "wandb:"
PLACES = ("data_dir", "results_dir", "output_dir", "device", "threads")


def evaluate(settings: dict) -> None:
    if not settings["weights"]:
        raise ValueError("weights=… is missing: a model file, a run's folder or record, or wandb:<artifact>")
    from stn.train.evaluation import evaluate as measure
    from stn.trained import find
    from stn.watch.snapshots import looked_at

    source = str(settings["weights"])
    if source.startswith(REMOTE):
        source = download(source.removeprefix(REMOTE), Path(settings["output_dir"]) / "artifacts")
    trained = find(source, settings["results_dir"], settings["output_dir"])
    run = run_of_weights(trained, settings, settings["task"], settings["evaluate"])
    module = measure(trained, run)
    print(f"{trained.name} on {run.task.name} ({run.evaluate}):")
    for name, value in module.metrics.items():
        print(f"  {name.replace('test/', f'{run.evaluate}/', 1):28} {value:.4g}")
    look = looked_at(module)
    if look is None:
        print("no spatial transformer, so no picture")
        return
    path = Path(settings["output_dir"]) / "evaluations" / f"{trained.name}_on_{run.task.name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"wrote {look.draw(path, f'{trained.name} on {run.task.name}')}")


def run_of_weights(trained, places: dict, task: str | None = None, part: str | None = None) -> RunSettings:
    """The run that trained the weights, at other places; on another task or `part` (test, heldout) where given.

    Raises: ValueError for held-out images that the weights were trained on.
    """
    if part == "heldout" and trained.experiment.evaluate == "test":
        raise ValueError("evaluate=heldout: these weights were trained on all training images; allowed: test")
    composed = of_run(compose_config("train", [f"task={task or 'mnist_r'}", "model=fcn"]))
    changed = {"task": composed["task"]} if task else {}
    changed |= {"evaluate": part} if part else {}
    composed |= {name: places[name] for name in PLACES if name in places}
    protocol = {"protocol": trained.record["protocol"]}
    return run_settings(composed | trained.experiment.model_dump() | changed | protocol)


def download(artifact: str, folder: Path) -> Path:
    """The model file in a W&B artifact. Raises: ValueError, one line, where W&B cannot give it."""
    import wandb

    from stn.trained import SUFFIX

    try:
        files = Path(wandb.Api().artifact(artifact).download(root=str(folder / artifact.replace(":", "_"))))
    except (wandb.errors.Error, ValueError) as error:
        raise ValueError(f"wandb:{artifact}: {' '.join(str(error).split())}") from error
    models = sorted(files.glob(f"*{SUFFIX}"))
    if len(models) != 1:
        raise ValueError(f"wandb:{artifact}: {len(models)} {SUFFIX} files in it, one was expected")
    return models[0]


if __name__ == "__main__":
    main(evaluate)
