"""Where the spatial transformer of a run looks through its training, on the same test images."""

from pathlib import Path

import numpy as np

from experiments.galleries import run_of, table1, trained
from stn.data.errors import DataError
from stn.results.animations import training_animation
from stn.results.figures import Warp
from stn.results.tables import table_stem

# Task -> the model that is shown; of Table 1 those of its gallery.
SHOWN = {task: transformed for task, (_, transformed) in table1.GALLERIES.items()}
SHOWN |= {"addition": "st2_fcn_affine", "svhn_64": "svhn_st_single", "svhn_128": "svhn_st_single"}
MAX_COLUMNS = 8


def draw(folder: Path, records: list[dict], wanted: dict) -> list[Path]:
    """A GIF for every record of `SHOWN` whose run left snapshots and weights."""
    paths = []
    for record in (r for r in records if SHOWN.get(r["task"]) == r["model"]):
        snapshots = snapshots_of(record, wanted)
        module = trained(record, wanted) if snapshots else None
        if module is not None:
            name = f"training_{record['task']}_{record['model']}"
            path = folder / f"{table_stem(name, record['protocol'], record['data'])}.gif"
            title = f"{record['task']}: {record['model']} ({record['protocol']}, seed {record['seed']})"
            if record["data"] != "real":
                title += " – STAND-IN DATA"
            paths.append(training_animation(path, _warps(module, snapshots), title))
    return paths


def snapshots_of(record: dict, wanted: dict) -> dict[str, np.ndarray]:
    """What `stn.watch.snapshots` wrote of a run; empty where it left nothing. Raises: DataError for a damaged file."""
    from stn.watch.snapshots import FILE

    file = run_of(record, wanted).folder / FILE
    if not file.exists():
        return {}
    try:
        with np.load(file) as found:
            return dict(found)
    except Exception as error:  # whatever a damaged file makes numpy raise
        raise DataError(f"{file} is damaged ({type(error).__name__}): delete it") from error


def _warps(module, snapshots: dict[str, np.ndarray]) -> dict[int, list[Warp]]:
    """step -> what the transformers on the input then do to the first test images, channel by channel."""
    import torch

    net = module.net
    transformers = net.transformers if hasattr(net, "transformers") else net.spatial_transformers[:1]
    images = module.stream.test_batch(0, 0).images
    per_image = len(transformers) * len(_pictures(images[0]))
    images = images[: min(len(snapshots["theta_0"][0]), max(1, MAX_COLUMNS // per_image))]
    frames = {step: [] for step in snapshots["step"].tolist()}
    for place, columns in enumerate(frames.values()):
        for i, image in enumerate(images):
            for k, transformer in enumerate(transformers):
                theta = torch.from_numpy(snapshots[f"theta_{k}"][place, i : i + 1])
                with torch.no_grad():
                    warped = transformer.warp(image[None], theta)
                caption = f"ST {k + 1}" if len(transformers) > 1 else ""
                for before, after in zip(_pictures(image), _pictures(warped.image[0]), strict=True):
                    columns.append(Warp(before, warped.grid[0].numpy(), after, caption))
    return frames


def _pictures(image) -> list[np.ndarray]:
    """(C, H, W) tensor in [0, 1] -> one (H, W, 3) array of colours, or C of (H, W)."""
    array = image.clamp(0, 1).numpy()
    return [array.transpose(1, 2, 0)] if len(array) == 3 else list(array)
