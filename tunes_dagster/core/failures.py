"""The closed list of reasons why work ends badly, each with a remedy that its reader can act on.

Anything that is the caller's, the operator's or the world's doing is raised as `Failure` with a code from
`FailureCode`; everything else is a bug and becomes `INTERNAL` when an attempt ends. `as_failure` is the one place that
says what an exception means.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePath
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
    NOT_FINITE = "not_finite"
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


# What an exception says that nobody expected.
UNEXPECTED = "Something went wrong on our side."
# Words by which libraries say that a device or this machine has no memory left, in exceptions of no class of their own.
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "status_alloc_failed")
# Enough to find a bug whose stack trace is in no log any more.
_FRAMES = 4
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a request; every API words the list of them in its own form.

    Attributes:
        field: The option's path: `training.rank`, `mask_image`; empty for what no single option says.
        message: What is wrong with it, as it follows the name: `is 500, but should be at most 128`.
        alone: The message is a sentence by itself and names what it is about.
    """

    field: str
    message: str
    alone: bool = False

    def __str__(self) -> str:
        return self.message if self.alone or not self.field else f"{self.field} {self.message}"


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
        problems: What is wrong with a request, when that is what failed.
    """

    code: FailureCode
    message: str
    remedy: str = ""
    detail: str = ""
    facts: dict[str, Any] = field(default_factory=dict, kw_only=True)
    problems: tuple[Problem, ...] = field(default=(), kw_only=True)

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip() + f" [{self.code}]"

    def about(self, name: str) -> Failure:
        """Return this failure as one of an option of a request, unless it names one already."""
        self.problems = self.problems or (Problem(name, self.message, alone=True),)
        return self

    @property
    def retryable(self) -> bool:
        """Whether the same work may succeed when tried again unchanged."""
        return self.code in RETRYABLE


def refusal(
    said: str, problems: Sequence[Problem], remedy: str = "Correct it and send it again; nothing was started."
) -> Failure:
    """Return the refusal of a request.

    Args:
        said: What cannot be done: `The request is not valid`.
        problems: Why; all of them are told.
        remedy: As of `Failure`.
    """
    reasons = "; ".join(map(str, problems))
    return Failure(FailureCode.INVALID_REQUEST, f"{said}: {reasons}.", remedy, problems=tuple(problems))


def where(error: BaseException) -> str:
    """Return kind and place of an exception, without its message, which may quote what a person wrote."""
    frames = traceback.extract_tb(error.__traceback__)
    at = [f"{PurePath(one.filename).name}:{one.lineno} in {one.name}" for one in frames[-8:]]
    return f"{type(error).__name__} at {' > '.join(at) or 'an unknown place'}"


def detail_of(error: BaseException, *more: object) -> str:
    """Return an exception's kind and text, and what else belongs to it, as the `detail` of a failure."""
    said = f"{type(error).__name__}: {error}".strip(": ")
    return "; ".join([*map(str, more), said])[:2000]


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or what it was raised from, means that memory ran out, on any device.

    A `Failure` does not: whoever raised it has dealt with the exception, and its code says the rest.
    """
    while error is not None and not isinstance(error, Failure):
        kinds = {
            kind.__name__ for kind in type(error).__mro__
        }  # torch has a class of its own, and is not loaded here
        text = str(error).lower()
        if kinds & {"MemoryError", "OutOfMemoryError"}:
            return True
        if "RuntimeError" in kinds and any(words in text for words in _NO_MEMORY):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        error = error.__cause__
    return False


def as_failure(error: BaseException, otherwise: Failure | None = None) -> Failure:
    """Return the failure that an exception means; only its `detail` quotes the exception.

    Args:
        error: Any exception; a failure stands for itself.
        otherwise: What it means when it is neither a lack of memory nor of space; None stands for a bug.
    """
    if isinstance(error, Failure):
        return error
    if is_out_of_memory(error):
        found = Failure(
            FailureCode.OUT_OF_MEMORY,
            "The memory for this work ran out.",
            "Lower batch_size, resolution or rank of the tune, or the size of the picture; the operator can use a "
            "device with more memory, or let fewer tunes train at a time (TUNES_MAX_COHORT).",
        )
    elif isinstance(error, OSError) and error.errno in _DISK_FULL:
        found = Failure(
            FailureCode.STORE_UNAVAILABLE,
            "There is no space left to write to.",
            "The operator should make room; nothing that was done before is lost.",
        )
    else:
        found = otherwise or Failure(
            FailureCode.INTERNAL,
            UNEXPECTED,
            "This is a bug or a broken machine: the log of the run has the stack trace.",
        )
    # The exception itself is let go: its traceback holds the tensors of whatever failed.
    found.detail = "; ".join(filter(None, (found.detail, detail_of(error), _places(error))))
    return found


def _places(error: BaseException) -> str:
    """Return where in the code an exception was raised, and by whom that was called."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    return " < ".join(f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in reversed(frames))


class Cancelled(Failure):
    """Raised inside an attempt when the row's cancel flag was seen; `keep` asks for stop-and-keep."""

    def __init__(self, message: str = "The work was cancelled on request.", keep: bool = False) -> None:
        super().__init__(FailureCode.CANCELLED, message)
        self.keep = keep
