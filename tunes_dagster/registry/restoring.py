"""After a backup was put back: what may have happened since it was taken, and work whose files it lacks.

A backup is a moment of the past. What was told to callers since then, which numbers were given out and which attempts
wrote files is not in it; here the rows are brought to where none of that can be repeated by mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.ids import new_id
from tunes_dagster.core.work import STAGES, WorkKind
from tunes_dagster.registry.campaign_tables import CampaignDate
from tunes_dagster.registry.deletion_tables import Deletion
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.locks import lock, lock_columns
from tunes_dagster.registry.retrying import retried
from tunes_dagster.registry.tables import Account, Callback, Prompt, Restore, Tune, Work
from tunes_dagster.registry.transitions import (
    OPEN_WORK,
    back_to_waiting,
    kind_for,
    lock_subject,
    lock_tune,
    lock_work,
    note,
    open_work,
    show,
    tune_failed,
)
from tunes_dagster.registry.uses import used_and_not_ready, used_with

# Between the last number of the backup and the next one: those given out since then must not be given out again.
NUMBERS_SKIPPED = 1_000
# The same for attempts: files and run keys of attempts since then lie where the next one's would.
ATTEMPTS_SKIPPED = 1_000
_NUMBERED = ("tunes", "prompts", "packs", "workspaces")
_ACTIVE = ("submitted", "running")
RESTORED = "The installation was restored from a backup."


@dataclass(frozen=True)
class Restored:
    """What the rows needed.

    Attributes:
        queued: Pieces of work that a run had, and that are in the queue again.
        held: Callbacks that may have arrived since, of receivers that cannot take a repeat.
        due: Callbacks that are sent, perhaps again.
    """

    queued: int
    held: int
    due: int


class Restoring(Part):
    """The rows of a backup that was put back."""

    def restored(self, taken_at: datetime | None) -> Restored:
        """Bring the rows of a backup to where the installation can go on; nothing may work on it meanwhile."""
        with self.reading() as session:
            query = select(Work.kind, Work.subject_id).where(Work.state.in_(_ACTIVE)).order_by(Work.id)
            active = [tuple(row) for row in session.execute(query)]
        queued = sum(self._queue_again(*one) for one in active)
        held, due = self._settle_past(taken_at)
        return Restored(queued, held, due)

    @retried
    def _queue_again(self, kind: str, subject_id: str) -> bool:
        """Put work that a run had back into the queue; the run is of another time."""
        now = self.now()
        with self.writing() as session:
            subject = lock_subject(session, kind, subject_id)
            work = lock_work(session, kind, subject_id)
            if work is None or work.state not in _ACTIVE:
                return False
            if work.state == "running":
                work.tries = max(0, work.tries - 1)
            work.state, work.available_at = "queued", now
            work.run_id = work.run_key = work.cohort_id = None
            back_to_waiting(session, subject, work, RESTORED, now)
            return True

    @retried
    def _settle_past(self, taken_at: datetime | None) -> tuple[int, int]:
        """Count on from where nothing was given out, and hold or send what is owed; returns how many of each."""
        with self.writing() as session:
            lock_columns(session, Work, [])
            session.execute(update(Work).values(attempt=Work.attempt + ATTEMPTS_SKIPPED))
            _skip_numbers(session)
            held, due = _hold_callbacks(session)
            session.add(Restore(id=new_id("restore"), at=self.now(), taken_at=taken_at))
            return held, due

    def deleted_since(self, moment: datetime) -> list[list[str]]:
        """Return kind and id of the tunes and pictures that were deleted from a moment on."""
        tunes = select(Tune.id).where(Tune.deleted_at >= moment)
        prompts = select(Prompt.id).where(Prompt.expired_at >= moment)
        asked = select(Deletion.subject_id).where(
            Deletion.kind == "prompt", Deletion.reason != "expired", Deletion.at >= moment
        )
        with self.reading() as session:
            gone = [["tune", tune_id] for tune_id in session.scalars(tunes)]
            gone += [["prompt", prompt_id] for prompt_id in session.scalars(prompts)]
            return gone + [["prompt with its words", prompt_id] for prompt_id in session.scalars(asked)]

    @retried
    def report_missing(self, date_id: str) -> None:
        """Have the report of a campaign's date made again, whose files are not there."""
        with self.writing() as session:
            (date,) = lock(session, CampaignDate, CampaignDate.id == date_id)
            date.report_key = date.report_asked_at = None
            date.status, date.report_attempt, date.updated_at = "finished", 0, self.now()

    @retried
    def redo_tune(self, tune_id: str, kind: str, without: Sequence[str], why: str) -> Tune:
        """Have work of a tune done again, because files that its row names are not there.

        Prompts that nobody has begun wait for it. What was paid stays paid, what was told is not told again.

        Args:
            tune_id: The tune.
            kind: `prepare`, `train` or `finish`; what follows is done again as well.
            without: Names of the results that are gone.
            why: One sentence for people.
        """
        now = self.now()
        with self.writing() as session:
            tune = lock_tune(session, tune_id)
            for row in lock(session, Work, Work.subject_id == tune_id, Work.state.in_(OPEN_WORK)):
                row.state = "cancelled"
            session.flush()
            open_work(session, kind_for(tune, kind), tune.id, tune.origin, now)
            tune.result = {name: value for name, value in tune.result.items() if name not in without}
            tune.status = STAGES[WorkKind(kind)].waiting
            tune.cancel, tune.updated_at = "", now
            show(tune, "queued", why)
            note(session, tune.id, "queued", why, now, kind=kind)
            unbegun = (Prompt.status == "queued", Prompt.batch_id.is_(None))
            for prompt in lock(session, Prompt, used_with([tune.id]), *unbegun):
                prompt.status, prompt.updated_at = "waiting", now
            return tune

    @retried
    def redo_prompt(self, prompt_id: str, why: str) -> Prompt:
        """Have a prompt rendered again whose pictures are not there; with its own seed, and not paid for again."""
        now = self.now()
        with self.writing() as session:
            (prompt,) = lock(session, Prompt, Prompt.id == prompt_id)
            waits = (
                session.scalar(select(Prompt.id).where(Prompt.id == prompt_id, used_and_not_ready()))
                is not None
            )
            prompt.status, prompt.queued_at = ("waiting", None) if waits else ("queued", now)
            prompt.images, prompt.batch_id, prompt.done_at, prompt.updated_at = [], None, None, now
            note(session, prompt.id, prompt.status, why, now)
            return prompt

    @retried
    def lost_tune(self, tune_id: str, why: str) -> Tune:
        """Fail a tune that can neither be shown nor made again; what it held is returned."""
        now = self.now()
        with self.writing() as session:
            tune = lock_tune(session, tune_id)
            told = tune.status != "ready"
            for work in lock(session, Work, Work.subject_id == tune_id, Work.state.in_(OPEN_WORK)):
                work.state = "failed"
            failure = Failure(
                FailureCode.STORE_UNAVAILABLE, why, "Hand in the pictures again, as a new tune."
            )
            tune_failed(session, tune, failure, now, notify=told)
            return tune

    @retried
    def lost_pictures(self, prompt_id: str, left: list[str], why: str) -> None:
        """Note that pictures of a prompt are gone for good."""
        now = self.now()
        with self.writing() as session:
            (prompt,) = lock(session, Prompt, Prompt.id == prompt_id)
            prompt.images, prompt.updated_at = left, now
            prompt.expired_at = prompt.expired_at if left else now
            note(session, prompt.id, prompt.status, why, now)


def _skip_numbers(session: Session) -> None:
    """Go on counting well above the numbers that the backup knows."""
    if session.get_bind().dialect.name == "sqlite":
        names = ", ".join(f"'{name}'" for name in _NUMBERED)
        session.execute(
            text(f"UPDATE sqlite_sequence SET seq = seq + {NUMBERS_SKIPPED} WHERE name IN ({names})")  # noqa: S608
        )
        return
    for name in _NUMBERED:
        session.execute(
            text(
                f"SELECT setval(pg_get_serial_sequence('{name}', 'number'), "  # noqa: S608 - our own names
                f"coalesce((SELECT max(number) FROM {name}), 0) + {NUMBERS_SKIPPED})"
            )
        )


def _hold_callbacks(session: Session) -> tuple[int, int]:
    """Hold what may have arrived since at receivers that cannot take a repeat; returns how many, and how many are due.

    Leases are of processes that are gone.
    """
    with_care = set(session.scalars(select(Account.id).where(Account.callback_unknown == "hold")))
    held = due = 0
    for callback in lock(session, Callback, Callback.state == "pending"):
        callback.lease_id = callback.lease_until = None
        if callback.on_unknown == "hold" or callback.account_id in with_care:
            callback.state, callback.next_attempt_at, held = "held", None, held + 1
        else:
            due += 1
    return held, due
