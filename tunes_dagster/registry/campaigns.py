"""Campaigns: adding, changing, finding, removing; what became of their dates stands in `campaign_dates.py`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from sqlalchemy import exists, select

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.ids import new_id
from tunes_dagster.registry.campaign_tables import Campaign, CampaignPrompt
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.locks import lock, lock_one
from tunes_dagster.registry.retrying import repeatable, retried
from tunes_dagster.registry.tables import Prompt
from tunes_dagster.registry.transitions import lock_ends, prompt_ended


def taken(name: str) -> Failure:
    """Return the refusal of a campaign that is called like one of another account, also one that was removed."""
    return Failure(
        FailureCode.CONFLICT,
        f"The name {name!r} is taken by a campaign of another account.",
        "Names are one installation's: choose another one.",
    )


def removed(name: str) -> Failure:
    """Return the refusal to plan a campaign that was removed meanwhile."""
    return Failure(
        FailureCode.CONFLICT,
        f"The campaign {name!r} was removed.",
        "Add it again if it is wanted: tunes campaign add FILE.",
    )


class Campaigns(Part):
    """Everything about campaigns."""

    @repeatable
    def put(self, name: str, **fields: Any) -> Campaign:
        """Add a campaign, or replace the fields of the one of that name; a removed one comes back.

        Raises:
            Failure: `CONFLICT` when the name is another account's: its dates and pictures are not this one's.
        """
        return self._put(name, fields, back=True)

    @repeatable
    def change(self, name: str, **fields: Any) -> Campaign:
        """Replace fields of a campaign because its files say something else; one that was removed stays as it is.

        Raises:
            Failure: As `put`.
        """
        return self._put(name, fields, back=False)

    @retried
    def _put(self, name: str, fields: Mapping[str, Any], back: bool) -> Campaign:
        now = self.now()
        with self.writing() as session:
            row = lock_one(session, Campaign, Campaign.name == name)
            if row is None:
                row = Campaign(id=new_id("campaign"), name=name, created_at=now, state="good", problems={})
                session.add(row)
            elif fields.get("account_id", row.account_id) != row.account_id:
                raise taken(name)
            elif row.removed_at is not None and not back:
                return row
            for field, value in fields.items():
                setattr(row, field, value)
            row.updated_at, row.removed_at = now, None
            return row

    def owner(self, name: str) -> str | None:
        """Return the account whose campaign has a name, also one that was removed; None when nobody's has."""
        with self.reading() as session:
            return session.scalar(select(Campaign.account_id).where(Campaign.name == name))

    def rows(self) -> list[Campaign]:
        """Return the campaigns that were not removed, by name."""
        query = select(Campaign).where(Campaign.removed_at.is_(None)).order_by(Campaign.name)
        with self.reading() as session:
            return list(session.scalars(query))

    def get(self, name: str) -> Campaign:
        """Return a campaign by name or id.

        Raises:
            Failure: `INVALID_REQUEST` when there is none.
        """
        with self.reading() as session:
            query = select(Campaign).where((Campaign.name == name) | (Campaign.id == name))
            row = session.scalars(query).first()
        if row is None or row.removed_at is not None:
            known = [one.name for one in self.rows()]
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {close[0]}?" if close else "`tunes campaign list` shows the known ones."
            raise Failure(FailureCode.INVALID_REQUEST, f"There is no campaign {name!r}.", hint)
        return row

    def remove(self, campaign_id: str) -> int:
        """Take a campaign off the schedule and cancel what it still waits for; returns how many prompts that were."""
        now = self.now()
        gone = Failure(FailureCode.CANCELLED, "Its campaign was removed.")
        with self.writing() as session:
            for campaign in lock(session, Campaign, Campaign.id == campaign_id):
                campaign.removed_at = campaign.updated_at = now
            linked = exists().where(
                CampaignPrompt.prompt_id == Prompt.id, CampaignPrompt.campaign_id == campaign_id
            )
            rows = lock(
                session, Prompt, Prompt.status.in_(("waiting", "queued")), Prompt.batch_id.is_(None), linked
            )
            lock_ends(session, rows)
            for row in rows:
                prompt_ended(session, row, "cancelled", now, gone)
            return len(rows)
