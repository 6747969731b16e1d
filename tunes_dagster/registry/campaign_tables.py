"""The tables of campaigns.

A campaign is a file of prompts; each of its dates is planned once, into rows of `prompts` that this file's
links point at. A picture whose recipe did not change is rendered once: links of several dates share its prompt.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from tunes_dagster.core.results import DateResult
from tunes_dagster.registry.tables import Table


class Campaign(Table):
    """A campaign file that was added.

    Attributes:
        cron: When its dates are; five fields.
        timezone: In which zone (`Europe/Berlin`).
        starts: First day that can have a date, `2026-03-02`.
        file: Key of its YAML in the store; the table of prompts lies beside it.
        version: SHA-256 over its files; changes when one of them does.
        definition: The checked file.
        state: good, or broken: its files in the store can no longer be read.
        problems: `{"problems": [{"file", "line", "message", "remedy"}]}` of a broken one.
        removed_at: Its schedule is gone; its dates and pictures stay.
    """

    __tablename__ = "campaigns"
    __table_args__ = (UniqueConstraint("name", name="uq_campaigns_name"),)

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    name: Mapped[str]
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    cron: Mapped[str]
    timezone: Mapped[str]
    starts: Mapped[str] = mapped_column(String(10))
    file: Mapped[str]
    version: Mapped[str] = mapped_column(String(64))
    definition: Mapped[dict[str, Any]] = mapped_column(default=dict)
    state: Mapped[str] = mapped_column(String(10), default="good")
    problems: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    removed_at: Mapped[datetime | None]


class CampaignDate(Table):
    """One date of a campaign: a partition of its plan, pictures and report.

    Attributes:
        date: Partition key, in the campaign's own time zone.
        version: Of the campaign's files when it was planned.
        status: planned (nothing ended yet), rendering, finished (every prompt has ended), reported, refused.
        message: For people: what it waits for, or why it was refused.
        plan: Numbers of the plan: prompts, pictures, kept, cost, seconds, tunes.
        plan_key: The plan's table in the store.
        report_key: The report's page in the store.
        result: Numbers of the report.
        spent: Micro-dollars of pictures that an earlier plan of the date wanted and a later one did not.
        report_attempt: Counts requested reports; part of their run keys.
        report_asked_at: When a sensor last asked for the report.
    """

    __tablename__ = "campaign_dates"
    __table_args__ = (
        UniqueConstraint("campaign_id", "date", name="uq_campaign_dates"),
        Index("ix_campaign_dates_status", "status"),
    )

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.id"))
    date: Mapped[str] = mapped_column(String(40))
    version: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(20))
    message: Mapped[str] = mapped_column(default="")
    plan: Mapped[dict[str, Any]] = mapped_column(default=dict)
    plan_key: Mapped[str | None]
    report_key: Mapped[str | None]
    result: Mapped[dict[str, Any]] = mapped_column(default=dict)
    spent: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    report_attempt: Mapped[int] = mapped_column(default=0)
    report_asked_at: Mapped[datetime | None]
    planned_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    reported_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    @property
    def made(self) -> DateResult:
        """What its report counted: `result`, read."""
        return DateResult.read(self.result)


class CampaignPrompt(Table):
    """One planned prompt of a date, and the prompt row that stands for it.

    Attributes:
        item: Its place in the plan, from 0.
        line: Line of the table it came from.
        recipe_hash: Of everything that was asked: text, settings, seed, base, tunes.
        variables: Values that its text was filled with.
        kept: Another date had it rendered already: nothing new was rendered for this one.
        price: Micro-dollars that it costs this date when it is rendered; None in rows of before they were kept.
    """

    __tablename__ = "campaign_prompts"
    __table_args__ = (
        Index("ix_campaign_prompts_prompt", "prompt_id"),
        Index("ix_campaign_prompts_recipe", "campaign_id", "recipe_hash"),
    )

    date_id: Mapped[str] = mapped_column(ForeignKey("campaign_dates.id"), primary_key=True)
    item: Mapped[int] = mapped_column(Integer, primary_key=True)
    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.id"))
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompts.id"))
    line: Mapped[int] = mapped_column(Integer)
    recipe_hash: Mapped[str] = mapped_column(String(64))
    variables: Mapped[dict[str, Any]] = mapped_column(default=dict)
    kept: Mapped[bool] = mapped_column(default=False)
    price: Mapped[int | None] = mapped_column(BigInteger)
