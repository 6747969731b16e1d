"""Deleting runs of Dagster with all that it keeps of them.

`DagsterInstance.delete_run` leaves behind: the captured output, the file that SQLite keeps for each run, and the rows
of its asset checks, for which Dagster has no call at all. A window that is to stay flat needs all of them gone;
`tests/dagster/test_window.py` fails when a table grows again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import sqlalchemy as sa

from tunes_dagster.pipeline.dagster_private import (
    AssetCheckExecutionsTable,
    BulkActionStatus,
    SqlEventLogStorage,
    SqliteEventLogStorage,
)

# Values in one statement.
_PAGE = 200


def delete_runs(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> int:
    """Delete runs with their events, tags, checks, captured output and files; returns how many."""
    for start in range(0, len(run_ids), _PAGE):
        page = list(run_ids[start : start + _PAGE])
        for run_id in page:
            instance.compute_log_manager.delete_logs(prefix=[run_id])
            instance.delete_run(run_id)
        _delete_leftovers(instance, page)
    if run_ids:
        # Which partitions are made or failed stands in a cache that only grows; Dagster makes it anew of what is there.
        instance.wipe_asset_cached_status(instance.get_asset_keys())
    return len(run_ids)


def backfill_goes_on(instance: dg.DagsterInstance) -> bool:
    """Whether a backfill of any asset is under way."""
    under_way = (BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING)
    return any(instance.get_backfills(status=status, limit=1) for status in under_way)


def _delete_leftovers(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> None:
    """Delete what Dagster itself leaves of deleted runs."""
    events = instance.event_log_storage
    if isinstance(events, SqlEventLogStorage):
        checks = AssetCheckExecutionsTable
        with events.index_connection() as connection:
            connection.execute(sa.delete(checks).where(checks.c.run_id.in_(run_ids)))
    if isinstance(events, SqliteEventLogStorage):
        for run_id in run_ids:
            file = Path(events.path_for_shard(run_id))
            for left in (file, file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")):
                left.unlink(missing_ok=True)
