"""App. A.2: how the windows find the digit during the training, true boxes beside them."""

from pathlib import Path

from experiments.galleries import trained
from stn.results.window_figures import window_animation, window_sheet

SHEET_DIGIT = 3
SHEET_LINES = 6
ANIMATED_DIGITS = (2, 3, 5, 8)


def draw(folder: Path, records: list[dict], wanted: dict) -> list[Path]:
    paths = []
    for record in records:
        module = trained(record, wanted)
        if module is None:
            continue
        images, truth, windows, steps = _trace(module)
        task, protocol = record["task"], record["protocol"]
        lines = sorted({round(i * (len(steps) - 1) / (SHEET_LINES - 1)) for i in range(SHEET_LINES)})
        title = f"{task}, {protocol}: window (orange) and true box (blue). Up to step 0: learning the search's windows"
        paths.append(
            window_sheet(
                folder / f"windows_{task}_{protocol}.png",
                images[SHEET_DIGIT],
                truth[SHEET_DIGIT],
                windows[lines, SHEET_DIGIT],
                [steps[i] for i in lines],
                title,
            )
        )
        some = list(ANIMATED_DIGITS)
        moving = folder / f"windows_{task}_{protocol}.gif"
        paths.append(window_animation(moving, images[some], truth[some], windows[:, some], steps))
    return paths


def _trace(module):
    """images (K, n, H, W), true boxes (K, n, 4), windows as boxes (T, K, n, 4), and the T steps."""
    from stn.nets.windows import window_boxes_px

    steps, windows = module.trace()
    windows = window_boxes_px(windows, module.image_px).transpose(1, 2)
    scenes, n = module.scenes["train"], windows.shape[2]
    images, truth = scenes.images[:n, :, 0].transpose(0, 1), scenes.boxes_px[:n].transpose(0, 1)
    return images.numpy(), truth.numpy(), windows.numpy(), steps
