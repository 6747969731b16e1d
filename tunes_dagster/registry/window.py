"""What has ended and may leave the orchestrator's pages: the questions of `assets/window.py`, in pages of ids."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import exists, select

from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.session_tables import DeviceRun
from tunes_dagster.registry.tables import Batch, Tune, Work
from tunes_dagster.registry.transitions import ENDED_TUNE, OPEN_WORK

ENDED_BATCH = ("done", "failed", "cancelled")


class Window(Part):
    """Reads about tunes and batches that have ended."""

    def ended_tunes(self, ids: Sequence[str], before: datetime | None = None) -> set[str]:
        """Return those of some tunes that have ended, that no work is open for and that nothing moved since."""
        busy = exists().where(Work.subject_id == Tune.id, Work.state.in_(OPEN_WORK))
        query = select(Tune.id).where(Tune.id.in_(ids), Tune.status.in_(ENDED_TUNE), ~busy)
        if before is not None:
            query = query.where(Tune.updated_at < before)
        with self.reading() as session:
            return set(session.scalars(query))

    def ended_batches(self, ids: Sequence[str], before: datetime | None = None) -> set[str]:
        """Return those of some batches that have ended (before a time) and that no work is open for."""
        busy = exists().where(Work.subject_id == Batch.id, Work.state.in_(OPEN_WORK))
        query = select(Batch.id).where(Batch.id.in_(ids), Batch.status.in_(ENDED_BATCH), ~busy)
        if before is not None:
            query = query.where(Batch.done_at < before)
        with self.reading() as session:
            return set(session.scalars(query))

    def cohorts_without(self, ids: Sequence[str], others: Collection[str]) -> list[str]:
        """Return the cohorts of some tunes that none of `others` was trained in."""
        of_these = select(Work.cohort_id).where(Work.subject_id.in_(ids), Work.cohort_id.is_not(None))
        members = select(Work.cohort_id, Work.subject_id).where(Work.cohort_id.in_(of_these))
        with self.reading() as session:
            rows = session.execute(members).all()
        kept = {cohort_id for cohort_id, member in rows if member in others}
        return sorted({cohort_id for cohort_id, _member in rows if cohort_id and cohort_id not in kept})

    def runs_of(self, subject_ids: Sequence[str]) -> set[str]:
        """Return the runs of the orchestrator that tell of sessions' attempts at some tunes or batches."""
        query = select(DeviceRun.run_id).where(
            DeviceRun.subject_id.in_(subject_ids), DeviceRun.run_id.is_not(None)
        )
        with self.reading() as session:
            return {run_id for run_id in session.scalars(query) if run_id}

    def told_by(self, run_ids: Sequence[str]) -> dict[str, set[str]]:
        """Return the tunes and batches that each of some runs tells of for a session."""
        query = select(DeviceRun.run_id, DeviceRun.subject_id).where(DeviceRun.run_id.in_(run_ids))
        told: dict[str, set[str]] = {}
        with self.reading() as session:
            for run_id, subject_id in session.execute(query):
                told.setdefault(str(run_id), set()).add(subject_id)
        return told
