"""What expires and when, who is told before, and the records of what was deleted.

An expiry is reckoned from the account's rule each time, never written down ahead: a rule that changes counts at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from tunes_dagster.core.clock import iso
from tunes_dagster.core.ids import new_id
from tunes_dagster.registry.deletions import hide_pictures, record_deletion
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.locks import lock_each
from tunes_dagster.registry.retrying import repeatable
from tunes_dagster.registry.tables import Account, Callback, Prompt, Tune
from tunes_dagster.registry.transitions import lock_tune, note, owe

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

    def expire_pictures(self, expiring: Sequence[Expiring]) -> list[Prompt]:
        """Make the pictures of prompts unreachable and record that they are deleted; returns which were still due.

        Whoever was given more time meanwhile is left alone: the row that is changed here decides, not what was read.
        """
        now = self.now()
        with self.writing() as session:
            rows = _locked(session, expiring)
            due = [
                row
                for one in expiring
                if isinstance(row := rows.get(one.row.id), Prompt) and is_due(session, row, now)
            ]
            hide_pictures(due, now)
            for row in due:
                rule = f"outputs are kept {_hours_of(session, row):g} h"
                record_deletion(session, row, now, reason="expired", rule=rule)
            return due

    @repeatable
    def lose_pictures(self, prompt_ids: Sequence[str], rule: str) -> None:
        """Make pictures unreachable that had been deleted before a backup was put back."""
        now = self.now()
        with self.writing() as session:
            rows = lock_each(session, Prompt, Prompt.id, prompt_ids)
            hide_pictures(rows, now)
            for row in rows:
                record_deletion(session, row, now, reason="expired", rule=rule)


def is_due(session: Session, row: Tune | Prompt, now: datetime) -> bool:
    """Whether a locked row has expired by its account's rule as it is now, and was announced in time."""
    account = session.get(Account, row.account_id)
    assert account is not None
    some = _expiry(account, row)
    if some is None or some.extends or some.at > now or row.warned_at is None:
        return False
    return row.warned_at + warning_of(account, some.hours) <= now


def warning_of(account: Account, hours: float) -> timedelta:
    """Return how long before an expiry callers are told: never longer than the whole period."""
    return timedelta(hours=min(account.warn_hours, hours))


def _hours_of(session: Session, row: Prompt) -> float:
    account = session.get(Account, row.account_id)
    return (account.keep_outputs_hours if account is not None else None) or 0.0


def _expiry(account: Account, row: Tune | Prompt) -> Expiring | None:
    """Return when a row expires; None when it does not, or has not ended."""
    if isinstance(row, Tune):
        hours, since = account.keep_tunes_hours, row.ready_at if row.status == "ready" else None
        extends = account.auto_extend if row.auto_extend is None else row.auto_extend
    else:
        shown = row.status == "done" and row.expired_at is None
        hours, since, extends = (
            account.keep_outputs_hours,
            row.done_at if shown else None,
            account.auto_extend,
        )
    if hours is None or since is None:
        return None
    return Expiring(row, max(filter(None, (since + timedelta(hours=hours), row.kept_until))), hours, extends)


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
    return [one for row in session.scalars(query) if (one := _expiry(account, row)) is not None]


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
    return [one for row in session.scalars(query) if (one := _expiry(account, row)) is not None]


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
