"""Taking the words of deleted subjects out of the rows; what they are says `personal.py`.

A part of the rows at a time, each in a transaction of its own: whoever is interrupted begins again, and finds less.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from tunes_dagster.registry.api_tables import ApiGroup, ApiObject, IdempotencyKey
from tunes_dagster.registry.campaign_tables import Campaign, CampaignDate, CampaignPrompt
from tunes_dagster.registry.deletion_tables import Deletion
from tunes_dagster.registry.locks import chunks, lock, lock_each
from tunes_dagster.registry.personal import scrub
from tunes_dagster.registry.session_tables import DeviceRun, DeviceRunLine
from tunes_dagster.registry.tables import Batch, Callback, Delivery, Drop, Event, Prompt, Tune, Work
from tunes_dagster.registry.uses import PromptTune


def forget_rows(session: Session, subject_ids: Iterable[str]) -> None:
    """Take the words out of all rows of some tunes and prompts, but those of campaigns."""
    subjects = sorted(set(subject_ids))
    names = _names(session, subjects)
    tunes = lock_each(session, Tune, Tune.id, subjects)
    batches = set(
        session.scalars(select(Prompt.batch_id).where(Prompt.id.in_(subjects), Prompt.batch_id.is_not(None)))
    )
    rows: list[Any] = [*tunes, *lock_each(session, Batch, Batch.id, batches)]
    rows += lock_each(session, Work, Work.subject_id, {*subjects, *batches})
    seen = lock_each(session, ApiObject, ApiObject.id, subjects)
    rows += [*seen, *lock_each(session, Prompt, Prompt.id, subjects)]
    rows += lock(
        session, PromptTune, or_(PromptTune.prompt_id.in_(subjects), PromptTune.tune_id.in_(subjects))
    )
    groups = {row.group_id for row in seen if row.group_id}
    rows += [row for row in lock_each(session, ApiGroup, ApiGroup.id, groups) if row.done_at is not None]
    told = lock_each(session, Callback, Callback.subject_id, subjects)
    rows += told
    rows += session.scalars(select(Delivery).where(Delivery.callback_id.in_([row.id for row in told])))
    rows += lock_each(session, Event, Event.subject_id, {*subjects, *batches})
    rows += lock(session, Drop, Drop.tune_id.in_(subjects))
    rows += _repeats(
        session, {*(row.account_id for row in tunes), *(row.account_id for row in seen)}, set(subjects), names
    )
    runs = lock_each(session, DeviceRun, DeviceRun.subject_id, {*subjects, *batches})
    rows += runs
    for some in chunks([run.id for run in runs]):
        rows += session.scalars(select(DeviceRunLine).where(DeviceRunLine.device_run_id.in_(some)))
    rows += lock_each(session, Deletion, Deletion.subject_id, subjects)
    for row in rows:
        scrub(row)


def _names(session: Session, subjects: Sequence[str]) -> set[str]:
    """Return by which words a request's path may name some subjects."""
    found = set(subjects)
    for table in (Tune, Prompt):
        query = select(table.number).where(table.id.in_(subjects))
        found |= {str(number) for number in session.scalars(query)}
    public = select(ApiObject.public_id).where(ApiObject.id.in_(subjects), ApiObject.public_id.is_not(None))
    return found | {str(one) for one in session.scalars(public)}


def _repeats(
    session: Session, accounts: set[str], subjects: set[str], names: set[str]
) -> list[IdempotencyKey]:
    """Return what is kept of requests that made some subjects or were about them; a day of requests at most."""
    mine: list[tuple[str, str]] = []
    columns = (IdempotencyKey.account_id, IdempotencyKey.key, IdempotencyKey.subjects, IdempotencyKey.body)
    for account_id, key, made, body in session.execute(
        select(*columns).where(IdempotencyKey.account_id.in_(accounts))
    ):
        path = str((body or {}).get("request", "")).partition(" ")[2]
        about = {part.partition(".")[0] for part in path.split("/")} & names
        if about or subjects.intersection(made or ()):
            mine.append((account_id, key))
    return [
        row
        for account_id, key in sorted(mine)
        for row in lock(
            session, IdempotencyKey, IdempotencyKey.account_id == account_id, IdempotencyKey.key == key
        )
    ]


def forget_in_campaigns(
    session: Session, account_id: str, subject_ids: Sequence[str], title: str
) -> list[str]:
    """Take subjects out of the dates of an account's campaigns; returns keys of their plans' tables, to be removed.

    Args:
        session: The transaction, which has locked nothing yet.
        account_id: Whose campaigns.
        subject_ids: A tune, and the prompts that named it.
        title: Of the tune: plans of before named what they left out by its title alone.
    """
    subjects, keys = set(subject_ids), []
    campaigns = select(Campaign.id).where(Campaign.account_id == account_id)
    linked: set[str] = set()
    for some in chunks(sorted(subjects)):
        linked |= set(
            session.scalars(select(CampaignPrompt.date_id).where(CampaignPrompt.prompt_id.in_(some)))
        )
    for date in lock(session, CampaignDate, CampaignDate.campaign_id.in_(campaigns)):
        named = _taken_out(date, subjects, title)
        if not named and date.id not in linked:
            continue
        if date.plan_key:
            keys.append(date.plan_key)
            date.plan_key = None
        if title and title in (date.message or ""):
            date.message = ""
        for link in session.scalars(select(CampaignPrompt).where(CampaignPrompt.date_id == date.id)):
            if link.prompt_id in subjects:
                scrub(link)
    return keys


def _taken_out(date: CampaignDate, subjects: set[str], title: str) -> bool:
    """Take tunes out of the plan of a date; returns whether they were in it."""
    tunes, left_out = dict(date.plan.get("tunes", {})), list(date.plan.get("left_out", []))
    others = [
        one
        for one in left_out
        if (one["tune_id"] not in subjects if "tune_id" in one else one.get("tune") != title)
    ]
    kept = {tune_id: named for tune_id, named in tunes.items() if tune_id not in subjects}
    if len(kept) == len(tunes) and len(others) == len(left_out):
        return False
    date.plan = {**date.plan, "tunes": kept, "left_out": others}
    return True
