"""What a session's attempts at device work are told as: which Dagster run tells of each, and how much it says already.

A session writes here what it does, without a word of Dagster (`sessions/recording.py`); `pipeline/telling.py` turns it
into the events of a run, from these rows alone, so that whoever comes next can tell what is missing. Everything here is
ids, numbers and addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.ids import new_id
from tunes_dagster.core.work import WorkKind, stage_of
from tunes_dagster.registry.claims import done_since, lacks_pictures, make_room, subject_reopened
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.locks import lock, lock_each, lock_one
from tunes_dagster.registry.retrying import repeatable
from tunes_dagster.registry.session_tables import DeviceRun, DeviceRunLine
from tunes_dagster.registry.tables import Batch, Tune, Work
from tunes_dagster.registry.transitions import (
    OPEN_WORK,
    close_work,
    kind_for,
    lock_subject,
    lock_work,
    open_work,
)

# Dagster's part of a run (request, queue, launch, its own file of SQLite, its events) is about 0.5 s of a core. So
# many batches of ten minutes have a run of their own, which is a person who works with it by hand; beyond that, the
# batches of half a minute share one, which is 1.7 % of a core at any rate of prompts.
OWN_RUNS, OWN_RUNS_SECONDS = 20, 600.0
SHARED_SECONDS = 30.0
_MOST_SHARED = 500

# A tick that still lives requests its runs, and the daemon launches them, well within this time.
REQUEST_GRACE_SECONDS = 120.0

# A teller writes a run's news in far less time; after it somebody else goes on with them.
TELLING_SECONDS = 60.0

_BY_A_PERSON = 0  # the attempt of what waits for a session
_REST = "rest"  # the fact of an attempt that does what another one left undone


@dataclass(frozen=True)
class Line:
    """A line of the log of an attempt."""

    at: datetime
    level: int
    text: str


class DeviceRuns(Part):
    """Attempts of sessions and the runs that tell of them."""

    @repeatable
    def hand_over(
        self,
        kind: str,
        subject_id: str,
        run_id: str,
        changes: dict[str, Any] | None = None,
        told: str = "run",
        rest: bool = False,
    ) -> DeviceRun:
        """Open the work of a kind on a subject for the next session, as a person asked by starting a run in Dagster.

        Args:
            kind: train, finish, render.
            subject_id: Tune or batch.
            run_id: The Dagster run, which has begun and will tell of it. The same call twice changes nothing the second
                time.
            changes: What was filled in in the Launchpad.
            told: `run` when the run has no process, `process` when its own follows the work and tells of it.
            rest: Only what an earlier run left undone, as somebody asked who executes it again.

        Raises:
            Failure: `CONFLICT` when it is being done, or nothing is left to do; `UNKNOWN_TUNE`, or `INVALID_REQUEST`
                for an unknown batch.
        """
        now = self.now()
        with self.writing() as session:
            subject = lock_subject(session, kind, subject_id)
            if isinstance(subject, Tune) and subject.status == "deleted":
                raise Failure(
                    FailureCode.UNKNOWN_TUNE, f"The tune {subject_id} was deleted.", "Make a new one."
                )
            known = select(DeviceRun).where(DeviceRun.run_id == run_id, DeviceRun.kind == kind)
            if (found := session.scalars(known).first()) is not None:
                return found
            # A run of `lora` tells of whatever makes the tune.
            doing = kind_for(subject, kind)
            work = lock_work(session, doing, subject_id)
            if work is not None and work.state == "running":
                raise Failure(
                    FailureCode.CONFLICT,
                    f"{kind} of {subject_id} is being done by {work.run_id} (attempt {work.attempt}).",
                    "Wait until it has ended, or cancel it first.",
                )
            lacking = isinstance(subject, Batch) and lacks_pictures(session, subject)
            if rest and work is not None and work.state == "done" and not lacking:
                raise done_since(work, subject)
            if work is None or work.state not in OPEN_WORK:
                make_room(session, doing, subject_id, now)
                work = open_work(session, doing, subject_id, "ui", now)
                subject_reopened(session, subject, now)
            work.state, work.available_at, work.run_key = "queued", now, None
            mine = {"attempt": _BY_A_PERSON, "run_id": run_id, "changes": changes or {}, "told": told}
            return _added(session, work, now, facts={_REST: True} if rest else {}, **mine)

    def expect(
        self,
        kind: str,
        subject_id: str,
        run_id: str,
        changes: dict[str, Any] | None = None,
        told: str = "run",
    ) -> None:
        """Note that a run will tell of work that is opened when the piece before it is done, as by `hand_over`."""
        with self.writing() as session:
            row = DeviceRun(id=new_id("drun"), work_id="", kind=kind, subject_id=subject_id, run_id=run_id)
            row.attempt, row.changes, row.created_at = _BY_A_PERSON, changes or {}, self.now()
            row.told = told
            session.add(row)

    @repeatable
    def begin(self, work: Work) -> DeviceRun:
        """Note that a session began an attempt; what a person handed over begins with it."""
        with self.writing() as session:
            same = select(DeviceRun).where(DeviceRun.work_id == work.id, DeviceRun.attempt == work.attempt)
            if (found := session.scalars(same).first()) is not None:
                return found
            handed_over = (
                DeviceRun.kind == stage_of(work.kind),
                DeviceRun.subject_id == work.subject_id,
                DeviceRun.attempt == _BY_A_PERSON,
                DeviceRun.state == "",
            )
            row = next(iter(lock(session, DeviceRun, *handed_over)), None) or _added(
                session, work, self.now()
            )
            row.work_id, row.attempt, row.session_id = work.id, work.attempt, work.run_id
            row.began_at = work.started_at or self.now()
            return row

    def changes_of(self, work: Work) -> dict[str, Any]:
        """Return what a person filled in in the Launchpad for work that waits or has begun; empty for all other."""
        row = self._asked(work)
        return dict(row.changes or {}) if row is not None else {}

    def is_rest(self, work: Work) -> bool:
        """Whether a person asked only for what an earlier run left undone."""
        row = self._asked(work)
        return row is not None and bool((row.facts or {}).get(_REST))

    def _asked(self, work: Work) -> DeviceRun | None:
        query = select(DeviceRun).where(
            DeviceRun.kind == stage_of(work.kind),
            DeviceRun.subject_id == work.subject_id,
            DeviceRun.attempt.in_((_BY_A_PERSON, work.attempt)),
            DeviceRun.state == "",
        )
        with self.reading() as session:
            return session.scalars(query.order_by(DeviceRun.attempt.desc())).first()

    @repeatable
    def stop_again(self, work: Work) -> None:
        """Stop the rendering of a batch that a person asked for again: its prompts, which are done, stay so."""
        now = self.now()
        with self.writing() as session:
            batch = lock_subject(session, work.kind, work.subject_id)
            found = lock_work(session, work.kind, work.subject_id)
            if found is None or found.id != work.id or found.state not in OPEN_WORK:
                return
            close_work(found, "cancelled", now)
            if isinstance(batch, Batch):
                batch.done_at = now
            mine = (DeviceRun.work_id == work.id, DeviceRun.state == "")
            for row in lock(session, DeviceRun, *mine):
                row.state, row.ended_at = "cancelled", now

    def add_lines(self, device_run_id: str, lines: Sequence[Line]) -> None:
        """Add lines to the log of an attempt."""
        with self.writing() as session:
            session.add_all(
                DeviceRunLine(device_run_id=device_run_id, at=one.at, level=one.level, text=one.text)
                for one in lines
            )

    def set_facts(self, device_run_id: str, facts: dict[str, Any]) -> None:
        """Keep what is shown of the files of an attempt."""
        with self.writing() as session:
            row = lock_one(session, DeviceRun, DeviceRun.id == device_run_id)
            if row is not None:
                row.facts = facts

    @repeatable
    def end(
        self, device_run_id: str, state: str, failure_code: str | None = None, again: bool = False
    ) -> None:
        """Note how an attempt ended; what was noted first stays."""
        with self.writing() as session:
            row = lock_one(session, DeviceRun, DeviceRun.id == device_run_id)
            if row is not None and not row.state:
                row.state, row.failure_code, row.again, row.ended_at = state, failure_code, again, self.now()

    @repeatable
    def end_lost(self, limit: int = 1000) -> int:
        """Note the ends that no session wrote, from what became of the work; returns how many there were."""
        with self.writing() as session:
            begun = DeviceRun.attempt > _BY_A_PERSON
            over = or_(Work.attempt > DeviceRun.attempt, Work.state != "running", Work.id.is_(None))
            closed = Work.state.in_(("done", "failed", "cancelled"))
            query = (
                select(DeviceRun.id)
                .outerjoin(Work, Work.id == DeviceRun.work_id)
                .where(DeviceRun.state == "", or_(begun & over, ~begun & closed))
                .limit(limit)
            )
            rows = lock_each(session, DeviceRun, DeviceRun.id, session.scalars(query))
            works = {work.id: work for work in _works(session, [row.work_id for row in rows])}
            for row in rows:
                _end_as(row, works.get(row.work_id), self.now())
            return len(rows)

    def requests_due(self, now: datetime | None = None, limit: int = 25) -> list[DeviceRun]:
        """Return the attempts for which a run is to be requested now, and note the request.

        Each tune's has a run of its own. So do those of batches, until they become many: then those of half a minute
        share the run of the first of them, whose `leader_id` they name.
        """
        now = now or self.now()
        late = now - timedelta(seconds=REQUEST_GRACE_SECONDS)
        due = or_(DeviceRun.requested_at.is_(None), DeviceRun.requested_at < late)
        unbound = (DeviceRun.run_id.is_(None), DeviceRun.leader_id.is_(None), DeviceRun.told == "", due)
        with self.writing() as session:
            found = (
                select(DeviceRun.id).where(*unbound, DeviceRun.kind != WorkKind.RENDER).order_by(DeviceRun.id)
            )
            chosen = list(session.scalars(found.limit(limit)))
            renders = (
                select(DeviceRun).where(*unbound, DeviceRun.kind == WorkKind.RENDER).order_by(DeviceRun.id)
            )
            waiting = list(session.scalars(renders.limit(_MOST_SHARED)))
            lately = select(func.count()).where(
                DeviceRun.kind == WorkKind.RENDER,
                DeviceRun.requested_at > now - timedelta(seconds=OWN_RUNS_SECONDS),
            )
            own = max(0, min(OWN_RUNS - (session.scalar(lately) or 0), limit - len(chosen)))
            chosen += [row.id for row in waiting[:own]]
            rest = waiting[own:]
            followers: list[DeviceRun] = []
            if rest and now - rest[0].created_at >= timedelta(seconds=SHARED_SECONDS):
                chosen.append(rest[0].id)
                followers = rest[1:]
            taken = lock_each(session, DeviceRun, DeviceRun.id, [*chosen, *(row.id for row in followers)])
            shared = {row.id for row in followers}
            for row in taken:
                if row.id in shared:
                    row.leader_id = rest[0].id
                else:
                    row.requested_at, row.requests = now, row.requests + 1
            return [row for row in taken if row.id not in shared]

    def keep_waiting(self, ids: Sequence[str]) -> None:
        """Note that the runs of some attempts are still on their way: a daemon that was down asks for no second one."""
        with self.writing() as session:
            for row in lock_each(session, DeviceRun, DeviceRun.id, ids):
                row.requested_at = self.now()

    @repeatable
    def bind(self, device_run_id: str, run_id: str, told: str = "") -> bool:
        """Let a Dagster run tell of an attempt and of those that share its run; False when another run does.

        Args:
            device_run_id: The attempt.
            run_id: The run.
            told: `process` when the run has one, which tells of it.
        """
        with self.writing() as session:
            mine = or_(DeviceRun.id == device_run_id, DeviceRun.leader_id == device_run_id)
            rows = lock(session, DeviceRun, mine)
            leader = next((row for row in rows if row.id == device_run_id), None)
            if leader is None or leader.run_id not in (None, run_id):
                return False
            for row in rows:
                row.run_id, row.told = run_id, told or row.told
            return True

    def of_run(self, run_id: str) -> list[DeviceRun]:
        """Return the attempts that a Dagster run tells of, in the order in which they were made."""
        query = (
            select(DeviceRun).where(DeviceRun.run_id == run_id).order_by(DeviceRun.created_at, DeviceRun.id)
        )
        with self.reading() as session:
            return list(session.scalars(query))

    def get(self, device_run_id: str) -> DeviceRun | None:
        """Return an attempt, or None."""
        with self.reading() as session:
            return session.get(DeviceRun, device_run_id)

    def works_of_run(self, run_id: str) -> list[Work]:
        """Return the work that a Dagster run tells of and that its attempts still own."""
        query = (
            select(Work)
            .join(DeviceRun, DeviceRun.work_id == Work.id)
            .where(DeviceRun.run_id == run_id, DeviceRun.state == "", Work.state.in_(OPEN_WORK))
            .where(DeviceRun.attempt.in_((_BY_A_PERSON, Work.attempt)))
        )
        with self.reading() as session:
            return list(session.scalars(query))

    def open(self, limit: int = 1000) -> list[DeviceRun]:
        """Return the attempts that go on, or wait to begin, and that a Dagster run tells of."""
        query = select(DeviceRun).where(DeviceRun.told != "ended", DeviceRun.run_id.is_not(None))
        with self.reading() as session:
            return list(
                session.scalars(query.where(DeviceRun.state == "").order_by(DeviceRun.id).limit(limit))
            )

    def requested(self, limit: int = 1000) -> list[DeviceRun]:
        """Return the attempts for which a run was requested that has not taken them up."""
        query = select(DeviceRun).where(
            DeviceRun.run_id.is_(None), DeviceRun.requested_at.is_not(None), DeviceRun.told == ""
        )
        with self.reading() as session:
            return list(session.scalars(query.order_by(DeviceRun.id).limit(limit)))

    def runs_to_tell(self, limit: int = 500) -> list[str]:
        """Return the Dagster runs that have something to say which they have not said, the oldest first."""
        news = select(DeviceRunLine.id).where(
            DeviceRunLine.device_run_id == DeviceRun.id, DeviceRunLine.id > DeviceRun.said
        )
        some = or_(
            DeviceRun.told.in_(("", "run")) & DeviceRun.began_at.is_not(None),
            DeviceRun.state != "",
            news.exists(),
        )
        query = (
            select(DeviceRun.run_id)
            .where(DeviceRun.told.not_in(("ended", "process")), DeviceRun.run_id.is_not(None), some)
            .group_by(DeviceRun.run_id)
            .order_by(func.min(DeviceRun.id))
        )
        with self.reading() as session:
            return [run_id for run_id in session.scalars(query.limit(limit)) if run_id]

    def take_telling(self, run_id: str, teller: str) -> tuple[list[DeviceRun], bool]:
        """Become the one who tells of a run.

        Returns:
            The attempts that it tells of, none while somebody else is telling; and whether one who died may have
            written what is not noted.
        """
        now = self.now()
        with self.writing() as session:
            rows = lock(session, DeviceRun, DeviceRun.run_id == run_id)
            busy = [
                row for row in rows if row.telling_until and row.telling_until > now and row.teller != teller
            ]
            if busy:
                return [], False
            died = any(row.teller is not None for row in rows)
            for row in rows:
                row.teller, row.telling_until = teller, now + timedelta(seconds=TELLING_SECONDS)
            return sorted(rows, key=lambda row: (row.created_at, row.id)), died

    def lines_to_tell(self, row: DeviceRun, limit: int = 1000) -> list[DeviceRunLine]:
        """Return the lines of an attempt that its run does not hold yet."""
        query = select(DeviceRunLine).where(
            DeviceRunLine.device_run_id == row.id, DeviceRunLine.id > row.said
        )
        with self.reading() as session:
            return list(session.scalars(query.order_by(DeviceRunLine.id).limit(limit)))

    def told(self, rows: Iterable[DeviceRun]) -> None:
        """Note how much of some attempts was told (their `told` and `said`), and let go of them."""
        wanted = {row.id: row for row in rows}
        with self.writing() as session:
            for row in lock_each(session, DeviceRun, DeviceRun.id, wanted):
                row.told, row.said = wanted[row.id].told, max(row.said, wanted[row.id].said)
                row.teller = row.telling_until = None
                if row.told == "ended":
                    session.execute(delete(DeviceRunLine).where(DeviceRunLine.device_run_id == row.id))

    def drop(self, run_id: str) -> None:
        """Tell nothing more of a run that somebody deleted in Dagster."""
        with self.writing() as session:
            for row in lock(session, DeviceRun, DeviceRun.run_id == run_id):
                row.told, row.teller, row.telling_until = "ended", None, None
                session.execute(delete(DeviceRunLine).where(DeviceRunLine.device_run_id == row.id))

    def forget(self, subject_ids: Sequence[str]) -> list[str]:
        """Delete what was noted of deleted subjects; returns the Dagster runs that told of nothing else."""
        with self.writing() as session:
            rows = lock_each(session, DeviceRun, DeviceRun.subject_id, subject_ids)
            for row in rows:
                session.execute(delete(DeviceRunLine).where(DeviceRunLine.device_run_id == row.id))
                session.delete(row)
            session.flush()
            runs = sorted({row.run_id for row in rows if row.run_id})
            left = select(DeviceRun.run_id).where(DeviceRun.run_id.in_(runs))
            still = set(session.scalars(left))
            return [run_id for run_id in runs if run_id not in still]


def _added(session: Session, work: Work, now: datetime, **fields: Any) -> DeviceRun:
    row = DeviceRun(id=new_id("drun"), work_id=work.id, kind=stage_of(work.kind), subject_id=work.subject_id)
    row.attempt, row.created_at, row.told, row.state = work.attempt, now, "", ""
    for name, value in fields.items():
        setattr(row, name, value)
    session.add(row)
    session.flush()
    return row


def _works(session: Session, ids: Sequence[str]) -> list[Work]:
    return list(session.scalars(select(Work).where(Work.id.in_(ids))))


def _end_as(row: DeviceRun, work: Work | None, now: datetime) -> None:
    """Write the end of an attempt whose session died, as the row of its work tells it."""
    same = work is not None and row.attempt in (_BY_A_PERSON, work.attempt)
    row.ended_at = (work.finished_at if same and work is not None else None) or now
    if not same or work is None:
        row.state, row.again = "lost", work is not None
    elif work.state in ("done", "failed", "cancelled"):
        row.state, row.failure_code = work.state, work.failure_code
    elif work.failure_code is None:
        row.state, row.again = "returned", True
    else:
        row.state, row.again, row.failure_code = (
            "lost" if work.failure_code == FailureCode.RUN_LOST else "failed",
            True,
            work.failure_code,
        )
