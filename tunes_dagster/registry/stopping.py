"""What people stop and take up again: tunes and prompts that are cancelled, deleted, resumed; each in one transaction.

A run that is at work hears of it by the flag that its heartbeat answers with.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.work import MAKING, WorkKind
from tunes_dagster.registry.api_tables import ApiObject
from tunes_dagster.registry.claims import subject_reopened
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
    close_work,
    follow_tune,
    lock_batch,
    lock_ends,
    lock_followers,
    lock_tune,
    lock_work,
    note,
    open_work,
    prompt_ended,
    show,
    tune_cancelled,
)
from tunes_dagster.registry.uses import PromptTune, used_and_not_ready, used_with
from tunes_dagster.registry.work import WorkRows


class Stopping(WorkRows):
    """Cancel, delete, resume."""

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
        return batch, lock_work(session, WorkKind.RENDER, batch.id) if batch is not None else None

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
