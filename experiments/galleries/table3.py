"""Sect. 4.3: where the windows of the trained n×ST-CNNs look, on the same test birds, with the birds' parts."""

from pathlib import Path

from experiments.galleries import trained
from stn.results.bird_figures import Look, window_sheet
from stn.results.tables import table_stem

BIRDS = 8


def draw(folder: Path, records: list[dict], wanted: dict) -> list[Path]:
    """One picture per task, one line per model."""
    from stn.tasks.window_parts import REGIONS

    region_of = {part: region for region, parts in REGIONS.items() for part in parts}
    paths = []
    for task in sorted({r["task"] for r in records}):
        lines, part_names = {}, ()
        for record in (r for r in records if r["task"] == task and r["config"]["model"]["windows"]):
            module = trained(record, wanted)
            if module is not None:
                label = f"{record['model']}\n{record['metrics']['test/accuracy_pct']:.1f} %"
                lines[label] = _looks(module)
                part_names = module.stream.test.part_names
        if lines:
            protocol, data = wanted["protocol"], wanted["data"]
            title = f"{task}: where the windows look ({protocol}, seed 0{', stand-in birds' if data != 'real' else ''})"
            path = folder / f"{table_stem(f'gallery_{task}', protocol, data)}.png"
            paths.append(window_sheet(path, lines, [region_of[part] for part in part_names], title))
    return paths


def _looks(module) -> list[Look]:
    """Test birds from all over the test set, whose order is by species."""
    import torch

    from stn.nets.windows import window_boxes_px, windows_at

    stream, looks = module.stream, []
    for bird in torch.linspace(0, stream.n_test - 1, BIRDS).long().tolist():
        start, i = module.test_batch_of(bird)
        batch = stream.test_batch(0, start)
        with torch.no_grad():
            centres = module.net.theta(batch.images[i : i + 1])
        boxes_px = window_boxes_px(windows_at(centres, module.net.scale), module.net.image_px)
        image = batch.images[i].permute(1, 2, 0).numpy()
        looks.append(Look(image, boxes_px[0].numpy(), batch.parts[i].numpy()))
    return looks
