"""Tells the runs of device work what became of it: from the registry's rows into the events of Dagster's runs.

A run of device work has no process. What a session did stands in `device_runs`; this writes what the run does not say
yet, in order and with its real times, and notes how far it came. It can be stopped anywhere and be followed by another
teller, which reads what the run holds before it goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import dagster as dg
from dagster import DagsterRunStatus

from tunes_dagster.core.ids import new_id
from tunes_dagster.core.work import WorkKind
from tunes_dagster.pipeline.journal import RunJournal
from tunes_dagster.pipeline.shown import facts_of_failure, shown, why

if TYPE_CHECKING:
    from tunes_dagster.registry import DeviceRun
    from tunes_dagster.service.installation import Installation

log = logging.getLogger(__name__)

# Nothing was told of an attempt, though perhaps that its run began.
_UNTOLD = ("", "run")


@dataclass(frozen=True)
class Told:
    """What one look did.

    Attributes:
        runs: That had something to say.
        left: That were left for the next look.
    """

    runs: int
    left: int


class Teller:
    """Writes what runs do not say yet."""

    def __init__(self, instance: dg.DagsterInstance, installation: Installation, name: str = "") -> None:
        self._instance, self._installation = instance, installation
        self._registry = installation.registry
        self._name = name or new_id("teller")

    def tell(self, seconds: float = 20.0) -> Told:
        """Tell all runs that have something to say; those for which there is no time come first the next time.

        One that cannot be told, because its storage does not answer, leaves the others alone.
        """
        until = time.monotonic() + seconds
        self._registry.device_runs.end_lost()
        waiting = self._registry.device_runs.runs_to_tell()
        for number, run_id in enumerate(waiting):
            if time.monotonic() > until:
                return Told(number, len(waiting) - number)
            try:
                self.tell_run(run_id)
            except Exception:
                log.exception("The run %s could not be told.", run_id)
        return Told(len(waiting), 0)

    def tell_run(self, run_id: str) -> None:
        """Tell one run."""
        rows, died = self._registry.device_runs.take_telling(run_id, self._name)
        if not rows:
            return
        run = self._instance.get_run_by_id(run_id)
        if run is None:  # somebody deleted it, and all that it said
            self._registry.device_runs.drop(run_id)
            return
        _Tale(RunJournal(self._instance, run, again=died), self._installation, run, rows).tell()
        self._registry.device_runs.told(rows)


class _Tale:
    """One run and the attempts that it tells of."""

    def __init__(
        self, journal: RunJournal, installation: Installation, run: dg.DagsterRun, rows: Sequence[DeviceRun]
    ) -> None:
        self._journal, self._installation, self._run = journal, installation, run
        self._rows = list(rows)
        self._started = run.status not in (
            DagsterRunStatus.NOT_STARTED,
            DagsterRunStatus.QUEUED,
            DagsterRunStatus.STARTING,
        )
        self._steps: dict[str, list[DeviceRun]] = {}
        for row in self._rows:
            self._steps.setdefault(row.kind, []).append(row)

    def tell(self) -> None:
        begun = [row.began_at for row in self._rows if row.began_at is not None]
        if begun and not self._started:
            self._journal.started(min(begun))
        for kind, rows in self._steps.items():
            self._tell_step(WorkKind(kind).asset, rows)
        self._end()

    def _tell_step(self, step: str, rows: Sequence[DeviceRun]) -> None:
        if all(row.told == "ended" for row in rows):
            return
        begun = [row.began_at for row in rows if row.began_at is not None]
        if begun and all(row.told in _UNTOLD for row in rows):
            self._journal.step_started(step, min(begun))
        for row in rows:
            while lines := self._installation.registry.device_runs.lines_to_tell(row):
                for line in lines:
                    text = f"{row.subject_id}: {line.text}" if len(rows) > 1 else line.text
                    self._journal.line(step, text, line.level, line.at)
                row.said = lines[-1].id
            if row.began_at is not None and row.told in _UNTOLD:
                row.told = "begun"
        if all(row.state for row in rows):
            self._end_step(step, rows, begun)

    def _end_step(self, step: str, rows: Sequence[DeviceRun], begun: Sequence[datetime]) -> None:
        at = _last(rows)
        made = [row for row in rows if row.state == "done"]
        bad = next((row for row in rows if row.state in ("failed", "lost")), None)
        if made:
            seen = shown(made if len(made) == len(rows) else rows, self._installation)
            partition = _partition(self._run, rows)
            self._journal.materialized(step, dg.AssetKey(step), partition, seen, at)
            self._journal.step_succeeded(step, (at - min(begun)).total_seconds() if begun else 0.0, at)
        elif bad is not None and begun:
            self._journal.step_failed(step, why(bad), at, facts_of_failure(bad))
        for row in rows:
            row.told = "ended"

    def _end(self) -> None:
        """End the run when all of its steps have ended; what waited for a step that did not end well is left out."""
        ends = {kind: _end_of(rows) for kind, rows in self._steps.items()}
        bad = next((row for end, row in ends.values() if end not in ("", "done")), None)
        if bad is not None:
            for rows in self._steps.values():
                for row in rows:
                    if not row.state and row.began_at is None:
                        self._installation.registry.device_runs.end(row.id, "cancelled")
                        row.state, row.told, row.ended_at = "cancelled", "ended", bad.ended_at
        if not all(row.state for row in self._rows):
            return
        at = _last(self._rows)
        if bad is None:
            self._journal.succeeded(at)
        elif bad.state in ("failed", "lost"):
            self._journal.failed(why(bad), at)
        else:
            self._journal.canceled(why(bad), at)


def _partition(run: dg.DagsterRun, rows: Sequence[DeviceRun]) -> str:
    return run.tags.get("dagster/partition") or rows[0].subject_id


def _last(rows: Sequence[DeviceRun]) -> datetime:
    ends = [row.ended_at for row in rows if row.ended_at is not None]
    return max(ends)


def _end_of(rows: Sequence[DeviceRun]) -> tuple[str, DeviceRun]:
    """Return how a step ended, '' while it goes on, and the attempt that says so."""
    if not all(row.state for row in rows):
        return "", rows[0]
    made = next((row for row in rows if row.state == "done"), None)
    bad = next((row for row in rows if row.state in ("failed", "lost")), None)
    chosen = made or bad or rows[0]
    return chosen.state, chosen
