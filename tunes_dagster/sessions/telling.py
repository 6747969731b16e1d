"""The reporters of a session's work: its journal, and the place where it lets others have their turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Cancelled, Failure
from tunes_dagster.core.progress import Phase
from tunes_dagster.sessions.journal import Outcome

if TYPE_CHECKING:
    from tunes_dagster.registry import Work
    from tunes_dagster.sessions.journal import Journal

_SECONDS_BETWEEN_LINES = 5.0


class Drained(Cancelled):
    """The session was asked to stop: what is going on is given back to the queue, and goes on in another one."""

    def __init__(self) -> None:
        super().__init__("The session was asked to stop; the work will resume.")


class Told:
    """Tells the journal phases, and steps now and then; notes and findings may name people and stay in the rows."""

    def __init__(self, journal: Journal, work: Work) -> None:
        self._journal, self._work = journal, work
        self._phase, self._told = "", float("-inf")

    def phase(self, phase: Phase, message: str = "") -> None:
        """Tell that a phase began."""
        self._phase = str(phase)
        self._journal.line(self._work, self._phase)

    def step(self, done: int, total: int, **numbers: float) -> None:
        """Tell a step when the last one was told long enough ago."""
        now = time.monotonic()
        if now - self._told >= _SECONDS_BETWEEN_LINES:
            self._told = now
            self._journal.progress(self._work, self._phase, done, total)

    def note(self, message: str) -> None:
        """Notes stay away."""

    def finding(self, message: str) -> None:
        """Findings stay in the row."""

    def check_cancelled(self) -> None:
        """The journal asks for nothing."""


class Between:
    """Gives others their turn wherever a piece of work may be stopped, for nothing is half done there.

    Words of a pivotal tune are learned in embeddings that prompts with words of their own would move; there is no turn
    for others meanwhile.
    """

    def __init__(self, turn: Callable[[], None]) -> None:
        self._turn, self._busy = turn, False

    def phase(self, phase: Phase, message: str = "") -> None:
        """Note whether there may be turns."""
        self._busy = phase == Phase.WORDS

    def step(self, done: int, total: int, **numbers: float) -> None:
        """Steps say nothing about turns."""

    def note(self, message: str) -> None:
        """Nor do notes."""

    def finding(self, message: str) -> None:
        """Nor do findings."""

    def check_cancelled(self) -> None:
        """Let others have their turn; raises what ends all work of the session."""
        if not self._busy:
            self._turn()


def outcome_of(error: BaseException | Failure, again: bool) -> Outcome:
    """Return how an attempt ended that was closed with an error."""
    if isinstance(error, Drained):
        return Outcome("returned", error, again=True)
    failure = error if isinstance(error, Failure) else None
    return Outcome("cancelled" if isinstance(error, Cancelled) else "failed", failure, again)
