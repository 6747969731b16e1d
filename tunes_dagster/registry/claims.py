"""What happens to rows, inside a transaction, when somebody takes work over: who may, what is cleared, what begins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, and_, exists, func, select
from sqlalchemy.orm import Session

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.ids import SESSION, is_id
from tunes_dagster.core.results import TuneResult
from tunes_dagster.core.work import MAKING, STAGES, WorkKind, run_key, stage_of
from tunes_dagster.registry.locks import lock, lock_each
from tunes_dagster.registry.session_tables import DeviceSession
from tunes_dagster.registry.tables import Batch, Prompt, Tune, Work
from tunes_dagster.registry.transitions import (
    LOST_TUNE,
    OPEN_WORK,
    close_work,
    lock_subject,
    lock_work,
    note,
    open_prompts,
    show,
    write_failure,
)
from tunes_dagster.registry.uses import was_deleted


def take(session: Session, work_ids: Sequence[str], cohort_id: str | None, now: datetime) -> list[Work]:
    """Move rows queued → submitted under their next attempt and return those that were still queued."""
    won = lock(session, Work, Work.id.in_(work_ids), Work.state == "queued", skip=True)
    for work in won:
        work.attempt += 1
        work.state, work.submitted_at, work.cohort_id = "submitted", now, cohort_id
        work.run_key, work.run_id = run_key(work.id, work.attempt), None
    return won


def lock_training(session: Session, tune_ids: Iterable[str]) -> list[tuple[Tune, Work]]:
    """Return tunes with the work that makes them, in the order of their numbers; tunes are locked before any work."""
    tunes = lock_each(session, Tune, Tune.id, tune_ids)
    rows = lock_each(session, Work, Work.subject_id, [tune.id for tune in tunes])
    making = [
        (tune, row) for tune in tunes for row in rows if row.subject_id == tune.id and row.kind in MAKING
    ]
    return [(tune, row) for tune, row in making if row.cohort_id or row.kind == tune.made_by]


def lost(work: Work | None, work_id: str, run_id: str) -> Failure:
    """Return the refusal that a late writer gets."""
    if work is None:
        return Failure(FailureCode.CONFLICT, f"There is no work {work_id!r}.", "Start a new run.")
    owner = f"run {work.run_id}" if work.state == "running" else f"nobody; it is {work.state}"
    return Failure(
        FailureCode.CONFLICT,
        f"Attempt by run {run_id} is no longer the owner of {work.kind} of {work.subject_id} "
        f"(attempt {work.attempt} belongs to {owner}).",
        "Stop this run: what it writes is not used.",
    )


def done_since(work: Work, subject: Tune | Batch) -> Failure:
    """Return the refusal that a re-execution gets whose work is done by now."""
    return Failure(
        FailureCode.CONFLICT,
        f"{work.kind} of {subject.id} is done already, by run {work.run_id}: nothing of it is left to do again.",
        f"Materialize {WorkKind(work.kind).asset} of {subject.id} to do it anew.",
    )


def owned(session: Session, work_id: str, run_id: str) -> tuple[Work, Tune | Batch]:
    """Return running work of a run and its subject, both locked.

    Raises:
        Failure: `CONFLICT` when another attempt owns the row or the attempt has ended.
    """
    found = session.get(Work, work_id)
    if found is None:
        raise lost(None, work_id, run_id)
    subject = lock_subject(session, found.kind, found.subject_id)
    work = lock_work(session, found.kind, found.subject_id)
    if work is None or work.state != "running" or work.run_id != run_id:
        raise lost(work, work_id, run_id)
    return work, subject


def make_room(session: Session, kind: str, subject_id: str, now: datetime) -> None:
    """See that work of a tune can be done again by hand: nothing before it is open, nothing after it runs.

    A later piece that only waits is closed; finishing this one opens it again.

    Raises:
        Failure: `CONFLICT`, naming what is in the way.
    """
    stages = list(STAGES)
    for row in [] if kind == WorkKind.RENDER else lock(session, Work, Work.subject_id == subject_id):
        if row.kind == kind or row.state not in OPEN_WORK:
            continue
        here, there = (stages.index(WorkKind(stage_of(one))) for one in (kind, row.kind))
        if row.state == "queued" and there >= here:
            close_work(row, "cancelled", now)
            continue
        owner = f" by run {row.run_id}" if row.state == "running" else ""
        raise Failure(
            FailureCode.CONFLICT,
            f"{row.kind} of {subject_id} is {row.state}{owner}: {kind} cannot be done at the same time.",
            "Wait until it has ended, or cancel it first.",
        )


# What a batch is rendered again for when a person asks.
_LACKING = ("failed", "blocked")


def lacks_pictures(session: Session, batch: Batch) -> bool:
    """Whether prompts of a batch that has ended have no pictures although they are still wanted."""
    failed = exists().where(Prompt.batch_id == batch.id, Prompt.status.in_(_LACKING), ~was_deleted())
    return bool(session.scalar(select(failed)))


def subject_reopened(session: Session, subject: Tune | Batch, now: datetime) -> None:
    """Clear what an earlier end left on a subject whose work is opened again by a person."""
    if isinstance(subject, Batch):
        lacking = (Prompt.batch_id == subject.id, Prompt.status.in_(_LACKING))
        for prompt in lock(session, Prompt, *lacking, ~was_deleted()):
            prompt.status, prompt.done_at, prompt.updated_at = "queued", None, now
            write_failure(prompt, None)
        subject.done_at = None
        subject.progress = subject.computed = 0.0
        return
    subject.cancel = ""
    if subject.status != "ready":
        write_failure(subject, None)
    if subject.status in LOST_TUNE:  # it begins anew
        subject.progress = subject.computed = 0.0


def is_suspect() -> ColumnElement[bool]:
    """Return the condition that a process died while it computed this work, and that it was not tried since."""
    return and_(Work.tries > 0, func.coalesce(Work.failure_code, "") == FailureCode.RUN_LOST.value)


def fenced(session_id: str) -> Failure:
    """Return the refusal that a session gets whose place another one has taken."""
    return Failure(
        FailureCode.CONFLICT,
        f"{session_id} does not hold its device any more: another session has taken its place.",
        "Stop it: what it writes is not used.",
    )


def start(session: Session, work: Work, subject: Tune | Batch, run_id: str, now: datetime) -> None:
    """Make a run the owner of work and show it on the subject; a ready tune stays ready.

    Raises:
        Failure: `CONFLICT` for a session whose place another one has taken.
    """
    holder = session.get(DeviceSession, run_id) if is_id(run_id, SESSION) else None
    if holder is not None and holder.ended_at is not None:
        raise fenced(run_id)
    work.state, work.run_id = "running", run_id
    work.started_at = work.heartbeat_at = now
    work.finished_at = work.failure_code = work.failure_message = work.failure_detail = None
    work.tries += 1
    work.lost_launches = 0
    if isinstance(subject, Batch):
        subject.status = "rendering"
        for prompt in open_prompts(session, Prompt.batch_id == subject.id):
            prompt.status, prompt.updated_at = "rendering", now
            prompt.started_at = prompt.started_at or now
    else:
        if subject.status != "ready":
            subject.status = STAGES[WorkKind(stage_of(work.kind))].running
        subject.started_at = subject.started_at or now
        subject.updated_at = now
        if work.kind in (found := subject.made.findings):
            left = {kind: said for kind, said in found.items() if kind != work.kind}
            subject.result = TuneResult(findings=left).written(subject.result)
    show(subject, "queued", f"Attempt {work.attempt} of {work.kind} started.")
    note(
        session,
        subject.id,
        "started",
        f"{work.kind} started.",
        now,
        attempt=work.attempt,
        run_id=run_id,
        origin=work.origin,
    )
