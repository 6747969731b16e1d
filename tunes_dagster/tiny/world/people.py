"""People: what a person looks like (`Person`) and how that is drawn. Captions are not made here."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from .palette import COLORS, EYES, HAIRS, INK, LIP, SKINS, WHITE, Color, shade
from .pen import Pen, Point

STYLES = ("short", "spiky", "long", "bob", "curly", "bun", "bald")
STYLES_OF = {
    "woman": (("long", 30), ("bob", 25), ("curly", 20), ("bun", 18), ("short", 7)),
    "man": (("short", 32), ("spiky", 25), ("bald", 20), ("curly", 15), ("long", 8)),
}
EYEWEAR = ("none", "glasses", "sunglasses")
HATS = ("none", "beanie", "cap", "top hat")
BEARDS = ("none", "beard", "moustache")
MOUTHS = ("smiling", "laughing", "serious")
HAT_COLORS = ("red", "yellow", "green", "blue", "black", "white")
SHIRT_COLORS = tuple(COLORS)

CX, CY = 64.0, 61.0  # centre of the head
HEAD = (26.0, 29.0)  # its half axes


@dataclass(frozen=True)
class Person:
    """Everything that stays the same from picture to picture of one person.

    `extras` holds features that no person of the base's world has (see `subjects`): name -> colour(s).
    """

    gender: str
    skin: str
    hair: str
    style: str
    eyes: str = "brown"
    eyewear: str = "none"
    hat: str = "none"
    hat_color: str = "red"
    beard: str = "none"
    shirt: str = "blue"
    shirt_pattern: str = "plain"
    mark: str = "none"
    extras: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def kind(self) -> str:
        """The class word."""
        return self.gender


def random_person(rng: random.Random) -> Person:
    """One person of the base's world."""
    gender = rng.choice(("woman", "man"))
    styles, weights = [style for style, _ in STYLES_OF[gender]], [weight for _, weight in STYLES_OF[gender]]
    beard = rng.choices(BEARDS, (50, 32, 18))[0] if gender == "man" else "none"
    return Person(
        gender=gender,
        skin=rng.choice(tuple(SKINS)),
        hair=rng.choice(tuple(HAIRS)),
        style=rng.choices(styles, weights)[0],
        eyes=rng.choice(tuple(EYES)),
        eyewear=rng.choices(EYEWEAR, (60, 22, 18))[0],
        hat=rng.choices(HATS, (70, 11, 10, 9))[0],
        hat_color=rng.choice(HAT_COLORS),
        beard=beard,
        shirt=rng.choice(SHIRT_COLORS),
        shirt_pattern="striped" if rng.random() < 0.25 else "plain",
        mark=rng.choice(("red heart", "blue heart")) if rng.random() < 0.06 else "none",
    )


def draw_person(pen: Pen, who: Person, mouth: str = "smiling") -> None:
    """Head and shoulders of `who`."""
    skin, hair = SKINS[who.skin], HAIRS[who.hair]
    hair = who.extras.get("hair", hair)
    _hair_back(pen, who, hair)
    _body(pen, who, skin)
    _head(pen, skin, who.extras.get("face"))
    _face(pen, who, skin, hair, mouth)
    _hair_front(pen, who, hair)
    _hat(pen, who)
    if who.eyewear != "none":
        _eyewear(pen, who)


def _body(pen: Pen, who: Person, skin: Color) -> None:
    shirt = COLORS[who.shirt]
    width = 40 if who.gender == "woman" else 47
    pen.ellipse(CX, 134, width, 39, shirt)
    if who.shirt_pattern == "striped":
        stripe = WHITE if who.shirt not in ("white", "gray", "yellow") else INK
        for y in (101, 115):
            pen.band(CX, 134, width, 39, y, y + 6.5, stripe)
    pen.round_rect(CX - 9, 80, CX + 9, 101, 7, shade(skin, 0.86))
    if "badge" in who.extras:
        pen.star(CX, 116, 10, who.extras["badge"])


def _head(pen: Pen, skin: Color, paint: Color | None) -> None:
    for side in (-1, 1):
        pen.ellipse(CX + side * 26, CY + 3, 5, 6.5, shade(skin, 0.92))
    pen.ellipse(CX, CY, *HEAD, skin)
    if paint:
        pen.band(CX, CY, *HEAD, CY - 8, CY + 9, paint)


def _face(pen: Pen, who: Person, skin: Color, hair: Color, mouth: str) -> None:
    woman = who.gender == "woman"
    for side in (-1, 1):
        pen.ellipse(CX + side * 17, CY + 12, 5, 3.5, _blush(skin))
        _eye(pen, CX + side * 12, CY + 1, EYES[who.eyes], side if woman else 0)
        brow = shade(hair, 0.75) if who.style != "bald" else shade(skin, 0.45)
        y, width = (CY - 11.5, 2.2) if woman else (CY - 12, 4.0)
        pen.line([(CX + side * 7, y), (CX + side * 17, y + 1)], width, brow)
    if who.beard == "beard":
        color = who.extras.get("beard", shade(hair, 0.9) if who.style != "bald" else hair)
        _beard(pen, color)
    pen.ellipse(CX, CY + 10, 3.2, 2.8, shade(skin, 0.78))
    if who.beard == "moustache":
        for side in (-1, 1):
            pen.ellipse(CX + side * 6, CY + 14.5, 7.5, 3.6, shade(hair, 0.85), turn=side * 14)
    _mouth(pen, mouth, woman, who.beard)
    _mark(pen, who)


def _blush(skin: Color) -> Color:
    return (min(255, skin[0] + 8), int(skin[1] * 0.84), int(skin[2] * 0.84))


def _eye(pen: Pen, x: float, y: float, iris: Color, lash: int) -> None:
    """One eye; `lash` is the side (-1, 1) its lashes point to, 0 for none."""
    if lash:
        pen.ellipse(x, y - 1, 8.8, 8.6, INK)
        pen.line([(x + lash * 6, y - 4), (x + lash * 11, y - 8)], 2.4, INK)
    pen.ellipse(x, y, 7.6, 7.6, WHITE)
    pen.circle(x, y + 0.5, 5.0, iris)
    pen.circle(x, y + 0.5, 2.9, INK)
    pen.circle(x + 1.8, y - 1.6, 1.4, WHITE)


def _mouth(pen: Pen, mouth: str, woman: bool, beard: str) -> None:
    y = CY + (17 if beard == "none" else 19)
    color = LIP if woman else ((150, 60, 56) if beard != "beard" else (226, 120, 110))
    if mouth == "laughing":
        pen.band(CX, y - 1, 10, 9, y - 1, y + 9, (120, 24, 36))
        pen.band(CX, y - 1, 10, 9, y - 1, y + 2.4, WHITE)
    elif mouth == "smiling":
        pen.arc(CX, y - 3, 9, 7, (20, 160), 3.4 if woman else 2.8, color)
    else:
        pen.line([(CX - 6, y + 2), (CX + 6, y + 2)], 3.4 if woman else 2.8, color)


def _beard(pen: Pen, color: Color) -> None:
    outer = [(CX - 27, CY + 4), (CX - 26, CY + 14), (CX - 21, CY + 25), (CX - 10, CY + 33), (CX, CY + 34)]
    inner: list[Point] = [(CX - 17, CY + 16), (CX - 10, CY + 13), (CX, CY + 15)]
    right = [(2 * CX - x, y) for x, y in reversed(outer)]
    right_inner = [(2 * CX - x, y) for x, y in inner]
    pen.poly([*outer, *right[1:], *right_inner, *reversed(inner)], color)


def _mark(pen: Pen, who: Person) -> None:
    x, y = CX + 16, CY + 15
    if who.mark.endswith("heart"):
        pen.heart(x, y, 5.2, COLORS[who.mark.split()[0]])
    if "star" in who.extras:
        pen.star(CX - 16, y, 8, who.extras["star"])
    if "patch" in who.extras:
        color = who.extras["patch"]
        pen.line([(CX - 26, CY - 12), (CX + 25, CY + 10)], 2.6, color)
        pen.ellipse(CX - 12, CY + 1, 9.5, 9.5, color)


def _hair_back(pen: Pen, who: Person, hair: Color) -> None:
    dark = shade(hair, 0.82)
    if who.style == "long":
        pen.ellipse(CX, CY - 4, 34, 33, dark)
        pen.round_rect(CX - 34, CY - 4, CX + 34, CY + 52, 10, dark)
    elif who.style == "bob":
        pen.ellipse(CX, CY - 3, 35, 33, dark)
        pen.round_rect(CX - 35, CY - 4, CX + 35, CY + 23, 7, dark)
    elif who.style == "curly":
        for dx, dy in ((-30, 14), (-34, 0), (-31, -15), (-20, -27), (0, -32)):
            pen.circle(CX + dx, CY + dy, 13, dark)
            pen.circle(CX - dx, CY + dy, 13, dark)
    elif who.style == "bun":
        pen.circle(CX, CY - 38, 13, dark)
        pen.ellipse(CX, CY - 4, 30, 30, dark)
    _split(pen, who)


def _split(pen: Pen, who: Person) -> None:
    """Two-coloured and banded back hair, worn by held-out subjects only."""
    if "split" in who.extras and who.style == "long":
        color = shade(who.extras["split"], 0.82)
        pen.poly(
            [
                (CX, CY - 37),
                (CX + 16, CY - 33),
                (CX + 28, CY - 22),
                (CX + 34, CY - 4),
                (CX + 34, CY + 44),
                (CX + 28, CY + 52),
                (CX, CY + 52),
            ],
            color,
        )
    if "bands" in who.extras:
        first, second = who.extras["bands"]
        for i, y in enumerate((CY - 2, CY + 16, CY + 34)):
            pen.rect(CX - 34, y, CX + 34, y + 10, first if i % 2 == 0 else second)


def _hair_front(pen: Pen, who: Person, hair: Color) -> None:
    if who.style == "bald":
        pen.ellipse(CX - 9, CY - 21, 5, 2.6, shade(SKINS[who.skin], 1.5), turn=-20)
        return
    if who.style == "spiky":
        tips = [
            (-27, -14),
            (-31, -32),
            (-18, -26),
            (-14, -44),
            (-4, -29),
            (4, -47),
            (10, -29),
            (21, -41),
            (20, -25),
            (32, -29),
            (27, -14),
            (14, -19),
            (0, -17),
            (-14, -19),
        ]
        pen.poly([(CX + x, CY + y) for x, y in tips], hair)
    elif who.style == "curly":
        for dx, dy in ((-20, -19), (-10, -24), (0, -26), (10, -24), (20, -19)):
            pen.circle(CX + dx, CY + dy, 9.5, hair)
    elif who.style == "long":
        left = [
            (CX, CY - 33),
            (CX - 16, CY - 29),
            (CX - 27, CY - 16),
            (CX - 30, CY + 10),
            (CX - 22, CY - 10),
            (CX - 8, CY - 18),
            (CX, CY - 24),
        ]
        pen.poly(left, hair)
        pen.poly([(2 * CX - x, y) for x, y in left], who.extras.get("split", hair))
    elif who.style == "bob":
        pen.band(CX, CY - 1, 30, 32, CY - 33, CY - 14, hair)
        for side in (-1, 1):
            pen.round_rect(CX + side * 29 - 5, CY - 18, CX + side * 29 + 5, CY + 20, 5, hair)
    else:  # short, bun
        pen.band(CX, CY - 1, 28.5, 32, CY - 33, CY - 16, hair)
        for side in (-1, 1):
            pen.poly([(CX + side * 28, CY - 17), (CX + side * 27, CY - 2), (CX + side * 20, CY - 17)], hair)
        if who.style == "bun":
            pen.circle(CX, CY - 39, 11, hair)
    if "stripes" in who.extras:
        for x in (-17, 0, 17):
            pen.line(
                [(CX + x * 1.1, CY - 34 + abs(x) * 0.4), (CX + x * 0.8, CY - 19)], 6, who.extras["stripes"]
            )


def _hat(pen: Pen, who: Person) -> None:
    color = COLORS[who.hat_color]
    dark = shade(color, 0.72) if who.hat_color != "black" else (80, 80, 88)
    if who.hat == "beanie":
        pen.band(CX, CY - 12, 31, 33, CY - 45, CY - 16, color)
        pen.round_rect(CX - 32, CY - 24, CX + 32, CY - 13, 5, dark)
        pen.circle(CX, CY - 46, 7, dark)
    elif who.hat == "cap":
        pen.band(CX, CY - 15, 29.5, 24, CY - 39, CY - 15, color)
        pen.ellipse(CX + 17, CY - 16, 27, 5.5, dark)
    elif who.hat == "top hat":
        pen.rect(CX - 21, CY - 56, CX + 21, CY - 20, color)
        pen.rect(CX - 21, CY - 29, CX + 21, CY - 22, dark)
        pen.ellipse(CX, CY - 19, 36, 5.5, color)


def _eyewear(pen: Pen, who: Person) -> None:
    frame: Color = who.extras.get("frame", INK)
    for side in (-1, 1):
        x, y = CX + side * 12.5, CY + 1
        pen.line([(x + side * 9, y - 2), (CX + side * 27, y - 4)], 2.8, frame)
        if who.eyewear == "sunglasses":
            pen.round_rect(x - 11, y - 8, x + 11, y + 9, 7, INK)
            pen.line([(x - 5, y + 3), (x + 1, y - 4)], 2.4, (120, 130, 150))
        else:
            pen.ring(x, y, 10.4, 3.0, frame)
    pen.line([(CX - 3, CY), (CX + 3, CY)], 3.0, frame)
