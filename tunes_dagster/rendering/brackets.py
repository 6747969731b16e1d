"""What brackets and BREAK mean in a text: weights of words and chunks of their own, or nothing but characters.

Encoders of the CLIP kind take both; those that were trained on plain sentences (T5, language models) take neither, and
brackets are what they look like.
"""

from __future__ import annotations

import re

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.rendering.paper import clean

WEIGHTS = (0.0, 3.0)
# What brackets without a number mean, as in A1111: each pair multiplies or divides by this.
BRACKET = 1.1
# Stands for BREAK in what `weighted` returns; nothing that is white space to the rest.
CHUNK_END = "\x1e"

_PIECE = re.compile(r"\\[()\[\]\\]|[()\[\]]|:\s*([+-]?\d*\.?\d+)\s*\)|[^\\()\[\]:]+|.", re.DOTALL)
_QUOTED = re.compile(r'"[^"]*"|“[^”]*”')
_BREAK = re.compile(r"(?<!\w)BREAK(?!\w)")
# A sad face, which opens nothing.
FACE = re.compile(r"(?<!\S)(>?[:;=][-']?)([(\[])(?=[\s,.!?]|$)")


def outside_quotes(text: str) -> str:
    """Return a text of the same length in which what stands in double quotes is blank: words of a picture."""
    return _QUOTED.sub(lambda match: " " * len(match.group(0)), text)


def weighted(text: str) -> list[tuple[str, float]]:
    r"""Return a prompt as pieces with weights, in A1111's syntax; `CHUNK_END` stands in them where it says BREAK.

    `(word:1.2)` has the weight 1.2, `(word)` 1.1, `[word]` 1 / 1.1, nested ones multiply; `\(` is a parenthesis.

    Raises:
        Failure: `INVALID_REQUEST` for a weight outside 0…3 or a bracket that is not closed.
    """
    pieces: list[list[str | float]] = []
    open_at: list[tuple[str, int]] = []

    def scale(start: int, by: float) -> None:
        for piece in pieces[start:]:
            piece[1] = float(piece[1]) * by

    for match in _PIECE.finditer(FACE.sub(r"\1\\\2", _marked(text))):
        sign, number = match.group(0), match.group(1)
        if sign.startswith("\\") and len(sign) == 2:
            pieces.append([sign[1], 1.0])
        elif sign in "([":
            open_at.append((sign, len(pieces)))
        elif number is not None and open_at and open_at[-1][0] == "(":
            scale(open_at.pop()[1], float(number))
        elif sign in (")", "]") and open_at and open_at[-1][0] == {")": "(", "]": "["}[sign]:
            scale(open_at.pop()[1], BRACKET if sign == ")" else 1 / BRACKET)
        else:  # also a bracket that closes nothing, as in `1) a cat`
            pieces.append([sign, 1.0])
    if open_at:
        kind = open_at[-1][0]
        raise _refused(
            f"A {kind!r} in the prompt is not closed.", f"Close it, or write \\{kind} for the character."
        )
    return _joined(pieces)


def _marked(text: str) -> str:
    """Return a text with `CHUNK_END` for each BREAK that is not in quotes."""
    ends = [match.span() for match in _BREAK.finditer(outside_quotes(text))]
    for start, end in reversed(ends):
        text = text[:start] + CHUNK_END + text[end:]
    return text


def _joined(pieces: list[list[str | float]]) -> list[tuple[str, float]]:
    """Join neighbours of the same weight, and check the weights."""
    low, high = WEIGHTS
    joined: list[tuple[str, float]] = []
    for words, weight in ((str(w), round(float(v), 6)) for w, v in pieces):
        if not low <= weight <= high:
            raise _refused(
                f"The weight {weight:g} of {words.strip()!r} is not between {low:g} and {high:g}.",
                r"Write it as (word:1.2), or \( and \) for brackets that are meant.",
            )
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + words, weight)
        else:
            joined.append((words, weight))
    kept = [(words, weight) for words, weight in joined if words.strip() or CHUNK_END in words]
    return kept if any(words.strip() for words, _ in kept) else []


def has_weights(text: str) -> bool:
    """Whether any part of a prompt has another weight than 1."""
    return any(weight != 1 for _, weight in weighted(text))


def has_breaks(text: str) -> bool:
    """Whether a prompt says where a chunk ends."""
    return CHUNK_END in _marked(text)


def without_weights(text: str) -> str:
    """Return the words of a prompt without brackets, numbers and BREAK."""
    return clean("".join(words for words, _ in weighted(text)))


def without_breaks(text: str) -> str:
    """Return a text without BREAK, brackets as they stand."""
    return clean(_marked(text))


def plain_sentence(text: str) -> str:
    r"""Return a text for an encoder that weighs nothing: `(word:1.2)` is the word, BREAK nothing, all else stays.

    Other brackets are what they look like: `(in her thirties)`, `smile :(`, `(at 10:30)`; `\(` is a parenthesis.
    """
    return _plainly(text)[0]


def weighs_words(text: str) -> bool:
    """Whether `plain_sentence` leaves something out that means something elsewhere: a weight, or BREAK."""
    return has_breaks(text) or _plainly(text)[1]


def _plainly(text: str) -> tuple[str, bool]:
    """Return a plain sentence, and whether a weight was left out."""
    pieces: list[str] = []
    open_at: list[int] = []
    weighs = False
    for match in _PIECE.finditer(_marked(text)):
        sign, number = match.group(0), match.group(1)
        if sign.startswith("\\") and len(sign) == 2 and sign[1] != "\\":
            pieces.append(sign[1])
            continue
        closes = open_at.pop() if open_at and (sign == ")" or number is not None) else None
        if closes is not None and number is not None and _is_weight(number, pieces[-1]):
            pieces[closes], weighs = "", True
            continue
        if sign == "(":
            open_at.append(len(pieces))
        pieces.append(sign)
    return clean("".join(pieces)), weighs


def _is_weight(number: str, before: str) -> bool:
    """Whether `:number` before a closing parenthesis is a weight, and no time of day or ratio."""
    low, high = WEIGHTS
    return low <= float(number) <= high and not before[-1:].isdigit()


def _refused(message: str, remedy: str) -> Failure:
    return Failure(FailureCode.INVALID_REQUEST, message, remedy)
