"""Pictures of the demo: coloured shapes, characters, bars and arrows, one in a 32 x 32 px cell.

A cell is exactly one visual token of the base models (patch 16, merge 2), so every object lies in
one token. A picture is `height x width` cells of uint8 RGB.
"""

import io
import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 32
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 205, 40),
    "purple": (150, 60, 190),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "cross", "star", "diamond")
CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
BARS = tuple(f"bar{height}" for height in range(1, 7))
ARROWS = ("arrow_left", "arrow_right", "arrow_up", "arrow_down")
KINDS = (*SHAPES, *CHARACTERS, *BARS, *ARROWS)

Cell = tuple[int, int]  # column, row; both from 0, origin top left


@dataclass(frozen=True, order=True)
class Item:
    """What stands in a cell: one of `KINDS`, in one of `COLOURS`."""

    kind: str
    colour: str


Items = dict[Cell, Item]

_STAR = [
    (np.sin(i * np.pi / 5) * (1.0 if i % 2 == 0 else 0.42),
     -np.cos(i * np.pi / 5) * (1.0 if i % 2 == 0 else 0.42))
    for i in range(10)
]  # fmt: skip
_ARROW = [(-1, -0.3), (0.1, -0.3), (0.1, -0.9), (1, 0), (0.1, 0.9), (0.1, 0.3), (-1, 0.3)]
_OUTLINES = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0, -1), (1, 0.9), (-1, 0.9)],
    "diamond": [(0, -1.1), (0.8, 0), (0, 1.1), (-0.8, 0)],
    "star": [(1.1 * x, 1.1 * y) for x, y in _STAR],
    "arrow_right": _ARROW,
    "arrow_left": [(-x, y) for x, y in _ARROW],
    "arrow_down": [(y, x) for x, y in _ARROW],
    "arrow_up": [(y, -x) for x, y in _ARROW],
}


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


@cache
def _mask(kind: str, size: int, dx: int, dy: int) -> np.ndarray:
    """Where a cell is painted, [32, 32] bool; `size` 0..3 grows the object, dx/dy shift it."""
    tile = Image.new("L", (CELL, CELL))
    draw = ImageDraw.Draw(tile)
    x, y, radius = CELL / 2 + dx, CELL / 2 + dy, 9 + size
    if kind == "circle":
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
    elif kind == "cross":
        width = radius // 3
        draw.rectangle([x - width, y - radius, x + width, y + radius], fill=255)
        draw.rectangle([x - radius, y - width, x + radius, y + width], fill=255)
    elif kind in _OUTLINES:
        draw.polygon([(x + radius * u, y + radius * v) for u, v in _OUTLINES[kind]], fill=255)
    elif kind in BARS:
        top = CELL - 1 - 5 * int(kind[3:])
        draw.rectangle([x - radius, top, x + radius, CELL - 2], fill=255)
    elif kind in CHARACTERS:
        draw.text((x, y), kind, font=_font(24 + size), fill=255, anchor="mm")
    else:
        raise KeyError(kind)
    return np.asarray(tile) > 127


def render(width: int, height: int, items: Items, rng: random.Random) -> np.ndarray:
    """Picture of `width x height` cells, uint8 [32 height, 32 width, 3]; `rng` jitters
    background, place, size and colour a little, never what the picture says."""
    shade = rng.randint(232, 255)
    picture = np.full((CELL * height, CELL * width, 3), shade, np.uint8)
    for (column, row), item in items.items():
        assert column in range(width), (column, width)
        assert row in range(height), (row, height)
        mask = _mask(item.kind, rng.randint(0, 3), rng.randint(-2, 2), rng.randint(-2, 2))
        colour = [min(255, max(0, c + rng.randint(-14, 14))) for c in COLOURS[item.colour]]
        tile = picture[CELL * row : CELL * (row + 1), CELL * column : CELL * (column + 1)]
        tile[mask] = colour
    return picture


def png_bytes(picture: np.ndarray) -> bytes:
    """The picture as a PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
