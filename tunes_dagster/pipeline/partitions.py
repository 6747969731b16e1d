"""The partition sets of the graph and how they depend on each other.

A partition is one tune or one render batch; its key is the id of the row in the registry. Keys are added by the
sensors (and by the Launchpad), never by the library. A campaign's partitions are its dates.
"""

from datetime import date

import dagster as dg

from tunes_dagster.campaigns.dates import key_format

TUNES = "tunes"
RENDER_BATCHES = "render_batches"

tunes = dg.DynamicPartitionsDefinition(name=TUNES)
render_batches = dg.DynamicPartitionsDefinition(name=RENDER_BATCHES)

# A batch may hold prompts of any tunes, and its metadata names those that it really used. Between two dynamic sets
# Dagster would silently guess the identity; "all" would paint every finished batch as unsynced when another tune
# trains, and at 20,000 tunes cost 0.19 CPU seconds a materialization instead of 0.04. So the edge is drawn and empty.
loras_of_batch = dg.SpecificPartitionsPartitionMapping([])


def campaign_dates(cron: str, timezone: str, starts: str) -> dg.TimeWindowPartitionsDefinition:
    """Return the dates of a campaign: each begins when its cron fires, and is there from then on.

    Args:
        cron: Five fields.
        timezone: Of the cron.
        starts: First day, `2026-03-02`.
    """
    shape = key_format(cron)
    return dg.TimeWindowPartitionsDefinition(
        start=date.fromisoformat(starts).strftime(shape),
        fmt=shape,
        cron_schedule=cron,
        timezone=timezone,
        end_offset=1,
    )


def campaigns_keys(name: str) -> tuple[dg.AssetKey, dg.AssetKey]:
    """Return the keys of a campaign's plan and report."""
    return dg.AssetKey(["campaign_plan", name]), dg.AssetKey(["campaign_report", name])
