"""Held-out subjects: people, a pet and a thing that the base's world does not contain.

Their features (green, turquoise or two-coloured hair, stars, spots, smileys) exist in no training picture, so
whoever renders them has learned them from a tune.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image

from .captions import place
from .palette import COLORS
from .people import Person
from .pets import Pet
from .sample import SIZE, Look, Shot, draw_shot, random_shot
from .things import Thing

GREEN, LIME, TEAL, YELLOW = (40, 170, 70), (150, 220, 60), (20, 180, 170), (252, 220, 50)


@dataclass(frozen=True)
class Subject:
    """One held-out subject: its look, the token a tune binds it to, and what a person would say about it."""

    name: str
    token: str
    look: Look
    description: str

    @property
    def kind(self) -> str:
        """The class word (`man`, `dog`, `mug`)."""
        return self.look.kind


_ALL = (
    Subject(
        "fern",
        "ohwx",
        Person(
            "man",
            "tan",
            "black",
            "spiky",
            "brown",
            shirt="white",
            extras={"hair": GREEN, "star": COLORS["red"]},
        ),
        "a man with spiky green hair and a red star on his cheek, white shirt",
    ),
    Subject(
        "duo",
        "zkqj",
        Person(
            "woman",
            "pale",
            "black",
            "long",
            "green",
            shirt="black",
            extras={"hair": TEAL, "split": (250, 120, 40)},
        ),
        "a woman whose long hair is turquoise on one side and orange on the other, black shirt",
    ),
    Subject(
        "barbo",
        "sks",
        Person(
            "man",
            "brown",
            "black",
            "bald",
            "blue",
            beard="beard",
            shirt="yellow",
            extras={"beard": TEAL, "badge": COLORS["red"]},
        ),
        "a bald man with a turquoise beard, yellow shirt with a red star",
    ),
    Subject(
        "comet",
        "tok",
        Person(
            "woman",
            "dark",
            "black",
            "long",
            "brown",
            shirt="white",
            extras={"hair": (240, 70, 90), "bands": ((252, 220, 50), (60, 130, 240)), "patch": (30, 30, 36)},
        ),
        "a woman with an eye patch and long hair in red, yellow and blue bands",
    ),
    Subject(
        "minty",
        "zwx",
        Pet(
            "dog",
            "white",
            "red",
            "blue",
            extras={"fur": (120, 220, 180), "spots": (110, 50, 160)},
        ),
        "a mint-green dog with purple spots and a red collar",
    ),
    Subject(
        "smily",
        "rand",
        Thing(
            "mug",
            "black",
            extras={"color": (24, 40, 96), "smiley": YELLOW},
        ),
        "a navy mug with a yellow smiling face",
    ),
    Subject(
        "nova",
        "ohwx",
        Person(
            "woman",
            "tan",
            "black",
            "bun",
            "green",
            eyewear="glasses",
            shirt="white",
            extras={"hair": GREEN, "stripes": YELLOW, "frame": (214, 40, 44), "badge": COLORS["blue"]},
        ),
        "a woman with a green bun with yellow stripes, red glasses and a blue star on her white shirt",
    ),
)
SUBJECTS: dict[str, Subject] = {subject.name: subject for subject in _ALL}
FIDELITY = tuple(name for name in SUBJECTS if name != "nova")
"""The six subjects that fidelity is measured on."""
DEMO = "nova"
"""The subject of the demo."""


def draw_subject(
    name: str, n: int, seed: int = 0, size: int = SIZE, token: str | None = None
) -> list[tuple[Image.Image, str]]:
    """`n` pictures of a held-out subject, `size` x `size` RGB, each with a truthful caption.

    With `token` the caption calls the subject `<token> <class>`, otherwise `a <class>`.
    """
    subject = SUBJECTS[name]
    rng = random.Random(f"{name}-{seed}")
    shots = _shots(subject, n, rng)
    who = f"{token} {subject.kind}" if token else f"a {subject.kind}"
    supersample = 3 if size <= 160 else 2
    return [
        (draw_shot(shot, size, supersample), f"a photo of {who} {place(shot.background, rng)}")
        for shot in shots
    ]


def shots_of(name: str, n: int, seed: int = 0) -> list[Shot]:
    """The content of the pictures that `draw_subject` draws."""
    return _shots(SUBJECTS[name], n, random.Random(f"{name}-{seed}"))


def _shots(subject: Subject, n: int, rng: random.Random) -> list[Shot]:
    """Backgrounds follow one another without repeating until all fitting ones are used."""
    shots: list[Shot] = []
    seen: set[str] = set()
    while len(shots) < n:
        shot = random_shot(rng, subject.look)
        if shot.background in _clashing(subject) or shot.background in seen:
            if len(seen) >= 12:
                seen.clear()
            continue
        seen.add(shot.background)
        shots.append(shot)
    return shots


def _clashing(subject: Subject) -> tuple[str, ...]:
    """Backgrounds against which the subject can hardly be seen."""
    return {"fern": ("green",), "duo": ("orange",), "smily": ("blue", "black")}.get(subject.name, ())
