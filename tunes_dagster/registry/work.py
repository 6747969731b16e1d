"""Work: who may do what now. Rows go queued → submitted → running → done, each step by compare-and-set.

How an attempt ends is in `outcomes.py`; how tunes and prompts are grouped into runs is in `groups.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, func, or_, select, true, update
from sqlalchemy.orm import Session

from tunes_dagster.core.failures import Cancelled, Failure, FailureCode
from tunes_dagster.core.work import MAKING, WorkKind, run_key
from tunes_dagster.registry.claims import (
    done_since,
    is_suspect,
    lacks_pictures,
    lock_training,
    lost,
    make_room,
    start,
    subject_reopened,
    take,
)
from tunes_dagster.registry.pace import Paces
from tunes_dagster.registry.retrying import repeatable
from tunes_dagster.registry.tables import Batch, Cohort, Prompt, Tune, Work
from tunes_dagster.registry.transitions import (
    OPEN_PROMPT,
    kind_for,
    lock_subject,
    lock_work,
    note,
    open_work,
)
from tunes_dagster.registry.uses import was_deleted


class WorkRows(Paces):
    """Queue, submit, claim, heartbeat, progress."""

    def get(self, work_id: str) -> Work:
        """Return one row.

        Raises:
            Failure: `INVALID_REQUEST` when there is none.
        """
        with self.reading() as session:
            work = session.get(Work, work_id)
        if work is None:
            raise Failure(FailureCode.INVALID_REQUEST, f"There is no work {work_id!r}.")
        return work

    def of(self, subject_id: str, kind: str | None = None) -> list[Work]:
        """Return the work rows of a tune or batch, oldest first."""
        query = select(Work).where(Work.subject_id == subject_id).order_by(Work.created_at, Work.id)
        with self.reading() as session:
            return list(session.scalars(query.where(Work.kind == kind) if kind else query))

    def queued(self, kind: str, now: datetime | None = None, limit: int = 25) -> list[Work]:
        """Return the rows of a kind that may start now, longest waiting first."""
        query = (
            select(Work)
            .where(Work.kind == kind, Work.state == "queued", Work.available_at <= (now or self.now()))
            .order_by(Work.available_at, Work.id)
            .limit(limit)
        )
        with self.reading() as session:
            return list(session.scalars(query))

    def waiting_ahead(self, work: Work) -> int:
        """Return how many queued rows of the same kind come before this one."""
        query = select(func.count()).where(
            Work.kind == work.kind, Work.state == "queued", Work.available_at < work.available_at
        )
        with self.reading() as session:
            return int(session.scalar(query) or 0)

    def count_waiting_runs(self, kind: str) -> int:
        """Return how many launched runs of a kind have not begun; the members of a cohort are one run."""
        runs = select(func.count(func.distinct(func.coalesce(Work.cohort_id, Work.id))))
        query = runs.where(Work.kind == kind, Work.state == "submitted")
        with self.reading() as session:
            return int(session.scalar(query) or 0)

    def submit(
        self, work_ids: Sequence[str], cohort_id: str | None = None, now: datetime | None = None
    ) -> list[Work]:
        """Move queued rows to submitted, each with its next attempt and `run_key` `{id}:{attempt}`.

        Returns:
            The rows that this caller won; rows that somebody else took meanwhile are left out.
        """
        with self.writing() as session:
            return take(session, work_ids, cohort_id, now or self.now())

    @repeatable
    def claim(
        self, kind: str, subject_id: str, run_id: str, *, origin: str = "sensor", run_key: str | None = None
    ) -> Work:
        """Become the owner of the work of a kind on a subject; the first thing a run does.

        A run that was launched for an attempt names its `run_key`. A run without one (the UI, the command
        line) takes queued or submitted work over under a new attempt, and opens a new attempt when no work
        is open; work that is opened this way by a `sensor` caller counts as `ui`. Claiming again with the
        same run id returns the same row.

        Raises:
            Failure: `CONFLICT` when another run owns the row or the attempt of `run_key` was superseded,
                `CANCELLED` when it was cancelled, `UNKNOWN_TUNE`.
        """
        with self.writing() as session:
            return self._claim(session, kind, subject_id, run_id, origin, run_key)

    def _claim(
        self, session: Session, kind: str, subject_id: str, run_id: str, origin: str, run_key: str | None
    ) -> Work:
        now = self.now()
        subject = lock_subject(session, kind, subject_id)
        if isinstance(subject, Tune) and subject.status == "deleted":
            raise Failure(FailureCode.UNKNOWN_TUNE, f"The tune {subject_id} was deleted.", "Make a new one.")
        kind = kind_for(subject, kind)
        work = lock_work(session, kind, subject_id)
        if work is not None and work.state == "running":
            if work.run_id == run_id:
                return work
            raise Failure(
                FailureCode.CONFLICT,
                f"{kind} of {subject_id} is being done by run {work.run_id} (attempt {work.attempt}).",
                "Wait for that run, or terminate it first.",
            )
        if run_key is not None and (work is None or work.state != "submitted" or work.run_key != run_key):
            if work is not None and work.state == "cancelled":
                raise Cancelled()
            raise Failure(
                FailureCode.CONFLICT,
                f"The launch {run_key} of {kind} of {subject_id} was superseded "
                f"(now: {'none' if work is None else f'attempt {work.attempt}, {work.state}'}).",
                "Nothing to do: the newer attempt carries on.",
            )
        if work is None or work.state in ("done", "failed", "cancelled"):
            make_room(session, kind, subject_id, now)
            work = open_work(session, kind, subject_id, "ui" if origin == "sensor" else origin, now)
            subject_reopened(session, subject, now)
        if run_key is None:
            work.attempt += 1
            work.run_key = work.cohort_id = None
        start(session, work, subject, run_id, now)
        return work

    @repeatable
    def claim_again(self, kind: str, subject_id: str, run_id: str, parents: Sequence[str]) -> Work:
        """Become the owner of work that an earlier run left undone; the first thing a run's re-execution does.

        It keeps its cohort, so that the earlier run can be executed again as often as somebody tries.

        Args:
            kind: Of work.
            subject_id: Tune or batch.
            run_id: Of the re-execution.
            parents: Runs whose own end counts for nothing: they ended badly, whatever their rows say.

        Raises:
            Failure: `CONFLICT` when nothing is left to be done: it was done since, or is on its way; and as `claim`.
        """
        with self.writing() as session:
            subject = lock_subject(session, kind, subject_id)
            work = lock_work(session, kind_for(subject, kind), subject_id)
            cohort_id = work.cohort_id if work is not None else None
            lacking = isinstance(subject, Batch) and lacks_pictures(session, subject)
            if work is not None and work.state == "done" and work.run_id not in parents and not lacking:
                raise done_since(work, subject)
            claimed = self._claim(session, kind, subject_id, run_id, "ui", None)
            claimed.cohort_id = cohort_id
            return claimed

    @repeatable
    def claim_cohort(self, cohort_id: str, run_id: str) -> list[Work]:
        """Claim every member of a cohort for its run; members that left meanwhile are not in the answer."""
        now = self.now()
        with self.writing() as session:
            query = select(Work.subject_id).where(Work.cohort_id == cohort_id)
            members = []
            for tune, work in lock_training(session, session.scalars(query)):
                if work.cohort_id != cohort_id:
                    continue
                if work.state == "submitted":
                    start(session, work, tune, run_id, now)
                if work.state == "running" and work.run_id == run_id:
                    members.append(work)
            return sorted(members, key=lambda work: work.subject_id)

    @repeatable
    def join_cohort(
        self,
        cohort_id: str,
        run_id: str,
        places: int,
        besides: Sequence[str] = (),
        patience_seconds: float = 10.0,
        suspects: bool = True,
    ) -> list[Work]:
        """Take waiting tunes of a cohort's base into it and claim them for its run, longest waiting first.

        Besides queued work this takes work whose own run has not begun `patience_seconds` after it was
        launched: with every GPU busy it would wait for the very run that asks. Its launch finds nobody left.
        Those that joined before without the run's hearing of it come first.

        Args:
            cohort_id: Which.
            run_id: Its run.
            places: Most tunes to take.
            besides: Tunes to leave alone: who failed in a run tries again in another one.
            patience_seconds: See above.
            suspects: Whether to take those that may have killed a process, too.
        """
        now = self.now()
        with self.writing() as session:
            cohort = session.get(Cohort, cohort_id)
            if cohort is None or places <= 0:
                return []
            unheard = select(Work).where(
                Work.cohort_id == cohort_id,
                Work.run_id == run_id,
                Work.state == "running",
                Work.subject_id.not_in(besides),
            )
            if joined := list(session.scalars(unheard.order_by(Work.subject_id))):
                return joined
            free = _free_to_join(now, now - timedelta(seconds=patience_seconds))
            query = (
                select(Work.subject_id)
                .join(Tune, Tune.id == Work.subject_id)
                .where(free, Tune.base_id == cohort.base_id, Work.subject_id.not_in(besides))
                .where(true() if suspects else ~is_suspect())
                .order_by(Work.available_at, Work.id)
                .limit(places)
            )
            for tune, work in lock_training(session, session.scalars(query)):
                if work.state not in ("queued", "submitted"):
                    continue
                work.attempt += 1
                work.run_key, work.cohort_id = run_key(work.id, work.attempt), cohort_id
                work.submitted_at = work.submitted_at or now
                start(session, work, tune, run_id, now)
                joined.append(work)
            return joined

    @repeatable
    def heartbeat(self, work_id: str, run_id: str) -> str:
        """Say that an attempt is alive; returns the cancel flag it must obey: '' | 'cancel' | 'keep'.

        Raises:
            Failure: `CONFLICT` when the row is not this run's any more: stop, what it writes is not used.
        """
        with self.writing(lasts=False) as session:
            return self._cancel_flag(session, *self._beat(session, work_id, run_id))

    @repeatable
    def progress(
        self,
        work_id: str,
        run_id: str,
        *,
        phase: str,
        message: str = "",
        step: int = 0,
        total: int | None = None,
        seconds_left: float | None = None,
    ) -> str:
        """Write how far an attempt is on its tune or batch; also a heartbeat, and answers like one."""
        now = self.now()
        with self.writing(lasts=False) as session:
            found = session.get(Work, work_id)
            if found is None or found.state != "running" or found.run_id != run_id:
                raise lost(found, work_id, run_id)
            subject: type[Tune] | type[Batch] = Batch if found.kind == WorkKind.RENDER else Tune
            about: Select[Any] = select(subject).where(subject.id == found.subject_id)
            row: Tune | Batch = session.scalars(about).one()
            before = row.phase
            values: dict[str, Any] = {
                "phase": phase,
                "message": message,
                "step": step,
                "total_steps": total or None,
                "seconds_left": seconds_left,
            }
            if subject is Tune:
                values["updated_at"] = now
            if row.status != "ready":
                values |= self.advanced(session, found.kind, row, phase, step / total if total else 0.0)
            session.execute(update(subject).where(subject.id == found.subject_id).values(**values))
            if before != phase:
                note(session, found.subject_id, phase, message, now, attempt=found.attempt)
                session.flush()
            self._beat(session, work_id, run_id)
            return self._cancel_flag(session, found.kind, found.subject_id, found.origin)

    def _beat(self, session: Session, work_id: str, run_id: str) -> tuple[str, str, str]:
        beat = (
            update(Work)
            .where(Work.id == work_id, Work.run_id == run_id, Work.state == "running")
            .values(heartbeat_at=self.now())
            .returning(Work.kind, Work.subject_id, Work.origin)
            .execution_options(synchronize_session=False)
        )
        row = session.execute(beat).first()
        if row is None:
            raise lost(session.get(Work, work_id, populate_existing=True), work_id, run_id)
        return row.kind, row.subject_id, row.origin

    def _cancel_flag(self, session: Session, kind: str, subject_id: str, origin: str) -> str:
        if kind == WorkKind.RENDER:
            # What a person has rendered again is done already: `DeviceRuns.stop_again` stops that.
            again = (Prompt.status != "cancelled", ~was_deleted())
            wanted = again if origin == "ui" else (Prompt.status.in_(OPEN_PROMPT),)
            alive = select(exists().where(Prompt.batch_id == subject_id, *wanted))
            return "" if session.scalar(alive) else "cancel"
        flags = session.execute(select(Tune.cancel, Tune.status).where(Tune.id == subject_id)).one()
        if flags.status == "deleted":
            return "cancel"
        # `keep` asks training to stop early; what comes after training goes on as usual.
        return "" if flags.cancel == "keep" and kind not in MAKING else flags.cancel

    def active(self, limit: int = 1000) -> list[Work]:
        """Return the submitted and running rows, longest silent first."""
        query = (
            select(Work)
            .where(Work.state.in_(("submitted", "running")))
            .order_by(func.coalesce(Work.heartbeat_at, Work.submitted_at), Work.id)
            .limit(limit)
        )
        with self.reading() as session:
            return list(session.scalars(query))

    def run_ended_at(self, run_id: str) -> datetime | None:
        """Return when the last work of a run ended; None while some is running, and for runs without work."""
        query = select(
            func.max(func.coalesce(Work.finished_at, Work.heartbeat_at)),
            func.count().filter(Work.state == "running"),
        ).where(Work.run_id == run_id)
        with self.reading() as session:
            last, running = session.execute(query).one()
        return None if running else last

    def stuck(self, now: datetime, lost_after: float) -> list[Work]:
        """Return submitted and running rows that nothing was heard of for `lost_after` seconds."""
        limit = now - timedelta(seconds=lost_after)
        silent = or_(
            (Work.state == "running") & (Work.heartbeat_at < limit),
            (Work.state == "submitted") & (Work.submitted_at < limit),
        )
        with self.reading() as session:
            return list(session.scalars(select(Work).where(silent).order_by(Work.id)))


def _free_to_join(now: datetime, late: datetime) -> ColumnElement[bool]:
    """Return the condition that training waits, or was launched before `late` and has not begun."""
    queued = (Work.state == "queued") & (Work.available_at <= now)
    launched = (Work.state == "submitted") & (Work.submitted_at <= late)
    return (Work.kind == WorkKind.TRAIN) & or_(queued, launched)
