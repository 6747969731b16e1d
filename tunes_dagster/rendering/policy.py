"""What an operator does not want rendered: rules over the words, and a checker over the pictures.

Rules are a file, `TUNES_CONTENT_RULES`, that a person writes by hand: one rule a line, `name: words`. The words are
compared without case and accents, as whole words; between slashes they are a regular expression. Nothing is refused
when no file is named.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tunes_dagster.core.failures import Failure, FailureCode, detail_of
from tunes_dagster.core.settings import Settings

SAFETY_RULE = "picture safety"


@dataclass(frozen=True)
class Rule:
    """One rule: its name, which callers are told, and what fires it."""

    name: str
    pattern: re.Pattern[str]


def load_rules(settings: Settings) -> tuple[Rule, ...]:
    """Return the operator's rules; none when no file is named.

    Raises:
        Failure: `INVALID_REQUEST` when the file is missing or a line of it cannot be read; prompts are not let
            through an unreadable filter.
    """
    if not settings.content_rules:
        return ()
    path = Path(settings.content_rules).expanduser()
    try:
        return _read(str(path), path.stat().st_mtime_ns)
    except OSError as error:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            "The content rules of this installation cannot be read.",
            "The operator should correct TUNES_CONTENT_RULES.",
            detail_of(error, path),
        ) from error


@lru_cache(maxsize=4)
def _read(path: str, modified: int) -> tuple[Rule, ...]:
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return tuple(
        rule_of(line, f"{Path(path).name}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    )


def rule_of(line: str, where: str) -> Rule:
    """Return the rule that a line says.

    Raises:
        Failure: `INVALID_REQUEST` naming the line.
    """
    name, colon, said = (part.strip() for part in line.partition(":"))
    try:
        if not (name and colon and said):
            raise ValueError("it is not of the form `name: words`")
        if len(said) > 2 and said.startswith("/") and said.endswith("/"):
            return Rule(name, re.compile(said[1:-1], re.IGNORECASE))
        words = [re.escape(folded(word.strip())) for word in said.split(",") if word.strip()]
        joined = "|".join(word.replace("\\ ", r"\s+") for word in words)
        return Rule(name, re.compile(rf"(?<!\w)(?:{joined})(?!\w)"))
    except (ValueError, re.error) as error:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The content rule at {where} cannot be read.",
            "Write `name: word, two words` or `name: /regular expression/`.",
            detail_of(error),
        ) from error


def folded(text: str) -> str:
    """Return text without case, accents and invisible characters, so that a rule is not stepped around by them."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in plain if not unicodedata.combining(c) and unicodedata.category(c) != "Cf")


def fired(text: str, rules: Sequence[Rule]) -> Rule | None:
    """Return the first rule that a text breaks, or None."""
    plain = folded(text)
    return next((rule for rule in rules if rule.pattern.search(plain)), None)


def blocked(rule: str, what: str = "The prompt") -> Failure:
    """Return the failure of something that a rule forbids."""
    return Failure(
        FailureCode.BLOCKED,
        f"{what} was blocked by the rule {rule!r}.",
        "Ask for something else; nothing was charged.",
        facts={"rule": rule},
    )


def check_text(text: str, rules: Sequence[Rule]) -> None:
    """Refuse a text that breaks a rule.

    Raises:
        Failure: `BLOCKED` with the rule's name in `details`.
    """
    rule = fired(text, rules)
    if rule is not None:
        raise blocked(rule.name)
