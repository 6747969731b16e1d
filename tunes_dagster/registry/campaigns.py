"""Campaigns and their dates: adding, planning, what became of the prompts, which reports are due."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, exists, func, insert, select
from sqlalchemy.orm import Session

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.ids import new_id
from tunes_dagster.core.recipe import PromptRequest
from tunes_dagster.core.results import DateResult, PromptResult
from tunes_dagster.core.wishes import Unmet, ended
from tunes_dagster.registry.blobs import name_in
from tunes_dagster.registry.campaign_costs import OverCap, over_cap, paid_by, total
from tunes_dagster.registry.campaign_tables import Campaign, CampaignDate, CampaignPrompt
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.ledger import reserve_many
from tunes_dagster.registry.locks import chunks, lock, lock_each, lock_one
from tunes_dagster.registry.prompts import NewPrompt, new_prompt, uses_of_prompts
from tunes_dagster.registry.retrying import repeatable, retried
from tunes_dagster.registry.tables import Batch, Event, Prompt, Tune
from tunes_dagster.registry.transitions import LOST_TUNE, OPEN_PROMPT, lock_ends, prompt_ended
from tunes_dagster.registry.uses import PromptTune, Use, own_use, write_uses

ORIGIN = "campaign"
# A report that was asked for and did not come is asked for again, so many times.
REPORT_PATIENCE = timedelta(minutes=10)
MAX_REPORTS = 3


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One prompt of a plan.

    Attributes:
        line: Of the table.
        recipe_hash: Of everything that was asked.
        variables: Values that its text was filled with.
        request: Complete: every setting and the seed filled in.
        base_id: The catalog's entry that renders it.
        base: The base as asked.
        tune_id: None on the plain base.
        tags: The tunes that tags in its text name.
        weights: Weights it would be rendered with now, by tune; those of a tune that is not ready are missing.
        price: Micro-dollars.
        warnings: What was wished for and is not met.
        named: Ids of every tune that it needs: its own, and those that its text names.
    """

    line: int
    recipe_hash: str
    variables: dict[str, str]
    request: PromptRequest
    base_id: str
    base: str
    tune_id: str | None
    weights: dict[str, str]
    price: int = 0
    tags: tuple[Use, ...] = ()
    warnings: Sequence[Unmet] = ()

    @property
    def uses(self) -> list[Use]:
        """All the tunes that it will be rendered with."""
        return [*own_use(self.tune_id), *self.tags]


class TunesEnded(Failure):
    """A plan that was drawn while a tune of it ended: drawn again, it leaves that tune's prompts out."""

    def __init__(self, titles: list[str]) -> None:
        super().__init__(
            FailureCode.CONFLICT,
            f"The tunes {', '.join(titles)} failed, were cancelled or deleted while the date was planned.",
            "Plan the date again.",
        )


@dataclass(frozen=True)
class Known:
    """What is there already of a planned prompt: its row, and whether it still stands."""

    prompt_id: str
    status: str
    stands: bool


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

    def dates(self, campaign_id: str, limit: int = 50) -> list[CampaignDate]:
        """Return the dates that were planned, newest first."""
        query = select(CampaignDate).where(CampaignDate.campaign_id == campaign_id)
        with self.reading() as session:
            return list(session.scalars(query.order_by(CampaignDate.date.desc()).limit(limit)))

    def date(self, campaign_id: str, date: str) -> CampaignDate | None:
        """Return one date, or None when it was never planned."""
        query = select(CampaignDate).where(CampaignDate.campaign_id == campaign_id, CampaignDate.date == date)
        with self.reading() as session:
            return session.scalars(query).first()

    def known_prompts(self, campaign_id: str, planned: Sequence[Planned]) -> dict[str, Known]:
        """Return by recipe hash what a campaign already has of a plan."""
        with self.reading() as session:
            return _known(session, campaign_id, planned)

    @repeatable
    def plan_date(
        self,
        campaign: Campaign,
        date: str,
        planned: Sequence[Planned],
        plan: dict[str, Any],
        *,
        message: str = "",
        plan_key: str | None = None,
        retry_failed: bool = True,
        cap: float | None = None,
    ) -> CampaignDate:
        """Write the plan of a date: rows for what is missing, links to what is there; all of it or nothing.

        What is done stays done, what is under way goes on, what failed is asked for again unless told not to,
        what the plan no longer wants and nobody has begun is cancelled.

        Args:
            campaign: Whose date it is.
            date: Its partition key.
            planned: The prompts.
            plan: What the row keeps of it.
            message: For people.
            plan_key: Of the plan's table in the store.
            retry_failed: Whether what failed is asked for again.
            cap: Dollars that all plans of the date may cost together.

        Raises:
            TunesEnded: When a tune that the plan counts on has failed or gone since it was drawn.
            OverCap: Nothing is queued then.
            Failure: `CONFLICT` when the campaign was removed.
            Failure: `OUT_OF_CREDITS`; nothing is queued then, either.
        """
        now = self.now()
        with self.writing() as session:
            row = _open_date(session, campaign, date, now)
            ready = _ready_tunes(session, planned)
            known = _known(session, campaign.id, planned)
            if not retry_failed:
                known = {k: Known(v.prompt_id, v.status, True) for k, v in known.items()}
            earlier = select(CampaignPrompt.prompt_id, CampaignPrompt.kept).where(
                CampaignPrompt.date_id == row.id
            )
            before = {link.prompt_id: link.kept for link in session.execute(earlier)}
            paid = paid_by(session, row.id, planned)
            fresh, links = _rows_of(campaign, row.id, planned, known, ready, before, now)
            session.add_all(fresh)
            session.flush()
            used = {link["prompt_id"]: one.uses for link, one in zip(links, planned, strict=True)}
            write_uses(session, {one.id: used[one.id] for one in fresh})
            session.execute(delete(CampaignPrompt).where(CampaignPrompt.date_id == row.id))
            for part in chunks(links):
                session.execute(insert(CampaignPrompt), part)
            _note_planned(session, fresh, f"Planned by {campaign.name}, {date}.", now)
            prices = {link["prompt_id"]: one.price for link, one in zip(links, planned, strict=True)}
            costs = {one.id: prices[one.id] for one in fresh}
            # Before the prices: prompts are locked before wallets, and what these held can be spent again.
            unwanted = before.keys() - {link["prompt_id"] for link in links}
            dropped = _drop_unwanted(session, row.id, unwanted, campaign.account_id, now)
            row.spent += total(paid, unwanted - dropped)
            stays = row.spent + total(paid, paid.keys() - unwanted)
            if said := over_cap(sum(costs.values()), stays, cap):
                raise OverCap(said)
            reserve_many(session, campaign.account_id, costs, now, f"{campaign.name} {date}")
            name_in(session, uses_of_prompts(fresh), now)
            kept = len(links) - len(fresh)
            row.plan = {**plan, "new": len(fresh), "kept": kept}
            row.version, row.plan_key, row.message = campaign.version, plan_key, message
            row.status, row.planned_at, row.updated_at = "planned", now, now
            row.finished_at = row.reported_at = row.report_asked_at = None
            row.report_attempt = row.report_attempt or 0
            return row

    @repeatable
    def refuse_date(self, campaign: Campaign, date: str, plan: dict[str, Any], message: str) -> CampaignDate:
        """Note that a date was refused; what it had queued before stays as it is."""
        now = self.now()
        with self.writing() as session:
            row = _open_date(session, campaign, date, now)
            if row.status in ("", "refused"):
                row.status = "refused"
            row.plan, row.message, row.updated_at = plan or row.plan, message, now
            return row

    def date_counts(self, date_id: str) -> dict[str, int]:
        """Return how many prompts of a date have each status."""
        query = (
            select(Prompt.status, func.count())
            .join(CampaignPrompt, CampaignPrompt.prompt_id == Prompt.id)
            .where(CampaignPrompt.date_id == date_id)
            .group_by(Prompt.status)
        )
        with self.reading() as session:
            return {row[0]: row[1] for row in session.execute(query)}

    def date_prompts(self, date_id: str) -> list[tuple[CampaignPrompt, Prompt]]:
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

    def measured_batches(self, base_id: str, limit: int = 30) -> list[Batch]:
        """Return the newest finished batches of a base, for their seconds."""
        query = select(Batch).where(Batch.base_id == base_id, Batch.status == "done")
        with self.reading() as session:
            return list(session.scalars(query.order_by(Batch.created_at.desc()).limit(limit)))

    def batches_by_id(self, ids: Iterable[str]) -> dict[str, Batch]:
        """Return batches by id."""
        with self.reading() as session:
            rows = (
                row
                for part in chunks(list(ids))
                for row in session.scalars(select(Batch).where(Batch.id.in_(part)))
            )
            return {row.id: row for row in rows}


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


def _known(session: Session, campaign_id: str, planned: Sequence[Planned]) -> dict[str, Known]:
    wanted = {one.recipe_hash: one.weights for one in planned}
    found: dict[str, Known] = {}
    for part in chunks(list(wanted)):
        query = (
            select(CampaignPrompt.recipe_hash, Prompt.id, Prompt.status, Prompt.expired_at, Prompt.result)
            .join(Prompt, Prompt.id == CampaignPrompt.prompt_id)
            .where(CampaignPrompt.campaign_id == campaign_id, CampaignPrompt.recipe_hash.in_(part))
            .order_by(Prompt.number)
        )
        for recipe_hash, prompt_id, status, expired_at, result in session.execute(query):
            made_with = PromptResult.read(result).weights
            retrained = any(made_with.get(t, key) != key for t, key in wanted[recipe_hash].items())
            stands = status in OPEN_PROMPT or (
                status in ("done", "blocked") and expired_at is None and not retrained
            )
            old = found.get(recipe_hash)
            if old is None or stands or not old.stands:
                found[recipe_hash] = Known(prompt_id, status, stands)
    return found


def _ready_tunes(session: Session, planned: Sequence[Planned]) -> set[str]:
    """Lock every tune that a plan needs, whatever its status, and return those that are ready.

    Locked without a filter: a row that another transaction is changing would fall out of a filter once that
    commits, and its prompts would wait for a tune that has ended.

    Raises:
        TunesEnded: When one of them has ended without being ready.
    """
    tunes = lock_each(session, Tune, Tune.id, {use.tune_id for one in planned for use in one.uses})
    if ended := [tune.title for tune in tunes if tune.status in LOST_TUNE]:
        raise TunesEnded(ended)
    return {tune.id for tune in tunes if tune.status == "ready"}


def _note_planned(session: Session, fresh: Sequence[Prompt], said: str, now: datetime) -> None:
    """Begin the timelines of new prompts, with what was wished for and is not met."""
    events = [
        {
            "subject_id": one.id,
            "at": now,
            "phase": one.status,
            "data": {"origin": ORIGIN},
            "message": " ".join([said, *ended(one.warnings)]),
        }
        for one in fresh
    ]
    for part in chunks(events):
        session.execute(insert(Event), part)


def _rows_of(
    campaign: Campaign,
    date_id: str,
    planned: Sequence[Planned],
    known: dict[str, Known],
    ready: set[str],
    before: dict[str, bool],
    now: datetime,
) -> tuple[list[Prompt], list[dict[str, Any]]]:
    """Return the prompts that are missing, and a link for every planned one."""
    fresh, links = [], []
    for item, one in enumerate(planned):
        old = known.get(one.recipe_hash)
        if old is not None and old.stands:
            prompt_id = old.prompt_id
        else:
            status = "queued" if ready.issuperset(use.tune_id for use in one.uses) else "waiting"
            asked = NewPrompt(
                request=one.request,
                base_id=one.base_id,
                base=one.base,
                tune_id=one.tune_id,
                warnings=one.warnings,
            )
            row = new_prompt(asked, campaign.account_id, one.base, ORIGIN, status, now)
            fresh.append(row)
            prompt_id = row.id
        kept = bool(old and old.stands) and before.get(prompt_id, True)
        links.append(
            {
                "date_id": date_id,
                "item": item,
                "campaign_id": campaign.id,
                "prompt_id": prompt_id,
                "line": one.line,
                "recipe_hash": one.recipe_hash,
                "variables": one.variables,
                "kept": kept,
                "price": one.price,
            }
        )
    return fresh, links


def _drop_unwanted(
    session: Session, date_id: str, prompt_ids: set[str], account_id: str, now: datetime
) -> set[str]:
    """Cancel prompts that a new plan of a date no longer wants, unless they have begun or another date wants them.

    Returns:
        Ids of the cancelled ones.
    """
    changed = Failure(FailureCode.CANCELLED, "The campaign was changed and no longer asks for it.")
    elsewhere: set[str] = set()
    for part in chunks(prompt_ids):
        others = select(CampaignPrompt.prompt_id).where(
            CampaignPrompt.prompt_id.in_(part), CampaignPrompt.date_id != date_id
        )
        elsewhere |= set(session.scalars(others))
    rows = [
        row
        for row in lock_each(session, Prompt, Prompt.id, prompt_ids - elsewhere)
        if row.status in ("waiting", "queued") and row.batch_id is None
    ]
    lock_ends(session, rows, account_id)
    for row in rows:
        prompt_ended(session, row, "cancelled", now, changed)
    return {row.id for row in rows}
