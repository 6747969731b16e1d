"""What a report card asks a tune for: the same scenes for every tune of a class, at fixed seeds.

Each scene is asked for with the token (on the base and on every checkpoint) and without it (on the base, to see
what its class looks like there, and on the chosen checkpoint, to see whether the tune leaks).
"""

from __future__ import annotations

from dataclasses import dataclass

from tunes_dagster.intake.faces import is_person
from tunes_dagster.intake.subject import is_style

# Details of both kinds that pictures of a subject seldom show already, in words that every base knows.
_PLACES = (
    "on the beach",
    "in a forest",
    "in the snow",
    "at night",
    "in the city",
    "in the mountains",
    "in the desert",
    "in a meadow",
)
_CLOTHES = ("wearing sunglasses", "wearing a red hat", "wearing a blue shirt", "wearing a black top hat")
_PERSON_SCENES = (
    _PLACES[0],
    _CLOTHES[0],
    _PLACES[1],
    _CLOTHES[1],
    _PLACES[2],
    _CLOTHES[2],
    *_PLACES[3:],
    _CLOTHES[3],
)
# Words around a class word; several of them together name it better than one.
_AROUND = (
    "a photo of a {}",
    "a photo of a {} on the beach",
    "a photo of a {} in a forest",
    "a photo of a {} in the city",
    "a photo of a {} on a white background",
    "a photo of a red {}",
    "a photo of a blue {}",
    "a photo of a white {}",
)
# A style is shown on things that its pictures may never have shown.
_STYLE_SUBJECTS = ("a dog", "a house", "a woman", "a mug", "a car", "a tree", "a cat", "a man")


@dataclass(frozen=True)
class Asked:
    """One picture that the card wants.

    Attributes:
        text: With the token.
        plain: The same without it, in the class's own words.
        seed: Of the noise.
        elsewhere: Whether it asks for a place, which a copied picture would not show.
    """

    text: str
    plain: str
    seed: int
    elsewhere: bool = True


def card_prompts(token: str, class_name: str, count: int, seed: int = 0) -> list[Asked]:
    """Return `count` prompts: the scenes in turn, a new seed each.

    Args:
        token: Of the tune.
        class_name: Of the tune.
        count: How many pictures each state of the tune is asked for.
        seed: Of the first one.
    """
    name = class_name.strip()
    asked = []
    for i in range(count):
        if is_style(name):
            thing = _STYLE_SUBJECTS[i % len(_STYLE_SUBJECTS)]
            asked.append(Asked(f"{thing} in {token} {name}", thing, seed + i))
            continue
        scenes = _PERSON_SCENES if is_person(name) else _PLACES
        scene = scenes[i % len(scenes)]
        article = "an" if name[:1].lower() in "aeiou" else "a"
        asked.append(
            Asked(
                f"a photo of {token} {name} {scene}",
                f"a photo of {article} {name} {scene}",
                seed + i,
                elsewhere=scene in _PLACES,
            )
        )
    return asked


def class_texts(word: str) -> list[str]:
    """Return texts that together stand for a class word."""
    article = " an {}" if word[:1].lower() in "aeiou" else " a {}"
    return [text.replace(" a {}", article).format(word) for text in _AROUND]
