"""Pictures of house numbers drawn by rule, for the SVHN stand-in: wall, plate, number, neighbours, camera.

Made to need what SVHN needs (place and scale unknown, many fonts, low contrast, blur), not to look like it.
Every number here is our choice.
"""

import math
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono"),
    *("DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta", "cmr10", "cmb10", "cmss10", "cmtt10"),
)
DRAWN_PX = (16, 24, 36, 54, 80)  # heights at which digits are drawn once; a picture starts from the next larger one
HEIGHT_PX = (11.0, 72.0)
MEDIAN_HEIGHT_PX = 26.0
LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def draw_number(digits: tuple[int, ...], rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """An RGB picture of the number, and its digits' boxes: (n, 4) float64, left, top, width, height in whole px."""
    height = float(np.clip(MEDIAN_HEIGHT_PX * math.exp(0.5 * rng.standard_normal()), *HEIGHT_PX))
    font = int(rng.integers(len(FONTS)))
    drawn = next(px for px in (*DRAWN_PX, DRAWN_PX[-1]) if px >= height or px == DRAWN_PX[-1])
    strip, glyph_boxes = _strip(digits, font, drawn, rng)
    matrix = _pose(strip.size, height / drawn, rng)
    corners = _corners(glyph_boxes, matrix)  # (n, 4, 2)
    low, high = corners.min(axis=(0, 1)), corners.max(axis=(0, 1))
    extent = np.maximum(high - low, 4.0)
    # Margins, left, top, right, bottom: skewed to narrow ones, as cut out by a person.
    margins = np.concatenate([extent, extent]) * rng.beta(1.2, 3.0, 4) * np.array([1.3, 1.6, 1.3, 1.6])
    size = np.maximum(np.ceil(extent + margins[:2] + margins[2:]), 12).astype(int)
    shift = margins[:2] - low
    matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]]) @ matrix
    inverse = np.linalg.inv(matrix)
    mask = strip.transform(tuple(size), Image.PERSPECTIVE, tuple((inverse / inverse[2, 2]).ravel()[:8]), Image.BILINEAR)
    number_box = (*(low + shift), *(high + shift))
    scene, ground = _wall(tuple(size), number_box, rng)
    ink = _ink(ground, rng)
    scene = _neighbours(scene, number_box, height, font, ink, rng)
    scene = _paint(scene, mask, ink, height, rng)
    boxes = corners + shift
    boxes = np.concatenate([boxes.min(axis=1), boxes.max(axis=1) - boxes.min(axis=1)], axis=1)
    return _camera(scene, height, rng), np.maximum(np.round(boxes), [-np.inf, -np.inf, 1, 1])


@cache
def _glyphs(font: int, px: int) -> tuple[Image.Image, ...]:
    """Masks of the ten digits, cut to their ink, the tallest about `px` high."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{FONTS[font]}.ttf")
    typeface = ImageFont.truetype(str(path), round(px * 1.4))
    glyphs = []
    for digit in "0123456789":
        left, top, right, bottom = typeface.getbbox(digit)
        mask = Image.new("L", (right - left + 4, bottom - top + 4))
        ImageDraw.Draw(mask).text((2 - left, 2 - top), digit, fill=255, font=typeface)
        glyphs.append(mask.crop(mask.getbbox()))
    return tuple(glyphs)


def _strip(digits: tuple[int, ...], font: int, px: int, rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """The digits side by side as a mask, and their boxes in it: (n, 4), left, top, right, bottom."""
    masks = [_glyphs(font, px)[digit] for digit in digits]
    gaps = px * (rng.uniform(0.04, 0.22) + rng.uniform(0, 0.06, len(masks)))
    tops = px * (0.25 + 0.03 * rng.standard_normal(len(masks)))
    boxes, x = [], 0.25 * px
    for mask, gap, top in zip(masks, gaps, tops, strict=True):
        left, upper = round(x), round(top + (px - mask.height) / 2)
        boxes.append((left, upper, left + mask.width, upper + mask.height))
        x += mask.width + gap
    strip = Image.new("L", (math.ceil(x + 0.25 * px), math.ceil(1.6 * px)))
    for mask, box in zip(masks, boxes, strict=True):
        strip.paste(mask, box[:2])
    return strip, np.array(boxes, dtype=np.float64)


def _pose(size: tuple[int, int], scale: float, rng: np.random.Generator) -> np.ndarray:
    """Strip to picture, before it is placed: 3×3, about the strip's centre."""
    angle = math.radians(float(rng.normal(0, 5)))
    cos, sin = math.cos(angle), math.sin(angle)
    stretch = rng.uniform(0.72, 1.2)
    affine = np.array([[cos, -sin], [sin, cos]]) @ np.array([[stretch, rng.normal(0, 0.1)], [0, 1.0]]) * scale
    tilt = rng.normal(0, (0.10 / size[0], 0.12 / size[1]))  # 0.1: the far end about a tenth smaller
    centre = np.array([[1, 0, -size[0] / 2], [0, 1, -size[1] / 2], [0, 0, 1]])
    pose = np.eye(3)
    pose[:2, :2] = affine
    pose[2, :2] = np.clip(tilt, -0.5 / size[0], 0.5 / size[0])
    return pose @ centre


def _corners(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    corners = np.stack([boxes[:, [0, 1]], boxes[:, [2, 1]], boxes[:, [2, 3]], boxes[:, [0, 3]]], axis=1)
    mapped = np.concatenate([corners, np.ones((*corners.shape[:2], 1))], axis=2) @ matrix.T
    return mapped[..., :2] / mapped[..., 2:]


def _wall(size: tuple[int, int], number_box: tuple, rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """A wall with texture, joints and perhaps a plate behind the number; and the colour behind the number, (3,)."""
    width, height = size
    ground = np.clip(rng.uniform(25, 230) + rng.normal(0, 22, 3), 5, 250)
    scene = Image.new("RGB", size, tuple(ground.astype(int)))
    draw = ImageDraw.Draw(scene)
    joint = tuple(np.clip(ground + rng.normal(0, 28), 0, 255).astype(int))
    pattern = rng.integers(5)
    step = max(4, int(rng.uniform(0.12, 0.5) * (number_box[3] - number_box[1])))
    if pattern in (1, 2):  # boards, bricks
        for row, y in enumerate(range(int(rng.integers(step)), height, step)):
            draw.line((0, y, width, y), fill=joint)
            for x in range(-step * (row % 2), width, 2 * step) if pattern == 2 else ():
                draw.line((x, y, x, y + step), fill=joint)
    elif pattern == 3:  # planks upright
        for x in range(int(rng.integers(step)), width, step):
            draw.line((x, 0, x, height), fill=joint, width=1 + step // 12)
    for _ in range(int(rng.integers(3))):  # windows, pipes, shadows
        x, y = rng.uniform(-0.3, 1, 2) * size
        w, h = rng.uniform(0.1, 0.8, 2) * size
        colour = tuple(np.clip(ground + rng.normal(0, 35, 3), 0, 255).astype(int))
        draw.rectangle((x, y, x + w, y + h), fill=colour)
    if rng.random() < 0.45:
        ground = np.clip(rng.uniform(20, 240) + rng.normal(0, 25, 3), 5, 250)
        pad = (number_box[3] - number_box[1]) * rng.uniform(0.08, 0.35, 4) * [-1, -1, 1, 1]
        edge = tuple(np.clip(ground + rng.normal(0, 60), 0, 255).astype(int))
        box = tuple(np.array(number_box) + pad)
        draw.rounded_rectangle(box, radius=step // 2, fill=tuple(ground.astype(int)), outline=edge)
    elif pattern or rng.random() < 0.5:
        x, y = (int(np.clip((number_box[k] + number_box[k + 2]) / 2, 0, size[k] - 1)) for k in (0, 1))
        ground = np.array(scene.getpixel((x, y)), dtype=float)
    return scene, ground


def _ink(ground: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A colour that differs from `ground` in luminance by 28 to 150 of 255, towards the side with room."""
    luminance = float(ground @ LUMINANCE)
    contrast = 28 + 122 * rng.beta(1.2, 1.6)
    up = luminance + contrast < 250 and (luminance - contrast < 5 or rng.random() < 0.5)
    tint = rng.normal(0, 25, 3)
    return np.clip(luminance + (contrast if up else -contrast) + tint - tint @ LUMINANCE, 0, 255)


def _neighbours(
    scene: Image.Image, number_box: tuple, height: float, font: int, ink: np.ndarray, rng: np.random.Generator
) -> Image.Image:
    """Digits that do not belong to the number: of the next number at the sides, small print above and below."""
    left, top, right, bottom = number_box
    for side in (-1, 1):
        if rng.random() >= 0.3:
            continue
        glyph = _glyphs(font, DRAWN_PX[2])[rng.integers(10)]
        size = (max(2, round(glyph.width * height / glyph.height)), round(height * rng.uniform(0.85, 1.1)))
        gap = height * rng.uniform(0.55, 0.95)
        x = left - gap - size[0] if side < 0 else right + gap
        y = (top + bottom - size[1]) / 2 + height * rng.normal(0, 0.12)
        scene.paste(tuple(ink.astype(int)), (round(x), round(y)), glyph.resize(size))
    if rng.random() < 0.3:
        small = max(5, round(height * rng.uniform(0.25, 0.45)))
        colour = tuple(np.clip(ink + rng.normal(0, 30, 3), 0, 255).astype(int))
        x = left + rng.uniform(-0.2, 0.8) * (right - left)
        y = bottom + 0.2 * height if rng.random() < 0.5 else top - 0.2 * height - small
        for glyph in (_glyphs(int(rng.integers(len(FONTS))), DRAWN_PX[0])[k] for k in rng.integers(10, size=4)):
            glyph = glyph.resize((max(2, round(glyph.width * small / glyph.height)), small))
            scene.paste(colour, (round(x), round(y)), glyph)
            x += glyph.width + 1
    return scene


def _paint(
    scene: Image.Image, mask: Image.Image, ink: np.ndarray, height: float, rng: np.random.Generator
) -> Image.Image:
    """The number onto the scene, perhaps with a cast shadow, an outline, or only its outline, or partly worn off."""
    style = rng.random()
    if style < 0.3:
        offset = np.round(height * rng.uniform(0.02, 0.10, 2) * rng.choice([-1, 1], 2)).astype(int)
        shadow = ImageChops.offset(mask, *offset.tolist()).point(lambda v: v * 0.6)
        scene.paste((15, 15, 20) if rng.random() < 0.7 else (235, 235, 230), (0, 0), shadow)
    elif style < 0.42 and height > 18:
        other = tuple(np.clip(ink + rng.normal(0, 70, 3), 0, 255).astype(int))
        scene.paste(other, (0, 0), mask.filter(ImageFilter.MaxFilter(3)))
    if rng.random() < 0.2:
        worn = rng.integers(90, 256, (max(2, mask.height // 6), max(2, mask.width // 6)), dtype=np.uint8)
        mask = ImageChops.multiply(mask, Image.fromarray(worn).resize(mask.size, Image.BILINEAR))
    scene.paste(tuple(ink.astype(int)), (0, 0), mask)
    if rng.random() < 0.12:  # a twig or a cable in front
        x, y = rng.uniform(0, 1, 2) * scene.size
        dx, dy = rng.normal(0, 1, 2) * scene.size
        colour = tuple(np.clip(rng.uniform(10, 120) + rng.normal(0, 20, 3), 0, 255).astype(int))
        ImageDraw.Draw(scene).line((x - dx, y - dy, x + dx, y + dy), fill=colour, width=max(1, round(height * 0.07)))
    return scene


def _camera(scene: Image.Image, height: float, rng: np.random.Generator) -> Image.Image:
    """Texture, uneven light, blur (focus and coarse resolution), then sensor noise."""
    width_px, height_px = scene.size
    radius = height * max(0.0, rng.normal(0.025, 0.022))
    if radius > 0.3:
        scene = scene.filter(ImageFilter.GaussianBlur(radius))
    if rng.random() < 0.3:
        coarse = max(rng.uniform(8, 16) / height, 0.2)
        if coarse < 1:
            small = (max(2, round(width_px * coarse)), max(2, round(height_px * coarse)))
            scene = scene.resize(small, Image.BILINEAR).resize((width_px, height_px), Image.BICUBIC)
    pixels = np.asarray(scene, dtype=np.float32)
    grid = rng.normal(0, rng.uniform(2, 13), (int(rng.integers(3, 14)), int(rng.integers(3, 20)))).astype(np.float32)
    light = np.asarray(Image.fromarray(grid).resize((width_px, height_px), Image.BICUBIC))
    slope = rng.normal(0, 16, 2)
    light = light + np.linspace(-slope[0], slope[0], width_px, dtype=np.float32)
    light += np.linspace(-slope[1], slope[1], height_px, dtype=np.float32)[:, None]
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(rng.gamma(2.0, 2.2))
    pixels = (pixels - 128) * np.float32(rng.uniform(0.75, 1.1)) + 128 + light[:, :, None] + noise
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
