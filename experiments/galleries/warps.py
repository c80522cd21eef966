"""What transformers on the input make of test images: Tables 1, 2 and 4, and the same through the training."""

from collections.abc import Iterator
from pathlib import Path

import torch

from experiments.galleries import figure_path, figure_title, newly_right, snapshots_of, test_images, with_weights
from stn.data.svhn_crops import NONE
from stn.results.warp_figures import Warp, training_animation, warp_gallery
from stn.tasks.looks import rows_of

# Right of Table 1. Column -> one baseline, one ST model.
TABLE1 = {
    "mnist_r": ("cnn", "st_cnn_tps"),
    "mnist_rts": ("cnn", "st_cnn_affine"),
    "mnist_p": ("cnn", "st_cnn_projective"),
    "mnist_e": ("cnn", "st_cnn_tps"),
    "mnist_tc": ("cnn", "st_cnn_affine"),
}
# Task -> the model whose training is shown.
ANIMATED = {task: transformed for task, (_, transformed) in TABLE1.items()}
ANIMATED |= {"addition": "st2_fcn_affine", "svhn_64": "svhn_st_single", "svhn_128": "svhn_st_single"}
DIGITS, HOUSE_NUMBERS, SUMS = 6, 9, 4  # test images of a picture; the same for every model
ANIMATED_IMAGES, MAX_COLUMNS = 4, 8


def wrong_and_right(folder: Path, records: list[dict], settings: dict) -> Iterator[Path]:
    """Test digits that the CNN gets wrong and the ST-CNN right: input, grid on it, output."""
    by_cell = {(r["task"], r["model"]): r for r in records}
    for task, (baseline, transformed) in TABLE1.items():
        if not {(task, baseline), (task, transformed)} <= by_cell.keys():
            continue
        pair = by_cell[task, baseline], by_cell[task, transformed]
        chosen = newly_right(*pair, DIGITS)
        for record, module in with_weights(pair[1:] if chosen else (), settings):
            images, labels = test_images(module, chosen)
            warps = warps_of(module.net, images, [f"a {label}" for label in labels.tolist()])
            title = figure_title(record, f"{baseline} wrong, {transformed} right")
            yield warp_gallery(figure_path(folder, f"gallery_{task}", record), warps, title)


def house_numbers(folder: Path, records: list[dict], settings: dict) -> Iterator[Path]:
    """Where the transformer on the input looks, what it passes on, and what the network reads."""
    for record, module in with_weights((r for r in records if "_st_" in r["model"]), settings):
        images, labels = test_images(module, range(HOUSE_NUMBERS))
        with torch.no_grad():
            read = module.net(images).argmax(-1)
        captions = [_reading(*numbers) for numbers in zip(labels.tolist(), read.tolist(), strict=True)]
        path = figure_path(folder, f"gallery_{record['task']}_{record['model']}", record)
        lines_every = record["config"]["task"]["crop_px"] // 8
        warps = warps_of(module.net, images, captions)
        yield warp_gallery(path, warps, figure_title(record, record["model"]), lines_every=lines_every)


def sums(folder: Path, records: list[dict], settings: dict) -> Iterator[Path]:
    """What each of the parallel transformers does to both channels of an addition, a line per test image."""
    for record, module in with_weights((r for r in records if r["model"].startswith("st")), settings):
        images = module.stream.test_batch(0, 0).images[:SUMS]
        warps = warps_of(module.net, images)
        path = figure_path(folder, f"gallery_addition_{record['model']}", record)
        title = figure_title(record, f"{record['model']}, a line per test image")
        yield warp_gallery(path, warps, title, per_line=len(warps) // SUMS, lines_every=8)


def trainings(folder: Path, records: list[dict], settings: dict) -> Iterator[Path]:
    """A GIF for every record of `ANIMATED` whose run left snapshots and weights."""
    for record, module in with_weights((r for r in records if ANIMATED.get(r["task"]) == r["model"]), settings):
        if snapshots := snapshots_of(record, settings):
            thetas = [torch.from_numpy(values) for name, values in snapshots.items() if name.startswith("theta_")]
            images = module.stream.test_batch(0, 0).images[:ANIMATED_IMAGES]
            per_image = len(warps_of(module.net, images[:1]))
            images = images[: max(1, MAX_COLUMNS // per_image)]
            steps = {
                step: warps_of(module.net, images, thetas=[theta[place, : len(images)] for theta in thetas])
                for place, step in enumerate(snapshots["step"].tolist())
            }
            path = figure_path(folder, f"training_{record['task']}_{record['model']}", record, "gif")
            yield training_animation(path, steps, figure_title(record, record["model"]))


def warps_of(net, images, captions=None, thetas=None) -> list[Warp]:
    """As `rows_of`, of the transformers on the input; the output as the classifier gets it."""
    with torch.no_grad():
        warps = net.input_warps(images, thetas) if thetas else net.input_warps(images)
        if hasattr(net, "pool"):
            warps = [warped._replace(image=net.pool(warped.image)) for warped in warps]
    return rows_of(images, warps, captions)


def _reading(label: list[int], read: list[int]) -> str:
    """Both numbers, and whether they differ."""
    true, ours = _number(label), _number(read)
    return f"{true}, read as {ours}" if true != ours else f"{true}, read"


def _number(labels: list[int]) -> str:
    """Digits from the left; "·" for a place read as empty between digits."""
    return "".join("·" if label == NONE else str(label) for label in labels).rstrip("·") or "nothing"
