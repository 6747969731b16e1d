"""Prompts as people write them: in-text LoRAs and faces are taken out, templates filled in, the rest looked at.

What is understood here and in `brackets.py` is what the renderer does; what is another program's syntax is refused by
name (`foreign.py`) rather than sent to the text encoder as noise.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.rendering.brackets import weighted
from tunes_dagster.rendering.foreign import refuse_foreign
from tunes_dagster.rendering.paper import clean
from tunes_dagster.rendering.schedule import MOST_STEPS, has_schedule, said

MAX_LORAS, MAX_FACES = 8, 3
LORA_SCALES, FACE_SCALES = (-2.0, 3.0), (0.0, 2.0)

_TAG = re.compile(r"<\s*([A-Za-z][\w-]*)\s*:([^<>]*)>")
_TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}")
_BROKEN_TAG = re.compile(r"<\s*(lora|faceid)\b", re.IGNORECASE)


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt taken apart.

    Attributes:
        text: Without tags and templates; weights are still in it, see `brackets.weighted`.
        loras: Tune id (or title, or number) and scale, in the order of the text; same ids are added up.
        faces: The same for tunes of the kind `faceid`.
    """

    text: str
    loras: tuple[tuple[str, float], ...] = field(default=())
    faces: tuple[tuple[str, float], ...] = field(default=())


def parse_prompt(
    text: str,
    characteristics: Mapping[str, str] | None = None,
    weighs: bool | None = True,
    schedules: bool = True,
) -> ParsedPrompt:
    """Take `<lora:ID:weight>` and `<faceid:ID:weight>` out of a prompt, fill in `{{…}}` and tidy its white space.

    A weight that is left out is 1.

    Args:
        text: As written.
        characteristics: What the templates stand for; names are compared without case.
        weighs: Whether the base weighs words by brackets; None where it is not known and the words are checked later.
        schedules: Whether each step may have words of its own.

    Raises:
        Failure: `INVALID_REQUEST` for a malformed tag, an unknown kind of tag, a weight outside its range, more than
            8 LoRAs or 3 faces, an unknown `{{template}}`, nothing left to render, and what `check_words` refuses.
    """
    bare, loras, faces = split_tags(text)
    bare = fill_in(bare, characteristics or {})
    bare = re.sub(r"\s+([,.;!?])", r"\1", bare)
    bare = re.sub(r"(,\s*){2,}", ", ", bare).strip(" ,")
    if not bare:
        raise _refused("Nothing is left of the prompt without its tags.", "Say what to render.")
    if weighs is not None:
        check_words(bare, weighs, schedules)
    return ParsedPrompt(bare, tuple(loras), tuple(faces))


def check_words(text: str, weighs: bool, schedules: bool = True) -> None:
    """Refuse a text, without its tags, of which a part would not be understood.

    Args:
        text: The text.
        weighs: Whether words are weighed by brackets.
        schedules: Whether each step may have words of its own.

    Raises:
        Failure: `INVALID_REQUEST` for another program's syntax and a schedule where there can be none; where words are
            weighed, for a weight outside 0…3, a bracket that is not closed, or nothing but brackets.
    """
    refuse_foreign(text, weighs)
    if has_schedule(text) and not schedules:
        raise _refused(
            "The text has words that change from step to step, [cat:dog:0.5] or [cat|dog], which this model cannot.",
            r"Write the words that are meant; \[ is the character.",
        )
    if not weighs:
        return
    every = [weighted(one) for one in said(text, MOST_STEPS)]  # each of them has to be understood
    if text.strip() and not any(every):
        raise _refused("Nothing is left of the text without its brackets.", "Say what to render.")


Named = list[tuple[str, float]]


def split_tags(text: str) -> tuple[str, Named, Named]:
    """Return a prompt without its tags, templates still in it, and (tune, scale) of each LoRA and of each face.

    Raises:
        Failure: `INVALID_REQUEST` for a malformed tag, an unknown kind of tag, a weight or the sum of one tune's
            weights outside its range, or more than 8 LoRAs or 3 faces.
    """
    said: dict[str, list[tuple[str, float]]] = {"lora": [], "faceid": []}

    def take(match: re.Match[str]) -> str:
        kind = match.group(1).lower()
        if kind not in said:
            raise _refused(
                f"The tag {match.group(0)!r} is not understood.",
                "Only <lora:ID:weight> and <faceid:ID:weight> are.",
            )
        said[kind].append(_named(match.group(0), kind, match.group(2)))
        return " "

    bare = clean(_TAG.sub(take, text))
    if broken := _BROKEN_TAG.search(bare):
        kind = broken.group(1).lower()
        raise _refused(f"A <{kind} tag in the prompt is not closed.", f"Write it as <{kind}:ID:weight>.")
    found = {kind: summed(kind, [(word, word, scale) for word, scale in some]) for kind, some in said.items()}
    for kind, most, what in (("lora", MAX_LORAS, "LoRAs"), ("faceid", MAX_FACES, "faces")):
        if len(found[kind]) > most:
            raise _refused(f"The prompt names {len(found[kind])} {what}.", f"At most {most} can be combined.")
    return bare, list(found["lora"].items()), list(found["faceid"].items())


def summed(tag: str, named: Iterable[tuple[str, str, float]]) -> dict[str, float]:
    """Return the scale of each tune that tags name: the sum of its tags, whatever words they call it by.

    Args:
        tag: `lora` or `faceid`.
        named: (tune, word, scale) of each tag.

    Raises:
        Failure: `INVALID_REQUEST` for a sum outside the range of a single tag.
    """
    low, high = FACE_SCALES if tag == "faceid" else LORA_SCALES
    scales: dict[str, float] = {}
    words: dict[str, list[str]] = {}
    for tune, word, scale in named:
        scales[tune] = round(scales.get(tune, 0.0) + scale, 6)
        words.setdefault(tune, []).append(word)
    for tune, scale in scales.items():
        if not low <= scale <= high:
            names = " and ".join(repr(word) for word in dict.fromkeys(words[tune]))
            raise _refused(
                f"The tags of {names} name one tune, with {scale:g} in all, which is not between {low:g} and {high:g}.",
                f"Weights of one tune are added up: name it once, for example <{tag}:{words[tune][0]}:0.8>.",
            ).about("text")
    return scales


def tag_of(kind: str) -> str:
    """Return with which tag a tune of a kind is named in a prompt."""
    return "faceid" if kind == "faceid" else "lora"


def named_tunes(text: str, kind: str = "lora") -> list[str]:
    """Return the tunes that tags of a kind (`lora`, `faceid`) name; malformed ones are `parse_prompt`'s to refuse."""
    tags = (match for match in _TAG.finditer(text) if match.group(1).lower() == kind)
    return list(dict.fromkeys(_named(match.group(0), kind, match.group(2))[0] for match in tags))


def fill_in(text: str, characteristics: Mapping[str, str]) -> str:
    """Return a text with each `{{name}}` replaced by what is known under that name.

    Raises:
        Failure: `INVALID_REQUEST` naming what is not known and what is.
    """
    known = {_plain(name): value for name, value in characteristics.items()}

    def value(match: re.Match[str]) -> str:
        name = match.group(1).strip()
        if _plain(name) in known:
            return clean(str(known[_plain(name)]))
        close = difflib.get_close_matches(_plain(name), known, n=1)
        remedy = f"Did you mean {{{{{close[0]}}}}}? " if close else ""
        names = ", ".join(sorted(characteristics))
        remedy += f"The tune has: {names}." if names else "The tune has no characteristics: write the words."
        remedy += " For more weight write (word:1.2)." if not close else ""
        raise _refused(f"Nothing is known for the template {match.group(0)!r}.", remedy)

    return _TEMPLATE.sub(value, text)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().lower())


def _named(tag: str, kind: str, rest: str) -> tuple[str, float]:
    name, _, weight = rest.partition(":")
    name = name.strip()
    low, high = FACE_SCALES if kind == "faceid" else LORA_SCALES
    try:
        scale = float(weight) if weight.strip() else 1.0
    except ValueError:
        scale = float("nan")
    if not name or not low <= scale <= high:
        what = "face" if kind == "faceid" else "LoRA"
        raise _refused(
            f"The tag {tag!r} is not a {what} with a weight between {low:g} and {high:g}.",
            f"Write it as <{kind}:ID:weight>, for example <{kind}:tune_0dn3t5k1gq8w2m4h7v9x:0.8>.",
        )
    return name, scale


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


def without_token(text: str, token: str, class_name: str) -> str:
    """Return a text that calls the subject by its class where it names a token that was never trained.

    `a photo of ohwx woman, ohwx smiling` becomes `a photo of a woman, a woman smiling`.
    """
    if not token or not class_name:
        return text
    named = rf"(?<![\w-])(?:an?\s+|the\s+)?{re.escape(token)}(?:\s+{re.escape(class_name)})?(?![\w-])"
    article = "an" if class_name[0].lower() in "aeiou" else "a"
    return re.sub(named, f"{article} {class_name}", text, flags=re.IGNORECASE)
