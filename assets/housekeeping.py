"""What can be deleted: runs of Dagster that made nothing, partitions of deleted tunes, and old cache files.

A run that materialized an asset is kept as long as its tune exists: deleting a run deletes its events, and the
asset would look as if it had never been made.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg
from dagster import DagsterRunStatus

from tunes_dagster import clock
from tunes_dagster.partitions import TUNES

if TYPE_CHECKING:
    from tunes_dagster.registry import Registry
    from tunes_dagster.store import Store

SERVICE_JOBS = ("finish_tune", "housekeeping")
# One tick of work; the next day's run goes on.
_MOST_RUNS = 2000


@dataclass(frozen=True)
class Freed:
    """How much was deleted."""

    count: int
    megabytes: float


def _before(days: float) -> datetime:
    return clock.now() - timedelta(days=days)


def prune_runs(instance: dg.DagsterInstance, keep_failed_days: float, keep_service_days: float) -> int:
    """Delete old runs that materialized nothing, with their captured output; returns how many."""
    filters = [
        dg.RunsFilter(
            statuses=[DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED],
            created_before=_before(keep_failed_days),
        ),
        *(
            dg.RunsFilter(
                job_name=job, statuses=[DagsterRunStatus.SUCCESS], created_before=_before(keep_service_days)
            )
            for job in SERVICE_JOBS
        ),
    ]
    deleted = 0
    for chosen in filters:
        for run in instance.get_runs(chosen, limit=_MOST_RUNS):
            if made_an_asset(instance, run.run_id):
                continue
            # Dagster leaves the captured output behind when a run is deleted.
            instance.compute_log_manager.delete_logs(prefix=[run.run_id])
            instance.delete_run(run.run_id)
            deleted += 1
    return deleted


def made_an_asset(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether a run materialized something (a cohort fails when one member does; the others are made)."""
    found = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION, limit=1)
    return bool(found.records)


def prune_partitions(instance: dg.DagsterInstance, registry: Registry) -> int:
    """Delete the partitions of tunes that were deleted; returns how many."""
    known = set(instance.get_dynamic_partitions(TUNES))
    gone = [tune.id for tune in registry.list_tunes(status="deleted", limit=_MOST_RUNS) if tune.id in known]
    for key in gone:
        instance.delete_dynamic_partition(TUNES, key)
    return len(gone)


def prune_cache(store: Store, keep_days: float) -> Freed:
    """Delete cache files that are older than `keep_days`."""
    limit = _before(keep_days).timestamp()
    count, size = 0, 0
    for key in list(store.list("cache")):
        stat = store.path(key).stat()
        if stat.st_mtime < limit:
            size += stat.st_size
            store.delete(key)
            count += 1
    return Freed(count, size / 1e6)
