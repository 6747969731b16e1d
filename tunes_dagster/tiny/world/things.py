"""Things: mugs, sneakers, backpacks and so on, each in a colour."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from .palette import COLORS, INK, WHITE, Color, shade
from .pen import Pen

THINGS = ("mug", "sneaker", "backpack", "bottle", "chair", "car", "ball", "cactus")
THING_COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black", "white", "gray")
STRIPED = ("mug", "bottle", "ball", "backpack")


@dataclass(frozen=True)
class Thing:
    """Everything that stays the same from picture to picture of one thing. A cactus has a coloured pot."""

    sort: str
    color: str
    pattern: str = "plain"
    extras: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def kind(self) -> str:
        """The class word."""
        return self.sort


def random_thing(rng: random.Random) -> Thing:
    """One thing of the base's world."""
    sort = rng.choice(THINGS)
    striped = sort in STRIPED and rng.random() < 0.25
    return Thing(sort=sort, color=rng.choice(THING_COLORS), pattern="striped" if striped else "plain")


def draw_thing(pen: Pen, thing: Thing, mouth: str = "") -> None:
    """`thing` standing on the ground (its foot is at height 106)."""
    color: Color = thing.extras.get("color", COLORS[thing.color])
    dark = shade(color, 0.72) if thing.color != "black" else (84, 84, 92)
    stripe = WHITE if thing.color not in ("white", "gray", "yellow") else INK
    stripes = stripe if thing.pattern == "striped" else None
    _DRAW[thing.sort](pen, color, dark, stripes)
    if thing.sort == "mug":
        _mug_face(pen, thing)


def _shadow(pen: Pen, width: float) -> None:
    pen.ellipse(64, 106, width, 5.5, (70, 66, 70))


def _mug(pen: Pen, color: Color, dark: Color, stripes: Color | None) -> None:
    _shadow(pen, 38)
    pen.ring(92, 72, 15, 8, dark)
    pen.round_rect(30, 40, 90, 106, 10, color)
    pen.rect(30, 42, 90, 60, color)
    if stripes:
        pen.rect(30, 60, 90, 70, stripes)
        pen.rect(30, 80, 90, 90, stripes)
    pen.ellipse(60, 42, 30, 8.5, dark)
    pen.ellipse(60, 43.5, 25, 5.8, (84, 48, 28))


def _mug_face(pen: Pen, thing: Thing) -> None:
    """A smiling face or zigzag on a mug: held-out subjects only."""
    if "smiley" in thing.extras:
        color = thing.extras["smiley"]
        pen.circle(60, 78, 20, color)
        for side in (-1, 1):
            pen.ellipse(60 + side * 7.5, 73, 3, 4.5, INK)
        pen.arc(60, 79, 11, 10, (15, 165), 3.4, INK)


def _sneaker(pen: Pen, color: Color, dark: Color, stripes: Color | None) -> None:
    _shadow(pen, 50)
    sole = WHITE if color[0] + color[1] + color[2] < 690 else (120, 124, 130)
    pen.poly([(18, 56), (44, 52), (50, 60), (62, 68), (82, 78), (104, 84), (112, 96), (18, 96)], color)
    pen.ellipse(100, 92, 13, 9, color)
    pen.poly([(18, 56), (44, 52), (48, 58), (22, 64)], dark)
    pen.round_rect(14, 93, 114, 106, 6, sole)
    for x, y in ((52, 64), (62, 70), (72, 75)):
        pen.line([(x + 3, y - 2), (x - 5, y + 10)], 3.6, sole)
    pen.line([(26, 88), (44, 72)], 5, dark)


def _backpack(pen: Pen, color: Color, dark: Color, stripes: Color | None) -> None:
    _shadow(pen, 40)
    pen.ring(64, 30, 9, 5, dark)
    pen.round_rect(22, 66, 40, 100, 8, dark)
    pen.round_rect(88, 66, 106, 100, 8, dark)
    pen.round_rect(32, 30, 96, 106, 20, color)
    if stripes:
        pen.rect(32, 50, 96, 59, stripes)
    pen.round_rect(40, 72, 88, 100, 7, dark)
    pen.line([(44, 80), (84, 80)], 3, WHITE if color != WHITE else INK)
    pen.round_rect(59, 78, 69, 88, 3, (240, 200, 60))


def _bottle(pen: Pen, color: Color, dark: Color, stripes: Color | None) -> None:
    _shadow(pen, 27)
    pen.rect(56, 22, 72, 48, color)
    pen.round_rect(53, 14, 75, 27, 4, dark)
    pen.ellipse(64, 54, 22, 15, color)
    pen.round_rect(42, 50, 86, 106, 8, color)
    if stripes:
        pen.rect(42, 56, 86, 63, stripes)
        pen.rect(42, 94, 86, 101, stripes)
    pen.rect(42, 68, 86, 88, WHITE if sum(color) < 690 else (196, 200, 206))
    pen.circle(64, 78, 6, dark)


def _chair(pen: Pen, color: Color, dark: Color, stripes: Color | None) -> None:
    _shadow(pen, 38)
    for x in (34, 87):
        pen.rect(x, 70, x + 7, 106, dark)
    pen.round_rect(34, 18, 94, 58, 9, color)
    pen.round_rect(44, 28, 84, 46, 5, dark)
    for x in (38, 83):
        pen.rect(x, 56, x + 7, 70, dark)
    pen.round_rect(28, 66, 100, 80, 6, color)


def _car(pen: Pen, color: Color, dark: Color, stripes: Color | None) -> None:
    _shadow(pen, 54)
    pen.poly([(34, 70), (44, 46), (84, 46), (98, 70)], color)
    for window in ([(41, 68), (48, 52), (62, 52), (62, 68)], [(67, 68), (67, 52), (81, 52), (90, 68)]):
        pen.poly(window, (176, 216, 240))
    pen.round_rect(10, 66, 118, 96, 10, color)
    pen.rect(12, 82, 116, 87, dark)
    pen.circle(113, 76, 4.5, (252, 230, 120))
    for x in (35, 93):
        pen.circle(x, 95, 12, INK)
        pen.circle(x, 95, 5.5, (190, 194, 200))


def _ball(pen: Pen, color: Color, dark: Color, stripes: Color | None) -> None:
    _shadow(pen, 32)
    pen.circle(64, 72, 34, color)
    if stripes:
        pen.band(64, 72, 34, 34, 58, 68, stripes)
        pen.band(64, 72, 34, 34, 78, 88, stripes)
    else:
        pen.arc(30, 72, 32, 34, (-55, 55), 3.2, dark)
        pen.arc(98, 72, 32, 34, (125, 235), 3.2, dark)
    pen.ellipse(52, 54, 7, 4.5, shade(color, 2.2), turn=-35)


def _cactus(pen: Pen, color: Color, dark: Color, stripes: Color | None) -> None:
    _shadow(pen, 30)
    green, deep = (64, 150, 74), (40, 112, 54)
    pen.line([(60, 62), (38, 60), (38, 44)], 11, green)
    pen.line([(66, 56), (90, 54), (90, 36)], 11, green)
    pen.round_rect(51, 16, 77, 86, 12, green)
    for x in (59, 69):
        pen.line([(x, 26), (x, 76)], 2.4, deep)
    pen.circle(64, 16, 6, (246, 110, 160))
    pen.poly([(42, 82), (86, 82), (80, 106), (48, 106)], color)
    pen.round_rect(38, 74, 90, 86, 4, dark)


_DRAW = {
    "mug": _mug,
    "sneaker": _sneaker,
    "backpack": _backpack,
    "bottle": _bottle,
    "chair": _chair,
    "car": _car,
    "ball": _ball,
    "cactus": _cactus,
}
