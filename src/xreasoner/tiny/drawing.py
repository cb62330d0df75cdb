"""Scenes as pictures, with what stands in each 28-pixel cell (the vision tower's lessons in `make base`).

Qwen2.5-VL turns each 28×28 block into one token. A picture here is a grid of such cells; words and numbers are
drawn in many fonts, sizes and colours, off-centre, with noise; a word reaches into its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from xreasoner.tiny.world import Domain, Scene

CELL = 28
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
)
RGB = {
    "red": (214, 40, 40),
    "blue": (38, 84, 214),
    "green": (40, 150, 60),
    "yellow": (240, 205, 40),
    "black": (20, 20, 20),
    "gray": (128, 128, 128),
    "pink": (250, 140, 180),
    "white": (252, 252, 252),
    "orange": (245, 140, 30),
    "purple": (125, 50, 165),
    "cyan": (40, 190, 215),
}
_PAPER: dict[Domain, tuple[tuple[int, int, int], ...]] = {
    "general": ((255, 255, 255), (250, 244, 228), (232, 240, 250), (38, 42, 52)),
    "clinical": ((226, 246, 240), (248, 232, 238), (222, 236, 248), (24, 56, 62)),
}
_SHAPE_PAPER: dict[Domain, tuple[tuple[int, int, int], ...]] = {
    "general": ((255, 255, 255), (246, 236, 215), (222, 230, 245)),
    "clinical": ((120, 160, 150), (140, 150, 175), (160, 145, 135)),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """What a cell says: up to two tokens (`Ana`; tens and units; colour and form), and what stands before it.

    before: for a number the name of its row; for a name the name of the row above; for a shape the shape before.
    """

    first: str
    second: str = ""
    before: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True)
class Drawing:
    """An RGB picture of rows × columns cells and the cells that hold something, by (row, column).

    cards: a table's entries stand two by two, not one below the other.
    """

    image: Image.Image
    cells: dict[tuple[int, int], Cell]
    cards: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        return self.image.height // CELL, self.image.width // CELL


@lru_cache(maxsize=256)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    spec = find_spec("matplotlib")
    origin = spec and spec.origin
    assert origin, "matplotlib brings the fonts"
    return ImageFont.truetype(Path(origin).parent / "mpl-data/fonts/ttf" / name, size)


def _ink(rng: Random, paper: tuple[int, int, int]) -> tuple[int, int, int]:
    dark = sum(paper) < 300
    low, high = (185, 255) if dark else (0, 90)
    return rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)


def _write(
    draw: ImageDraw.ImageDraw,
    rng: Random,
    text: str,
    centre: tuple[int, int],
    font: str,
    size: int,
    ink: tuple[int, int, int],
    shift: int,
) -> None:
    """Text around a centre, give or take a shift in pixels, shrunk until it is at most 54 pixels wide."""
    face = _font(font, size)
    while draw.textlength(text, font=face) > 54:
        size -= 1
        face = _font(font, size)
    x, y = centre[0] + rng.randint(-shift, shift), centre[1] + rng.randint(-shift, shift)
    draw.text((x, y), text, fill=ink, font=face, anchor="mm")


def _noise(rng: Random, image: Image.Image) -> Image.Image:
    """Mild Gaussian noise and a little change of brightness."""
    generator = np.random.default_rng(rng.getrandbits(32))
    pixels = np.asarray(image, dtype=np.float32) * rng.uniform(0.92, 1.0)
    pixels += generator.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(0.0, 7.0)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _slots(rng: Random, size: int, domain: Domain) -> tuple[int, int, list[tuple[tuple[int, int], tuple[int, int]]]]:
    """Rows, columns, and for each entry the cells of its name and its number, by a layout drawn at random."""
    layout = rng.choice(("list", "swapped", "cards"))
    if layout == "cards":
        places = [(2 * (i // 2), 1 + 2 * (i % 2)) for i in range(size)]
        flip = domain == "clinical"  # clinical cards have the number on top
        return 4, 5, [((r + flip, c), (r + (not flip), c)) for r, c in places]
    top = rng.choice((0, 0, 1))
    name, number = (1, 3) if layout == "list" else (2, 0)
    rows = size + top
    return rows, 4, [((top + i, name), (top + i, number)) for i in range(size)]


def _draw_table(rng: Random, scene: Scene, variety: float) -> Drawing:
    rows, columns, places = _slots(rng, len(scene.entries), scene.domain)
    paper = rng.choice(_PAPER[scene.domain])
    image = Image.new("RGB", (columns * CELL, rows * CELL), paper)
    draw = ImageDraw.Draw(image)
    ink, font = _ink(rng, paper), rng.choice(FONTS[: 1 + round(variety * (len(FONTS) - 1))])
    size, shift = rng.randint(14 - round(variety), 14 + round(2 * variety)), round(3 * variety)
    if columns == 4 and rng.random() < 0.4:
        line = tuple((3 * p + i) // 4 for p, i in zip(paper, ink, strict=True))
        for row in range(1, rows):
            draw.line((0, row * CELL, columns * CELL, row * CELL), fill=line)
    if columns == 4 and rows > len(scene.entries):
        assert scene.theme is not None
        _write(draw, rng, scene.theme.title, (2 * CELL, CELL // 2), font, 13, ink, shift)
    cells, before = {}, ""
    for (name, value), (name_cell, value_cell) in zip(scene.entries, places, strict=True):
        for text, (row, column) in ((name, name_cell), (value, value_cell)):
            _write(draw, rng, text, (column * CELL + CELL // 2, row * CELL + CELL // 2), font, size, ink, shift)
        cells[name_cell] = Cell(name, "", (before, ""))
        cells[value_cell] = Cell(value[0], value[1:], (name, ""))
        before = name
    return Drawing(_noise(rng, image), cells, cards=columns == 5)


def _form(draw: ImageDraw.ImageDraw, form: str, x: int, y: int, r: int, fill: tuple[int, int, int]) -> None:
    edge = tuple(max(0, channel - 70) for channel in fill)
    if form == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif form == "square":
        draw.rectangle((x - r, y - r, x + r, y + r), fill=fill)
    elif form == "triangle":
        draw.polygon(((x, y - r), (x - r, y + r), (x + r, y + r)), fill=fill)
    elif form == "star":
        points = [(r if i % 2 == 0 else r * 0.42) for i in range(10)]
        angles = np.arange(10) * np.pi / 5 - np.pi / 2
        draw.polygon([(x + p * np.cos(a), y + p * np.sin(a)) for p, a in zip(points, angles, strict=True)], fill=fill)
    elif form == "tablet":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=edge)
        draw.line((x - r, y, x + r, y), fill=edge, width=2)
    elif form == "capsule":
        draw.rounded_rectangle((x - r - 2, y - r // 2, x + r + 2, y + r // 2), radius=r // 2, fill=fill, outline=edge)
    elif form == "vial":
        draw.rectangle((x - r // 2, y - r + 3, x + r // 2, y + r), fill=fill, outline=edge)
        draw.rectangle((x - r // 3, y - r, x + r // 3, y - r + 3), fill=edge)
    else:
        draw.polygon(((x, y - r - 1), (x - r + 2, y + 2), (x + r - 2, y + 2)), fill=fill)
        draw.ellipse((x - r + 2, y - r // 2, x + r - 2, y + r), fill=fill)


def _draw_shapes(rng: Random, scene: Scene) -> Drawing:
    rows, columns = rng.choice(((2, 3), (2, 4), (3, 3)))
    image = Image.new("RGB", (columns * CELL, rows * CELL), rng.choice(_SHAPE_PAPER[scene.domain]))
    draw = ImageDraw.Draw(image)
    places = sorted(rng.sample([(r, c) for r in range(rows) for c in range(columns)], len(scene.entries)))
    cells, before = {}, ("", "")
    for (colour, form), (row, column) in zip(scene.entries, places, strict=True):
        radius = rng.randint(7, 10)
        x, y = (k * CELL + CELL // 2 + rng.randint(-2, 2) for k in (column, row))
        fill = tuple(min(255, max(0, channel + rng.randint(-14, 14))) for channel in RGB[colour])
        _form(draw, form, x, y, radius, (fill[0], fill[1], fill[2]))
        cells[row, column] = Cell(colour, form, before)
        before = (colour, form)
    return Drawing(_noise(rng, image), cells)


def draw_scene(rng: Random, scene: Scene, variety: float = 1.0) -> Drawing:
    """A fresh picture of the scene. variety from 0 (one font and size, no shift) to 1 is the tower's curriculum."""
    return _draw_shapes(rng, scene) if scene.theme is None else _draw_table(rng, scene, variety)
