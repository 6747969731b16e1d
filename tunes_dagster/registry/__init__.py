"""The registry: what was asked, by whom, how far it is, and what is owed.

`Registry` is the facade; its queries are mixed in from one file per subject. Every method is one transaction
and hands out detached rows of `tables.py`.
"""

from __future__ import annotations

from tunes_dagster.core.settings import Settings
from tunes_dagster.registry.accounts import AccountQueries
from tunes_dagster.registry.api_tables import (
    ApiGroup,
    ApiKey,
    ApiObject,
    Pack,
    Reservation,
    Wallet,
    Workspace,
)
from tunes_dagster.registry.campaign_costs import CostQueries
from tunes_dagster.registry.campaign_tables import Campaign, CampaignDate, CampaignPrompt, Deletion
from tunes_dagster.registry.campaigns import CampaignQueries
from tunes_dagster.registry.device_runs import DeviceRunQueries
from tunes_dagster.registry.engine import ANSWER_SECONDS
from tunes_dagster.registry.figures import FigureQueries
from tunes_dagster.registry.groups import GroupQueries
from tunes_dagster.registry.journal import JournalQueries
from tunes_dagster.registry.ledger import LedgerQueries
from tunes_dagster.registry.mending import MendingQueries
from tunes_dagster.registry.objects import ObjectQueries
from tunes_dagster.registry.outbox import OutboxQueries, Sending
from tunes_dagster.registry.outcomes import OutcomeQueries
from tunes_dagster.registry.restoring import RestoringQueries
from tunes_dagster.registry.retention import RetentionQueries
from tunes_dagster.registry.retrying import ASKED_SECONDS
from tunes_dagster.registry.tables import (
    Account,
    Batch,
    Callback,
    Cohort,
    Delivery,
    DeviceRun,
    DeviceRunLine,
    Drop,
    Event,
    Prompt,
    Tune,
    Work,
)
from tunes_dagster.registry.tunes import TuneQueries
from tunes_dagster.registry.uses import DoubtfulUse, PromptTune, Use, UseQueries
from tunes_dagster.registry.workspaces import WorkspaceQueries


class Registry(
    TuneQueries,
    OutcomeQueries,
    GroupQueries,
    CampaignQueries,
    CostQueries,
    RetentionQueries,
    OutboxQueries,
    JournalQueries,
    AccountQueries,
    LedgerQueries,
    ObjectQueries,
    FigureQueries,
    MendingQueries,
    UseQueries,
    RestoringQueries,
    WorkspaceQueries,
    DeviceRunQueries,
):
    """All queries over one database; see `engine.Database` for how it is opened."""


def open_registry(
    settings: Settings, url: str = "", *, works: bool = False, answer_seconds: float = ANSWER_SECONDS
) -> Registry:
    """Open the registry that the settings name (or another one), upgraded when needed.

    Args:
        settings: The operator's.
        url: Another one.
        works: Whether what is done with it would be lost with its database: then it is waited for as long as the
            settings say; see `retrying.py`.
        answer_seconds: That a statement may take on a server.
    """
    return Registry(
        url or settings.resolved_registry_url,
        patience=settings.registry_patience_seconds if works else ASKED_SECONDS,
        answer_seconds=answer_seconds,
        max_attempts=settings.max_attempts,
        retry_backoff=settings.retry_backoff,
        callback_backoff=settings.callback_backoff,
    )


__all__ = [
    "Account",
    "ApiGroup",
    "ApiKey",
    "ApiObject",
    "Batch",
    "Callback",
    "Campaign",
    "CampaignDate",
    "CampaignPrompt",
    "Cohort",
    "Deletion",
    "Delivery",
    "DeviceRun",
    "DeviceRunLine",
    "DoubtfulUse",
    "Drop",
    "Event",
    "Pack",
    "Prompt",
    "PromptTune",
    "Registry",
    "Reservation",
    "Sending",
    "Tune",
    "Use",
    "Wallet",
    "Work",
    "Workspace",
    "open_registry",
]
