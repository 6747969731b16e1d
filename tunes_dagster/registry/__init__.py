"""The registry: what was asked, by whom, how far it is, and what is owed.

`Registry` is the open database with a part for each subject, one file per part.
"""

from __future__ import annotations

from tunes_dagster.core.settings import Settings
from tunes_dagster.registry.accounts import Accounts
from tunes_dagster.registry.api_tables import (
    ApiGroup,
    ApiKey,
    ApiObject,
    Pack,
    Reservation,
    Wallet,
    Workspace,
)
from tunes_dagster.registry.audit import Audit
from tunes_dagster.registry.blobs import Blobs
from tunes_dagster.registry.campaign_costs import CampaignCosts
from tunes_dagster.registry.campaign_dates import CampaignDates
from tunes_dagster.registry.campaign_tables import Campaign, CampaignDate, CampaignPrompt
from tunes_dagster.registry.campaigns import Campaigns
from tunes_dagster.registry.deletion_tables import Deletion
from tunes_dagster.registry.deletions import Deletions
from tunes_dagster.registry.device_runs import DeviceRuns
from tunes_dagster.registry.engine import ANSWER_SECONDS, Database, Retries
from tunes_dagster.registry.figures import Measured
from tunes_dagster.registry.groups import Groups
from tunes_dagster.registry.idempotency import Idempotency
from tunes_dagster.registry.journal import Drops, Events
from tunes_dagster.registry.keys import Keys
from tunes_dagster.registry.ledger import Ledger
from tunes_dagster.registry.mending import Mending
from tunes_dagster.registry.objects import Objects
from tunes_dagster.registry.outbox import Outbox, Sending
from tunes_dagster.registry.outcomes import WorkQueue
from tunes_dagster.registry.prompts import Prompts
from tunes_dagster.registry.restoring import Restoring
from tunes_dagster.registry.retention import Retention
from tunes_dagster.registry.retrying import ASKED_SECONDS
from tunes_dagster.registry.secrets import Secrets
from tunes_dagster.registry.session_tables import DeviceRun, DeviceRunLine
from tunes_dagster.registry.sessions import Sessions
from tunes_dagster.registry.tables import (
    Account,
    Batch,
    Callback,
    Cohort,
    Delivery,
    Drop,
    Event,
    Prompt,
    Tune,
    Work,
)
from tunes_dagster.registry.tunes import Tunes
from tunes_dagster.registry.uploads import Uploads
from tunes_dagster.registry.uses import DoubtfulUse, PromptTune, Use, Uses
from tunes_dagster.registry.window import Window


class Registry(Database):
    """An open registry: one database, and a part of it for each subject.

    Every query of a part is one transaction and hands out detached rows of `tables.py`. See `engine.Database` for
    how it is opened.

    Attributes:
        accounts: Who asks, with the rules that hang on them.
        keys: How they prove it.
        idempotency: What was asked already, under the caller's own key.
        ledger: Credits.
        tunes: What is to be trained, and what became of it.
        prompts: What is to be rendered with them.
        uses: Which prompts use which tunes.
        work: The attempts at all that, from queued to their end.
        groups: Which of it is done together: cohorts of tunes, batches of prompts.
        device_runs: What sessions do of it, and which runs of Dagster tell of that.
        sessions: Which there are, and which device each holds.
        campaigns: Tables of prompts.
        dates: When they are rendered, and what became of that.
        costs: What a date of a campaign costs.
        objects: Tunes and prompts as their callers see them.
        uploads: Pictures that are promised.
        outbox: Callbacks that are owed.
        events: The timeline of each subject.
        drops: What is known of dropped datasets.
        retention: What expires.
        blobs: Which shared files of the store are needed, and by whom.
        deletions: What is being deleted, and what was.
        secrets: What only this installation knows.
        figures: What is measured of the whole.
        audit: What is wrong in the rows.
        mending: What sets it right.
        window: What has ended and may leave the orchestrator's pages.
        restoring: What a backup that was put back lacks.
    """

    def _divide(self) -> None:
        self.accounts = Accounts(self)
        self.keys = Keys(self)
        self.idempotency = Idempotency(self)
        self.ledger = Ledger(self)
        self.tunes = Tunes(self)
        self.prompts = Prompts(self)
        self.uses = Uses(self)
        self.work = WorkQueue(self)
        self.groups = Groups(self)
        self.device_runs = DeviceRuns(self)
        self.sessions = Sessions(self)
        self.campaigns = Campaigns(self)
        self.dates = CampaignDates(self)
        self.costs = CampaignCosts(self)
        self.objects = Objects(self)
        self.uploads = Uploads(self)
        self.outbox = Outbox(self)
        self.events = Events(self)
        self.drops = Drops(self)
        self.retention = Retention(self)
        self.blobs = Blobs(self)
        self.deletions = Deletions(self)
        self.secrets = Secrets(self)
        self.figures = Measured(self)
        self.audit = Audit(self)
        self.mending = Mending(self)
        self.window = Window(self)
        self.restoring = Restoring(self)


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
        retries=Retries(
            max_attempts=settings.max_attempts,
            retry_backoff=settings.retry_backoff,
            store_patience=settings.store_patience_seconds,
            callback_backoff=settings.callback_backoff,
        ),
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
    "Retries",
    "Sending",
    "Tune",
    "Use",
    "Wallet",
    "Work",
    "Workspace",
    "open_registry",
]
