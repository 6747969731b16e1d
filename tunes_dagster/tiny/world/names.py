"""Pseudo-names: invented words, each of which stands for one fixed look within the training world.

They teach the base that a rare word means somebody. Words that tunes use are never among them.
"""

from __future__ import annotations

import random
from functools import cache

from .sample import Look, random_look

COUNT = 300
RESERVED = frozenset(
    {
        "ohwx",
        "sks",
        "tok",
        "zkqj",
        "zwx",
        "fern",
        "duo",
        "comet",
        "barbo",
        "minty",
        "smily",
        "nova",
        "rand",
        "cat",
        "dog",
        "car",
        "man",
        "mug",
        "bun",
        "bob",
        "hat",
        "tan",
        "red",
        "cap",
        "wall",
        "pot",
    }
)
"""Tokens of tunes and subjects, and short words of the world."""

_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwxz", "aeiou"


def random_word(rng: random.Random) -> str:
    """Pronounceable (70 %) or just letters, three to six long; never a reserved word."""
    while True:
        if rng.random() < 0.7:
            word = "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.randint(2, 3)))
            word += rng.choice(("", rng.choice(_CONSONANTS)))
        else:
            word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 5)))
        if word not in RESERVED:
            return word


@cache
def cast(seed: int = 7, count: int = COUNT) -> dict[str, Look]:
    """The `count` named identities of the training world."""
    rng = random.Random(f"cast-{seed}")
    looks: dict[str, Look] = {}
    while len(looks) < count:
        looks.setdefault(random_word(rng), random_look(rng))
    return looks
