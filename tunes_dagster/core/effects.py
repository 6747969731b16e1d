"""Which fields of a request change nothing with the others as given: one table of rules for each model of a request.

A table names every field of its model. A rule says why its field has no effect in a case, or nothing; then the field is
told of by name (`core/wishes.py`) and set back to its default, so that rows, recipes and hashes hold what counts. A
field without rules always has an effect, or is refused where it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from tunes_dagster.core.wishes import Wishes

Part = TypeVar("Part", bound=BaseModel)
Case = TypeVar("Case")


@dataclass(frozen=True)
class Idle:
    """Why a field has no effect, and what is done.

    Attributes:
        why: What follows the field's name in a sentence.
        instead: What is done without it.
        remedy: What would give it one, for an operator.
        changes: Fields that are changed; None sets the field back to its default.
    """

    why: str
    instead: str = "it is left out"
    remedy: str = ""
    changes: Mapping[str, Any] | None = None


Rule = Callable[[Case, str], Idle | None]
Table = Mapping[str, Sequence[Rule[Case]]]
# The rules of a field that always has an effect.
ALWAYS: tuple[Rule[Any], ...] = ()


def when(idle: Callable[[Case], bool], why: str, changes: Mapping[str, Any] | None = None) -> Rule[Case]:
    """Return a rule: the field has no effect in the cases that `idle` is true of."""

    def rule(case: Case, name: str) -> Idle | None:
        return Idle(why, changes=changes) if idle(case) else None

    return rule


def without_idle(
    part: Part, table: Table[Case], case: Callable[[Part], Case], wishes: Wishes, prefix: str = ""
) -> Part:
    """Return a part of a request without the fields that have no effect, each told to `wishes`.

    Args:
        part: The model's fields as given; only those that differ from their defaults are looked at.
        table: Field → rules; looked through in its order, each with what the ones before have left.
        case: Makes what the rules look at.
        wishes: Are told.
        prefix: Of the names that are told: `training.`.
    """
    for name, rules in table.items():
        default = type(part).model_fields[name].get_default(call_default_factory=True)
        if getattr(part, name) == default:
            continue
        seen = case(part)
        idle = next((found for rule in rules if (found := rule(seen, name))), None)
        if idle is None:
            continue
        wishes.leave(f"{prefix}{name}", idle.why, idle.instead, idle.remedy)
        part = part.model_copy(update={name: default} if idle.changes is None else dict(idle.changes))
    return part
