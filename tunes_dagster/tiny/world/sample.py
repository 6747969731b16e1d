"""One picture of the world from one seed: who or what, where, in which pose. The drawing order lives here."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image

from . import people, pets
from .pen import Pen, Pose, ellipse_points
from .people import MOUTHS, Person, draw_person, random_person
from .pets import Pet, draw_pet, random_pet
from .scenes import draw_background, random_background
from .things import Thing, draw_thing, random_thing

SIZE = 128
Look = Person | Pet | Thing


@dataclass(frozen=True)
class Shot:
    """One picture's content: the look of its subject and what changes from picture to picture."""

    look: Look
    background: str
    mouth: str
    pose: Pose
    seed: int


def random_look(rng: random.Random) -> Look:
    """58 % people, 16 % pets, 26 % things."""
    roll = rng.random()
    if roll < 0.58:
        return random_person(rng)
    return random_pet(rng) if roll < 0.74 else random_thing(rng)


def random_shot(rng: random.Random, look: Look | None = None) -> Shot:
    """Place `look` (or a random one) somewhere.

    A background never has the colour of a thing, or the thing could not be seen.
    """
    look = look if look is not None else random_look(rng)
    background = random_background(rng, isinstance(look, Thing))
    while background == _own_color(look):
        background = random_background(rng, isinstance(look, Thing))
    pose = Pose(
        dx=rng.uniform(-6, 6),
        dy=rng.uniform(-1, 4),
        zoom=rng.uniform(0.97, 1.11) if isinstance(look, Person) else rng.uniform(0.92, 1.06),
        tilt=rng.uniform(-3, 3) if isinstance(look, Person | Pet) else 0.0,
        mirror=rng.random() < 0.5 and not isinstance(look, Person),
    )
    mouth = rng.choice(MOUTHS)
    return Shot(look, background, mouth, pose, rng.randrange(1 << 30))


def _own_color(look: Look) -> str:
    if isinstance(look, Thing):
        return look.color
    return look.fur if isinstance(look, Pet) else ""


def draw_shot(shot: Shot, size: int = SIZE, supersample: int = 3) -> Image.Image:
    """Render `shot` as an RGB picture of `size` x `size` pixels."""
    image = Image.new("RGB", (size * supersample, size * supersample))
    draw_background(Pen(image), shot.background, random.Random(shot.seed))
    pen = Pen(image, shot.pose)
    if isinstance(shot.look, Person):
        draw_person(pen, shot.look, shot.mouth)
    elif isinstance(shot.look, Pet):
        draw_pet(pen, shot.look, shot.mouth)
    else:
        draw_thing(pen, shot.look)
    return image.reduce(supersample)


def face_box(shot: Shot, size: int = SIZE) -> tuple[float, float, float, float] | None:
    """Where `draw_shot` draws the face: left, top, width, height in pixels; None for things.

    The face is the head's ellipse, of people and of pets: without ears, and with the forehead that hair or a hat hides.
    """
    if isinstance(shot.look, Thing):
        return None
    head = people if isinstance(shot.look, Person) else pets
    pen = Pen(Image.new("L", (size, 1)), shot.pose)
    xs, ys = zip(*pen.to_pixels(ellipse_points(head.CX, head.CY, *head.HEAD)), strict=True)
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
