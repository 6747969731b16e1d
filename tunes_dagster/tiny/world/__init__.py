"""The drawn world: people, pets and things in scenes, every picture with truthful attributes and captions."""

from __future__ import annotations

import random

from PIL import Image

from .captions import VOCABULARY, Attributes, attributes, caption
from .names import cast
from .sample import SIZE, Shot, draw_shot, face_box, random_shot
from .subjects import DEMO, FIDELITY, SUBJECTS, Subject, draw_subject, shots_of

__all__ = [
    "DEMO",
    "FIDELITY",
    "SIZE",
    "SUBJECTS",
    "VOCABULARY",
    "Attributes",
    "Shot",
    "Subject",
    "attributes",
    "caption",
    "cast",
    "draw_shot",
    "draw_subject",
    "face_box",
    "picture",
    "random_shot",
    "shot",
    "shots_of",
]

NAMED = 0.2
"""Share of training pictures that show a named identity."""


def shot(seed: int) -> tuple[Shot, str | None]:
    """The content of picture number `seed` and the pseudo-name of its subject, if it has one."""
    rng = random.Random(f"picture-{seed}")
    if rng.random() < NAMED:
        name = rng.choice(tuple(cast()))
        return random_shot(rng, cast()[name]), name
    return random_shot(rng), None


def picture(seed: int, size: int = SIZE) -> tuple[Image.Image, Attributes, str]:
    """Picture number `seed` of the world: RGB image of `size` x `size`, its attributes, one caption."""
    content, name = shot(seed)
    text, _ = caption(content, random.Random(f"caption-{seed}"), name)
    return draw_shot(content, size), attributes(content), text
