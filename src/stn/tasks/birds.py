"""Birds (Sect. 4.3): accuracy, which parts the windows of an n×ST-CNN settle on, and baselines of co-localisation."""

import itertools

import torch
from torch import Tensor

from stn.data.seeds import TEST_SEED
from stn.data.streams import Batch
from stn.nets.cub import tiling_centres
from stn.nets.windows import window_boxes_px, windows_at
from stn.tasks.classification import Classification
from stn.tasks.colocalisation import CORRECT_IOU, Colocalisation, iou, pair_loss
from stn.tasks.looks import look_through
from stn.tasks.window_parts import REGIONS, random_windows, region_frequencies, report_windows, window_regions
from stn.transform import Warped

HEAD, BODY = (list(REGIONS).index(name) for name in ("head", "body"))


class BirdClassification(Classification):
    """Adds accuracy, in which Table 3 is stated."""

    def on_test_end(self) -> None:
        super().on_test_end()
        self.metrics["test/accuracy_pct"] = 100 - self.metrics["test/error_pct"]


class BirdColocalisation(Colocalisation):
    """Adds the CorLoc of two windows that look at nothing, the whole picture and a box in its middle of the true boxes'
    mean size; and the loss of the learned windows beside that of squares of the true boxes' places and areas.
    """

    def on_test_end(self) -> None:
        super().on_test_end()
        boxes_px = self.scenes["train"].boxes_px
        half = (boxes_px[..., 2:] - boxes_px[..., :2]).flatten(0, 1).mean(0) / 2
        centre = torch.full_like(half, self.image_px / 2)
        whole = torch.tensor([0.0, 0.0, self.image_px, self.image_px], device=boxes_px.device)
        for name, box_px in (("whole_image", whole), ("centre_box", torch.cat([centre - half, centre + half]))):
            correct = iou(box_px.expand_as(boxes_px), boxes_px) > CORRECT_IOU
            self.metrics[f"test/correct_{name}_pct"] = 100 * correct.float().mean().item()
            for label, value in zip(self.names, (100 * correct.float().mean(0)).tolist(), strict=True):
                self.metrics[f"test/correct_{name}_pct_{label}"] = value
        with torch.no_grad():
            self.metrics["test/loss_found"] = self._test_loss(self.net(self.scenes["train"].images))
            self.metrics["test/loss_true"] = self._test_loss(square_windows(boxes_px, self.image_px))

    def _test_loss(self, windows: Tensor) -> float:
        """The training loss of these windows (N, K, 3), on all training images at once, mean over the classes."""
        generator = torch.Generator(self.device).manual_seed(TEST_SEED)
        random = self.net.bounds.at_random(windows[..., 0], generator)
        images = self.scenes["train"].images
        of_windows, of_random = self.encode(images, windows), self.encode(images, random)
        return pair_loss(of_windows, of_random, self.recipe.alpha)[0].mean().item()


def square_windows(boxes_px: Tensor, image_px: int) -> Tensor:
    """The square windows (..., 3) as (s, tx, ty) with the middles and areas of boxes (..., 4) in a square image."""
    low, high = boxes_px[..., :2], boxes_px[..., 2:]
    scale = (high - low).prod(-1, keepdim=True).sqrt() / image_px
    return torch.cat([scale, (low + high) / image_px - 1], dim=-1)


class WindowStatistics:
    """Gathers where the windows of a `MultiStreamTransformer` look over a test set, and sums it up as metrics."""

    def __init__(self, part_names: tuple[str, ...], image_px: int, scale: float) -> None:
        self.part_names, self.image_px, self.scale = part_names, image_px, scale
        self.theta: list[Tensor] = []
        self.boxes_px: list[Tensor] = []
        self.parts: list[Tensor] = []

    def add(self, warps: list[Warped], batch: Batch) -> None:
        theta = torch.stack([warped.theta for warped in warps], dim=1)
        self.theta.append(theta.cpu())
        self.boxes_px.append(window_boxes_px(windows_at(theta, self.scale), self.image_px).cpu())
        self.parts.append(batch.parts.cpu())

    look = staticmethod(look_through)

    def summary(self) -> dict[str, float]:
        """The metrics; shares are of the test images.

        Of window k: `wk_region_<region>`, the share in which it falls on that region; `wk_consistency`, the largest of
        them, beside `wk_random_consistency` of windows at random places, with `wk_p_value`, and `wk_start_consistency`
        of the window at its place before training (birds are in the middle of their pictures); `wk_grid_inside`, how
        much of it lies inside the image; mean and spread of its centre, `wk_theta_mean_x` ….
        Of the net: `head_share` and `body_share`, how often one window falls on the head and another one on the body,
        the two chosen where both together are largest; `head_start_share` … by the same choice before training;
        `head_random_share` … of windows at random places.
        """
        theta, boxes_px, parts = torch.cat(self.theta), torch.cat(self.boxes_px), torch.cat(self.parts)
        n_images, n_windows = theta.shape[:2]
        generator = torch.Generator().manual_seed(TEST_SEED)
        start_px = window_boxes_px(windows_at(tiling_centres(n_windows), self.scale), self.image_px)
        start_px = start_px.expand(n_images, -1, -1)
        random_px = random_windows(n_images, 1, self.scale, self.image_px, generator)
        learned, start, random = (
            region_frequencies(window_regions(boxes, parts, self.part_names))
            for boxes in (boxes_px, start_px, random_px)
        )
        summary = {}
        for name, frequencies in (("", learned), ("start_", start)):
            head, body = head_and_body(frequencies)
            summary |= {f"head_{name}share": head, f"body_{name}share": body}
        summary |= {"head_random_share": float(random[0, HEAD]), "body_random_share": float(random[0, BODY])}
        reports = report_windows(boxes_px, parts, self.part_names, self.image_px, generator)
        for k, report in enumerate(reports):
            of_window = report | {
                "start_consistency": float(start[k].max()),
                "grid_inside": float(share_inside(boxes_px[:, k], self.image_px).mean()),
            }
            for axis, values in zip("xy", theta[:, k].T, strict=True):
                of_window[f"theta_mean_{axis}"] = float(values.mean())
                of_window[f"theta_std_{axis}"] = float(values.std(correction=0))
            summary |= {f"w{k}_{name}": value for name, value in of_window.items()}
        return summary


def head_and_body(frequencies: Tensor) -> tuple[float, float]:
    """How often one window falls on the head and a different one on the body, of the pair where the sum is largest.

    Shapes: frequencies (n, R), as `region_frequencies`. One window alone counts for both.
    """
    n = len(frequencies)
    pairs = list(itertools.permutations(range(n), 2)) or [(0, 0)]
    return max(((float(frequencies[i, HEAD]), float(frequencies[j, BODY])) for i, j in pairs), key=sum)


def share_inside(boxes_px: Tensor, image_px: int) -> Tensor:
    """The share of each box's area that lies inside the image: (N, 4) -> (N,)."""
    clipped = boxes_px.clamp(0, image_px)
    area = (boxes_px[:, 2:] - boxes_px[:, :2]).prod(1)
    return (clipped[:, 2:] - clipped[:, :2]).prod(1) / area
