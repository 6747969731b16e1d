"""Words around a prompt: named styles, stored compositions, and a person drawn by lot.

`styles.yaml` beside this file holds the texts, so that whoever knows what a base understands can change them.
"""

from __future__ import annotations

import difflib
import hashlib
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import RenderSettings

RANDOM = "random"


@dataclass(frozen=True)
class Template:
    """Words around a prompt.

    Attributes:
        name: As people call it.
        text: With `{prompt}` where the prompt goes.
        negative: Added to the negative prompt.
    """

    name: str
    text: str
    negative: str = ""

    @property
    def id(self) -> str:
        """32 hex digits that stay the same as long as the name does."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def _file() -> dict[str, Any]:
    return dict(yaml.safe_load(Path(__file__).with_name("styles.yaml").read_text(encoding="utf-8")))


def _templates(section: str) -> dict[str, Template]:
    found = _file()[section]
    return {
        name: Template(name, said) if isinstance(said, str) else Template(name, **said)
        for name, said in found.items()
    }


def styles() -> dict[str, Template]:
    """Return the named styles."""
    return _templates("styles")


def compositions() -> dict[str, Template]:
    """Return the stored compositions by name."""
    return _templates("compositions")


def find_composition(word: str, seed: int) -> Template:
    """Return the composition that a name or id means; `random` is drawn by the seed.

    Raises:
        Failure: `INVALID_REQUEST` naming the closest ones.
    """
    known = compositions()
    if word.strip().lower() == RANDOM:
        return random.Random(f"composition {seed}").choice(list(known.values()))
    for template in known.values():
        if word.strip().lower() in (template.name.lower(), template.id):
            return template
    close = difflib.get_close_matches(word.lower(), known, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    raise Failure(
        FailureCode.INVALID_REQUEST,
        f"There is no composition {word!r}.",
        f"{hint}Choose one of {', '.join(known)}, or {RANDOM!r}.",
    )


def random_person(seed: int) -> str:
    """Return the description of a person, the same for the same seed."""
    draw = random.Random(f"person {seed}")
    parts = {name: draw.choice(choices) for name, choices in _file()["people"].items()}
    return (
        f"{parts['age']} {parts['who']} with {parts['hair']}, {parts['eyes']} and {parts['face']}, "
        f"{parts['expression']}"
    )


def dressed(text: str, settings: RenderSettings) -> tuple[str, str]:
    """Return (prompt, negative prompt) with everything around them that the settings ask for.

    From inside out: the random person, the composition, the style.

    Args:
        text: The prompt, without tags and templates.
        settings: With a seed.
    """
    seed = settings.seed or 0
    negative = [settings.negative_prompt.strip()]
    if settings.random_face:
        text = f"{random_person(seed)}, {text}"
    around = [find_composition(settings.composition, seed)] if settings.composition else []
    around += [styles()[settings.style]] if settings.style else []
    for template in around:
        text = template.text.replace("{prompt}", text)
        negative.append(template.negative)
    return text, ", ".join(part for part in negative if part)
