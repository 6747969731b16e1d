"""How long work shows itself: one small protocol that every long function reports to.

The library never asks who is watching. The Dagster run log, the registry row and the terminal are three
reporters behind the same six calls; `Tee` joins them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from tunes_dagster.core.failures import Cancelled


class Phase(StrEnum):
    """The phases of a tune and of a render, in the words every interface uses."""

    QUEUED = "queued"
    FETCHING = "fetching"
    CHECKING = "checking"
    CAPTIONING = "captioning"
    LOADING = "loading"
    ENCODING = "encoding"
    WORDS = "words"
    TRAINING = "training"
    EVALUATING = "evaluating"
    PACKAGING = "packaging"
    RENDERING = "rendering"
    DELIVERING = "delivering"


class Reporter(Protocol):
    """What a long function tells whoever watches it."""

    def phase(self, phase: Phase, message: str = "") -> None:
        """Enter a phase; the message is one short sentence for people."""

    def step(self, done: int, total: int, **numbers: float) -> None:
        """Report progress inside the phase, with numbers worth a plot (`loss=0.12`). Cheap to call often."""

    def note(self, message: str) -> None:
        """Say something worth a line in a log."""

    def finding(self, message: str) -> None:
        """Say what whoever asked for the work should know: a whole sentence, which stays with the tune."""

    def check_cancelled(self) -> None:
        """Raise `Cancelled` when somebody asked for it. Cheap to call every step."""


class Silent:
    """A reporter that nobody watches."""

    def phase(self, phase: Phase, message: str = "") -> None:
        """Ignore."""

    def step(self, done: int, total: int, **numbers: float) -> None:
        """Ignore."""

    def note(self, message: str) -> None:
        """Ignore."""

    def finding(self, message: str) -> None:
        """Where there is no row to keep it in, it is a line like others."""
        self.note(message)

    def check_cancelled(self) -> None:
        """Never cancelled."""


@dataclass
class Tee:
    """Passes every report on to several reporters; a cancel seen by any of them is raised."""

    reporters: Sequence[Reporter]

    def phase(self, phase: Phase, message: str = "") -> None:
        """Enter a phase everywhere."""
        for reporter in self.reporters:
            reporter.phase(phase, message)

    def step(self, done: int, total: int, **numbers: float) -> None:
        """Report a step everywhere."""
        for reporter in self.reporters:
            reporter.step(done, total, **numbers)

    def note(self, message: str) -> None:
        """Say a line everywhere."""
        for reporter in self.reporters:
            reporter.note(message)

    def finding(self, message: str) -> None:
        """Say a finding everywhere."""
        for reporter in self.reporters:
            reporter.finding(message)

    def check_cancelled(self) -> None:
        """Raise `Cancelled` when any reporter does."""
        for reporter in self.reporters:
            reporter.check_cancelled()


class Keeping(Tee):
    """Watches work that has something to keep: to stop and keep it comes by itself, so only a plain cancel ends it."""

    def check_cancelled(self) -> None:
        """Raise only when nothing is to be kept."""
        try:
            super().check_cancelled()
        except Cancelled as cancelled:
            if not cancelled.keep:
                raise


@dataclass
class Eta:
    """Remaining seconds from the measured speed of the current phase.

    The first step pays for warm-up (allocations, compilation), so speed is measured from the second on,
    as an exponential mean over about the last 20 steps.
    """

    clock: Callable[[], float] = time.monotonic
    _last: tuple[int, float] | None = None
    _seconds_per_step: float | None = field(default=None)

    def update(self, done: int, total: int) -> float | None:
        """Take note of a step; return the seconds left, or None while the speed is unknown."""
        moment = self.clock()
        if self._last is not None and done > self._last[0]:
            pace = (moment - self._last[1]) / (done - self._last[0])
            weight = min(1.0, 0.1 * (done - self._last[0]))
            old = self._seconds_per_step
            self._seconds_per_step = pace if old is None else old + weight * (pace - old)
        if self._last is None or done != self._last[0]:
            self._last = (done, moment)
        if self._seconds_per_step is None:
            return None
        return max(0.0, (total - done) * self._seconds_per_step)


def format_count(number: int, noun: str) -> str:
    """Return a number of things: `1 prompt`, `2 prompts`, `10,000 prompts`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def format_seconds(seconds: float | None) -> str:
    """Format a duration for people: `8 s`, `3 min 20 s`, `2 h 5 min`, or `unknown`."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_numbers(numbers: Mapping[str, float]) -> str:
    """Format the numbers of a step for a log line: `loss=0.1234`."""
    return " ".join(f"{name}={value:.4g}" for name, value in numbers.items())
