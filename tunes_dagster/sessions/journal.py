"""Whom a session tells what becomes of each piece of work: the one road on which Dagster hears of it.

A session never waits for its journal: `Queued` passes calls on from a thread of its own, in order, and what a journal
raises ends there. A journal that was away is told by whoever replays the registry's rows: each `Work` that it is given
says its attempt (`run_key`, `{id}:{attempt}`), the session that owns it (`run_id`, `session_…`) and its times.

With `TUNES_SESSIONS` nobody but sessions takes device work (`train`, `finish`, `render`): rows go from queued to
running in one step. A run of Dagster is bound to an attempt afterwards, by its run key.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from tunes_dagster.core.failures import Failure
    from tunes_dagster.registry import Work

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        state: `done`, `failed`, `cancelled`, or `returned`: the session stopped or gave way, and the work goes on in
            another attempt.
        failure: Why, unless it is done.
        again: Whether the registry queued another attempt.
    """

    state: Literal["done", "failed", "cancelled", "returned"]
    failure: Failure | None = None
    again: bool = False


class Journal(Protocol):
    """What is told of each piece of work, in this order; every call is cheap or made from another thread."""

    def began(self, work: Work) -> None:
        """An attempt began; `work` is its row as it was claimed."""

    def line(self, work: Work, text: str, level: int = logging.INFO) -> None:
        """Something worth a line of a log was said; it names nobody."""

    def progress(self, work: Work, phase: str, done: int, total: int) -> None:
        """So much of a phase is done; at most once in a few seconds."""

    def materialized(self, work: Work, result: Any) -> None:
        """Files are there that count: a `Trained`, `Rendered` or `Evaluated` (see `results.py`)."""

    def ended(self, work: Work, outcome: Outcome) -> None:
        """The attempt ended; nothing is told of it after this."""


class Silent:
    """The journal of a session that nobody reads about."""

    def began(self, work: Work) -> None:
        """Ignore."""

    def line(self, work: Work, text: str, level: int = logging.INFO) -> None:
        """Ignore."""

    def progress(self, work: Work, phase: str, done: int, total: int) -> None:
        """Ignore."""

    def materialized(self, work: Work, result: Any) -> None:
        """Ignore."""

    def ended(self, work: Work, outcome: Outcome) -> None:
        """Ignore."""


class Queued:
    """Passes everything on to a journal that may be slow, from a thread of its own and in order."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._pass_on, name="journal", daemon=True)
        self._thread.start()

    def began(self, work: Work) -> None:
        """Pass on."""
        self._calls.put(lambda: self._journal.began(work))

    def line(self, work: Work, text: str, level: int = logging.INFO) -> None:
        """Pass on."""
        self._calls.put(lambda: self._journal.line(work, text, level))

    def progress(self, work: Work, phase: str, done: int, total: int) -> None:
        """Pass on."""
        self._calls.put(lambda: self._journal.progress(work, phase, done, total))

    def materialized(self, work: Work, result: Any) -> None:
        """Pass on."""
        self._calls.put(lambda: self._journal.materialized(work, result))

    def ended(self, work: Work, outcome: Outcome) -> None:
        """Pass on."""
        self._calls.put(lambda: self._journal.ended(work, outcome))

    def close(self, seconds: float = 30.0) -> None:
        """Wait until everything that was said was passed on."""
        self._calls.put(None)
        self._thread.join(seconds)

    def _pass_on(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception:  # the work is done whatever becomes of its story
                log.exception("The journal of a session could not be written.")
