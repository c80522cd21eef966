"""What the loss of co-localisation prefers on birds (docs/part.md): python -m tools.birds_loss data=subset [...]

Encodes random windows of every photograph once, and lets the search by the loss choose among them (no window is tried
that is not there, no descent): with the layers of the encoder one by one and together, with the random crops of the
loss taken from the same picture, as in the paper, or from the other species' pictures, and with windows that may reach
beyond the picture or not. Beside them, what choosing by the true boxes would give. Any override of experiments.train
may follow. Writes no record.
"""

import itertools
import math
import sys

import torch
from torch import Tensor

from experiments.config import compose_run
from stn.data.cub import center_crop
from stn.data.seeds import stream_seed
from stn.families import build, cub_coloc
from stn.nets.windows import window_boxes_px
from stn.tasks.colocalisation import CORRECT_IOU, Colocalisation, iou
from stn.tasks.window_parts import REGIONS, window_regions
from stn.tasks.window_search import RANDOM_CROPS, best_prototype, squared_distances

WINDOWS = 128  # of each photograph and of each of `PLACES`
PLACES = ("anywhere", "inside")  # of the windows: half of them reach beyond the picture, which is black there
NEGATIVES = ("same picture", "other species")
ROUNDS = 3  # of choosing anew, as when the tables of docs/part.md were made


def birds_loss(overrides: list[str]) -> None:
    run = compose_run(["task=cub_coloc", "model=coloc_st", "protocol=part", *overrides])
    torch.set_num_threads(1)
    module = build(run).module
    module.setup("fit")
    images, boxes_px = module.scenes["train"]
    parts, part_names = parts_of(run, images.shape[:2])
    windows, layers = candidates(module, images)
    sets = {str(i + 1): [layer] for i, layer in enumerate(layers)} | {"1, 2, 3": layers, "2, 3": layers[1:]}
    overlap = iou(
        window_boxes_px(windows, module.image_px), boxes_px.transpose(0, 1)[:, :, None].expand(*windows.shape[:3], 4)
    )
    print("| layers | random crops of | windows | CorLoc, % | IoU | side ÷ bird's | on the head | on the body |")
    print("|---|---|---|---|---|---|---|---|")

    def line(name: str, chosen: Tensor) -> None:
        """chosen (K, N): the window of each photograph."""
        picked = windows.gather(2, chosen[..., None, None].expand(-1, -1, 1, 3))[:, :, 0]
        of_picked = overlap.gather(2, chosen[..., None])[..., 0]
        px = window_boxes_px(picked, module.image_px)
        size = boxes_px.transpose(0, 1)
        side = picked[..., 0] * module.image_px / (size[..., 2:] - size[..., :2]).prod(-1).sqrt()
        regions = window_regions(px.flatten(0, 1)[:, None], parts.flatten(0, 1), part_names)[:, 0]
        head, body = (100 * (regions == list(REGIONS).index(r)).float().mean().item() for r in ("head", "body"))
        correct = 100 * (of_picked > CORRECT_IOU).float().mean().item()
        octaves = side.log2().mean().exp2().item()
        print(
            f"| {name} | {correct:.1f} | {of_picked.mean().item():.2f} | {octaves:.2f} | {head:.0f} % | {body:.0f} % |",
            flush=True,
        )

    for place, where in enumerate(PLACES):
        allowed = torch.arange(2 * WINDOWS) // WINDOWS == place
        line(f"the true boxes | – | {where}", overlap.masked_fill(~allowed, -1).argmax(-1))
        line(f"none: at random | – | {where}", torch.full(overlap.shape[:2], place * WINDOWS))
        for (name, chosen_layers), negatives in itertools.product(sets.items(), NEGATIVES):
            features = torch.cat([layer[:, :, allowed] / math.sqrt(len(chosen_layers)) for layer in chosen_layers], -1)
            line(f"{name} | {negatives} | {where}", place * WINDOWS + search(features, negatives, run.seed))


def parts_of(run, shape: tuple[int, int]) -> tuple[Tensor, tuple[str, ...]]:
    """The parts of the birds that `cub_coloc.build` shows, (K, N, P, 3)."""
    birds = cub_coloc.standin(run).load(run, "train", run.recipe["image_px"])
    n, species = shape
    chosen = torch.linspace(0, len(birds.classes) - 1, species).long()
    index = torch.stack([(birds.labels == k).nonzero()[:n, 0] for k in chosen]).flatten()
    return center_crop(birds, index, run.recipe["image_px"]).parts.unflatten(0, (species, n)), birds.part_names


@torch.no_grad()
def candidates(module: Colocalisation, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Windows (K, N, P, 3), and of each layer the features (K, N, P, F), two of them at 1 squared in the mean."""
    bounds, (n, species) = module.net.bounds, images.shape[:2]
    generator = torch.Generator().manual_seed(stream_seed(module.seed, "candidates"))
    share = torch.rand(species, n, 2 * WINDOWS, generator=generator)
    windows = bounds.at_random(bounds.scale_min * (bounds.scale_max / bounds.scale_min) ** share, generator)
    windows[:, :, WINDOWS:, 1:] *= (1 - windows[:, :, WINDOWS:, :1]) / bounds.max_shift
    layers: list[list[Tensor]] = [[], [], []]
    for place in range(2 * WINDOWS):
        of_crops = module.layers_of(images, windows[:, :, place].transpose(0, 1))
        for kept, layer in zip(layers, of_crops, strict=True):
            kept.append(layer.unflatten(0, (n, species)).transpose(0, 1))
    scaled = []
    for kept in layers:
        features = torch.stack(kept, dim=2)
        some = features[:, :, 0].flatten(0, 1)
        scaled.append(features / squared_distances(some, some).mean().sqrt())
    return windows, scaled


def search(features: Tensor, negatives: str, seed: int) -> Tensor:
    """As `search_windows`, among given windows: features (K, N, P, F) -> which, (K, N)."""
    chosen, each = [], torch.arange(features.shape[1])
    for k, crops in enumerate(features):
        generator = torch.Generator().manual_seed(stream_seed(seed, "search", k))
        if negatives == NEGATIVES[0]:
            random = crops[:, :RANDOM_CROPS]
        else:
            others = torch.cat([features[:k], features[k + 1 :]]).flatten(0, 2)
            places = torch.randint(len(others), (len(crops), RANDOM_CROPS), generator=generator)
            random = others[places]
        picked = best_prototype(crops, random, generator, 300)
        for _ in range(ROUNDS):
            mean = crops[each, picked].mean(0).expand(len(crops), 1, -1)
            loss = 2 * squared_distances(crops, mean)[..., 0] - squared_distances(crops, random).mean(-1)
            picked = loss.argmin(1)
        chosen.append(picked)
    return torch.stack(chosen)


if __name__ == "__main__":
    birds_loss(sys.argv[1:])
