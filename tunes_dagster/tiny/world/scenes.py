"""Backgrounds: eleven plain colours and nine scenes of a few large shapes."""

from __future__ import annotations

import random

from .palette import COLORS, WHITE, jitter, shade
from .pen import Pen

SCENES = ("beach", "forest", "mountains", "night", "snow", "desert", "city", "meadow", "table")
PLAINS = tuple(COLORS)
BACKGROUNDS = PLAINS + SCENES


def random_background(rng: random.Random, things: bool = False) -> str:
    """A colour (58 %) or a scene; a table only under things."""
    if rng.random() < 0.58:
        return rng.choice(PLAINS)
    return rng.choice(SCENES if things else SCENES[:-1])


def draw_background(pen: Pen, name: str, rng: random.Random) -> None:
    """Fill the whole sheet."""
    if name in COLORS:
        pen.rect(-2, -2, 130, 130, jitter(COLORS[name], rng))
    else:
        _SCENES[name](pen, rng)


def _sky(
    pen: Pen, color: tuple[int, int, int], ground: tuple[int, int, int], horizon: float, rng: random.Random
) -> None:
    pen.rect(-2, -2, 130, 130, jitter(color, rng))
    pen.rect(-2, horizon, 130, 130, jitter(ground, rng))


def _beach(pen: Pen, rng: random.Random) -> None:
    y = rng.uniform(84, 94)
    _sky(pen, (150, 214, 246), (246, 220, 156), y, rng)
    pen.rect(-2, y - 30, 130, y, (30, 130, 200))
    pen.rect(-2, y - 4, 130, y, (200, 236, 246))
    pen.circle(rng.choice((16, 112)), rng.uniform(14, 22), 12, (255, 226, 80))


def _forest(pen: Pen, rng: random.Random) -> None:
    _sky(pen, (196, 230, 200), (86, 140, 66), 104, rng)
    for i, x in enumerate((2.0, 24.0, 48.0, 80.0, 104.0, 126.0)):
        x, top = x + rng.uniform(-5, 5), rng.uniform(4, 26)
        pen.rect(x - 3, 96, x + 3, 112, (104, 70, 44))
        color = ((26, 96, 60), (42, 122, 70))[i % 2]
        pen.poly([(x, top), (x - 19, 102), (x + 19, 102)], color)


def _mountains(pen: Pen, rng: random.Random) -> None:
    _sky(pen, (164, 206, 244), (110, 172, 92), 98, rng)
    for x, top, color in (
        (22.0, 30.0, (112, 116, 138)),
        (106.0, 22.0, (96, 100, 124)),
        (64.0, 44.0, (130, 134, 154)),
    ):
        x, top = x + rng.uniform(-6, 6), top + rng.uniform(-6, 6)
        pen.poly([(x, top), (x - 46, 98), (x + 46, 98)], color)
        pen.poly(
            [(x, top), (x - 15, top + 22), (x - 4, top + 17), (x + 5, top + 23), (x + 15, top + 22)], WHITE
        )


def _night(pen: Pen, rng: random.Random) -> None:
    _sky(pen, (22, 26, 74), (20, 44, 50), 106, rng)
    for x, y in ((14, 40), (34, 12), (58, 6), (88, 16), (112, 60), (10, 78), (120, 92), (104, 34)):
        pen.star(x + rng.uniform(-5, 5), y + rng.uniform(-4, 4), 3.6, (255, 244, 190))
    x = rng.choice((18, 108))
    pen.circle(x, 18, 12, (255, 240, 170))
    pen.circle(x + 6, 15, 10, (22, 26, 74))


def _snow(pen: Pen, rng: random.Random) -> None:
    _sky(pen, (156, 184, 222), (248, 250, 252), 96, rng)
    for x, y in ((10, 14), (32, 34), (54, 10), (80, 22), (104, 10), (118, 40), (12, 62), (114, 74), (96, 50)):
        pen.circle(x + rng.uniform(-5, 5), y + rng.uniform(-5, 5), 3, WHITE)


def _desert(pen: Pen, rng: random.Random) -> None:
    y = rng.uniform(84, 94)
    _sky(pen, (252, 166, 96), (222, 160, 90), y, rng)
    pen.circle(rng.uniform(20, 108), y - 30, 17, (255, 232, 130))
    pen.ellipse(rng.uniform(10, 40), y + 6, 50, 18, (210, 140, 74))
    pen.ellipse(rng.uniform(90, 120), y + 12, 56, 20, (198, 126, 64))


def _city(pen: Pen, rng: random.Random) -> None:
    _sky(pen, (186, 208, 228), (98, 100, 108), 108, rng)
    for i, x in enumerate((-4, 22, 48, 76, 102)):
        top = rng.uniform(8, 44)
        color = ((92, 104, 132), (150, 110, 96), (118, 126, 142))[(i + rng.randrange(2)) % 3]
        pen.rect(x, top, x + 24, 108, color)
        for row in range(4):
            for column in (4, 14):
                y = top + 7 + 17 * row
                if y < 98:
                    pen.rect(x + column, y, x + column + 7, y + 9, (252, 236, 150))


def _meadow(pen: Pen, rng: random.Random) -> None:
    y = rng.uniform(78, 90)
    _sky(pen, (134, 202, 248), (112, 190, 80), y, rng)
    for x in (rng.uniform(8, 40), rng.uniform(88, 120)):
        cy = rng.uniform(12, 26)
        for dx, r in ((-10, 7), (0, 10), (11, 7)):
            pen.circle(x + dx, cy, r, WHITE)
    for x in (8, 28, 100, 120):
        x, fy = x + rng.uniform(-5, 5), rng.uniform(y + 10, 122)
        pen.circle(x, fy, 5, rng.choice(((246, 110, 160), (250, 210, 50), WHITE)))
        pen.circle(x, fy, 2, (240, 170, 30))


def _table(pen: Pen, rng: random.Random) -> None:
    _sky(pen, (244, 230, 204), (160, 104, 62), rng.uniform(84, 92), rng)
    pen.rect(-2, 116, 130, 130, shade((160, 104, 62), 0.75))


_SCENES = {
    "beach": _beach,
    "forest": _forest,
    "mountains": _mountains,
    "night": _night,
    "snow": _snow,
    "desert": _desert,
    "city": _city,
    "meadow": _meadow,
    "table": _table,
}
