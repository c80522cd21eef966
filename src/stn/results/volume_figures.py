"""Pictures of volumes: a shaded view from an oblique angle, and what a 3D spatial transformer does (App. A.3).

*Convention*: volumes are (D, H, W), drawn with x to the right, y down and z away from the viewer; a projection along
the depth is what the viewer sees at azimuth and elevation 0.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter, map_coordinates

from stn.results.animations import write_gif
from stn.results.figures import DPI, LABEL_SIZE, WIDTH_INCHES, _image, _save

AZIMUTH_DEG, ELEVATION_DEG = 35.0, 25.0
HALF_VIEW = 1.5  # of the picture's side, in units of half the volume: the whole cube fits at the angles above
SURFACE = 0.4  # ink above this is solid
SMOOTHING_VOXELS = 0.8  # before the slope of the surface is taken
LIGHT = np.array([-0.5, -0.6, -0.62])  # towards the light, in the viewer's frame: from the left, above, in front
AMBIENT = 0.25
CUBE = "#9a9a9a"


class VolumeWarp(NamedTuple):
    """One volume through a 3D transformer; the projections are those that the classifier reads."""

    input: np.ndarray  # (D, H, W)
    output: np.ndarray  # (D', H', W')
    projection_in: np.ndarray  # (H, W)
    projection_out: np.ndarray  # (H', W')
    caption: str


def view_matrix(azimuth_deg: float, elevation_deg: float) -> np.ndarray:
    """(3, 3) from the viewer's directions (x, y, z) to the volume's.

    A viewer at azimuth a has walked round the volume to its right, one at elevation e looks down on it.
    """
    (ca, sa), (ce, se) = ((np.cos(a), np.sin(a)) for a in np.deg2rad([azimuth_deg, elevation_deg]))
    round_it = np.array([[ca, 0, -sa], [0, 1, 0], [sa, 0, ca]])
    down_on_it = np.array([[1, 0, 0], [0, ce, se], [0, -se, ce]])
    return round_it @ down_on_it


def shaded(volume: np.ndarray, azimuth_deg: float, elevation_deg: float, side_px: int = 110) -> np.ndarray:
    """The surface of a volume as a distant viewer sees it, lit from one side: (side, side) in [0, 1], NaN beside it.

    The first point above `SURFACE` on each line of sight; its brightness is Lambert's cosine of the volume's gradient.
    """
    axis = np.linspace(-HALF_VIEW, HALF_VIEW, side_px)
    z, y, x = np.meshgrid(np.linspace(-np.sqrt(3), np.sqrt(3), side_px), axis, axis, indexing="ij")
    view = view_matrix(azimuth_deg, elevation_deg)
    points = view @ np.stack([x, y, z]).reshape(3, -1)
    size = np.array(volume.shape)
    indices = ((points[::-1] + 1) * size[:, None] - 1) / 2  # z, y, x in voxels
    solid = map_coordinates(volume, indices, order=1).reshape(z.shape) > SURFACE
    first = solid.argmax(axis=0)
    at_surface = indices.reshape(3, *z.shape)[(slice(None), first, *np.indices(first.shape))]
    slopes = np.gradient(gaussian_filter(volume, SMOOTHING_VOXELS), *(2 / size))
    normal = -np.stack([map_coordinates(slope, at_surface, order=1) for slope in slopes[::-1]])  # x, y, z; outward
    cosine = np.tensordot(view @ LIGHT / np.linalg.norm(LIGHT), normal, 1) / (np.linalg.norm(normal, axis=0) + 1e-9)
    return np.where(solid.any(axis=0), AMBIENT + (1 - AMBIENT) * cosine.clip(0, 1), np.nan)


def volume_gallery(path: str | Path, rows: Sequence[VolumeWarp], title: str, per_line: int = 2) -> Path:
    """Each warp as four panels: the volume, its projection, the same after the transformer."""
    per_line = min(per_line, len(rows))
    lines = -(-len(rows) // per_line)
    cell = 1.3 * WIDTH_INCHES / (4.75 * per_line)
    figure = Figure(figsize=(WIDTH_INCHES, lines * (cell + 0.15) + 0.4), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(lines, 5 * per_line, squeeze=False, width_ratios=[1.3, 1, 1.3, 1, 0.15] * per_line)
    for ax in axes.flat:
        ax.axis("off")
    for index, warp in enumerate(rows):
        line, first = divmod(index, per_line)
        panels = axes[line, 5 * first : 5 * first + 4]
        _volume(panels[0], warp.input)
        _image(panels[1], warp.projection_in / warp.projection_in.max())
        _volume(panels[2], warp.output)
        _image(panels[3], warp.projection_out / max(warp.projection_out.max(), 1e-9))
        for panel, name in zip(panels, (warp.caption, "its projection", "after the ST", "its projection"), strict=True):
            panel.set_title(name, fontsize=LABEL_SIZE)
    return _save(figure, path)


def volume_animation(path: str | Path, steps: Mapping[int, Sequence[VolumeWarp]], title: str) -> Path:
    """The same volumes through a 3D transformer at several steps of its training, a frame per step.

    Each warp is a column: the volume, what the transformer makes of it, and the projection of that.
    """
    last = max(steps)
    return write_gif(path, [_frame(warps, f"{title}: step {step} of {last}") for step, warps in sorted(steps.items())])


def _frame(warps: Sequence[VolumeWarp], title: str) -> np.ndarray:
    """(H, W, 3) uint8."""
    cell = (WIDTH_INCHES - 0.9) / len(warps)
    figure = Figure(figsize=(WIDTH_INCHES, 3 * cell + 0.6), dpi=DPI, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(3, len(warps), squeeze=False)
    for warp, (before, after, projection) in zip(warps, axes.T, strict=True):
        _volume(before, warp.input)
        _volume(after, warp.output)
        _image(projection, warp.projection_out / max(warp.projection_out.max(), 1e-9))
        before.set_title(warp.caption, fontsize=LABEL_SIZE)
    for row, label in zip(axes, ("volume", "after\nthe ST", "its\nprojection"), strict=True):
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=LABEL_SIZE)
        for ax in row:
            ax.set(xticks=[], yticks=[], frame_on=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _volume(ax: Axes, volume: np.ndarray) -> None:
    """The shaded surface inside the outline of its cube."""
    extent = (-HALF_VIEW, HALF_VIEW, HALF_VIEW, -HALF_VIEW)
    shading = shaded(volume, AZIMUTH_DEG, ELEVATION_DEG)
    ax.imshow(shading, cmap="bone", vmin=-0.1, vmax=1.1, extent=extent, zorder=2)
    corners = np.array(list(itertools.product((-1, 1), repeat=3)))
    seen = corners @ view_matrix(AZIMUTH_DEG, ELEVATION_DEG)  # the transpose: volume to viewer
    for a, b in itertools.combinations(range(8), 2):
        if (corners[a] != corners[b]).sum() == 1:
            hidden = max(seen[a, 2], seen[b, 2]) == seen[:, 2].max()  # an edge of the rearmost corner
            ax.plot(*seen[[a, b], :2].T, color=CUBE, linewidth=0.6, zorder=1 if hidden else 3)
