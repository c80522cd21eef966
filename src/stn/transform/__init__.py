"""The spatial transformer: theta -> grid -> sampled output (Sect. 3). Depends on torch only.

Convention, everywhere in this project: coordinates are normalised, x before y (before z), in [-1, 1] over the
image, where -1 and 1 are the *outer edges* of the border pixels (``align_corners=False``): the centre of pixel
i of W lies at ``(2 i + 1) / W - 1``. Theta maps *output* points to *input* points, so a grid holds, for each
output pixel, where in the input it is read.
"""

from stn.transform.grids import affine3d_grid, affine_grid, attention_grid, homography_grid, projective_grid
from stn.transform.matrices import (
    as_matrix,
    compose,
    inverse,
    normalised_from_px,
    px_from_normalised,
    theta_from_px,
    theta_to_px,
)
from stn.transform.points import boxes_from_px, boxes_to_px, map_boxes, map_points, points_from_px, points_to_px
from stn.transform.sampling import sample
from stn.transform.tps import regular_control_points, tps_grid
from stn.transform.transformer import (
    TRANSFORMATIONS,
    ParallelTransformers,
    SpatialTransformer,
    Transformation,
    Warped,
    fixed_attention,
)

__all__ = [
    "TRANSFORMATIONS",
    "ParallelTransformers",
    "SpatialTransformer",
    "Transformation",
    "Warped",
    "affine3d_grid",
    "affine_grid",
    "as_matrix",
    "attention_grid",
    "boxes_from_px",
    "boxes_to_px",
    "compose",
    "fixed_attention",
    "homography_grid",
    "inverse",
    "map_boxes",
    "map_points",
    "normalised_from_px",
    "points_from_px",
    "points_to_px",
    "projective_grid",
    "px_from_normalised",
    "regular_control_points",
    "sample",
    "theta_from_px",
    "theta_to_px",
    "tps_grid",
]
