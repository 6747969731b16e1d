"""What an operator does not want rendered: rules over the words, and a checker over the pictures.

Rules are a plain file, `content-rules.txt` beside this one unless `TUNES_CONTENT_RULES` names another; its head says
how a line is written. What a text is compared in (`forms`) is the business of `disguises`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tunes_dagster.core.failures import Failure, FailureCode, detail_of
from tunes_dagster.core.settings import Settings
from tunes_dagster.rendering.disguises import folded, forms

SHIPPED = Path(__file__).with_name("content-rules.txt")
# Names of lines that are no rules.
_ALLOWED, _INCLUDE = "allowed", "include"
# How many words may stand between two that are near each other.
_NEAR = 5
SAFETY_RULE = "picture safety"


@dataclass(frozen=True)
class Rule:
    """One rule: its name, which callers are told, and what fires it: every pattern is found, and `spared` is not.

    An exception (`allows`) has one pattern, of what is taken out before the rules look.
    """

    name: str
    patterns: tuple[re.Pattern[str], ...]
    spared: re.Pattern[str] | None = None

    @property
    def allows(self) -> bool:
        """Whether it is an exception."""
        return self.name == _ALLOWED

    def fires(self, seen: Sequence[str]) -> bool:
        """Whether it is broken by a text, given in its forms."""
        if self.spared is not None and any(self.spared.search(form) for form in seen):
            return False
        return all(any(pattern.search(form) for form in seen) for pattern in self.patterns)


def load_rules(settings: Settings) -> tuple[Rule, ...]:
    """Return the rules in force: the shipped ones, those of the operator's file, or none when the setting is empty.

    Raises:
        Failure: `INVALID_REQUEST` when the file is missing or a line of it cannot be read; prompts are not let
            through an unreadable filter.
    """
    path = rules_file(settings)
    if path is None:
        return ()
    try:
        return _read(str(path), path.stat().st_mtime_ns)
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            "The content rules of this installation cannot be read.",
            "The operator should correct TUNES_CONTENT_RULES.",
            detail_of(error, path),
        ) from error


def rules_file(settings: Settings) -> Path | None:
    """Return the file of the rules in force, or None when every prompt is let through."""
    if not settings.content_rules:
        return None
    return SHIPPED if settings.content_rules == "shipped" else Path(settings.content_rules).expanduser()


@lru_cache(maxsize=4)
def _read(path: str, modified: int) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    words: dict[str, str] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), 1):
        name, _, said = (part.strip() for part in line.partition(":"))
        if not line.strip() or name.startswith("#"):
            continue
        if name.startswith("$"):
            words[name] = said
        elif (name, said) == (_INCLUDE, "shipped"):
            rules.extend(_read(str(SHIPPED), SHIPPED.stat().st_mtime_ns) if path != str(SHIPPED) else ())
        else:
            for short in sorted(words, key=len, reverse=True):
                line = line.replace(short, words[short])
            rules.append(rule_of(line, f"{Path(path).name}, line {number}"))
    return tuple(rules)


def rule_of(line: str, where: str) -> Rule:
    """Return the rule that a line says.

    Raises:
        Failure: `INVALID_REQUEST` naming the line.
    """
    name, colon, said = (part.strip() for part in line.partition(":"))
    try:
        if not (name and colon and said):
            raise ValueError("it is not of the form `name: words`")
        said, _, unless = said.rpartition(" unless ") if " unless " in said else (said, "", "")
        spared = re.compile(_group(unless), re.IGNORECASE) if unless else None
        whole = [said] if _is_pattern(said) else re.split(r"\s\+\s", said)
        if name == _ALLOWED and (len(whole) > 1 or spared):
            raise ValueError("an exception has no groups")
        return Rule(name, tuple(re.compile(_together(one), re.IGNORECASE) for one in whole), spared)
    except (ValueError, re.error) as error:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The content rule at {where} cannot be read.",
            "Write `name: word, two words`, `name: word + word`, `name: word ~ word` or `name: /regular expression/`.",
            detail_of(error),
        ) from error


def _is_pattern(said: str) -> bool:
    """Whether it is one regular expression, and not two that are joined."""
    return len(said) > 2 and said[0] == said[-1] == "/" and not re.search(r"/\s[+~]\s|\s[+~]\s/", said)


def _together(said: str) -> str:
    """Return the pattern of a group, or of two (`a ~ b`) of which words stand near each other, in any order."""
    first, near, second = said.partition(" ~ ") if not _is_pattern(said) else (said, "", "")
    if not near:
        return _group(said)
    between = rf"(?:\W+\w+){{0,{_NEAR}}}?\W+"
    one, other = _group(first), _group(second)
    return f"(?:{one}){between}(?:{other})|(?:{other}){between}(?:{one})"


def _group(said: str) -> str:
    """Return the pattern of words, any of which is found whole, or the one between slashes.

    A space in a word stands for a hyphen, too.
    """
    said = said.strip()
    if _is_pattern(said):
        re.compile(said[1:-1])  # a mistake is told of by itself
        return said[1:-1]
    words = [folded(word.strip()) for word in said.split(",") if folded(word.strip())]
    if not words:
        raise ValueError("a group has no words")
    joined = "|".join(re.escape(word).replace("\\ ", r"[\s-]+") for word in words)
    return rf"(?<!\w)(?:{joined})(?!\w)"


def fired(text: str, rules: Sequence[Rule]) -> Rule | None:
    """Return the first rule that a text breaks, or None."""
    if not rules:
        return None
    seen = forms(text)
    for rule in rules:
        if rule.allows:
            seen = [rule.patterns[0].sub(" ", form) for form in seen]
    for rule in rules:
        if not rule.allows and rule.fires(seen):
            return rule
    return None


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
