"""How attempts end: finished, failed, lost, cancelled; each in one transaction with all that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from tunes_dagster.core.failures import Cancelled, Failure, FailureCode, as_failure
from tunes_dagster.core.results import BatchResult, Document, TuneResult
from tunes_dagster.core.work import MAKING, STAGES, WorkKind, stage_of
from tunes_dagster.registry.api_tables import ApiObject
from tunes_dagster.registry.deletions import hide_pictures, record_deletion
from tunes_dagster.registry.locks import lock, lock_one
from tunes_dagster.registry.objects import hide_prompt
from tunes_dagster.registry.retrying import repeatable, retried
from tunes_dagster.registry.settling import settle
from tunes_dagster.registry.tables import Batch, Prompt, Tune, Work
from tunes_dagster.registry.transitions import (
    ENDED_TUNE,
    LOST_TUNE,
    OPEN_PROMPT,
    OPEN_WORK,
    back_to_waiting,
    batch_ended,
    close_work,
    follow_tune,
    following,
    lock_batch,
    lock_ends,
    lock_followers,
    lock_subject,
    lock_tune,
    lock_work,
    note,
    open_work,
    owes_callbacks,
    prompt_ended,
    show,
    tune_cancelled,
    tune_failed,
    tune_ready,
)
from tunes_dagster.registry.uses import PromptTune, used_and_not_ready, used_with
from tunes_dagster.registry.work import WorkRows, owned, subject_reopened

# Submissions in a row that may vanish without a run before the work fails: with the default backoff about a
# quarter of an hour of a broken code location.
MAX_LOST_LAUNCHES = 10
# Seconds between two looks at a store that is full or away: soon at first, then as often as costs nothing.
_SHORTEST_WAIT, _LONGEST_WAIT = 1.0, 300.0


class WorkQueue(WorkRows):
    """Finish, fail, requeue, cancel, delete."""

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

    @repeatable
    def resume_tune(self, tune_id: str) -> Tune:
        """Queue again what a tune that failed or was cancelled ended in; it goes on from what is there.

        Raises:
            Failure: `UNKNOWN_TUNE`, or `CONFLICT` when it has ended otherwise.
        """
        now = self.now()
        with self.writing() as session:
            tune = lock_tune(session, tune_id)
            rows = {work.kind: work for work in lock(session, Work, Work.subject_id == tune.id)}
            if any(work.state in OPEN_WORK for work in rows.values()):
                return tune
            stages = (WorkKind.PREPARE, *MAKING, WorkKind.FINISH)
            ended = [kind for kind in stages if kind in rows and rows[kind].state in ("failed", "cancelled")]
            if tune.status not in ("failed", "cancelled") or not ended:
                raise Failure(
                    FailureCode.CONFLICT,
                    f"The tune {tune_id} is {tune.status}: nothing of it is left to go on with.",
                    "`tunes rerun` makes a new one like it.",
                )
            kind = ended[0]
            work = open_work(session, kind, tune.id, rows[kind].origin, now)
            subject_reopened(session, tune, now)
            back_to_waiting(session, tune, work, f"{kind} goes on where it ended.", now)
            return tune

    @repeatable
    def cancel_tune(self, tune_id: str, keep: bool = False, by_caller: bool = False) -> Tune:
        """Ask for a tune to be stopped: at once when nothing runs, else through the flag that runs poll.

        Args:
            tune_id: The tune.
            keep: Stop training but keep what was learned so far; before training begins there is nothing
                to keep, and after it nothing to stop. Too late for a tune that was cancelled already.
            by_caller: Its account asks, and not the operator: it owes what was computed, see `settling.py`.

        Raises:
            Failure: `UNKNOWN_TUNE`, or `CONFLICT` when the tune has ended already.
        """
        now = self.now()
        with self.writing() as session:
            tune = lock_tune(session, tune_id)
            if tune.status == "cancelled" or tune.cancel == "cancel":
                return tune
            if tune.status == "ready" and not by_caller and self._stop_again(session, tune, keep, now):
                return tune
            if tune.status in ENDED_TUNE:
                raise Failure(
                    FailureCode.CONFLICT,
                    f"The tune {tune_id} is {tune.status}: nothing is left to cancel.",
                    "`tunes delete` removes a tune with its files.",
                )
            self._stop(session, tune, keep, now, by_caller)
            return tune

    def _stop_again(self, session: Session, tune: Tune, keep: bool, now: datetime) -> bool:
        """Stop what is done again of a ready tune, which stays ready; returns whether there was anything."""
        rows = lock(session, Work, Work.subject_id == tune.id)
        work = next((row for row in rows if row.state in OPEN_WORK), None)
        if work is None:
            return False
        tune.updated_at = now
        note(session, tune.id, "cancel", f"Cancel of {work.kind}, which is done again, was asked for.", now)
        if work.state == "running":
            tune.cancel = "keep" if keep and work.kind in MAKING else "cancel"
            tune.message = "Stopping."
            return True
        close_work(work, "cancelled", now)
        show(tune, "", "")
        return True

    def _stop(self, session: Session, tune: Tune, keep: bool, now: datetime, by_caller: bool) -> None:
        rows = lock(session, Work, Work.subject_id == tune.id)
        work = next((row for row in rows if row.state in OPEN_WORK), None)
        tune.updated_at = now
        if keep and work is not None and work.kind == WorkKind.FINISH:
            return
        # Training that started once may have a checkpoint: its next run sees the flag and exports it.
        keep = keep and work is not None and work.kind in MAKING and work.started_at is not None
        tune.cancel = "keep" if keep else "cancel"
        lock_followers(session, tune)
        if not keep:  # settled now: what a run still computes until it sees the flag is not the caller's
            settle(session, tune, now, tune.computed if by_caller else 0.0)
        note(
            session,
            tune.id,
            "cancel",
            "Stop and keep was asked for." if keep else "Cancel was asked for.",
            now,
        )
        if keep or (work is not None and work.state == "running"):
            tune.message = "Stopping."
            return
        if work is not None:
            close_work(work, "cancelled", now)
        tune_cancelled(session, tune, now, notify=True)

    @repeatable
    def delete_tune(
        self,
        tune_id: str,
        by_caller: bool = False,
        *,
        reason: str = "asked",
        rule: str = "",
        when: Callable[[Session, Tune], bool] | None = None,
    ) -> Tune:
        """Make a tune and all pictures of it unreachable, stop what is under way, and record that it is deleted.

        `service/erase.py` removes what there is of it. A tune that was deleted before is looked for once more.

        Args:
            tune_id: The tune.
            by_caller: As in `request_cancel`.
            reason: `asked` or `expired`.
            rule: See `Deletion`.
            when: Asked about the locked row: nothing is done unless it says yes.

        Returns:
            The tune; not deleted when it was not to be.
        """
        now = self.now()
        with self.writing() as session:
            tune = lock_tune(session, tune_id)
            if tune.status == "deleted" or (when is not None and not when(session, tune)):
                if tune.status == "deleted":
                    record_deletion(session, tune, now, reason=reason, rule=rule)
                return tune
            ended = tune.status in ENDED_TUNE
            tune.status, tune.deleted_at = "deleted", now
            note(session, tune.id, "deleted", "The tune was deleted.", now)
            if not ended:
                lock(session, Work, Work.subject_id == tune.id)
            gone = Failure(FailureCode.CANCELLED, "Its tune was deleted.")
            shown = or_(Prompt.status.in_(OPEN_PROMPT), Prompt.expired_at.is_(None))
            prompts = lock(session, Prompt, used_with([tune_id]), shown)
            stopped = [prompt for prompt in prompts if prompt.status in OPEN_PROMPT]
            lock_ends(session, stopped, tune.account_id)
            for prompt in stopped:
                computed = _computed(session, prompt) if by_caller else 0.0
                prompt.cancel = "cancel"
                prompt_ended(session, prompt, "cancelled", now, gone, given_up=computed)
            hide_pictures(prompts, now)
            if not ended:
                self._stop(session, tune, False, now, by_caller)
            tune.updated_at = now
            record_deletion(session, tune, now, reason=reason, rule=rule)
            return tune

    @repeatable
    def delete_prompt(self, prompt_id: str, by_caller: bool = False, rule: str = "") -> Prompt:
        """Cancel a prompt that is open, take it out of its caller's sight, and record that it is deleted.

        Args:
            prompt_id: The prompt.
            by_caller: As in `cancel_prompt`.
            rule: See `Deletion`.
        """
        now = self.now()
        with self.writing() as session:
            batch, work = self._lock_batch_of(session, prompt_id)
            seen = lock_one(session, ApiObject, ApiObject.id == prompt_id)
            prompt = lock_one(session, Prompt, Prompt.id == prompt_id)
            assert prompt is not None
            hide_prompt(session, prompt, seen, now)
            if prompt.status in OPEN_PROMPT:
                self._cancel(session, prompt, batch, work, by_caller, now)
            hide_pictures([prompt], now)
            record_deletion(session, prompt, now, rule=rule)
            return prompt

    def end_stranded(self, limit: int = 1000) -> int:
        """Let prompts that wait for a tune which has ended follow it; returns how many there were.

        Every end of a tune takes its prompts along, so there are none; registries written by earlier versions
        hold some that were planned while their tune ended.
        """
        stranded = (
            select(PromptTune.tune_id)
            .join(Prompt, Prompt.id == PromptTune.prompt_id)
            .join(Tune, Tune.id == PromptTune.tune_id)
            .where(Prompt.status == "waiting", or_(Tune.status.in_(LOST_TUNE), ~used_and_not_ready()))
            .distinct()
            .limit(limit)
        )
        with self.reading() as session:
            ids = sorted(one for one in session.scalars(stranded) if one)
        return sum(self._follow(tune_id) for tune_id in ids)

    @retried
    def _follow(self, tune_id: str) -> int:
        with self.writing() as session:
            return follow_tune(session, lock_tune(session, tune_id), self.now())

    @repeatable
    def cancel_prompt(self, prompt_id: str, by_caller: bool = False) -> Prompt:
        """Cancel a prompt; one that is being rendered is left out of its run's answer.

        Args:
            prompt_id: The prompt.
            by_caller: Its account asks, and not the operator: it owes what was computed, see `settling.py`.

        Raises:
            Failure: `INVALID_REQUEST` for an unknown prompt, `CONFLICT` when it has ended already.
        """
        now = self.now()
        with self.writing() as session:
            batch, work = self._lock_batch_of(session, prompt_id)
            (prompt,) = lock(session, Prompt, Prompt.id == prompt_id)
            if prompt.status == "cancelled":
                return prompt
            if prompt.status not in OPEN_PROMPT:
                raise Failure(FailureCode.CONFLICT, f"The prompt {prompt_id} is {prompt.status} already.")
            self._cancel(session, prompt, batch, work, by_caller, now)
            return prompt

    def _lock_batch_of(self, session: Session, prompt_id: str) -> tuple[Batch | None, Work | None]:
        prompt = session.scalars(select(Prompt).where(Prompt.id == prompt_id)).first()
        if prompt is None:
            raise Failure(FailureCode.INVALID_REQUEST, f"There is no prompt {prompt_id!r}.")
        batch = lock_batch(session, prompt.batch_id) if prompt.batch_id else None
        return batch, lock_work(session, "render", batch.id) if batch is not None else None

    def _cancel(
        self,
        session: Session,
        prompt: Prompt,
        batch: Batch | None,
        work: Work | None,
        by_caller: bool,
        now: datetime,
    ) -> None:
        rendered = batch is not None and prompt.status == "rendering"
        computed = batch.computed if by_caller and batch is not None and rendered else 0.0
        prompt.cancel = "cancel"
        failure = Failure(FailureCode.CANCELLED, "The prompt was cancelled on request.")
        prompt_ended(session, prompt, "cancelled", now, failure, given_up=computed)
        session.flush()
        if batch is not None and work is not None:
            self._drop_empty_batch(session, batch, work, now)

    def _drop_empty_batch(self, session: Session, batch: Batch, work: Work, now: datetime) -> None:
        left = exists().where(Prompt.batch_id == batch.id, Prompt.status.in_(OPEN_PROMPT))
        if session.scalar(select(left)) or work.state not in ("queued", "submitted"):
            return
        close_work(work, "cancelled", now)
        batch.status, batch.done_at = "cancelled", now


def _computed(session: Session, prompt: Prompt) -> float:
    """Return the part of a prompt's rendering that was computed."""
    batch = session.get(Batch, prompt.batch_id) if prompt.batch_id else None
    return batch.computed if batch is not None and prompt.status == "rendering" else 0.0


def _moved(seen: Work, work: Work) -> bool:
    """Whether a row changed hands or showed life since it was looked at."""
    return (seen.state, seen.attempt, seen.run_id, seen.heartbeat_at) != (
        work.state,
        work.attempt,
        work.run_id,
        work.heartbeat_at,
    )
