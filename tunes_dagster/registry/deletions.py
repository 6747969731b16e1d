"""What is being deleted, how far that is, and the records of what was.

A deletion is a row, written in the transaction that makes its subject unreachable. `service/erase.py` drives it to its
end, whoever asked and whatever died in between; each step may be done twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from tunes_dagster.core.ids import new_id
from tunes_dagster.registry.blobs import subjects_of
from tunes_dagster.registry.campaign_tables import CampaignDate, CampaignPrompt
from tunes_dagster.registry.deletion_tables import Deletion
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.forgetting import forget_in_campaigns, forget_rows
from tunes_dagster.registry.locks import chunks, lock, lock_one
from tunes_dagster.registry.retrying import repeatable, retried
from tunes_dagster.registry.tables import Prompt, Tune, Work

# In this order: the manifests, which the others go by, lie in the folder.
STEPS = ("renders", "pictures", "caches", "words", "folder")
# How long a driver that says nothing more is taken to be at work.
LEASE = timedelta(minutes=10)
# How long after it was asked for a late writer's files are still looked for, and how soon at first.
WATCHED = timedelta(days=3)
_FIRST_LOOK = timedelta(minutes=1)
_LONGEST_WAIT = timedelta(hours=6)
_PART = 500
OPEN = ("open", "watched")


def record_deletion(
    session: Session,
    row: Tune | Prompt,
    now: datetime,
    *,
    reason: str = "asked",
    rule: str = "",
    traces: Mapping[str, Any] | None = None,
) -> Deletion:
    """Write, in the transaction that hides a tune or prompt, that it is to be deleted; once."""
    kind = "tune" if isinstance(row, Tune) else "prompt"
    under_way = (Deletion.subject_id == row.id, Deletion.state.in_(OPEN), Deletion.reason == reason)
    found = lock_one(session, Deletion, *under_way)
    if found is None:
        found = Deletion(
            id=new_id("del"),
            account_id=row.account_id,
            kind=kind,
            subject_id=row.id,
            reason=reason,
            rule=rule,
            at=now,
        )
        found.files, found.bytes, found.attempts, found.what, found.label = 0, 0, 0, {}, ""
        session.add(found)
    found.state, found.step, found.next_at, found.traces = "open", "", None, dict(traces or {})
    return found


def hide_pictures(prompts: Iterable[Prompt], now: datetime) -> None:
    """Make the pictures of prompts, which are locked, unreachable: their addresses lead nowhere from now on."""
    for prompt in prompts:
        prompt.images, prompt.expired_at, prompt.updated_at = [], now, now


class Deletions(Part):
    """Due ones, their steps, records."""

    def due(self, limit: int = 100, ids: Sequence[str] | None = None) -> list[str]:
        """Return ids of deletions that somebody should drive now, those asked for first.

        Args:
            limit: At most so many.
            ids: Only these.
        """
        now = self.now()
        query = (
            select(Deletion.id)
            .where(Deletion.state.in_(OPEN), or_(Deletion.next_at.is_(None), Deletion.next_at <= now))
            .order_by(Deletion.state, Deletion.id)
            .limit(limit)
        )
        with self.reading() as session:
            return list(session.scalars(query.where(Deletion.id.in_(ids)) if ids is not None else query))

    def under_way(self, limit: int = 100) -> list[Deletion]:
        """Return those that are not done, the newest first."""
        query = select(Deletion).where(Deletion.state.in_(OPEN)).order_by(Deletion.id.desc()).limit(limit)
        with self.reading() as session:
            return list(session.scalars(query))

    def get(self, deletion_id: str) -> Deletion | None:
        """Return one, or None."""
        with self.reading() as session:
            return session.get(Deletion, deletion_id)

    def of(self, subject_ids: Sequence[str]) -> list[Deletion]:
        """Return the records of some subjects, oldest first."""
        with self.reading() as session:
            query = select(Deletion).where(Deletion.subject_id.in_(subject_ids))
            return list(session.scalars(query.order_by(Deletion.id)))

    def take(self, deletion_id: str) -> tuple[Deletion, list[str], list[Prompt]] | None:
        """Become its driver for a while; None when somebody else is, or when it is not due.

        Returns:
            The row, the ids of all it is about, and the prompts among them.
        """
        now = self.now()
        with self.writing() as session:
            row = lock_one(session, Deletion, Deletion.id == deletion_id)
            if row is None or row.state not in OPEN or (row.next_at is not None and row.next_at > now):
                return None
            row.attempts += 1
            row.next_at = now + LEASE
            if row.state == "watched":
                row.step = ""  # all of it is looked for again
            subjects = subjects_of(session, row)
            prompts: list[Prompt] = []
            for some in chunks(subjects):
                prompts += session.scalars(select(Prompt).where(Prompt.id.in_(some)))
            return row, subjects, prompts

    @repeatable
    def step_done(
        self,
        deletion_id: str,
        step: str,
        files: Mapping[str, int],
        size: int,
        left: Sequence[str] = (),
        traces: Mapping[str, Any] | None = None,
    ) -> None:
        """Note that a step is behind it, and what it removed."""
        with self.writing() as session:
            row = lock_one(session, Deletion, Deletion.id == deletion_id)
            if row is None:
                return
            row.step = step
            row.files, row.bytes = row.files + sum(files.values()), row.bytes + size
            what = dict(row.what)
            for kind, number in files.items():
                what[kind] = what.get(kind, 0) + number
            if left:
                what["left"] = list(dict.fromkeys([*what.get("left", []), *left]))
            row.what = what
            if traces is not None:
                row.traces = {**row.traces, **traces}

    @repeatable
    def round_done(self, deletion_id: str) -> Deletion | None:
        """Note that all of it is gone: it is looked for again as long as a late writer may come, then it is done."""
        now = self.now()
        with self.writing() as session:
            row = lock_one(session, Deletion, Deletion.id == deletion_id)
            if row is None:
                return None
            busy = select(Work.id).where(Work.subject_id == row.subject_id, Work.state == "running").limit(1)
            over = now - row.at >= WATCHED and session.scalar(busy) is None
            row.state = "done" if over else "watched"
            if over:
                row.done_at, row.next_at, row.traces = now, None, {}
            else:
                row.next_at = now + min(max(_FIRST_LOOK, now - row.at), _LONGEST_WAIT)
            return row

    @repeatable
    def put_off(self, deletion_id: str, seconds: float) -> None:
        """Have it tried again after a while."""
        with self.writing() as session:
            row = lock_one(session, Deletion, Deletion.id == deletion_id)
            if row is not None:
                row.next_at = self.now() + timedelta(seconds=seconds)

    def forget(self, row: Deletion, subject_ids: Sequence[str]) -> list[str]:
        """Take the words of its subjects out of the rows; returns keys of plans of campaigns, to be removed."""
        with self.reading() as session:
            tune = session.scalars(select(Tune).where(Tune.id == row.subject_id)).first()
        if row.kind == "prompt":
            self._forget_in_request(row.subject_id)
        plans = self._forget_in_campaigns(row.account_id, subject_ids, tune.title if tune is not None else "")
        # Its own row last: its title is what its plans of before are found by.
        for some in chunks(list(reversed(subject_ids)), _PART):
            self._forget_rows(some)
        return plans

    @retried
    @repeatable
    def _forget_in_request(self, prompt_id: str) -> None:
        """Take a prompt out of the request of the tune that it was accepted with."""
        with self.writing() as session:
            prompt = session.scalars(select(Prompt).where(Prompt.id == prompt_id)).one()
            tune = lock_one(session, Tune, Tune.id == prompt.tune_id) if prompt.tune_id else None
            asked = (tune.request or {}).get("prompts") if tune is not None else None
            if tune is not None and asked:
                left = [one for one in asked if one.get("text") != prompt.text]
                tune.request = {**tune.request, "prompts": left}

    @retried
    @repeatable
    def _forget_in_campaigns(self, account_id: str, subject_ids: Sequence[str], title: str) -> list[str]:
        with self.writing() as session:
            return forget_in_campaigns(session, account_id, subject_ids, title)

    @retried
    @repeatable
    def _forget_rows(self, subject_ids: Sequence[str]) -> None:
        with self.writing() as session:
            forget_rows(session, subject_ids)

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

    def records(self, account_id: str | None = None, limit: int = 50) -> list[Deletion]:
        """Return records, newest first."""
        query = select(Deletion).order_by(Deletion.id.desc()).limit(limit)
        if account_id is not None:
            query = query.where(Deletion.account_id == account_id)
        with self.reading() as session:
            return list(session.scalars(query))

    def hides(self, key: str) -> bool:
        """Whether a file of the store is of something that was deleted, and must not be served."""
        from tunes_dagster.registry.prompts import prompt_in

        first, _, rest = key.partition("/")
        with self.reading() as session:
            if first == "tunes":
                found = session.execute(
                    select(Tune.deleted_at).where(Tune.id == rest.partition("/")[0])
                ).first()
                return found is None or found[0] is not None
            if first == "batches" and (prompt_id := prompt_in(key)) is not None:
                found = session.execute(select(Prompt.expired_at).where(Prompt.id == prompt_id)).first()
                return found is None or found[0] is not None
        return first in ("blobs", "uploads") and not self.database.blobs.is_needed(key)  # type: ignore[attr-defined]
