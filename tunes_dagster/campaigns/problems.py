"""Mistakes in a campaign, each with its place, collected instead of raised: people want to see all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tunes_dagster.core.failures import Failure, FailureCode


@dataclass(frozen=True, order=True)
class Mistake:
    """One mistake.

    Attributes:
        file: Name of the file.
        line: Line in a text file, row in a spreadsheet; 0 is the whole file.
        message: What is wrong.
        remedy: What to do about it.
        level: `error` stops the campaign; a `warning` is only said.
    """

    file: str
    line: int
    message: str
    remedy: str = ""
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        place = f"{self.file}, line {self.line}" if self.line else self.file
        return f"{place}: {self.message}" + (f" {self.remedy}" if self.remedy else "")

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def errors(problems: Sequence[Mistake]) -> list[Mistake]:
    """Return those that stop the campaign."""
    return [problem for problem in problems if problem.level == "error"]


def as_failure(name: str, problems: Sequence[Mistake]) -> Failure:
    """Return a failure that names the first mistakes and holds all of them."""
    found = errors(problems)
    shown = "; ".join(str(problem) for problem in found[:3])
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return Failure(
        FailureCode.INVALID_REQUEST,
        f"The campaign {name} has {len(found)} mistake{'s' if len(found) > 1 else ''}: {shown}{more}",
        "Correct them and see them gone with `tunes campaign check FILE`; nothing was queued.",
        facts={"problems": [problem.as_dict() for problem in found]},
    )
