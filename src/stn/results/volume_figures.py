"""Pictures of volumes: a shaded view from an oblique angle, and what a 3D spatial transformer does (App. A.3).

*Convention*: volumes are (D, H, W), drawn with x to the right, y down and z away from the viewer; a projection along
the depth is what the viewer sees at azimuth and elevation 0.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from scipy.ndimage import gaussian_filter, map_coordinates

from stn.results.sheets import Layout, Panel, Stroke, in_lines, write_animation, write_sheet

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


def volume_gallery(path: Path, warps: Sequence[VolumeWarp], title: str) -> Path:
    """Each warp as four panels: the volume, its projection, the same after the transformer."""
    groups = [
        [
            volume_panel(warp.input, warp.caption),
            _projection(warp.projection_in, "its projection"),
            volume_panel(warp.output, "after the ST"),
            _projection(warp.projection_out, "its projection"),
        ]
        for warp in warps
    ]
    return write_sheet(path, in_lines(groups, per_line=2), title, Layout(group=4))


def volume_animation(path: Path, steps: Mapping[int, Sequence[VolumeWarp]], title: str) -> Path:
    """The same volumes through a 3D transformer at several steps of its training, a frame per step.

    Each warp is a column: the volume, what the transformer makes of it, and the projection of that.
    """
    frames = {
        step: [
            [volume_panel(warp.input, warp.caption) for warp in warps],
            [volume_panel(warp.output) for warp in warps],
            [_projection(warp.projection_out) for warp in warps],
        ]
        for step, warps in steps.items()
    }
    return write_animation(path, frames, title, Layout(labels=("volume", "after\nthe ST", "its\nprojection")))


def volume_panel(volume: np.ndarray, caption: str = "") -> Panel:
    """The shaded surface inside the outline of its cube, whose hidden edges the surface covers."""
    shading = shaded(volume, AZIMUTH_DEG, ELEVATION_DEG)
    surface = colormaps["bone"]((shading.clip(0, 1) + 0.1) / 1.2)
    surface[..., 3] = ~np.isnan(shading)
    corners = np.array(list(itertools.product((-1, 1), repeat=3)))
    x, y, depth = view_matrix(AZIMUTH_DEG, ELEVATION_DEG).T @ corners.T  # the transpose: volume to viewer
    columns, rows = ((axis / HALF_VIEW + 1) * len(shading) / 2 - 0.5 for axis in (x, y))
    strokes = []
    for a, b in itertools.combinations(range(8), 2):
        if (corners[a] != corners[b]).sum() == 1:
            of_rearmost_corner = max(depth[a], depth[b]) == depth.max()
            strokes.append(Stroke(columns[[a, b]], rows[[a, b]], CUBE, 0.6, behind=of_rearmost_corner))
    return Panel(surface, strokes, caption)


def _projection(projection: np.ndarray, caption: str = "") -> Panel:
    return Panel(projection / max(projection.max(), 1e-9), caption=caption)
