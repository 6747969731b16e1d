"""Pets: dogs, cats and rabbits, their looks and how they are drawn."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from .palette import COLORS, EYES, FURS, INK, WHITE, Color, shade
from .pen import Pen

PETS = ("dog", "cat", "rabbit")
COLLARS = ("none", "red", "blue", "yellow", "green")
CX, CY = 64.0, 56.0  # centre of the head
HEAD = (31.0, 27.0)  # its half axes


@dataclass(frozen=True)
class Pet:
    """Everything that stays the same from picture to picture of one pet."""

    species: str
    fur: str
    collar: str = "none"
    eyes: str = "brown"
    patch: str = "none"
    extras: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def kind(self) -> str:
        """The class word."""
        return self.species


def random_pet(rng: random.Random) -> Pet:
    """One pet of the base's world."""
    fur = rng.choice(tuple(FURS))
    patches = [c for c in ("black", "brown", "white") if c != fur]
    return Pet(
        species=rng.choice(PETS),
        fur=fur,
        collar=rng.choices(COLLARS, (50, 14, 12, 12, 12))[0],
        eyes=rng.choice(tuple(EYES)),
        patch=rng.choice(patches) if rng.random() < 0.25 else "none",
    )


def draw_pet(pen: Pen, pet: Pet, mouth: str = "smiling") -> None:
    """`pet` sitting, seen from the front."""
    fur: Color = pet.extras.get("fur", FURS[pet.fur])
    dark, light = shade(fur, 0.78), shade(fur, 1.7)
    if pet.fur == "black" and "fur" not in pet.extras:
        dark, light = (78, 76, 84), (120, 118, 126)
    pen.ellipse(CX, 124, 33, 42, fur)
    pen.ellipse(CX, 124, 17, 32, light)
    _ears(pen, pet, fur, dark)
    pen.ellipse(CX, CY, *HEAD, fur)
    if pet.patch != "none":
        pen.ellipse(CX + 13, CY - 3, 12.5, 13, FURS[pet.patch])
    _spots(pen, pet)
    for side in (-1, 1):
        x = CX + side * 13
        pen.ellipse(x, CY - 3, 8.2, 8.6, INK)
        pen.ellipse(x, CY - 3, 7, 7.4, WHITE if pet.species == "dog" else EYES[pet.eyes])
        if pet.species == "dog":
            pen.circle(x, CY - 2, 5, EYES[pet.eyes])
        pen.ellipse(
            x, CY - 2, 2.2 if pet.species == "cat" else 3.2, 5.2 if pet.species == "cat" else 3.4, INK
        )
        pen.circle(x + 2, CY - 5, 1.5, WHITE)
    _muzzle(pen, pet, light, mouth)
    if pet.collar != "none":
        pen.arc(CX, CY + 22, 24, 13, (25, 155), 6.5, COLORS[pet.collar])
        pen.circle(CX, CY + 37, 4.2, (240, 200, 60))


def _ears(pen: Pen, pet: Pet, fur: Color, dark: Color) -> None:
    inner = (244, 170, 170)
    for side in (-1, 1):
        if pet.species == "dog":
            pen.ellipse(CX + side * 31, CY + 2, 9, 22, dark, turn=-side * 14)
        elif pet.species == "cat":
            pen.poly([(CX + side * 30, CY - 6), (CX + side * 29, CY - 42), (CX + side * 5, CY - 22)], fur)
            pen.poly([(CX + side * 25, CY - 13), (CX + side * 25, CY - 32), (CX + side * 12, CY - 21)], inner)
        else:
            pen.ellipse(CX + side * 14, CY - 34, 9, 23, fur, turn=side * 8)
            pen.ellipse(CX + side * 14, CY - 34, 4.6, 17, inner, turn=side * 8)


def _spots(pen: Pen, pet: Pet) -> None:
    """Spots and tiger stripes, worn by held-out subjects only."""
    if "spots" in pet.extras:
        for x, y, r in ((-20, -15, 7), (4, -20, 6.5), (22, 8, 6), (-24, 8, 5.5)):
            pen.circle(CX + x, CY + y, r, pet.extras["spots"])
        for x, y, r in ((-22, 52, 7), (20, 46, 7), (-26, 70, 5), (25, 66, 5)):
            pen.circle(CX + x, CY + y, r, pet.extras["spots"])
    if "stripes" in pet.extras:
        color = pet.extras["stripes"]
        for x in (-12, 0, 12):
            pen.line([(CX + x, CY - 25 + abs(x) * 0.3), (CX + x * 0.9, CY - 14)], 5, color)
        for side in (-1, 1):
            for y in (46, 58, 70):
                pen.line([(CX + side * 31, CY + y), (CX + side * 19, CY + y + 3)], 5, color)


def _muzzle(pen: Pen, pet: Pet, light: Color, mouth: str) -> None:
    if pet.species == "dog":
        if mouth != "serious":
            pen.ellipse(CX, CY + 23, 5.5, 8, (232, 96, 110))
        pen.ellipse(CX, CY + 13, 15, 10.5, light)
        pen.ellipse(CX, CY + 7, 6.5, 4.8, INK)
        pen.line([(CX, CY + 10), (CX, CY + 18)], 2, INK)
        return
    for side in (-1, 1):
        pen.ellipse(CX + side * 6.5, CY + 13, 8, 7, light)
        if pet.species == "cat":
            ink = INK if pet.fur != "black" else (200, 200, 205)
            pen.line([(CX + side * 15, CY + 11), (CX + side * 33, CY + 7)], 1.8, ink)
            pen.line([(CX + side * 15, CY + 15), (CX + side * 33, CY + 17)], 1.8, ink)
    pen.poly([(CX - 5, CY + 6), (CX + 5, CY + 6), (CX, CY + 11)], (228, 110, 120))
    if pet.species == "rabbit":
        pen.rect(CX - 4, CY + 17, CX + 4, CY + 24, WHITE)
        pen.line([(CX, CY + 17), (CX, CY + 24)], 1.2, INK)
    elif mouth == "laughing":
        pen.ellipse(CX, CY + 20, 4, 4, (232, 96, 110))
