"""One picture of a stand-in bird: background, bird, leaves in front, with its exact box and part locations.

The bird is drawn from polygons in its own frame: x forward, y down, one unit is the length of its body.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import ImageDraw

from stn.data.cub_standin_scene import (
    SUPERSAMPLING,
    Shape,
    background,
    branches,
    clip_polygon,
    draw_polygon,
    ellipse,
    in_ellipse,
    leaves,
)

# Where parts are on the body, and, from the middle of the head, on the head. An eye, leg or wing on the near side.
BODY_PARTS = {"back": (-0.12, -0.24), "belly": (0.0, 0.22), "breast": (0.33, 0.10), "wing": (-0.14, -0.02)}
HEAD_PARTS = {
    "beak": (0.27, 0.02),
    "crown": (-0.01, -0.16),
    "forehead": (0.13, -0.10),
    "eye": (0.07, -0.03),
    "nape": (-0.16, 0.04),
    "throat": (0.10, 0.16),
}
PAIRED = [f"{side} {part}" for side in ("left", "right") for part in ("eye", "leg", "wing")]
# The 15 parts of parts/parts.txt, in its order, which is the alphabet's.
PART_NAMES = tuple(sorted({*BODY_PARTS, *HEAD_PARTS, *PAIRED, "tail"} - {"eye", "wing"}))
# Plumages, drawn per picture whatever the class: back, belly, wing. Then what classes are told apart by.
PLUMAGES = (
    ((122, 92, 62), (206, 184, 150), (92, 70, 48)),
    ((92, 98, 108), (190, 194, 200), (66, 70, 78)),
    ((72, 98, 58), (196, 196, 140), (54, 72, 44)),
    ((62, 84, 132), (186, 194, 214), (46, 60, 98)),
    ((148, 108, 52), (224, 204, 150), (112, 80, 40)),
)
CROWNS = (None, (196, 42, 38), (24, 24, 26), (238, 236, 228), (232, 196, 40), (54, 92, 196))
EYE_RINGS = (None, (244, 240, 230), (240, 190, 30))
BEAKS = ((0.20, 0.045, (44, 42, 42)), (0.34, 0.04, (224, 130, 36)), (0.24, 0.085, (150, 140, 124)))  # long, half high
THROATS = (None, (26, 24, 26), (206, 60, 44))
BREASTS = (None, "spot", "band", "streaks")
BREAST_COLOURS = ((196, 58, 40), (30, 28, 30), (226, 178, 44))
WING_BARS = (0, 1, 2)
TAIL_TIPS = (None, (240, 238, 232))
HEADS, BODIES = (CROWNS, EYE_RINGS, BEAKS, THROATS), (BREASTS, BREAST_COLOURS, WING_BARS, TAIL_TIPS)


class HeadMarks(NamedTuple):
    """Indices into each of `HEADS`."""

    crown: int
    eye_ring: int
    beak: int
    throat: int


class BodyMarks(NamedTuple):
    """Indices into each of `BODIES`."""

    breast: int
    breast_colour: int
    wing_bars: int
    tail_tip: int


@dataclass(frozen=True)
class Pose:
    """Where and how the bird sits. `facing_left` shows its left side."""

    centre_px: tuple[float, float]
    unit_px: float
    rotation_deg: float
    facing_left: bool
    head: tuple[float, float]  # the middle of the head, in the bird's frame
    tail_deg: float
    far_leg: bool

    def to_px(self, points: np.ndarray) -> np.ndarray:
        """Bird's frame to pixels: (K, 2) -> (K, 2)."""
        angle = np.deg2rad(self.rotation_deg)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turned = np.atleast_2d(points) @ turn.T
        return turned * [-self.unit_px if self.facing_left else self.unit_px, self.unit_px] + self.centre_px


class Picture(NamedTuple):
    """image (H, W, 3) uint8; box_px (x, y, width, height); parts (15, 3) as (x, y, visible)."""

    image: np.ndarray
    box_px: tuple[float, float, float, float]
    parts: np.ndarray


def draw_picture(head: HeadMarks, body: BodyMarks, size_px: tuple[int, int], rng: np.random.Generator) -> Picture:
    """A bird with these markings; all else is drawn at random. `size_px` is (width, height)."""
    pose = random_pose(size_px, rng)
    shapes = bird_shapes(head, body, PLUMAGES[rng.integers(len(PLUMAGES))], pose, rng)
    in_front = leaves(pose.centre_px, pose.unit_px, rng)
    canvas = background(size_px, (*BREAST_COLOURS, CROWNS[3]), rng)
    draw = ImageDraw.Draw(canvas)
    for points, colour in branches(size_px, pose.to_px(np.array([0.03, 0.53]))[0], rng) + shapes:
        draw_polygon(draw, points, colour)
    for leaf, colour in in_front:
        draw_polygon(draw, ellipse(*leaf), colour)
    image = np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32)
    light = rng.uniform(0.78, 1.18) * rng.uniform(0.93, 1.07, 3)
    noise = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(2, 7)
    image = (image * light.astype(np.float32) + noise).clip(0, 255).astype(np.uint8)
    return Picture(image, box_of(shapes, size_px), _parts(pose, size_px, [leaf for leaf, _ in in_front]))


def random_pose(size_px: tuple[int, int], rng: np.random.Generator) -> Pose:
    """Facing left or right, turned by up to 25°, the body 26 to 46 % of the shorter side, more often in the middle than
    at the edge, which cuts some.
    """
    unit_px = rng.uniform(0.26, 0.46) * min(size_px)
    reach = np.array([0.80, 0.52]) * unit_px
    sides = np.array(size_px, dtype=float)
    low, high = np.minimum(reach, sides / 2), np.maximum(sides - reach, sides / 2)
    return Pose(
        centre_px=tuple(rng.uniform(low, high, (2, 2)).mean(0)),
        unit_px=unit_px,
        rotation_deg=rng.uniform(-25, 25),
        facing_left=bool(rng.integers(2)),
        head=(0.44 + rng.uniform(-0.06, 0.06), -0.35 + rng.uniform(-0.06, 0.06)),
        tail_deg=rng.uniform(-18, 18),
        far_leg=bool(rng.random() < 0.7),
    )


def bird_shapes(head: HeadMarks, body: BodyMarks, plumage: tuple, pose: Pose, rng: np.random.Generator) -> list[Shape]:
    """The bird's polygons in pixels, from the back to the front."""

    def jitter(colour: tuple[int, int, int], by: float = 14) -> tuple[int, int, int]:
        return tuple(int(c) for c in np.clip(np.array(colour) + rng.normal(0, by, 3), 0, 255))

    back, belly, wing = (jitter(colour) for colour in plumage)
    shapes = [*_body(body, back, belly, pose, jitter), *_head(head, back, pose, jitter), *_wing(body, wing, jitter)]
    return [(pose.to_px(points), colour) for points, colour in shapes]


def box_of(shapes: list[Shape], size_px: tuple[int, int]) -> tuple[float, float, float, float]:
    """The smallest box around what of the polygons is in the image: x, y, width, height."""
    points = np.concatenate([clip_polygon(points, size_px) for points, _ in shapes])
    low, high = points.min(0), points.max(0)
    return (*low.tolist(), *(high - low).tolist())


def _body(marks: BodyMarks, back, belly, pose: Pose, jitter) -> list[Shape]:
    angle = np.deg2rad(10 + pose.tail_deg)
    along, across = np.array([-np.cos(angle), np.sin(angle)]), np.array([np.sin(angle), np.cos(angle)])
    root = np.array([-0.38, 0.02])

    def tail(start: float, end: float) -> np.ndarray:
        half = {d: 0.07 + 0.05 * d for d in (start, end)}
        ends = [(start, 1), (end, 1), (end, -1), (start, -1)]
        return np.array([root + d * 0.52 * along + side * half[d] * across for d, side in ends])

    leg = jitter((92, 70, 52))
    shapes = [(tail(0, 1), back)]
    if TAIL_TIPS[marks.tail_tip]:
        shapes.append((tail(0.78, 1), jitter(TAIL_TIPS[marks.tail_tip], 6)))
    for x, shown in ((0.10, pose.far_leg), (0.0, True)):
        if shown:
            shapes.append((np.array([(x, 0.2), (x + 0.03, 0.2), (x + 0.02, 0.50), (x - 0.01, 0.50)]), leg))
            shapes.append((np.array([(x - 0.04, 0.5), (x + 0.09, 0.5), (x + 0.09, 0.525), (x - 0.04, 0.525)]), leg))
    shapes.append((ellipse(0, 0, 0.47, 0.28, -18), back))
    shapes.append((ellipse(0.06, 0.09, 0.36, 0.17, -20), belly))
    colour = jitter(BREAST_COLOURS[marks.breast_colour])
    x, y = BODY_PARTS["breast"]
    match BREASTS[marks.breast]:
        case "spot":
            shapes.append((ellipse(x, y - 0.02, 0.075, 0.075, 0), colour))
        case "band":
            shapes.append((ellipse(x, y - 0.04, 0.04, 0.15, 24), colour))
        case "streaks":
            offsets = ((-0.10, 0.03), (-0.03, -0.06), (-0.02, 0.06), (0.05, -0.02), (-0.13, 0.11), (-0.16, 0.02))
            shapes += [(ellipse(x + dx, y + dy, 0.014, 0.04, 15, 8), colour) for dx, dy in offsets]
    return shapes


def _head(marks: HeadMarks, back, pose: Pose, jitter) -> list[Shape]:
    hx, hy = pose.head
    neck = np.array([(0.10, -0.22), (hx - 0.17, hy), (hx + 0.14, hy + 0.10), (0.42, 0.02)])
    long, half, beak = BEAKS[marks.beak]
    beak_points = np.array([(hx + 0.15, hy - half), (hx + 0.17 + long, hy + 0.03), (hx + 0.15, hy + half + 0.02)])
    shapes = [(neck, back), (beak_points, jitter(beak, 8)), (ellipse(hx, hy, 0.19, 0.18, 0), back)]
    if THROATS[marks.throat]:
        shapes.append((ellipse(hx + 0.09, hy + 0.14, 0.09, 0.055, -30), jitter(THROATS[marks.throat])))
    if CROWNS[marks.crown]:
        arc = np.deg2rad(np.linspace(185, 318, 14))
        cap = np.stack([hx + 0.195 * np.cos(arc), hy + 0.19 * np.sin(arc)], axis=1)
        shapes.append((cap, jitter(CROWNS[marks.crown])))
    ex, ey = HEAD_PARTS["eye"]
    if EYE_RINGS[marks.eye_ring]:
        shapes.append((ellipse(hx + ex, hy + ey, 0.062, 0.062, 0, 16), jitter(EYE_RINGS[marks.eye_ring], 6)))
    return [*shapes, (ellipse(hx + ex, hy + ey, 0.036, 0.036, 0, 12), (16, 14, 14))]


def _wing(marks: BodyMarks, wing, jitter) -> list[Shape]:
    x, y = BODY_PARTS["wing"]
    shapes = [(ellipse(x, y, 0.33, 0.135, -12), wing)]
    bar = jitter((236, 232, 220), 8)
    for i in range(WING_BARS[marks.wing_bars]):
        shapes.append((ellipse(x + 0.12 - 0.14 * i, y - 0.02 + 0.03 * i, 0.022, 0.105, 8, 12), bar))
    return shapes


def _parts(pose: Pose, size_px: tuple[int, int], in_front: list[tuple]) -> np.ndarray:
    near, far = ("left", "right") if pose.facing_left else ("right", "left")
    angle = np.deg2rad(10 + pose.tail_deg)
    at = {name: np.array(place) for name, place in BODY_PARTS.items()}
    at |= {name: np.add(pose.head, place) for name, place in HEAD_PARTS.items()}
    at["tail"] = np.array([-0.38, 0.02]) + 0.40 * np.array([-np.cos(angle), np.sin(angle)])
    at |= {f"{near} eye": at.pop("eye"), f"{near} wing": at.pop("wing"), f"{near} leg": np.array([0.01, 0.38])}
    if pose.far_leg:
        at[f"{far} leg"] = np.array([0.11, 0.38])
    parts = np.zeros((len(PART_NAMES), 3))
    for i, name in enumerate(PART_NAMES):
        if name in at:
            x, y = pose.to_px(at[name])[0]
            inside = 0 <= x <= size_px[0] and 0 <= y <= size_px[1]
            if inside and not any(in_ellipse(x, y, leaf) for leaf in in_front):
                parts[i] = x, y, 1
    return parts
