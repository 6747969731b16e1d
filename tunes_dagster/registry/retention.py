"""What expires and when, who is told before, and the records of what was deleted.

An expiry is reckoned from the account's rule each time, never written down ahead: a rule that changes counts at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from tunes_dagster.core.clock import iso
from tunes_dagster.core.ids import new_id
from tunes_dagster.registry.campaign_tables import Campaign, CampaignDate, CampaignPrompt, Deletion
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.locks import chunks, lock, lock_each
from tunes_dagster.registry.retrying import repeatable
from tunes_dagster.registry.tables import Account, Callback, Prompt, Tune
from tunes_dagster.registry.transitions import lock_tune, note, owe
from tunes_dagster.registry.uses import PromptTune

RULES = ("keep_tunes_hours", "keep_outputs_hours", "auto_extend", "warn_hours", "expiry_callback_url")
# Ids that one callback of an account names; the rest is counted.
_NAMED = 1000


@dataclass(frozen=True)
class Expiring:
    """Something that an account's rule lets expire.

    Attributes:
        row: The tune or prompt.
        at: When.
        hours: Of the rule.
        extends: It is kept for another period instead of deleted.
    """

    row: Any
    at: datetime
    hours: float
    extends: bool

    @property
    def kind(self) -> str:
        """`tune` or `prompt`."""
        return "tune" if isinstance(self.row, Tune) else "prompt"


class Retention(Part):
    """Rules, expiry, records."""

    def keep_tune(
        self, tune_id: str, *, until: datetime | None = None, auto_extend: bool | None = None
    ) -> Tune:
        """Keep a tune whatever its account's rule says, until a moment, or by extending it each time."""
        with self.writing() as session:
            tune = lock_tune(session, tune_id)
            if until is not None:
                tune.kept_until, tune.warned_at = until, None
            if auto_extend is not None:
                tune.auto_extend = auto_extend
            tune.updated_at = self.now()
            return tune

    def expiring(self, until: datetime, limit: int = 10_000) -> list[Expiring]:
        """Return what expires up to a moment, oldest first."""
        found: list[Expiring] = []
        with self.reading() as session:
            rules = or_(Account.keep_tunes_hours.is_not(None), Account.keep_outputs_hours.is_not(None))
            for account in session.scalars(select(Account).where(rules)):
                found += _tunes(session, account, until, limit)
                found += _prompts(session, account, until, limit)
        return sorted(found, key=lambda one: one.at)[:limit]

    def warn_of(self, expiring: Sequence[Expiring]) -> int:
        """Tell the callers, once each, and the account's own address with one callback for all; returns how many."""
        now, told = self.now(), 0
        by_account: dict[str, list[Expiring]] = {}
        with self.writing() as session:
            rows = _locked(session, expiring)
            for one in expiring:
                row = rows.get(one.row.id)
                if row is None or row.warned_at is not None or one.extends:
                    continue
                row.warned_at = now
                when = f"It expires on {iso(one.at)} by the account's rule of {one.hours:g} hours."
                note(session, row.id, "expiring", when, now, expires_at=iso(one.at))
                owe(session, row, f"{one.kind}.expiring", now)
                by_account.setdefault(row.account_id, []).append(one)
                told += 1
            for account_id, some in by_account.items():
                _tell_account(session, account_id, some, now)
        return told

    def extend(self, one: Expiring) -> None:
        """Keep something for another period of its rule."""
        now = self.now()
        with self.writing() as session:
            row = _locked(session, [one]).get(one.row.id)
            if row is None:
                return
            row.kept_until, row.warned_at = now + timedelta(hours=one.hours), None
            note(session, row.id, "extended", f"It is kept until {iso(row.kept_until)}.", now)

    @repeatable
    def outputs_gone(self, prompt_ids: Sequence[str]) -> None:
        """Note that the pictures of prompts were deleted."""
        now = self.now()
        with self.writing() as session:
            for row in lock_each(session, Prompt, Prompt.id, prompt_ids):
                row.images, row.expired_at, row.updated_at = [], now, now

    def forget_words(self, tune_id: str, prompt_ids: Sequence[str] = ()) -> list[str]:
        """Take out of the rows everything that a person wrote about the subject of a deleted tune.

        Args:
            tune_id: The tune.
            prompt_ids: Prompts that named it, also those of other tunes.

        Returns:
            Keys of campaign plans in the store that say it too.
        """
        with self.writing() as session:
            account = select(Tune.account_id).where(Tune.id == tune_id).scalar_subquery()
            campaigns = select(Campaign.id).where(Campaign.account_id == account)
            dates = lock(session, CampaignDate, CampaignDate.campaign_id.in_(campaigns))
            tune = lock_tune(session, tune_id)
            title = tune.title
            tune.title, tune.labels, tune.callback_url = "", {}, None
            tune.request = {"name": tune.class_name, "title": "deleted", "base": tune.base}
            tune.recipe = {**tune.recipe, "captions": {}}
            tune.result = {name: value for name, value in tune.result.items() if name != "findings"}
            own = set(session.scalars(select(Prompt.id).where(Prompt.tune_id == tune_id)))
            for prompt in lock_each(session, Prompt, Prompt.id, own | set(prompt_ids)):
                prompt.text = ""
            asked = set(prompt_ids)
            using = set(session.scalars(select(PromptTune.prompt_id).where(PromptTune.tune_id == tune_id)))
            for some in chunks(sorted(using | asked)):
                for use in lock(session, PromptTune, PromptTune.prompt_id.in_(some)):
                    if use.tune_id == tune_id or use.prompt_id in asked:
                        use.word = ""
            for some in chunks(prompt_ids):
                linked = update(CampaignPrompt).where(CampaignPrompt.prompt_id.in_(some))
                session.execute(linked.values(variables={}))
            return [key for date in dates if (key := _forget(date, tune_id, title))]

    def dates_showing(self, prompt_ids: Sequence[str]) -> list[CampaignDate]:
        """Return the campaign dates whose report shows any of some prompts."""
        dates: dict[str, CampaignDate] = {}
        with self.reading() as session:
            for some in chunks(prompt_ids):
                query = (
                    select(CampaignDate)
                    .join(CampaignPrompt, CampaignPrompt.date_id == CampaignDate.id)
                    .where(CampaignPrompt.prompt_id.in_(some))
                    .where(CampaignDate.report_key.is_not(None))
                    .distinct()
                )
                dates.update({row.id: row for row in session.scalars(query)})
        return list(dates.values())

    @repeatable
    def report_gone(self, date_id: str) -> None:
        """Note that the report of a date was deleted with what it showed."""
        with self.writing() as session:
            for date in lock(session, CampaignDate, CampaignDate.id == date_id):
                date.report_key = None

    def record_deletions(self, records: Sequence[dict[str, Any]]) -> list[Deletion]:
        """Keep records of what was deleted; they outlive everything else."""
        now = self.now()
        rows = [Deletion(id=new_id("del"), at=now, **record) for record in records]
        with self.writing() as session:
            session.add_all(rows)
        return rows

    def deletions(self, account_id: str | None = None, limit: int = 50) -> list[Deletion]:
        """Return records, newest first."""
        query = select(Deletion).order_by(Deletion.id.desc()).limit(limit)
        if account_id is not None:
            query = query.where(Deletion.account_id == account_id)
        with self.reading() as session:
            return list(session.scalars(query))


def _locked(session: Session, expiring: Sequence[Expiring]) -> dict[str, Tune | Prompt]:
    """Return the rows as they are now, by id, locked: tunes before prompts."""
    numbers: dict[str, list[int]] = {"tune": [], "prompt": []}
    for one in expiring:
        numbers[one.kind].append(one.row.number)
    rows: dict[str, Tune | Prompt] = {}
    rows.update({row.id: row for row in lock_each(session, Tune, Tune.number, numbers["tune"])})
    rows.update({row.id: row for row in lock_each(session, Prompt, Prompt.number, numbers["prompt"])})
    return rows


def _tunes(session: Session, account: Account, until: datetime, limit: int) -> list[Expiring]:
    hours = account.keep_tunes_hours
    if hours is None:
        return []
    period = timedelta(hours=hours)
    query = (
        select(Tune)
        .where(Tune.account_id == account.id, Tune.status == "ready", Tune.ready_at <= until - period)
        .where(Tune.kept_until.is_(None) | (Tune.kept_until <= until))
        .order_by(Tune.ready_at)
        .limit(limit)
    )
    return [
        Expiring(
            row,
            max(filter(None, (row.ready_at + period if row.ready_at else None, row.kept_until))),
            hours,
            account.auto_extend if row.auto_extend is None else row.auto_extend,
        )
        for row in session.scalars(query)
    ]


def _prompts(session: Session, account: Account, until: datetime, limit: int) -> list[Expiring]:
    hours = account.keep_outputs_hours
    if hours is None:
        return []
    period = timedelta(hours=hours)
    query = (
        select(Prompt)
        .where(Prompt.account_id == account.id, Prompt.expired_at.is_(None), Prompt.done_at <= until - period)
        .where(Prompt.status == "done", Prompt.kept_until.is_(None) | (Prompt.kept_until <= until))
        .order_by(Prompt.done_at)
        .limit(limit)
    )
    return [
        Expiring(
            row,
            max(filter(None, (row.done_at + period if row.done_at else None, row.kept_until))),
            hours,
            account.auto_extend,
        )
        for row in session.scalars(query)
    ]


def _tell_account(session: Session, account_id: str, some: Sequence[Expiring], now: datetime) -> None:
    account = session.get(Account, account_id)
    if account is None or not account.expiry_callback_url:
        return
    named = [{"id": one.row.id, "kind": one.kind, "expires_at": iso(one.at)} for one in some[:_NAMED]]
    body = {
        "type": "retention.expiring",
        "timestamp": iso(now),
        "data": {"account": account_id, "count": len(some), "expiring": named},
    }
    session.add(
        Callback(
            id=new_id("cb"),
            account_id=account_id,
            event="retention.expiring",
            subject_id=account_id,
            url=account.expiry_callback_url,
            body=body,
            next_attempt_at=now,
            created_at=now,
        )
    )


def _forget(date: CampaignDate, tune_id: str, title: str) -> str:
    """Take a tune out of the plan of a campaign's date; returns the key of the plan's table if it was in it."""
    tunes, left_out = dict(date.plan.get("tunes", {})), list(date.plan.get("left_out", []))
    # Plans of before named what they left out by its title alone.
    others = [
        one
        for one in left_out
        if (one["tune_id"] != tune_id if "tune_id" in one else one.get("tune") != title)
    ]
    known = tunes.pop(tune_id, None) is not None
    if not known and len(others) == len(left_out):
        return ""
    key, date.plan_key = date.plan_key, None
    date.plan = {**date.plan, "tunes": tunes, "left_out": others}
    if title and title in (date.message or ""):
        date.message = ""
    return key or ""
