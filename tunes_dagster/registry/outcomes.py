"""How attempts end: finished, failed, lost, given back; each in one transaction with all that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from tunes_dagster.core.failures import Cancelled, Failure, FailureCode, as_failure
from tunes_dagster.core.results import BatchResult, Document, TuneResult
from tunes_dagster.core.work import STAGES, WorkKind, stage_of
from tunes_dagster.registry.claims import owned
from tunes_dagster.registry.retrying import repeatable
from tunes_dagster.registry.stopping import Stopping
from tunes_dagster.registry.tables import Batch, Tune, Work
from tunes_dagster.registry.transitions import (
    back_to_waiting,
    batch_ended,
    close_work,
    following,
    lock_subject,
    lock_work,
    note,
    open_work,
    owes_callbacks,
    show,
    tune_cancelled,
    tune_failed,
    tune_ready,
)

# Submissions in a row that may vanish without a run before the work fails: with the default backoff about a
# quarter of an hour of a broken code location.
MAX_LOST_LAUNCHES = 10
# Seconds between two looks at a store that is full or away: soon at first, then as often as costs nothing.
_SHORTEST_WAIT, _LONGEST_WAIT = 1.0, 300.0


class WorkQueue(Stopping):
    """Finish, fail, requeue, give back."""

    @repeatable
    def finish(
        self,
        work_id: str,
        run_id: str,
        *,
        result: TuneResult | BatchResult | Mapping[str, Any] | None = None,
        continue_: bool | None = None,
        notify: bool | None = None,
        whole: bool = True,
    ) -> Work:
        """End an attempt well and let its tune or batch move on.

        Args:
            work_id: The claimed work.
            run_id: The run that owns it; the same call twice changes nothing the second time.
            result: What the tune's or batch's result gets beside what it has; a mapping is that of its fields.
            continue_: Open the next piece of work; None does so unless the tune was ready already.
            notify: Owe the callback; None does so unless a person opened the work in the UI.
            whole: Whether all of the work was done. A part of it, as a person may choose in the UI, leaves a tune that
                is not ready in the queue for the same work: nothing after it can use a part.

        Raises:
            Failure: `CONFLICT` for a late writer.
        """
        now = self.now()
        with self.writing() as session:
            found = session.get(Work, work_id)
            if found is not None and found.state in ("done", "queued") and found.run_id == run_id:
                return found
            work, subject = owned(session, work_id, run_id)
            told = owes_callbacks(work, subject) if notify is None else notify
            made: type[Document] = BatchResult if isinstance(subject, Batch) else TuneResult
            subject.result = made.of(result or {}).written(subject.result)
            close_work(work, "done", now)
            if isinstance(subject, Batch):
                left = Failure(
                    FailureCode.RENDER_FAILED,
                    "The run ended without rendering it.",
                    "Submit the prompt again.",
                )
                batch_ended(session, subject, "done", now, left, notify=told)
            else:
                self._tune_moves_on(session, work, subject, continue_, told, whole, now)
            return work

    def _tune_moves_on(
        self,
        session: Session,
        work: Work,
        tune: Tune,
        continue_: bool | None,
        notify: bool,
        whole: bool,
        now: datetime,
    ) -> None:
        tune.updated_at = now
        if tune.status != "ready" and whole:
            self.note_progress(session, work, tune, "", 1.0)
        was_ready = tune.status == "ready"
        stops = was_ready and tune.cancel == "cancel"  # too late for this piece of work, which is done
        if was_ready:
            tune.cancel = ""
        if tune.cancel == "cancel" or tune.status == "deleted":
            work.state = "cancelled"
            tune_cancelled(session, tune, now, notify)
            return
        if not whole and not was_ready:
            run_id = work.run_id
            open_work(session, work.kind, tune.id, work.origin, now)
            work.run_id = run_id  # so that the same call again is known
            back_to_waiting(session, tune, work, f"A part of {work.kind} was done; the rest follows.", now)
            return
        note(session, tune.id, "finished", f"{work.kind} finished.", now, attempt=work.attempt)
        show(tune, "", "")
        if not was_ready and work.kind == WorkKind.FINISH:
            tune_ready(session, tune, now, notify)
            return
        stage = STAGES[WorkKind(stage_of(work.kind))]
        if not was_ready:
            tune.status = stage.done
        next_ = following(tune, work.kind)
        if next_ and not stops and (not was_ready if continue_ is None else continue_):
            open_work(session, next_, tune.id, work.origin, now)
            if not was_ready:
                show(tune, "queued", stage.next)

    @repeatable
    def fail(self, work_id: str, run_id: str, error: BaseException, *, notify: bool | None = None) -> Work:
        """End an attempt badly: try again later, fail for good, or, for `Cancelled`, end as cancelled.

        Raises:
            Failure: `CONFLICT` for a late writer.
        """
        now, failure = self.now(), as_failure(error)
        with self.writing() as session:
            work, subject = owned(session, work_id, run_id)
            told = owes_callbacks(work, subject) if notify is None else notify
            again = failure.retryable and (
                work.tries < self.database.retries.max_attempts or self._waits(work, failure)
            )
            if work.origin == "ui" and work.run_key is None:
                again = False  # a person started it by hand, and sees how it ended
            self._ended(session, work, subject, failure, again, told, now)
            return work

    @repeatable
    def requeue_lost(
        self,
        work_id: str,
        reason: str,
        *,
        seen: Work | None = None,
        run_id: str | None = None,
        code: FailureCode = FailureCode.RUN_LOST,
    ) -> Work | None:
        """Put submitted or running work whose run is gone back into the queue, or fail it for good.

        Args:
            work_id: The work.
            reason: One sentence for people.
            seen: The row on which the caller decided; when it has moved since, nothing is done.
            run_id: The run that gives its work back; nothing is done when it does not own it.
            code: `RUN_LOST`, or `TIMED_OUT` for work that took longer than it may.

        Returns:
            The row as it is now, or None when there was nothing to do.
        """
        now = self.now()
        with self.writing() as session:
            found = session.get(Work, work_id)
            if found is None:
                return None
            subject = lock_subject(session, found.kind, found.subject_id)
            work = lock_work(session, found.kind, found.subject_id)
            if work is None or work.state not in ("submitted", "running"):
                return None
            if (seen is not None and _moved(seen, work)) or (run_id is not None and work.run_id != run_id):
                return None
            failure = Failure(code, reason, "The log of the run may say why.")
            if work.state == "submitted":
                work.lost_launches += 1
                again = work.lost_launches < MAX_LOST_LAUNCHES
            else:
                again = work.tries < self.database.retries.max_attempts
            if work.origin == "ui" and work.run_key is None:
                again = False
            self._ended(session, work, subject, failure, again, owes_callbacks(work, subject), now)
            return work

    @repeatable
    def give_back(self, work_id: str, run_id: str, reason: str) -> Work:
        """Put the work of a run whose process was asked to stop back into the queue, at once and uncounted.

        Raises:
            Failure: `CONFLICT` for a late writer.
        """
        now = self.now()
        with self.writing() as session:
            found = session.get(Work, work_id)
            if found is not None and found.state == "queued" and found.run_id == run_id:
                return found  # given back already
            work, subject = owned(session, work_id, run_id)
            if isinstance(subject, Tune) and (subject.cancel == "cancel" or subject.status == "deleted"):
                self._ended(session, work, subject, Cancelled(), False, owes_callbacks(work, subject), now)
                return work
            work.cohort_id = None
            work.tries -= 1
            work.state, work.available_at = "queued", now
            back_to_waiting(session, subject, work, reason, now)
            return work

    def _ended(
        self,
        session: Session,
        work: Work,
        subject: Tune | Batch,
        failure: Failure,
        again: bool,
        notify: bool,
        now: datetime,
    ) -> None:
        """Write the end of an attempt that did not finish."""
        cancelled = failure.code == FailureCode.CANCELLED
        if isinstance(subject, Tune):
            cancelled = cancelled or subject.cancel == "cancel" or subject.status == "deleted"
        if again and not cancelled:
            wait = self._put_off(work, failure)
            work.state, work.available_at = "queued", now + timedelta(seconds=wait)
            work.failure_code, work.failure_message = failure.code.value, failure.message
            work.failure_detail = failure.detail or None
            said = f"{failure.message} Trying again in {wait:g} s."
            back_to_waiting(session, subject, work, said, now, failure)
        else:
            close_work(work, "cancelled" if cancelled else "failed", now, failure)
            self._subject_ended(session, subject, failure, cancelled, notify, now)
        if work.state == "queued":
            work.cohort_id = None

    def _waits(self, work: Work, failure: Failure) -> bool:
        """Whether work waits for what is away or full, which says nothing against it."""
        away = failure.code == FailureCode.STORE_UNAVAILABLE
        return away and work.waited < self.database.retries.store_patience

    def _put_off(self, work: Work, failure: Failure) -> float:
        """Return the seconds until work is tried again; what waits for the store has used up no attempt by it."""
        backoff = self.database.retries.retry_backoff
        if self._waits(work, failure):
            work.tries = max(work.tries - 1, 0)
            wait = min(max(backoff[0], work.waited, _SHORTEST_WAIT), _LONGEST_WAIT)
            work.waited += wait
            return wait
        return backoff[min(max(work.tries, work.lost_launches, 1), len(backoff)) - 1]

    def _subject_ended(
        self,
        session: Session,
        subject: Tune | Batch,
        failure: Failure,
        cancelled: bool,
        notify: bool,
        now: datetime,
    ) -> None:
        if isinstance(subject, Batch):
            end = "cancelled" if cancelled else "failed"
            batch_ended(session, subject, end, now, failure, left=end, notify=notify)
        elif subject.status == "ready":  # it was ready before this attempt and still is
            subject.cancel = ""
            show(subject, "", "")
            note(session, subject.id, "cancelled" if cancelled else "failed", str(failure), now)
        elif cancelled:
            tune_cancelled(session, subject, now, notify)
        else:
            tune_failed(session, subject, failure, now, notify)


def _moved(seen: Work, work: Work) -> bool:
    """Whether a row changed hands or showed life since it was looked at."""
    return (seen.state, seen.attempt, seen.run_id, seen.heartbeat_at) != (
        work.state,
        work.attempt,
        work.run_id,
        work.heartbeat_at,
    )
