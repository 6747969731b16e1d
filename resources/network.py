"""The network in both directions: the one fetcher for everything that comes from a URL, and the notifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from tunes_dagster.resources.texts import of_setting

if TYPE_CHECKING:
    from tunes_dagster.callbacks.deliver import DeliveryReport
    from tunes_dagster.core.settings import Settings
    from tunes_dagster.intake.fetch import Fetcher
    from tunes_dagster.service.installation import Installation


class FetcherResource(dg.ConfigurableResource):
    """Fetches datasets and pictures; refuses addresses that lead inside."""

    allow_hosts: list[str] = Field(default_factory=list, description=of_setting("allow_hosts"))

    def open(self, settings: Settings) -> Fetcher:
        """Return a fetcher."""
        from tunes_dagster.intake.fetch import Fetcher

        return Fetcher(allow_hosts=tuple(self.allow_hosts or settings.allow_hosts))


class NotifierResource(dg.ConfigurableResource):
    """Delivers the callbacks that are owed."""

    budget_seconds: float = Field(
        default=20.0, description="One tick stops starting deliveries after this long."
    )

    def deliver(self, installation: Installation) -> DeliveryReport:
        """Send what is due, inside the budget."""
        from tunes_dagster.callbacks.deliver import deliver_due

        return deliver_due(
            installation,
            allow_hosts=installation.settings.allow_hosts,
            budget_seconds=self.budget_seconds,
        )
