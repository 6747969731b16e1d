"""Sets right what `audit.py` finds and nobody has to decide on: work that nobody will do, credits held for nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import exists, select

from tunes_dagster.registry.api_tables import Reservation
from tunes_dagster.registry.audit import idle_rows
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.ledger import close_reservation
from tunes_dagster.registry.locks import lock_one
from tunes_dagster.registry.retrying import retried
from tunes_dagster.registry.settling import settle
from tunes_dagster.registry.tables import Prompt, Tune, Work
from tunes_dagster.registry.transitions import (
    ENDED_TUNE,
    OPEN_PROMPT,
    OPEN_WORK,
    RUNNING,
    WAITING,
    kind_for,
    note,
    open_work,
    tune_cancelled,
)

_BACK = "Nobody was working on it: it was put back into the queue."


@dataclass(frozen=True)
class Mended:
    """What was set right.

    Attributes:
        queued: Tunes and prompts that were put back into the queue, or ended as was asked for.
        settled: Reservations that were closed.
    """

    queued: int
    settled: int


class Mending(Part):
    """Sets right what needs no decision."""

    def mend(self) -> Mended:
        """Queue again what nobody works on, and settle what is held for nothing; twice changes nothing more."""
        with self.reading() as session:
            idle = [subject_id for _account, subject_id, _said in idle_rows(session)]
            held = session.scalars(select(Reservation.subject_id).where(Reservation.state == "open")).all()
        queued = sum(self._queue_prompt(one) or self.queue_tune(one) for one in idle)
        return Mended(queued, sum(self._settle_ended(subject_id) for subject_id in held))

    def idle_tunes(self, before: datetime) -> list[tuple[str, str | None]]:
        """Return tunes that have not ended, that no work is open for and that nothing moved since; oldest first.

        With each comes the run of its last work, if there was one: that run may yet do the next piece itself.
        """
        busy = exists().where(Work.subject_id == Tune.id, Work.state.in_(OPEN_WORK))
        last = (
            select(Work.run_id)
            .where(Work.subject_id == Tune.id, Work.run_id.is_not(None))
            .order_by(Work.finished_at.desc(), Work.id)
            .limit(1)
            .scalar_subquery()
        )
        going = (*WAITING.values(), *RUNNING.values())  # by the index of statuses: most tunes have ended
        query = select(Tune.id, last).where(Tune.status.in_(going), Tune.updated_at < before, ~busy)
        with self.reading() as session:
            return [(tune_id, run_id) for tune_id, run_id in session.execute(query.order_by(Tune.number))]

    @retried
    def queue_tune(self, tune_id: str) -> int:
        """Open the next work of a tune that nobody works on, or end it as was asked for; returns how many it was."""
        now = self.now()
        with self.writing() as session:
            tune = lock_one(session, Tune, Tune.id == tune_id)
            busy = select(Work.id).where(Work.subject_id == tune_id, Work.state.in_(OPEN_WORK))
            if (
                tune is None
                or tune.status in ("awaiting_images", *ENDED_TUNE)
                or session.scalars(busy).first()
            ):
                return 0
            if tune.cancel == "cancel":
                tune_cancelled(session, tune, now, notify=True)
                return 1
            kinds = {status: kind for names in (WAITING, RUNNING) for kind, status in names.items()}
            kind = kinds[tune.status]
            open_work(session, kind_for(tune, kind), tune.id, tune.origin, now)
            tune.status, tune.phase, tune.message, tune.updated_at = WAITING[kind], "queued", _BACK, now
            note(session, tune.id, "queued", _BACK, now, kind=kind)
            return 1

    @retried
    def _queue_prompt(self, prompt_id: str) -> int:
        now = self.now()
        with self.writing() as session:
            prompt = lock_one(session, Prompt, Prompt.id == prompt_id)
            if prompt is None or prompt.status not in OPEN_PROMPT or prompt.batch_id is None:
                return 0
            busy = select(Work.id).where(Work.subject_id == prompt.batch_id, Work.state.in_(OPEN_WORK))
            if session.scalars(busy).first():
                return 0
            prompt.batch_id, prompt.status, prompt.queued_at, prompt.updated_at = None, "queued", now, now
            note(session, prompt.id, "queued", _BACK, now)
            return 1

    @retried
    def _settle_ended(self, subject_id: str) -> int:
        now = self.now()
        with self.writing() as session:
            row: Tune | Prompt | None = lock_one(session, Tune, Tune.id == subject_id)
            row = row or lock_one(session, Prompt, Prompt.id == subject_id)
            if row is None:
                close_reservation(session, subject_id, now, 0.0)
                return 1
            if row.status not in (
                ENDED_TUNE if isinstance(row, Tune) else ("done", "failed", "blocked", "cancelled")
            ):
                return 0
            settle(session, row, now)
            return 1
