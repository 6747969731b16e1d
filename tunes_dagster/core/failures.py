"""The closed list of reasons why work ends badly, each with a remedy that its reader can act on.

Anything that is the caller's, the operator's or the world's doing is raised as `Failure` with a code from
`FailureCode`; everything else is a bug and becomes `INTERNAL` when an attempt ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class FailureCode(StrEnum):
    """Machine-readable reasons; callers may switch on them, so none is ever renamed."""

    INVALID_REQUEST = "invalid_request"
    UNKNOWN_TUNE = "unknown_tune"
    UNKNOWN_BASE = "unknown_base"
    BASE_NOT_INSTALLED = "base_not_installed"
    SOURCE_UNREACHABLE = "source_unreachable"
    SOURCE_REFUSED = "source_refused"
    ARCHIVE_REFUSED = "archive_refused"
    PICTURE_UNREADABLE = "picture_unreadable"
    TOO_FEW_PICTURES = "too_few_pictures"
    OUT_OF_MEMORY = "out_of_memory"
    DIVERGED = "diverged"
    WEIGHTS_UNUSABLE = "weights_unusable"
    RENDER_FAILED = "render_failed"
    BLOCKED = "blocked"
    CANCELLED = "cancelled"
    RUN_LOST = "run_lost"
    TIMED_OUT = "timed_out"
    STORE_UNAVAILABLE = "store_unavailable"
    CONFLICT = "conflict"
    OUT_OF_CREDITS = "out_of_credits"
    INTERNAL = "internal"


# Attempts that end for one of these reasons may succeed when simply tried again.
RETRYABLE = frozenset(
    {
        FailureCode.SOURCE_UNREACHABLE,
        FailureCode.RUN_LOST,
        FailureCode.TIMED_OUT,
        FailureCode.STORE_UNAVAILABLE,
        FailureCode.INTERNAL,
    }
)


# How the message of an unexpected exception looks, see `registry.outcomes.as_failure`.
_CRASH = re.compile(
    r"^(Its tune failed: )?[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt): .*?( Trying again in [\d.]+ s\.)?$",
    re.DOTALL,
)
# Where something lies on this machine is nobody else's business.
_PLACE = re.compile(r" at /\S+?(?=\.?(?:\s|$))")


def told_outside(text: str | None) -> str:
    """Return a sentence as callers over the network may read it: nothing of the inside, no place on this machine."""
    words = _CRASH.sub(r"\1Something went wrong on our side.\2", text or "")
    return _PLACE.sub("", words)


@dataclass(eq=False)
class Failure(Exception):
    """An expected failure: a code, a sentence that says what happened, and what the reader can do.

    Attributes:
        code: One of `FailureCode`.
        message: One sentence in plain words, naming the offending thing. It leaves this house: whoever sent the
            request reads it.
        remedy: One sentence that says what to do; empty only when nothing can be done. It leaves this house, too.
        detail: What only operators may see: texts of exceptions, places on this machine, addresses of its parts.
        facts: Small JSON-able facts that anyone may see (reasons per picture, allowed range ...).
    """

    code: FailureCode
    message: str
    remedy: str = ""
    detail: str = ""
    facts: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip() + f" [{self.code}]"

    @property
    def retryable(self) -> bool:
        """Whether the same work may succeed when tried again unchanged."""
        return self.code in RETRYABLE


class Cancelled(Failure):
    """Raised inside an attempt when the row's cancel flag was seen; `keep` asks for stop-and-keep."""

    def __init__(self, message: str = "The work was cancelled on request.", keep: bool = False) -> None:
        super().__init__(FailureCode.CANCELLED, message)
        self.keep = keep
