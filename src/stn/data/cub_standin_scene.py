"""What a stand-in bird sits in: background, branches, leaves in front; and the polygons that all is drawn with."""

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLING = 2

Colour = tuple[int, int, int]
Shape = tuple[np.ndarray, Colour]  # polygon (K, 2) in pixels, and its colour


def background(size_px: tuple[int, int], spots: tuple[Colour, ...], rng: np.random.Generator) -> Image.Image:
    """Blurred grass, leaves or sky with clutter, some of it in the colours `spots`, at the supersampled size."""
    scenes = (((96, 130, 66), (54, 82, 40)), ((150, 186, 214), (206, 220, 228)), ((140, 112, 80), (86, 66, 46)))
    a, b = (np.array(colour) + rng.normal(0, 18, 3) for colour in scenes[rng.integers(len(scenes))])
    canvas_px = (size_px[0] * SUPERSAMPLING, size_px[1] * SUPERSAMPLING)
    mixture = np.zeros((24, 24))
    for cells, weight in ((3, 0.6), (8, 0.3), (24, 0.25)):
        noise = Image.fromarray(rng.random((cells, cells), dtype=np.float32)).resize((24, 24), Image.Resampling.BICUBIC)
        mixture += weight * np.asarray(noise)
    colours = a + (b - a) * mixture[..., None] + rng.normal(0, 4, (24, 24, 3))
    small = Image.fromarray(colours.clip(0, 255).astype(np.uint8))
    canvas = small.resize(canvas_px, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(10, 30)):  # blades, leaves, berries
        colour = spots[rng.integers(len(spots))] if rng.random() < 0.3 else (a, b)[rng.integers(2)]
        colour = tuple(int(c) for c in np.clip(np.array(colour) + rng.normal(0, 25, 3), 0, 255))
        long = rng.uniform(0.01, 0.09) * min(size_px)
        place = rng.uniform(0, size_px)
        draw_polygon(draw, ellipse(*place, long, long * rng.uniform(0.1, 0.7), rng.uniform(0, 180), 10), colour)
    return canvas


def branches(size_px: tuple[int, int], feet: np.ndarray, rng: np.random.Generator) -> list[Shape]:
    """The branch under the feet (2,) and up to two more."""
    shapes = []
    for i in range(rng.integers(1, 4)):
        through = feet if i == 0 else rng.uniform(0, size_px)
        angle = np.deg2rad(rng.uniform(-35, 35) if i == 0 else rng.uniform(0, 180))
        along = np.array([np.cos(angle), np.sin(angle)]) * max(size_px) * 1.5
        across = np.array([-np.sin(angle), np.cos(angle)]) * rng.uniform(0.008, 0.03) * min(size_px)
        middle = through + (np.abs(across) if i == 0 else 0)
        quad = np.array([middle - along - across, middle + along - across, middle + along + across])
        quad = np.vstack([quad, middle - along + across])
        shade = rng.uniform(0.6, 1.2)
        shapes.append((quad, tuple(int(c * shade) for c in (96, 74, 54))))
    return shapes


def leaves(centre_px: tuple[float, float], unit_px: float, rng: np.random.Generator) -> list[tuple[tuple, Colour]]:
    """Up to four leaves in front: ellipses (x, y, radius, radius, turn in degrees) and their colours."""
    shapes = []
    for _ in range(rng.integers(5)):
        x, y = np.array(centre_px) + rng.normal(0, 0.5, 2) * unit_px
        long = rng.uniform(0.08, 0.18) * unit_px
        green = rng.uniform(90, 160)
        colour = (int(green * rng.uniform(0.4, 0.9)), int(green), int(green * 0.4))
        shapes.append(((x, y, long, long * rng.uniform(0.4, 0.6), rng.uniform(0, 180)), colour))
    return shapes


def ellipse(x: float, y: float, rx: float, ry: float, turn_deg: float, n: int = 28) -> np.ndarray:
    """A polygon of `n` points, (n, 2)."""
    t, turn = np.linspace(0, 2 * np.pi, n, endpoint=False), np.deg2rad(turn_deg)
    along, across = rx * np.cos(t), ry * np.sin(t)
    cos, sin = np.cos(turn), np.sin(turn)
    return np.stack([x + along * cos - across * sin, y + along * sin + across * cos], axis=1)


def in_ellipse(x: float, y: float, shape: tuple[float, float, float, float, float]) -> bool:
    cx, cy, rx, ry, turn_deg = shape
    turn = np.deg2rad(turn_deg)
    along = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
    across = (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
    return (along / rx) ** 2 + (across / ry) ** 2 <= 1


def draw_polygon(draw: ImageDraw.ImageDraw, points: np.ndarray, colour: tuple[int, int, int]) -> None:
    draw.polygon((points * SUPERSAMPLING - 0.5).ravel().tolist(), fill=colour)


def clip_polygon(points: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """The part of a polygon inside (0, 0) to `size_px`: one side of the image after the other. (K, 2) -> (L, 2)."""
    for axis, low in ((0, True), (0, False), (1, True), (1, False)):
        depth = points[:, axis] if low else size_px[axis] - points[:, axis]
        if (depth >= 0).all():
            continue
        kept = []
        for i, (point, d) in enumerate(zip(points, depth, strict=True)):
            if d >= 0:
                kept.append(point)
            following, d_following = points[(i + 1) % len(points)], depth[(i + 1) % len(points)]
            if (d >= 0) != (d_following >= 0):
                kept.append(point + (following - point) * (d / (d - d_following)))
        points = np.array(kept).reshape(-1, 2)
    return points
