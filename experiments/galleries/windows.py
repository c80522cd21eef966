"""Windows on images: of the n×ST-CNNs of Sect. 4.3, and of the co-localisation of App. A.2, on digits and on birds."""

from collections.abc import Iterator
from pathlib import Path

import torch

from experiments.galleries import figure_path, figure_title, with_weights
from stn.nets.windows import window_boxes_px, windows_at
from stn.results.window_figures import bird_panel, bird_sheet, window_animation, window_panels, window_sheet
from stn.tasks.window_parts import REGIONS

BIRDS, SPECIES = 8, 5
SHEET_DIGIT, SHEET_LINES = 3, 6
ANIMATED_DIGITS = (2, 3, 5, 8)


def birds(folder: Path, records: list[dict], settings: dict) -> Iterator[Path]:
    """Where the windows look, on the same test birds with their parts: a picture per task, a line per model."""
    for task in sorted({r["task"] for r in records}):
        lines, n_windows = {}, 0
        with_windows = (r for r in records if r["task"] == task and r["config"]["model"]["windows"])
        for record, module in with_weights(with_windows, settings):
            label = f"{record['model']}\n{record['metrics']['test/accuracy_pct']:.1f} %"
            lines[label] = _looks(module)
            n_windows = max(n_windows, record["config"]["model"]["windows"])
        if lines:
            path = figure_path(folder, f"gallery_{task}", record)
            yield bird_sheet(path, lines, n_windows, figure_title(record, "where the windows look"))


def _looks(module) -> list:
    """Test birds from all over the test set, whose order is by species."""
    region_of = {part: region for region, parts in REGIONS.items() for part in parts}
    regions = [region_of[part] for part in module.stream.test.part_names]
    panels = []
    for bird in torch.linspace(0, module.stream.n_test - 1, BIRDS).long().tolist():
        start, i = module.test_batch_of(bird)
        batch = module.stream.test_batch(0, start)
        with torch.no_grad():
            centres = module.net.theta(batch.images[i : i + 1])[0]
        boxes_px = window_boxes_px(windows_at(centres, module.net.scale), module.net.image_px)
        panels.append(bird_panel(batch.images[i].permute(1, 2, 0).numpy(), boxes_px.numpy(), batch.parts[i], regions))
    return panels


def digits(folder: Path, records: list[dict], settings: dict) -> Iterator[Path]:
    """How the windows find the digits: one class at some steps of the training, and several classes as a GIF."""
    for record, module in with_weights(records, settings):
        images, truth, windows, steps = _trace(module)
        title = figure_title(record, "co-localisation")
        rows = {round(i * (len(steps) - 1) / (SHEET_LINES - 1)) for i in range(SHEET_LINES)}
        lines = {
            f"step {steps[row]}": window_panels(images[SHEET_DIGIT], truth[SHEET_DIGIT], windows[row, SHEET_DIGIT])
            for row in sorted(rows)
        }
        path = figure_path(folder, f"windows_{record['task']}", record)
        yield window_sheet(path, lines, f"{title}. Up to step 0: learning the search's windows")
        frames = {
            step: [window_panels(images[k], truth[k], windows[row, k]) for k in ANIMATED_DIGITS]
            for row, step in enumerate(steps)
        }
        yield window_animation(path.with_suffix(".gif"), frames, title)


def _trace(module):
    """images (K, n, H, W), true boxes (K, n, 4), windows as boxes (T, K, n, 4), and the T steps."""
    steps, windows = module.trace()
    windows = window_boxes_px(windows, module.image_px).transpose(1, 2)
    scenes, n = module.scenes["train"], windows.shape[2]
    images, truth = scenes.images[:n, :, 0].transpose(0, 1), scenes.boxes_px[:n].transpose(0, 1)
    return images.numpy(), truth.numpy(), windows.numpy(), steps


def species(folder: Path, records: list[dict], settings: dict) -> Iterator[Path]:
    """The windows on the first training birds of each species, a line per species."""
    for record, module in with_weights(records, settings):
        images, truth = (x[:BIRDS] for x in module.scenes["train"])
        with torch.no_grad():
            windows = window_boxes_px(module.net(images), module.image_px)
        lines = {}
        for k, name in enumerate(module.names[:SPECIES]):
            label = f"{name[:3]}\n{record['metrics'][f'test/correct_pct_{name}']:.0f} %"  # the species' number
            pictures = images[:, k].permute(0, 2, 3, 1)
            lines[label] = window_panels(*(x.numpy() for x in (pictures, truth[:, k], windows[:, k])))
        path = figure_path(folder, f"windows_{record['task']}", record)
        yield window_sheet(path, lines, figure_title(record, "co-localisation"))
