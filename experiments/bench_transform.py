"""Measure grid and sampler beside kornia's and plain torch's: python -m experiments.bench_transform

Forward and backward, the same warp, in one run; writes results/bench/transform_cpu.json. Times are of one thread's own
processor time, the least of interleaved repeats. `saved_mb`: what is held between the two passes.
"""

import time
from collections.abc import Callable

import kornia
import kornia.geometry.transform as kornia_transform
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.bench import bench_file, write
from experiments.cli import main
from stn.train.provenance import device_name
from stn.transform import TRANSFORMATIONS, affine_grid, as_matrix, projective_grid, sample, tps_grid
from stn.transform.tps import regular_control_points

SHAPES = ((128, 1, 28), (128, 1, 60), (4, 3, 224))  # batch, channels, px

WarpFunction = Callable[[Tensor, Tensor], Tensor]


def plain_affine(image: Tensor, theta: Tensor) -> Tensor:
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, align_corners=False)


def kornia_homography(image: Tensor, theta: Tensor) -> Tensor:
    matrix, size = as_matrix(theta), tuple(image.shape[2:])
    return kornia_transform.homography_warp(image, matrix, size, align_corners=False, normalized_homography=True)


def kornia_tps(image: Tensor, theta: Tensor) -> Tensor:
    """Through the same points; another spline in between, see docs/migrating.md."""
    controls = regular_control_points(4, like=theta).expand_as(theta)
    weights, affine = kornia_transform.get_tps_transform(controls, theta)
    return kornia_transform.warp_image_tps(image, theta, weights, affine, align_corners=False)


def ours(grid: Callable[[Tensor, tuple[int, ...]], Tensor]) -> WarpFunction:
    return lambda image, theta: sample(image, grid(theta, tuple(image.shape[2:])))


WARPS: dict[str, dict[str, WarpFunction]] = {
    "affine": {"ours": ours(affine_grid), "torch": plain_affine, "kornia": kornia_homography},
    "projective": {"ours": ours(projective_grid), "kornia": kornia_homography},
    "tps": {"ours": ours(tps_grid), "kornia": kornia_tps},
}


def step(warp: WarpFunction, image: Tensor, theta: Tensor) -> Tensor:
    out = warp(image, theta)
    torch.autograd.grad(out.sum(), (image, theta))
    return out


def saved_mb(warp: WarpFunction, image: Tensor, theta: Tensor) -> float:
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = warp(image, theta)
        return sum(storages.values()) / 1e6 if out.requires_grad else 0.0


def measure(name: str, batch: int, channels: int, px: int, repeats: int) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    identity = torch.tensor(TRANSFORMATIONS[name].identity)
    theta = identity + 0.05 * torch.randn(batch, *identity.shape, generator=generator)
    image = torch.rand(batch, channels, px, px, generator=generator)
    theta, image = theta.requires_grad_(), image.requires_grad_()
    best: dict[str, list[float]] = {}
    for _ in range(repeats):
        for who, warp in WARPS[name].items():
            times = best.setdefault(who, [float("inf")] * 2)
            for i, run in enumerate((warp, lambda image, theta, warp=warp: step(warp, image, theta))):
                started = time.thread_time()
                run(image, theta)
                times[i] = min(times[i], 1e3 * (time.thread_time() - started))
    reference = WARPS[name]["ours"](image, theta)
    return [
        {
            "warp": name,
            "shape": [batch, channels, px, px],
            "by": who,
            "forward_ms": round(forward, 3),
            "forward_backward_ms": round(both, 3),
            "ours_over_it": round(best["ours"][1] / both, 3),
            "saved_mb": round(saved_mb(WARPS[name][who], image, theta), 2),
            "largest_difference": float((WARPS[name][who](image, theta) - reference).detach().abs().max()),
        }
        for who, (forward, both) in best.items()
    ]


def bench_transform(settings: dict) -> None:
    torch.set_num_threads(1)
    rows = [row for name in WARPS for shape in SHAPES for row in measure(name, *shape, settings["repeats"])]
    versions = {"torch": torch.__version__, "kornia": kornia.__version__}
    result = {"processor": device_name(torch.device("cpu")), "threads": 1, **versions, "rows": rows}
    for row in rows:
        print(*row.values(), sep="\t")
    write(bench_file(settings["results_dir"], "transform_cpu"), result)


if __name__ == "__main__":
    main(bench_transform)
