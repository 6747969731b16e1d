"""The dates of campaigns: planning them, what became of their prompts, which reports are due."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from tunes_dagster.core.ids import new_id
from tunes_dagster.core.results import DateResult
from tunes_dagster.registry.blobs import name_in
from tunes_dagster.registry.campaign_costs import OverCap, over_cap, paid_by, total
from tunes_dagster.registry.campaign_tables import Campaign, CampaignDate, CampaignPrompt
from tunes_dagster.registry.campaigns import removed
from tunes_dagster.registry.date_plans import (
    DatePlan,
    Known,
    Planned,
    drop_unwanted,
    known_of,
    links_of,
    note_planned,
    ready_tunes,
    rows_of,
    write_rows,
)
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.ledger import reserve_many
from tunes_dagster.registry.locks import lock_each, lock_one
from tunes_dagster.registry.prompts import uses_of_prompts
from tunes_dagster.registry.retrying import repeatable
from tunes_dagster.registry.tables import Prompt, Tune
from tunes_dagster.registry.transitions import OPEN_PROMPT
from tunes_dagster.registry.uses import PromptTune

# A report that was asked for and did not come is asked for again, so many times.
REPORT_PATIENCE = timedelta(minutes=10)
MAX_REPORTS = 3


class CampaignDates(Part):
    """Everything about the dates of campaigns."""

    def rows(self, campaign_id: str, limit: int = 50) -> list[CampaignDate]:
        """Return the dates that were planned, newest first."""
        query = select(CampaignDate).where(CampaignDate.campaign_id == campaign_id)
        with self.reading() as session:
            return list(session.scalars(query.order_by(CampaignDate.date.desc()).limit(limit)))

    def get(self, campaign_id: str, date: str) -> CampaignDate | None:
        """Return one date, or None when it was never planned."""
        query = select(CampaignDate).where(CampaignDate.campaign_id == campaign_id, CampaignDate.date == date)
        with self.reading() as session:
            return session.scalars(query).first()

    def known(self, campaign_id: str, planned: Sequence[Planned]) -> dict[str, Known]:
        """Return by recipe hash what a campaign already has of a plan."""
        with self.reading() as session:
            return known_of(session, campaign_id, planned)

    @repeatable
    def plan(
        self, campaign: Campaign, date: str, plan: DatePlan, *, retry_failed: bool = True
    ) -> CampaignDate:
        """Write the plan of a date: rows for what is missing, links to what is there; all of it or nothing.

        What is done stays done, what is under way goes on, what failed is asked for again unless told not to,
        what the plan no longer wants and nobody has begun is cancelled.

        Args:
            campaign: Whose date it is.
            date: Its partition key.
            plan: What is wanted.
            retry_failed: Whether what failed is asked for again.

        Raises:
            TunesEnded: When a tune that the plan counts on has failed or gone since it was drawn.
            OverCap: Nothing is queued then.
            Failure: `CONFLICT` when the campaign was removed.
            Failure: `OUT_OF_CREDITS`; nothing is queued then, either.
        """
        now = self.now()
        with self.writing() as session:
            row = _open_date(session, campaign, date, now)
            ready = ready_tunes(session, plan.prompts)
            known = known_of(session, campaign.id, plan.prompts)
            if not retry_failed:
                known = {k: Known(v.prompt_id, v.status, True) for k, v in known.items()}
            before = links_of(session, row.id)
            paid = paid_by(session, row.id, plan.prompts)
            fresh, links = rows_of(campaign, row.id, plan.prompts, known, ready, before, now)
            write_rows(session, row.id, plan.prompts, fresh, links)
            note_planned(session, fresh, f"Planned by {campaign.name}, {date}.", now)
            # Before the prices: prompts are locked before wallets, and what these held can be spent again.
            unwanted = before.keys() - {link["prompt_id"] for link in links}
            dropped = drop_unwanted(session, row.id, unwanted, campaign.account_id, now)
            prices = {link["prompt_id"]: link["price"] for link in links}
            costs = {one.id: prices[one.id] for one in fresh}
            row.spent += total(paid, unwanted - dropped)
            stays = row.spent + total(paid, paid.keys() - unwanted)
            if said := over_cap(sum(costs.values()), stays, plan.cap):
                raise OverCap(said)
            reserve_many(session, campaign.account_id, costs, now, f"{campaign.name} {date}")
            name_in(session, uses_of_prompts(fresh), now)
            row.plan = {**plan.summary, "new": len(fresh), "kept": len(links) - len(fresh)}
            row.version, row.plan_key, row.message = campaign.version, plan.table_key, plan.message
            row.status, row.planned_at, row.updated_at = "planned", now, now
            row.finished_at = row.reported_at = row.report_asked_at = None
            row.report_attempt = row.report_attempt or 0
            return row

    @repeatable
    def refuse(self, campaign: Campaign, date: str, plan: dict[str, Any], message: str) -> CampaignDate:
        """Note that a date was refused; what it had queued before stays as it is."""
        now = self.now()
        with self.writing() as session:
            row = _open_date(session, campaign, date, now)
            if row.status in ("", "refused"):
                row.status = "refused"
            row.plan, row.message, row.updated_at = plan or row.plan, message, now
            return row

    def counts(self, date_id: str) -> dict[str, int]:
        """Return how many prompts of a date have each status."""
        query = (
            select(Prompt.status, func.count())
            .join(CampaignPrompt, CampaignPrompt.prompt_id == Prompt.id)
            .where(CampaignPrompt.date_id == date_id)
            .group_by(Prompt.status)
        )
        with self.reading() as session:
            return {row[0]: row[1] for row in session.execute(query)}

    def prompts(self, date_id: str) -> list[tuple[CampaignPrompt, Prompt]]:
        """Return the prompts of a date in the order of its plan."""
        query = (
            select(CampaignPrompt, Prompt)
            .join(Prompt, Prompt.id == CampaignPrompt.prompt_id)
            .where(CampaignPrompt.date_id == date_id)
            .order_by(CampaignPrompt.item)
        )
        with self.reading() as session:
            return [(row[0], row[1]) for row in session.execute(query)]

    def waited_for(self, date_id: str) -> list[Tune]:
        """Return the tunes that prompts of a date wait for."""
        waiting = exists().where(
            CampaignPrompt.date_id == date_id,
            CampaignPrompt.prompt_id == Prompt.id,
            PromptTune.prompt_id == Prompt.id,
            PromptTune.tune_id == Tune.id,
            Prompt.status == "waiting",
            Tune.status != "ready",
        )
        with self.reading() as session:
            return list(session.scalars(select(Tune).where(waiting).order_by(Tune.number)))

    def due_reports(
        self, names: Sequence[str], now: datetime | None = None, limit: int = 25
    ) -> list[tuple[Campaign, CampaignDate]]:
        """Return finished dates whose report nobody was asked for, and take note that somebody is now.

        Args:
            names: Campaigns that may be reported on.
            now: The time.
            limit: Most dates.
        """
        now = now or self.now()
        still = exists().where(
            CampaignPrompt.date_id == CampaignDate.id,
            CampaignPrompt.prompt_id == Prompt.id,
            Prompt.status.in_(OPEN_PROMPT),
        )
        patient = now - REPORT_PATIENCE
        query = (
            select(CampaignDate)
            .where(CampaignDate.status.in_(("planned", "finished")), ~still)
            .where(CampaignDate.report_asked_at.is_(None) | (CampaignDate.report_asked_at < patient))
            .where(CampaignDate.report_attempt < MAX_REPORTS)
            .join(Campaign, Campaign.id == CampaignDate.campaign_id)
            .where(Campaign.name.in_(names))
            .order_by(CampaignDate.planned_at)
            .limit(limit)
        )
        with self.reading() as session:
            if session.scalars(query.limit(1)).first() is None:
                return []
        due = []
        with self.writing() as session:
            ids = list(session.scalars(query.with_only_columns(CampaignDate.id)))
            rows = {row.id: row for row in lock_each(session, CampaignDate, CampaignDate.id, ids)}
            for row in (rows[date_id] for date_id in ids if date_id in rows):
                if row.status not in ("planned", "finished") or not _is_due(row, patient):
                    continue
                row.status, row.finished_at = "finished", row.finished_at or now
                row.report_asked_at, row.updated_at = now, now
                row.report_attempt += 1
                due.append((session.get_one(Campaign, row.campaign_id), row))
        return due

    @repeatable
    def report_made(
        self, date_id: str, key: str, result: DateResult | Mapping[str, Any], complete: bool
    ) -> CampaignDate:
        """Note that a date's report lies in the store.

        Args:
            date_id: The date.
            key: Of its page.
            result: Its numbers.
            complete: Whether every prompt had ended; an early report does not close the date.
        """
        now = self.now()
        with self.writing() as session:
            row = lock_one(session, CampaignDate, CampaignDate.id == date_id)
            assert row is not None
            row.report_key, row.result = key, DateResult.of(result).written({})
            row.reported_at = row.updated_at = now
            if complete:
                row.status, row.finished_at, row.report_attempt = "reported", row.finished_at or now, 0
            return row


def _is_due(row: CampaignDate, patient: datetime) -> bool:
    """Whether nobody else has asked for the report of a date meanwhile."""
    return row.report_asked_at is None or row.report_asked_at < patient


def _open_date(session: Session, campaign: Campaign, date: str, now: datetime) -> CampaignDate:
    """Return the row of a date, locked; made when it is planned for the first time."""
    # The campaign's row is the lock: two planners of a new date come one after the other.
    held = lock_one(session, Campaign, Campaign.id == campaign.id)
    if held is None or held.removed_at is not None:
        raise removed(campaign.name)
    row = lock_one(session, CampaignDate, CampaignDate.campaign_id == campaign.id, CampaignDate.date == date)
    if row is None:
        row = CampaignDate(
            id=new_id("date"),
            campaign_id=campaign.id,
            date=date,
            version=campaign.version,
            status="",
            plan={},
            result={},
            report_attempt=0,
            created_at=now,
            updated_at=now,
        )
        session.add(row)
        session.flush()
    return row
