"""What is written of the plan of a campaign's date: what is there already, what is missing, what nobody wants any more.

Each function works in the transaction that plans the date; see `CampaignDates.plan`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import PromptRequest
from tunes_dagster.core.results import PromptResult
from tunes_dagster.core.wishes import Unmet, ended
from tunes_dagster.registry.campaign_tables import Campaign, CampaignPrompt
from tunes_dagster.registry.locks import chunks, lock_each
from tunes_dagster.registry.prompts import NewPrompt, new_prompt
from tunes_dagster.registry.tables import Event, Prompt, Tune
from tunes_dagster.registry.transitions import LOST_TUNE, OPEN_PROMPT, lock_ends, prompt_ended
from tunes_dagster.registry.uses import Use, own_use, write_uses

ORIGIN = "campaign"


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


@dataclass(frozen=True, kw_only=True)
class DatePlan:
    """What is wanted of a date.

    Attributes:
        prompts: All that it is to show.
        summary: What its row keeps of the plan.
        table_key: Of the plan's table in the store.
        message: For people.
        cap: Dollars that all plans of the date may cost together.
    """

    prompts: Sequence[Planned]
    summary: Mapping[str, Any] = field(default_factory=dict)
    table_key: str | None = None
    message: str = ""
    cap: float | None = None


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


def known_of(session: Session, campaign_id: str, planned: Sequence[Planned]) -> dict[str, Known]:
    """Return by recipe hash what a campaign already has of a plan."""
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


def ready_tunes(session: Session, planned: Sequence[Planned]) -> set[str]:
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


def note_planned(session: Session, fresh: Sequence[Prompt], said: str, now: datetime) -> None:
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


def rows_of(
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


def links_of(session: Session, date_id: str) -> dict[str, bool]:
    """Return the prompts of a date's last plan, and whether each was there before it."""
    earlier = select(CampaignPrompt.prompt_id, CampaignPrompt.kept).where(CampaignPrompt.date_id == date_id)
    return {link.prompt_id: link.kept for link in session.execute(earlier)}


def write_rows(
    session: Session,
    date_id: str,
    planned: Sequence[Planned],
    fresh: Sequence[Prompt],
    links: Sequence[dict[str, Any]],
) -> None:
    """Write the prompts that are missing with what they use, and the links of the date in place of its former ones."""
    session.add_all(fresh)
    session.flush()
    used = {link["prompt_id"]: one.uses for link, one in zip(links, planned, strict=True)}
    write_uses(session, {one.id: used[one.id] for one in fresh})
    session.execute(delete(CampaignPrompt).where(CampaignPrompt.date_id == date_id))
    for part in chunks(links):
        session.execute(insert(CampaignPrompt), part)


def drop_unwanted(
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
