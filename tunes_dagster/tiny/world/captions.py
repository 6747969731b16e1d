"""Words for a shot: its true attributes, and captions that name some of them. Nothing is drawn here."""

from __future__ import annotations

import random

from .palette import EYES, FURS, HAIRS, SKINS
from .people import BEARDS, EYEWEAR, HAT_COLORS, HATS, MOUTHS, SHIRT_COLORS, STYLES, Person
from .pets import COLLARS, PETS, Pet
from .sample import Shot
from .scenes import BACKGROUNDS, PLAINS
from .things import STRIPED, THING_COLORS, THINGS, Thing

Attributes = dict[str, str]

VOCABULARY: dict[str, tuple[str, ...]] = {
    "kind": ("woman", "man", *PETS, *THINGS),
    "background": BACKGROUNDS,
    "hair": tuple(HAIRS),
    "hair_style": STYLES,
    "skin": tuple(SKINS),
    "eyes": tuple(EYES),
    "eyewear": EYEWEAR,
    "hat": HATS,
    "hat_color": HAT_COLORS,
    "beard": BEARDS,
    "mouth": MOUTHS,
    "shirt": SHIRT_COLORS,
    "shirt_pattern": ("plain", "striped"),
    "fur": tuple(FURS),
    "collar": COLLARS,
    "color": THING_COLORS,
    "pattern": ("plain", "striped"),
}
"""Every attribute and its possible values; the classifier has one head for each."""

PREFIXES = ("a photo of", "a photo of", "a photo of", "a picture of", "a drawing of", "", "")
PLACES = {
    "beach": ("on the beach", "at the beach"),
    "forest": ("in a forest", "in the forest"),
    "mountains": ("in the mountains", "in front of mountains"),
    "night": ("at night", "under the night sky"),
    "snow": ("in the snow",),
    "desert": ("in the desert", "in a desert"),
    "city": ("in the city", "in a city"),
    "meadow": ("in a meadow", "on a meadow"),
    "table": ("on a table",),
}


def attributes(shot: Shot) -> Attributes:
    """What is truly visible in `shot`; attributes that do not apply or are hidden are absent."""
    look = shot.look
    found = {"kind": look.kind, "background": shot.background}
    if isinstance(look, Person):
        found |= {
            "hair_style": look.style,
            "skin": look.skin,
            "eyewear": look.eyewear,
            "hat": look.hat,
            "beard": look.beard,
            "mouth": shot.mouth,
            "shirt": look.shirt,
            "shirt_pattern": look.shirt_pattern,
        }
        if look.style != "bald":
            found["hair"] = look.hair
        if look.eyewear != "sunglasses":
            found["eyes"] = look.eyes
        if look.hat != "none":
            found["hat_color"] = look.hat_color
    elif isinstance(look, Pet):
        found |= {"fur": look.fur, "collar": look.collar}
        if look.species != "dog":
            found["eyes"] = look.eyes
    else:
        found["color"] = look.color
        if look.sort in STRIPED:
            found["pattern"] = look.pattern
    return found


def place(background: str, rng: random.Random) -> str:
    """A phrase for where the picture was taken."""
    if background in PLAINS:
        form = rng.choice(
            ("on {} background", "on {} background", "with {} background", "in front of {} wall")
        )
        return form.format(_article(background))
    return rng.choice(PLACES[background])


def caption(
    shot: Shot, rng: random.Random, name: str | None = None, plain: bool = False
) -> tuple[str, Attributes]:
    """A truthful caption of `shot` and the attributes it names.

    With a `name` the caption calls the subject by it (`zorbu woman`) and names few of its looks, so that
    the word itself has to carry them. A `plain` caption starts with `a photo of`, names most of what is to be
    seen and holds no meaningless word.
    """
    rate = rng.uniform(0.35, 0.95) if name is None else rng.choice((0.0, 0.0, 0.0, 0.3))
    if plain:
        rate = 0.9
    asked: Attributes = {}
    if isinstance(shot.look, Person):
        subject = _person(shot, rng, rate, name, asked)
    elif isinstance(shot.look, Pet):
        subject = _pet(shot.look, rng, rate, name, asked)
    else:
        subject = _thing(shot.look, rng, rate, name, asked)
    words = ["a photo of" if plain else rng.choice(PREFIXES), subject]
    if plain or rng.random() < (0.85 if name is None else 0.75):
        asked["background"] = shot.background
        where = place(shot.background, rng)
        words[-1] += "," if rng.random() < 0.3 else ""
        words.append(where)
    if rng.random() < 0.03 and not plain:
        words.append(
            ", " + "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 6)))
        )
    return " ".join(w for w in words if w).replace(" ,", ","), asked


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _named(name: str, kind: str, rng: random.Random, loose: str | None) -> str:
    roll = rng.random()
    if roll < 0.6:
        return f"{name} {kind}"
    if roll < 0.75 and loose:
        return f"{name} {loose}"
    return name if roll < 0.9 else f"a {kind} called {name}"


def _person(shot: Shot, rng: random.Random, rate: float, name: str | None, asked: Attributes) -> str:
    look = shot.look
    assert isinstance(look, Person)

    def named(key: str, value: str, chance: float = 1.0) -> bool:
        if rng.random() < rate * chance:
            asked[key] = value
            return True
        return False

    before = [shot.mouth] if named("mouth", shot.mouth, 0.5) else []
    if named("skin", look.skin, 0.5):
        before.append(f"{look.skin}-skinned")
    if look.style == "bald" and named("hair_style", "bald"):
        before.append("bald")
    who = look.gender
    if name is None and rng.random() < 0.12:
        who = "person"
    else:
        asked["kind"] = look.gender
    head = _named(name, who, rng, "person") if name else _article(" ".join([*before, who]))
    details = _person_details(look, rng, named)
    text = head
    for i, detail in enumerate(details):
        text += (
            " " if i == 0 else (" and " if i == len(details) - 1 and rng.random() < 0.7 else ", ")
        ) + detail
    return text


def _person_details(look: Person, rng: random.Random, named) -> list[str]:
    details: list[str] = []
    if look.style != "bald" and named("hair", look.hair):
        style = ""
        if named("hair_style", look.style, 0.8):
            style = look.style
        details.append(
            {"bob": f"with a {look.hair} bob", "bun": f"with a {look.hair} bun"}.get(
                style, f"with {style} {look.hair} hair".replace("  ", " ")
            )
        )
    if look.eyewear != "none" and named("eyewear", look.eyewear, 1.3):
        details.append(rng.choice(("with", "wearing")) + " " + look.eyewear)
    if look.beard != "none" and named("beard", look.beard, 1.3):
        details.append(f"with a {look.beard}")
    if look.eyewear != "sunglasses" and named("eyes", look.eyes, 0.45):
        details.append(f"with {look.eyes} eyes")
    if look.mark != "none" and rng.random() < 0.8:
        details.append(f"with a {look.mark} on the cheek")
    if look.hat != "none" and named("hat", look.hat, 1.3):
        asked_color = named("hat_color", look.hat_color, 1.3)
        details.append(
            rng.choice(("with", "wearing")) + f" a {look.hat_color + ' ' if asked_color else ''}{look.hat}"
        )
    if named("shirt", look.shirt, 0.9):
        striped = look.shirt_pattern == "striped"
        if striped:
            named("shirt_pattern", "striped", 9)
        shirt = f"{look.shirt} {'striped ' if striped else ''}shirt"
        details.append(rng.choice(("in ", "wearing ")) + _article(shirt))
    return details


def _pet(look: Pet, rng: random.Random, rate: float, name: str | None, asked: Attributes) -> str:
    asked["kind"] = look.species
    with_fur = name is None and rng.random() < 0.9
    if with_fur:
        asked["fur"] = look.fur
    words = f"{look.fur + ' ' if with_fur else ''}{look.species}"
    text = _named(name, look.species, rng, None) if name else _article(words)
    if look.patch != "none" and rng.random() < rate:
        text += f" with a {look.patch} patch"
    if look.collar != "none" and rng.random() < rate * 1.2:
        asked["collar"] = look.collar
        text += f" with a {look.collar} collar"
    if look.species != "dog" and rng.random() < rate * 0.4:
        asked["eyes"] = look.eyes
        text += f" with {look.eyes} eyes"
    return text


def _thing(look: Thing, rng: random.Random, rate: float, name: str | None, asked: Attributes) -> str:
    asked["kind"] = look.sort
    if name:
        return _named(name, look.sort, rng, None)
    with_color = rng.random() < 0.93
    if with_color:
        asked["color"] = look.color
    if look.sort == "cactus":
        return f"a cactus in a {look.color} pot" if with_color else "a cactus"
    striped = look.pattern == "striped"
    if striped:
        asked["pattern"] = "striped"
    return _article(f"{look.color + ' ' if with_color else ''}{'striped ' if striped else ''}{look.sort}")
