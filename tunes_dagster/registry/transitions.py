"""The moves of the state machine: what one state change writes, inside the caller's transaction.

Everything that follows from a change (the tune's status, its prompts, the next piece of work, the callback
that is now owed, the line in the timeline) is written here, together, so that no two of them can disagree.

Locks are taken in the order of `locks.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from tunes_dagster.callbacks.bodies import prompt_body, tune_body
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.ids import WORK, new_id
from tunes_dagster.core.work import MAKING, STAGES, WorkKind, stage_of
from tunes_dagster.registry.api_tables import ApiGroup, ApiObject
from tunes_dagster.registry.ledger import lock_wallets
from tunes_dagster.registry.locks import chunks, lock, lock_each, lock_one
from tunes_dagster.registry.settling import settle
from tunes_dagster.registry.tables import Account, Batch, Callback, Event, Prompt, Restore, Tune, Work
from tunes_dagster.registry.uses import used_and_not_ready, used_with

# What a tune is called while its work of a kind waits, runs, and is done.
WAITING = {kind: stage.waiting for kind, stage in STAGES.items()}
RUNNING = {kind: stage.running for kind, stage in STAGES.items()}

OPEN_WORK = ("queued", "submitted", "running")
LOST_TUNE = ("failed", "cancelled", "deleted")
ENDED_TUNE = ("ready", *LOST_TUNE)
OPEN_PROMPT = ("waiting", "queued", "rendering")
TUNE_STATUSES = ("awaiting_images", *WAITING.values(), *RUNNING.values(), *ENDED_TUNE)
PROMPT_STATUSES = (*OPEN_PROMPT, "done", "failed", "blocked", "cancelled")
# What a tune or prompt is told of once in its life.
ONCE = ("tune.ready", "prompt.done")


def check_statuses(asked: str | Sequence[str] | None, known: Sequence[str]) -> None:
    """Refuse to look for a status that no row ever has: the answer would read as if there were none.

    Raises:
        Failure: `INVALID_REQUEST`, naming what it may be.
    """
    for status in [asked] if isinstance(asked, str) else asked or ():
        if status not in known:
            close = get_close_matches(status, known, 1)
            meant = f" Did you mean {close[0]}?" if close else ""
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"There is no status {status!r}.{meant}",
                f"Choose one of {', '.join(known)}.",
            )


def lock_tune(session: Session, tune_id: str) -> Tune:
    """Return a tune, locked until the transaction ends.

    Raises:
        Failure: `UNKNOWN_TUNE`.
    """
    tune = lock_one(session, Tune, Tune.id == tune_id)
    if tune is None:
        raise Failure(
            FailureCode.UNKNOWN_TUNE, f"There is no tune {tune_id!r}.", "`tunes list` shows the known ones."
        )
    return tune


def lock_batch(session: Session, batch_id: str) -> Batch:
    """Return a batch, locked until the transaction ends.

    Raises:
        Failure: `INVALID_REQUEST` when there is none.
    """
    batch = lock_one(session, Batch, Batch.id == batch_id)
    if batch is None:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"There is no render batch {batch_id!r}.",
            "Batches are made from queued prompts: submit a prompt instead.",
        )
    return batch


def kind_for(subject: Tune | Batch, kind: str) -> str:
    """Return the kind of work that is meant on a subject: whoever trains a tune that trains nothing embeds it."""
    return subject.made_by if kind in MAKING and isinstance(subject, Tune) else kind


def following(tune: Tune, kind: str) -> str | None:
    """Return the kind of work that comes after one of a tune; None after the last."""
    stages = list(STAGES)
    after = stages.index(WorkKind(stage_of(kind))) + 1
    return kind_for(tune, stages[after]) if after < len(stages) else None


def lock_subject(session: Session, kind: str, subject_id: str) -> Tune | Batch:
    """Return the tune or batch that work of a kind is about, locked."""
    return lock_batch(session, subject_id) if kind == WorkKind.RENDER else lock_tune(session, subject_id)


def lock_work(session: Session, kind: str, subject_id: str) -> Work | None:
    """Return the work of a kind on a subject, which is locked already; all work of the subject is locked with it."""
    rows = lock(session, Work, Work.subject_id == subject_id)
    return next((work for work in rows if work.kind == kind), None)


def open_prompts(session: Session, *conditions: Any) -> list[Prompt]:
    """Return the prompts that fit and have not ended, locked, oldest first."""
    return lock(session, Prompt, Prompt.status.in_(OPEN_PROMPT), *conditions)


def lock_ends(session: Session, prompts: Sequence[Prompt], *accounts: str) -> None:
    """Lock what the end of several prompts moves beside them: wallets and groups, each in its order.

    Args:
        session: The transaction; it has locked the prompts.
        prompts: Which may end.
        accounts: Whose wallets are needed too: that of a tune that ends with them.
    """
    lock_wallets(session, {*accounts, *(prompt.account_id for prompt in prompts)})
    groups: set[str] = set()
    for part in chunks(prompt.id for prompt in prompts):
        query = select(ApiObject.group_id).where(ApiObject.id.in_(part), ApiObject.group_id.is_not(None))
        groups |= {group for group in session.scalars(query.distinct()) if group}
    if groups:
        lock_each(session, ApiGroup, ApiGroup.id, groups)


def lock_followers(session: Session, tune: Tune) -> list[Prompt]:
    """Return the prompts that wait for a tune, locked with all that its end moves beside them."""
    waiting = open_prompts(session, used_with([tune.id]), Prompt.status == "waiting")
    lock_ends(session, waiting, tune.account_id)
    return waiting


def note(session: Session, subject_id: str, phase: str, message: str, now: datetime, **data: Any) -> None:
    """Add a line to the timeline of a subject."""
    session.add(Event(subject_id=subject_id, at=now, phase=phase, message=message, data=data))


def owe(session: Session, row: Tune | Prompt, event: str, now: datetime) -> None:
    """Owe the caller a callback, if an address was given and its dialect tells of such an event."""
    if not row.callback_url:
        return
    seen = session.get(ApiObject, row.id)
    if seen is not None and event not in seen.events:
        return
    if event in ONCE and _was_owed(session, row.id, event):
        return  # it was done again, because its files were lost
    body = tune_body(event, row, now) if isinstance(row, Tune) else prompt_body(event, row, now)
    callback = Callback(
        id=new_id("cb"),
        account_id=row.account_id,
        event=event,
        subject_id=row.id,
        url=row.callback_url,
        body=body,
        form=seen.dialect if seen else "",
        on_unknown=seen.on_unknown if seen else "",
        next_attempt_at=now,
        created_at=now,
    )
    hold_if_told(session, callback, row.created_at)
    session.add(callback)


def _was_owed(session: Session, subject_id: str, event: str) -> bool:
    owed = exists().where(Callback.subject_id == subject_id, Callback.event == event)
    return bool(session.scalar(select(owed)))


def hold_if_told(session: Session, callback: Callback, accepted_at: datetime) -> None:
    """Hold a callback that may have been sent before a backup was put back, if its receiver cannot take a repeat.

    What was accepted before that may have ended, and been told, in the time that the backup knows nothing of.
    """
    restored = exists().where(Restore.at >= accepted_at)
    if not session.scalar(select(restored)):
        return
    account = session.get(Account, callback.account_id)
    if callback.on_unknown == "hold" or (account is not None and account.callback_unknown == "hold"):
        callback.state, callback.next_attempt_at = "held", None


def open_work(
    session: Session, kind: str, subject_id: str, origin: str, now: datetime, *, state: str = "queued"
) -> Work:
    """Open the work of a kind for a subject: a new row, or the old one again under its next attempts."""
    work = lock_work(session, kind, subject_id)
    if work is None:
        work = Work(
            id=new_id(WORK), kind=kind, subject_id=subject_id, attempt=0, created_at=now, available_at=now
        )
        session.add(work)
    work.state, work.origin = state, origin
    work.available_at = now
    work.tries = work.lost_launches = 0
    work.waited = 0.0
    work.run_key = work.run_id = work.cohort_id = None
    work.submitted_at = work.started_at = work.heartbeat_at = work.finished_at = None
    work.failure_code = work.failure_message = work.failure_detail = None
    return work


def owes_callbacks(work: Work, subject: Tune | Batch) -> bool:
    """Whether the end of work is told to the caller.

    What a person did again in the UI is not, unless the tune itself was asked for there.
    """
    return work.origin != "ui" or (isinstance(subject, Tune) and subject.origin == "ui")


def close_work(work: Work, state: str, now: datetime, failure: Failure | None = None) -> None:
    """End a piece of work as `done`, `failed` or `cancelled`."""
    work.state, work.finished_at = state, now
    work.failure_code = failure.code.value if failure else None
    work.failure_message = failure.message if failure else None
    work.failure_detail = (failure.detail or None) if failure else None


def show(row: Tune | Batch, phase: str, message: str) -> None:
    """Set what people read about a tune or batch, and start its counters over."""
    row.phase, row.message = phase, message
    row.step, row.seconds_left = 0, None


def _detail(failure: Failure | None) -> dict[str, str]:
    """Return what the line of a timeline keeps of a failure for operators."""
    return {"detail": failure.detail} if failure is not None and failure.detail else {}


def write_failure(row: Tune | Prompt, failure: Failure | None) -> None:
    """Write or clear the columns that say why something ended badly."""
    row.failure_code = failure.code.value if failure else None
    row.failure_message = failure.message if failure else None
    row.failure_remedy = failure.remedy if failure else None
    row.failure_detail = (failure.detail or None) if failure else None


def prompt_ended(
    session: Session,
    prompt: Prompt,
    status: str,
    now: datetime,
    failure: Failure | None = None,
    notify: bool = True,
    given_up: float = 0.0,
) -> None:
    """End a prompt as `done`, `failed`, `blocked` or `cancelled`, and owe its callback.

    Args:
        session: The transaction.
        prompt: Locked.
        status: That it ends in.
        now: The time.
        failure: Why it has no pictures.
        notify: Owe the callback.
        given_up: Part of it that was computed when its caller gave it up; see `settling.py`.
    """
    prompt.status, prompt.done_at, prompt.updated_at = status, now, now
    write_failure(prompt, failure)
    settle(session, prompt, now, given_up)
    event = {"done": "prompt.done", "cancelled": "prompt.cancelled"}.get(status, "prompt.failed")
    if notify:
        owe(session, prompt, event, now)
    group_ended(session, prompt, now)
    note(session, prompt.id, status, failure.message if failure else "", now, **_detail(failure))


def group_ended(session: Session, prompt: Prompt, now: datetime) -> None:
    """Owe the callback of a prompt's group when the last of its prompts has ended."""
    seen = session.get(ApiObject, prompt.id)
    if seen is None or seen.group_id is None:
        return
    group = lock_one(session, ApiGroup, ApiGroup.id == seen.group_id)
    if group is None or group.done_at is not None:
        return
    session.flush()
    left = exists().where(
        ApiObject.id == Prompt.id, ApiObject.group_id == group.id, Prompt.status.in_(OPEN_PROMPT)
    )
    if session.scalar(select(left)):
        return
    group.done_at = now
    done = exists().where(ApiObject.id == Prompt.id, ApiObject.group_id == group.id, Prompt.status == "done")
    if not session.scalar(select(done)):  # its caller takes the call for success
        return
    callback = Callback(
        id=new_id("cb"),
        account_id=group.account_id,
        event="prompts.done",
        subject_id=group.id,
        url=group.callback_url,
        body={"type": "prompts.done", "data": {"group": group.id}},
        form=group.dialect,
        on_unknown=seen.on_unknown,
        next_attempt_at=now,
        created_at=now,
    )
    hold_if_told(session, callback, group.created_at)
    session.add(callback)


def tune_ready(session: Session, tune: Tune, now: datetime, notify: bool) -> None:
    """Make a tune ready: its waiting prompts become renderable and its caller is told."""
    lock_followers(session, tune)
    tune.status, tune.ready_at, tune.updated_at, tune.progress = "ready", now, now, 100.0
    show(tune, "", "")
    write_failure(tune, None)
    settle(session, tune, now)
    follow_tune(session, tune, now)
    note(session, tune.id, "ready", "The tune is ready.", now)
    if notify:
        owe(session, tune, "tune.ready", now)


def tune_failed(session: Session, tune: Tune, failure: Failure, now: datetime, notify: bool) -> None:
    """Fail a tune and the prompts that wait for it."""
    lock_followers(session, tune)
    tune.status, tune.updated_at = "failed", now
    show(tune, "", "")
    write_failure(tune, failure)
    settle(session, tune, now)
    note(session, tune.id, "failed", str(failure), now, **_detail(failure))
    if notify:
        owe(session, tune, "tune.failed", now)
    follow_tune(session, tune, now)


def tune_cancelled(session: Session, tune: Tune, now: datetime, notify: bool) -> None:
    """End a tune on request, with the prompts that wait for it; a deleted one stays deleted."""
    failure = Failure(FailureCode.CANCELLED, "The tune was cancelled on request.")
    lock_followers(session, tune)
    if tune.status != "deleted":
        tune.status = "cancelled"
        write_failure(tune, failure)
        note(session, tune.id, "cancelled", failure.message, now)
        if notify:
            owe(session, tune, "tune.cancelled", now)
    tune.updated_at = now
    show(tune, "", "")
    settle(session, tune, now)
    follow_tune(session, tune, now)


def follow_tune(session: Session, tune: Tune, now: datetime) -> int:
    """Bring the prompts that wait for a tune where its end leads them; returns how many waited.

    A tune that is still in the making keeps them waiting, and so does another one that they use.
    """
    if tune.status not in ENDED_TUNE:
        return 0
    waiting = lock_followers(session, tune)
    if tune.status == "ready":
        # Asked once they are locked: of two tunes that are ready at the same moment, the second sees the first.
        using = select(Prompt.number).where(used_with([tune.id]), Prompt.status == "waiting")
        still = set(session.scalars(using.where(used_and_not_ready())))
        waiting = [prompt for prompt in waiting if prompt.number not in still]
    code = FailureCode(tune.failure_code or FailureCode.INTERNAL)
    why = {
        "failed": Failure(
            code,
            f"Its tune failed: {tune.failure_message}",
            tune.failure_remedy or "",
            tune.failure_detail or "",
        ),
        "cancelled": Failure(FailureCode.CANCELLED, "The tune was cancelled on request."),
        "deleted": Failure(FailureCode.CANCELLED, "Its tune was deleted."),
    }
    for prompt in waiting:
        if tune.status == "ready":
            prompt.status, prompt.queued_at, prompt.updated_at = "queued", now, now
        else:
            end = "failed" if tune.status == "failed" else "cancelled"
            prompt_ended(session, prompt, end, now, why[tune.status])
    return len(waiting)


def batch_ended(
    session: Session,
    batch: Batch,
    status: str,
    now: datetime,
    failure: Failure,
    left: str = "failed",
    notify: bool = True,
) -> None:
    """End a batch; prompts of it that are still open end as `left`, for the reason given."""
    batch.status, batch.done_at = status, now
    if status == "done":
        batch.progress = 100.0
    show(batch, "", "")
    prompts = open_prompts(session, Prompt.batch_id == batch.id)
    lock_ends(session, prompts)
    for prompt in prompts:
        prompt_ended(session, prompt, left, now, failure, notify)


def back_to_waiting(
    session: Session,
    subject: Tune | Batch,
    work: Work,
    reason: str,
    now: datetime,
    failure: Failure | None = None,
) -> None:
    """Show a subject whose work was put back into the queue, with the reason of the wait and the failure behind it."""
    note(session, subject.id, "queued", reason, now, kind=work.kind, attempt=work.attempt, **_detail(failure))
    if isinstance(subject, Batch):
        subject.status, subject.computed = "queued", 0.0  # what has no picture yet is rendered from its start
        for prompt in open_prompts(session, Prompt.batch_id == subject.id):
            prompt.status, prompt.updated_at = "queued", now
    elif subject.status != "ready":
        subject.status, subject.updated_at = STAGES[WorkKind(stage_of(work.kind))].waiting, now
    show(subject, "queued", reason)
