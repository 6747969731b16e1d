"""The partition sets of the graph and how they depend on each other.

A partition is one tune or one render batch; its key is the id of the row in the registry. Keys are added by the
sensors (and by the Launchpad), never by the library. A campaign's partitions are its dates.
"""

from collections.abc import Iterable
from datetime import date

import dagster as dg

from tunes_dagster.campaigns.dates import key_format
from tunes_dagster.core.work import WorkKind

TUNES = "tunes"
RENDER_BATCHES = "render_batches"

tunes = dg.DynamicPartitionsDefinition(name=TUNES)
render_batches = dg.DynamicPartitionsDefinition(name=RENDER_BATCHES)

# A batch may hold prompts of any tunes, and its metadata names those that it really used. Between two dynamic sets
# Dagster would silently guess the identity; "all" would paint every finished batch as unsynced when another tune
# trains, and at 20,000 tunes cost 0.19 CPU seconds a materialization instead of 0.04. So the edge is drawn and empty.
loras_of_batch = dg.SpecificPartitionsPartitionMapping([])


def set_of(kind: str) -> str:
    """Return the name of the set that the subjects of a kind of work are partitions of."""
    return RENDER_BATCHES if kind == WorkKind.RENDER else TUNES


def new_partitions(
    instance: dg.DagsterInstance, subjects: Iterable[tuple[str, str]]
) -> list[dg.AddDynamicPartitionsRequest]:
    """Return the requests that add what is not there yet of some subjects: `(kind of work, id)`."""
    wanted: dict[str, list[str]] = {}
    for kind, subject_id in dict.fromkeys(subjects):
        name = set_of(kind)
        if not instance.has_dynamic_partition(name, subject_id):
            wanted.setdefault(name, []).append(subject_id)
    return [dg.AddDynamicPartitionsRequest(name, list(dict.fromkeys(keys))) for name, keys in wanted.items()]


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
