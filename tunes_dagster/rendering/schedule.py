"""Words that change while a picture is made, in A1111's syntax: which text a step is rendered with.

    [cat:dog:0.5]   cat for the first half of the steps, then dog
    [cat:dog:12]    cat for the first twelve steps
    [dog:0.5]       nothing, then dog
    [cat::0.5]      cat, then nothing
    [cat|dog]       cat, dog, cat, dog … from step to step

They may lie in each other, in weights and in either prompt. What stands in double quotes, `\\[`, a time or ratio
(`[16:9]`) and `[cat]`, which only weighs less, are text. Nothing here needs torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.rendering.brackets import FACE, outside_quotes
from tunes_dagster.rendering.paper import clean

# Steps that a picture has at most (`RenderSettings.steps`).
MOST_STEPS = 150
_DEEPEST = 30
_NUMBER = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*")


@dataclass(frozen=True)
class _Switch:
    """Words that are followed by others.

    Attributes:
        before: Until the step.
        after: From then on.
        at: A share of the steps (`0.5`), or a number of them (`12`).
    """

    before: _Words
    after: _Words
    at: str

    def last(self, steps: int) -> int:
        """Return the last step of `before`."""
        return int(float(self.at) * steps) if "." in self.at else int(self.at)


@dataclass(frozen=True)
class _Turns:
    """Words that take turns from step to step."""

    words: tuple[_Words, ...]


_Words = tuple["str | _Switch | _Turns", ...]


@dataclass
class _Open:
    """A bracket that is not closed yet: its parts, which `:` and `|` outside of parentheses cut."""

    start: int
    parts: list[list[str | _Switch | _Turns]] = field(default_factory=lambda: [[]])
    cuts: list[int] = field(default_factory=list)
    parentheses: int = 0


def has_schedule(text: str) -> bool:
    """Whether words of a text change while a picture is made.

    Raises:
        Failure: `INVALID_REQUEST` for a share above 1, `|` beside a step, and brackets nested too deep.
    """
    return any(not isinstance(one, str) for one in _parsed(text))


def by_step(text: str, steps: int) -> list[str]:
    """Return the text of each step; one without a schedule stays as it is, white space too.

    Args:
        text: As written.
        steps: That are done of it.
    """
    if not has_schedule(text):
        return [text] * steps
    return [clean(_at(_parsed(text), step, steps)) for step in range(1, steps + 1)]


def settled(text: str) -> str:
    """Return a text as it is at the end, for passes over a finished picture; what takes turns still does."""
    return clean(_settled(_parsed(text))) if has_schedule(text) else text


def said(text: str, steps: int) -> list[str]:
    """Return everything that is rendered of a text, each once."""
    later = settled(text)
    return list(dict.fromkeys([*by_step(text, steps), *by_step(later, min(steps, 2 * len(later) + 1))]))


def _at(words: _Words, step: int, steps: int) -> str:
    found = []
    for one in words:
        if isinstance(one, _Switch):
            one = _at(one.before if step <= one.last(steps) else one.after, step, steps)
        elif isinstance(one, _Turns):
            one = _at(one.words[(step - 1) % len(one.words)], step, steps)
        found.append(one)
    return "".join(found)


def _settled(words: _Words) -> str:
    found = []
    for one in words:
        if isinstance(one, _Switch):
            one = _settled(one.after)
        elif isinstance(one, _Turns):
            one = f"[{'|'.join(_settled(turn) for turn in one.words)}]"
        found.append(one)
    return "".join(found)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> _Words:
    """Return a text as words, switches and turns."""
    if "[" not in text:
        return (text,)
    seen = FACE.sub(lambda match: " " * len(match.group(0)), outside_quotes(text))
    stack = [_Open(0)]
    position = 0
    while position < len(text):
        sign, here = seen[position], stack[-1]
        if sign == "\\":
            here.parts[-1].append(text[position : position + 2])
            position += 2
            continue
        if sign == "[":
            stack.append(_Open(position))
            if len(stack) > _DEEPEST:
                raise _refused(f"Brackets are nested more than {_DEEPEST - 1} deep.", "Nest them less.")
        elif sign == "]" and len(stack) > 1:
            closed = stack.pop()
            stack[-1].parts[-1] += _closed(closed, text, seen, position)
        elif sign in ":|" and len(stack) > 1 and not here.parentheses:
            here.cuts.append(position)
            here.parts.append([])
        else:
            here.parentheses = max(0, here.parentheses + {"(": 1, ")": -1}.get(sign, 0))
            here.parts[-1].append(text[position])
        position += 1
    while len(stack) > 1:  # brackets that are never closed are characters
        left = stack.pop()
        stack[-1].parts[-1] += ["[", *_as_written(left, text)]
    return _joined(stack[0].parts[0])


def _closed(one: _Open, text: str, seen: str, end: int) -> Sequence[str | _Switch | _Turns]:
    """Return what a bracket means that closes at a position."""
    number = _NUMBER.fullmatch(text[one.cuts[-1] + 1 : end]) if one.cuts else None
    named = repr(text[one.start : end + 1])
    if any(text[cut] == "|" for cut in one.cuts):
        if number and text[one.cuts[-1]] == ":":
            raise _refused(
                f"{named} has both turns and a step.",
                "Put one into the other: [[cat|dog]:bird:0.5], or [[cat:dog:0.5]|bird].",
            )
        return [_Turns(_turns(one, text))]
    if number is None or len(one.cuts) > 2:
        return ["[", *_as_written(one, text), "]"]
    before = seen[one.start + 1 : one.cuts[-1]]
    # `[16:9]` and `[10:30:20]` are a ratio and a time.
    if before[-1:].isdigit() if len(one.cuts) == 1 else not re.search(r"[^\W\d]", before):
        return ["[", *_as_written(one, text), "]"]
    at = number.group(1)
    if "." in at and float(at) > 1:
        raise _refused(
            f"{named} changes at {at}, which is neither a share of the steps nor a number of them.",
            "Write 0.5 for half of the steps, or 12 for the twelfth.",
        )
    nothing: list[str | _Switch | _Turns] = []
    first, second = (_joined(part) for part in [nothing, *one.parts[:-1]][-2:])
    return [_Switch(first, second, at)]


def _turns(one: _Open, text: str) -> tuple[_Words, ...]:
    """Return what takes turns: the parts between `|`; a colon between them is a character."""
    turns: list[list[str | _Switch | _Turns]] = [list(one.parts[0])]
    for cut, part in zip(one.cuts, one.parts[1:], strict=True):
        if text[cut] == "|":
            turns.append(list(part))
        else:
            turns[-1] += [":", *part]
    return tuple(_joined(turn) for turn in turns)


def _as_written(one: _Open, text: str) -> list[str | _Switch | _Turns]:
    """Return the parts of a bracket with their cuts as characters."""
    found = list(one.parts[0])
    for cut, part in zip(one.cuts, one.parts[1:], strict=True):
        found += [text[cut], *part]
    return found


def _joined(words: Sequence[str | _Switch | _Turns]) -> _Words:
    joined: list[str | _Switch | _Turns] = []
    for one in words:
        if isinstance(one, str) and joined and isinstance(joined[-1], str):
            joined[-1] += one
        else:
            joined.append(one)
    return tuple(joined)


def _refused(message: str, remedy: str) -> Failure:
    return Failure(FailureCode.INVALID_REQUEST, message, remedy)
