"""What a date of a campaign costs in all its plans together: what it rendered, what it has queued, what it adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.registry.campaign_tables import CampaignDate, CampaignPrompt
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.settling import owed
from tunes_dagster.registry.tables import Prompt
from tunes_dagster.registry.transitions import OPEN_PROMPT

if TYPE_CHECKING:
    from tunes_dagster.registry.date_plans import Planned


class OverCap(Failure):
    """A plan would take its date above what the date may cost."""

    def __init__(self, said: str) -> None:
        super().__init__(FailureCode.OUT_OF_CREDITS, said, "Raise cost_cap in its file, or ask for less.")


def over_cap(new: int, before: int, cap: float | None) -> str:
    """Return why a plan is refused; empty when its date stays within the cap, or nothing is added.

    Args:
        new: Micro-dollars of what the plan adds.
        before: Of what the date has rendered or queued, and keeps.
        cap: Dollars that the date may cost; None for any number.
    """
    if cap is None or not new or new + before <= cap * 1e6 + 1e-3:
        return ""
    if not before:
        return f"It would cost ${new / 1e6:,.2f}, above the cap of ${cap:,.2f}: nothing was queued."
    return (
        f"It would cost ${new / 1e6:,.2f} more, with the ${before / 1e6:,.2f} of its earlier plans above the cap of "
        f"${cap:,.2f}: nothing was queued."
    )


def paid_by(session: Session, date_id: str, planned: Sequence[Planned]) -> dict[str, int]:
    """Return what a date pays for each prompt of its last plan, in micro-dollars; what another date pays is missing.

    Args:
        session: A transaction.
        date_id: The date.
        planned: Its next plan: has the prices of rows that were written before prices were.
    """
    prices = {one.recipe_hash: one.price for one in planned}
    query = (
        select(CampaignPrompt, Prompt)
        .join(Prompt, Prompt.id == CampaignPrompt.prompt_id)
        .where(CampaignPrompt.date_id == date_id, CampaignPrompt.kept.is_(False))
    )
    paid: dict[str, int] = {}
    for link, prompt in session.execute(query):
        price = prices.get(link.recipe_hash, 0) if link.price is None else link.price
        paid[prompt.id] = price if prompt.status in OPEN_PROMPT else round(owed(prompt, 0.0) * price)
    return paid


class CampaignCosts(Part):
    """What dates have cost."""

    def of_date(self, campaign_id: str, date: str, planned: Sequence[Planned]) -> int:
        """Return what a date has cost before its next plan, in micro-dollars, and keeps: see `before` of `over_cap`.

        Prompts that the next plan does not want and that nobody has begun are not counted: it cancels them.

        Args:
            campaign_id: The campaign.
            date: Its date; one that was never planned has cost nothing.
            planned: The next plan.
        """
        query = select(CampaignDate).where(CampaignDate.campaign_id == campaign_id, CampaignDate.date == date)
        with self.reading() as session:
            row = session.scalars(query).first()
            if row is None:
                return 0
            paid = paid_by(session, row.id, planned)
            wanted = {one.recipe_hash for one in planned}
            links = select(CampaignPrompt.prompt_id).join(Prompt, Prompt.id == CampaignPrompt.prompt_id)
            waits = links.where(
                CampaignPrompt.date_id == row.id,
                Prompt.status.in_(("waiting", "queued")),
                Prompt.batch_id.is_(None),
            ).add_columns(CampaignPrompt.recipe_hash)
            cancelled = {one for one, recipe_hash in session.execute(waits) if recipe_hash not in wanted}
            return row.spent + total(paid, paid.keys() - cancelled)


def total(paid: Mapping[str, int], prompt_ids: Iterable[str]) -> int:
    """Return what some prompts cost together."""
    return sum(paid.get(prompt_id, 0) for prompt_id in prompt_ids)
