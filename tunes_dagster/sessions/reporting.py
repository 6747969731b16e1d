"""The reporters of a run: its own log in the Dagster UI, and the row in the registry that everybody else reads."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.failures import Cancelled, Failure, FailureCode
from tunes_dagster.core.progress import Eta, Phase, format_numbers, format_seconds
from tunes_dagster.registry.retrying import ASKED_SECONDS, DatabaseAway

if TYPE_CHECKING:
    from tunes_dagster.registry import Registry

_lines = logging.getLogger("tunes.pipeline")

# Every line is a row in Dagster's event log, which the UI loads whole.
_SECONDS_BETWEEN_LINES = 5.0
# How long a process that owns nothing any more goes on, unless the settings say so.
_LOST_AFTER_SECONDS = 60.0
# How soon a step shows in the row; the heartbeat itself has its own interval.
_SECONDS_BETWEEN_WRITES = 1.0


class RunLog:
    """Writes phases, notes and, now and then, a step with the time left to the log of the run."""

    def __init__(
        self,
        log: logging.Logger,
        prefix: str = "",
        clock: Callable[[], float] = time.monotonic,
        percent: Callable[[], float | None] | None = None,
    ) -> None:
        self._log = log
        self._percent = percent
        self._prefix = f"{prefix}: " if prefix else ""
        self._clock = clock
        self._eta = Eta(clock)
        self._phase = ""
        self._last_line = clock()

    def phase(self, phase: Phase, message: str = "") -> None:
        """Log that a phase began."""
        self._phase = str(phase)
        self._eta = Eta(self._clock)
        self._last_line = self._clock()
        self._log.info(f"{self._prefix}{phase}{f': {message}' if message else ''}")

    def step(self, done: int, total: int, **numbers: float) -> None:
        """Log the step when the last line is old enough, and the last step always."""
        left = self._eta.update(done, total)
        moment = self._clock()
        if done < total and moment - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        self._last_line = moment
        eta = f", {format_seconds(left)} left" if left is not None and done < total else ""
        values = f" ({format_numbers(numbers)})" if numbers else ""
        share = self._percent() if self._percent is not None else None
        whole = f", {share:.0f} % of all" if share else ""
        self._log.info(f"{self._prefix}{self._phase} {done}/{total}{eta}{whole}{values}")

    def note(self, message: str) -> None:
        """Log a line; notes are our own sentences, with ids and numbers in them."""
        self._log.info(f"{self._prefix}{message}")

    def finding(self, message: str) -> None:
        """Log that there is one: it may name a person's files, and stands in the row, where it can be deleted."""
        self._log.info(f"{self._prefix}A finding was added to its row.")

    def check_cancelled(self) -> None:
        """The run's log asks for nothing."""


class RunLines:
    """Writes a structured line per phase, with the ids that lead from a request to the run that does the work."""

    def __init__(self, **ids: Any) -> None:
        self._ids = {name: value for name, value in ids.items() if value is not None}

    def say(self, event: str, **facts: Any) -> None:
        """Write a line."""
        _lines.info(event, extra={"facts": {**self._ids, **facts}})

    def phase(self, phase: Phase, message: str = "") -> None:
        """Write that a phase began."""
        self.say("phase", phase=str(phase))

    def step(self, done: int, total: int, **numbers: float) -> None:
        """Steps stay in the run's log."""

    def note(self, message: str) -> None:
        """Notes stay in the run's log: they may quote names of files."""

    def finding(self, message: str) -> None:
        """Findings quote names of files, too."""

    def check_cancelled(self) -> None:
        """Nobody asks here."""


class Member:
    """One piece of running work as its `Pulse` sees it; also the reporter that writes into its row."""

    def __init__(self, registry: Registry, work_id: str, run_id: str) -> None:
        # The work goes on while its database is away: the next beat says what this one could not.
        self._registry = registry.with_patience(ASKED_SECONDS)
        self.work_id = work_id
        self.run_id = run_id
        self.flag = ""
        self.lost: Failure | None = None
        self.closed = False
        self._beaten = time.monotonic()
        self._eta = Eta()
        self._progress: dict[str, Any] = {
            "phase": "",
            "message": "",
            "step": 0,
            "total": 0,
            "seconds_left": None,
        }
        self._changed = False
        self._findings: list[str] = []
        self._lock = threading.Lock()

    def phase(self, phase: Phase, message: str = "") -> None:
        """Write the phase into the row at once."""
        with self._lock:
            self._eta = Eta()
            self._progress = {
                "phase": str(phase),
                "message": message,
                "step": 0,
                "total": 0,
                "seconds_left": None,
            }
            self._changed = True
        try:
            self.beat(interval=0.0)
        except DatabaseAway:
            self._changed = True  # the work goes on, and the pulse says it later

    def step(self, done: int, total: int, **numbers: float) -> None:
        """Remember the step; the pulse writes it within a second."""
        with self._lock:
            left = self._eta.update(done, total)
            self._progress.update(step=done, total=total, seconds_left=left)
            self._changed = True

    def note(self, message: str) -> None:
        """Notes stay in the run's log."""

    def finding(self, message: str) -> None:
        """Remember what was found; the pulse writes it into the row within a second."""
        with self._lock:
            self._findings.append(message)

    def tell(self, registry: Registry | None = None) -> None:
        """Write what was found since into the row; a registry that is given waits longer for its database."""
        with self._lock:
            found, self._findings = self._findings, []
        if not found:
            return
        try:
            (registry or self._registry).tunes.add_findings(self.work_id, self.run_id, found)
        except BaseException:
            with self._lock:
                self._findings = [*found, *self._findings]
            raise

    def check_cancelled(self) -> None:
        """Raise what the last heartbeat heard: a cancel, or that another attempt owns the row now."""
        if self.lost is not None:
            raise self.lost
        if self.flag:
            raise Cancelled(keep=self.flag == "keep")

    def close(self) -> None:
        """Stop the heartbeat of work whose row says how it ended; one that was on its way then found no owner."""
        self.closed, self.lost = True, None

    def beat(self, interval: float) -> None:
        """Write what changed, and say that the work is alive when it last said so `interval` seconds ago."""
        if self.closed or self.lost is not None:
            return
        with self._lock:
            changed, self._changed = self._changed, False
            progress = dict(self._progress)
        try:
            self.tell()
            if changed:
                self.flag = self._registry.work.progress(self.work_id, self.run_id, **progress)
                self._beaten = time.monotonic()
            elif time.monotonic() - self._beaten >= interval:
                self.flag = self._registry.work.heartbeat(self.work_id, self.run_id)
                self._beaten = time.monotonic()
        except Failure as failure:
            if failure.code != FailureCode.CONFLICT:
                raise
            if not self.closed:
                self.lost = failure


class Pulse:
    """A thread that keeps the rows of running work alive and hears whether the work should stop.

    It is a thread, so that a long call into the model never looks like a dead process. When all the work was given to
    others and the process, which exists for nothing else, does not notice, the thread ends it.

    Args:
        interval: Seconds between heartbeats.
        log: Of the run.
        patience: Seconds that a process whose work is all gone has to end by itself; None takes the setting.
        end: Ends the process.
    """

    def __init__(
        self,
        interval: float,
        log: logging.Logger | None = None,
        patience: float = _LOST_AFTER_SECONDS,
        end: Callable[[], None] | None = None,
    ) -> None:
        self._interval = interval
        self._log = log
        self._patience = patience
        self._end = end or (end_process if runs_alone() else None)
        self._abandoned: float | None = None
        self._members: list[Member] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, member: Member) -> Member:
        """Take one more piece of work into care."""
        self._members = [*(one for one in self._members if not one.closed), member]
        return member

    def remove(self, member: Member) -> None:
        """Let go of a piece of work that is over, whoever owns its row by now."""
        self._members = [one for one in self._members if one is not member]

    def __enter__(self) -> Pulse:
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop.wait(min(_SECONDS_BETWEEN_WRITES, self._interval)):
            for member in self._members:
                try:
                    member.beat(self._interval)
                except Exception as error:
                    # The registry may be away for a while; the work goes on, and the next beat tries again.
                    if self._log is not None:
                        self._log.warning(f"Could not write the heartbeat of {member.work_id}: {error}")
            self._end_abandoned()

    def _end_abandoned(self) -> None:
        """End the process when nothing that it does is used any more, and it had time to hear of that."""
        living = any(member.lost is None and not member.closed for member in self._members)
        if living or not any(member.lost is not None for member in self._members):
            self._abandoned = None
        elif self._abandoned is None:
            self._abandoned = time.monotonic()
        elif self._end is not None and time.monotonic() - self._abandoned > self._patience:
            if self._log is not None:
                self._log.error(
                    "All work of this run was given to others, and it does not end: it is killed."
                )
            self._end()


def runs_alone() -> bool:
    """Whether this process exists for one run: what Dagster's launchers start, not a command line or a test."""
    return multiprocessing.parent_process() is not None or sys.argv[1:3] == ["api", "execute_run"]


def end_process() -> None:
    """Kill this process: it may hang in code that hears no exception."""
    os.kill(os.getpid(), signal.SIGKILL)
