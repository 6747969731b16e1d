"""Colours of the drawn world: the names that captions use and what they look like. No drawing here."""

from __future__ import annotations

import random

Color = tuple[int, int, int]

COLORS: dict[str, Color] = {
    "red": (214, 40, 44),
    "orange": (246, 136, 30),
    "yellow": (250, 210, 50),
    "green": (46, 158, 72),
    "blue": (42, 96, 214),
    "purple": (130, 60, 180),
    "pink": (246, 130, 180),
    "brown": (126, 78, 44),
    "black": (32, 32, 36),
    "white": (246, 246, 244),
    "gray": (140, 144, 150),
}
"""Shirts, hats, backgrounds and things."""

SKINS: dict[str, Color] = {
    "pale": (252, 222, 200),
    "tan": (232, 178, 130),
    "brown": (170, 112, 72),
    "dark": (104, 66, 46),
}

HAIRS: dict[str, Color] = {
    "black": (34, 28, 30),
    "brown": (104, 62, 34),
    "blond": (244, 208, 104),
    "red": (200, 72, 28),
    "gray": (182, 184, 190),
    "blue": (52, 112, 220),
    "purple": (140, 70, 190),
    "pink": (250, 128, 184),
}
"""Hair. Green and turquoise are left out on purpose: they belong to the held-out subjects."""

FURS: dict[str, Color] = {
    "black": (44, 42, 48),
    "brown": (134, 86, 50),
    "white": (244, 242, 238),
    "gray": (146, 148, 156),
    "orange": (238, 148, 60),
    "cream": (240, 214, 164),
}

EYES: dict[str, Color] = {"blue": (50, 120, 220), "green": (50, 150, 70), "brown": (110, 66, 34)}

INK: Color = (34, 26, 30)
WHITE: Color = (252, 252, 250)
LIP: Color = (196, 48, 64)


def shade(color: Color, factor: float) -> Color:
    """Darker (`factor` < 1) or lighter (`factor` > 1, towards white) variant of `color`."""
    if factor <= 1:
        return tuple(int(c * factor) for c in color)  # type: ignore[return-value]
    return tuple(int(255 - (255 - c) / factor) for c in color)  # type: ignore[return-value]


def jitter(color: Color, rng: random.Random, amount: int = 7) -> Color:
    """`color` with each channel moved by at most `amount` of 255, all channels mostly together."""
    common = rng.uniform(-amount, amount)
    return tuple(  # type: ignore[return-value]
        max(0, min(255, round(c + common + rng.uniform(-amount, amount) * 0.4))) for c in color
    )
