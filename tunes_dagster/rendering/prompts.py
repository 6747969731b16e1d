"""Prompts as people write them: in-text LoRAs are taken out, everything unknown is refused by name.

What is understood here is what the renderer does; weighted text and templates are refused rather than sent to
the text encoder as noise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tunes_dagster.failures import Failure, FailureCode
from tunes_dagster.rendering.paper import clean

MAX_LORAS = 8
LORA_SCALES = (-2.0, 3.0)

_TAG = re.compile(r"<\s*([A-Za-z][\w-]*)\s*:([^<>]*)>")
_WEIGHTED = re.compile(r"(?<!\\)\(([^()]*):\s*[+-]?\d*\.?\d+\s*\)")
_TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}")
_BROKEN_TAG = re.compile(r"<\s*lora\b", re.IGNORECASE)


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt taken apart.

    Attributes:
        text: What the text encoder sees.
        loras: Tune id (or title, or number) and scale, in the order of the text; same ids are added up.
    """

    text: str
    loras: tuple[tuple[str, float], ...] = field(default=())


def parse_prompt(text: str) -> ParsedPrompt:
    """Take `<lora:ID:weight>` out of a prompt (weight 1 when left out) and tidy its white space.

    Raises:
        Failure: `INVALID_REQUEST` for a malformed tag, an unknown kind of tag, a weight outside -2…3, more than
            8 LoRAs, weighted text `(word:1.2)`, a `{{template}}`, or nothing left to render.
    """
    loras: dict[str, float] = {}

    def take(match: re.Match[str]) -> str:
        kind, rest = match.group(1), match.group(2)
        if kind.lower() != "lora":
            raise _refused(f"The tag {match.group(0)!r} is not understood.", "Only <lora:ID:weight> is.")
        name, scale = _lora(match.group(0), rest)
        loras[name] = loras.get(name, 0.0) + scale
        return " "

    bare = clean(_TAG.sub(take, text))
    if _BROKEN_TAG.search(bare):
        raise _refused("A <lora tag in the prompt is not closed.", "Write it as <lora:ID:weight>.")
    if len(loras) > MAX_LORAS:
        raise _refused(f"The prompt names {len(loras)} LoRAs.", f"At most {MAX_LORAS} can be combined.")
    _check_supported(bare)
    bare = re.sub(r"\s+([,.;!?])", r"\1", bare)
    bare = re.sub(r"(,\s*){2,}", ", ", bare).strip(" ,")
    if not bare:
        raise _refused("Nothing is left of the prompt without its LoRA tags.", "Say what to render.")
    return ParsedPrompt(bare, tuple(loras.items()))


def _lora(tag: str, rest: str) -> tuple[str, float]:
    name, _, weight = rest.partition(":")
    name = name.strip()
    low, high = LORA_SCALES
    try:
        scale = float(weight) if weight.strip() else 1.0
    except ValueError:
        scale = float("nan")
    if not name or not low <= scale <= high:
        raise _refused(
            f"The tag {tag!r} is not a LoRA with a weight between {low:g} and {high:g}.",
            "Write it as <lora:ID:weight>, for example <lora:tune_0dn3t5k1gq8w2m4h7v9x:0.8>.",
        )
    return name, scale


def _check_supported(text: str) -> None:
    if found := _TEMPLATE.search(text):
        raise _refused(f"The template {found.group(0)!r} is not filled in.", "Write the words in its place.")
    if found := _WEIGHTED.search(text):
        raise _refused(
            f"Weighted text such as {found.group(0)!r} is not supported by this base's renderer.",
            f"Leave the weight out ({found.group(1).strip()!r}), or say it in words.",
        )


def _refused(message: str, remedy: str) -> Failure:
    return Failure(FailureCode.INVALID_REQUEST, message, remedy)


def missing_token(text: str, token: str, class_name: str = "") -> str:
    """Return a warning when a prompt for a tune does not name the tune's token, else an empty string.

    Args:
        text: The prompt without tags.
        token: Trigger word of the tune.
        class_name: Class word, for the example.
    """
    if not token or re.search(rf"(?<!\w){re.escape(token)}(?!\w)", text, re.IGNORECASE):
        return ""
    example = f"{token} {class_name}".strip()
    return f"The prompt does not name the tune's token {token!r}; write {example!r} to show the subject."
