"""App. A.2 on birds: the windows found and the true boxes, a line of pictures per species."""

from pathlib import Path

from experiments.galleries import trained
from stn.results.tables import table_stem
from stn.results.window_figures import class_sheet

BIRDS, SPECIES = 8, 5


def draw(folder: Path, records: list[dict], wanted: dict) -> list[Path]:
    paths = []
    for record in records:
        module = trained(record, wanted)
        if module is not None:
            protocol, data, metrics = record["protocol"], record["data"], record["metrics"]
            names = module.names[:SPECIES]
            labels = [
                f"{name[:3]}\n{metrics[f'test/correct_pct_{name}']:.0f} %" for name in names
            ]  # the species' number
            birds = ", stand-in birds" if data != "real" else ""
            title = f"{record['task']}, {protocol}{birds}: window (orange) and true box (blue)"
            path = folder / f"{table_stem('windows_cub_coloc', protocol, data)}.png"
            paths.append(class_sheet(path, *_found(module, len(names)), labels, title))
    return paths


def _found(module, n_species: int):
    """images (K, n, H, W, 3), true boxes and windows (K, n, 4), of the first training pictures of each species."""
    import torch

    from stn.nets.windows import window_boxes_px

    images, boxes_px = (x[:BIRDS, :n_species] for x in module.scenes["train"])
    with torch.no_grad():
        windows = module.net(module.scenes["train"].images[:BIRDS])[:, :n_species]
    found = window_boxes_px(windows, module.image_px)
    pictures = images.permute(1, 0, 3, 4, 2)
    return pictures.numpy(), boxes_px.transpose(0, 1).numpy(), found.transpose(0, 1).numpy()
