"""What can be deleted: runs of Dagster that made nothing, partitions of deleted tunes, and old cache files.

A run that materialized an asset is kept as long as its tune exists: deleting a run deletes its events, and the
asset would look as if it had never been made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg
from dagster import DagsterRunStatus

from tunes_dagster.core import clock
from tunes_dagster.core.work import WorkKind
from tunes_dagster.pipeline.history import delete_runs
from tunes_dagster.pipeline.partitions import RENDER_BATCHES, TUNES

if TYPE_CHECKING:
    from tunes_dagster.core.store import Store
    from tunes_dagster.registry import Registry

SERVICE_JOBS = (WorkKind.FINISH.job, "housekeeping", "look_around")
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
        gone = []
        for run in instance.get_runs(chosen, limit=_MOST_RUNS):
            if made_an_asset(instance, run.run_id):
                continue
            gone.append(run.run_id)
        deleted += delete_runs(instance, gone)
    return deleted


def made_an_asset(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether a run materialized something (a cohort fails when one member does; the others are made)."""
    found = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION, limit=1)
    return bool(found.records)


def prune_partitions(instance: dg.DagsterInstance, registry: Registry) -> int:
    """Delete the partitions of tunes that were deleted; returns how many."""
    known = set(instance.get_dynamic_partitions(TUNES))
    gone = [tune.id for tune in registry.tunes.rows(status="deleted", limit=_MOST_RUNS) if tune.id in known]
    for key in gone:
        instance.delete_dynamic_partition(TUNES, key)
    return len(gone)


def prune_cache(store: Store, keep_days: float) -> Freed:
    """Delete cache files that are older than `keep_days`."""
    limit = _before(keep_days).timestamp()
    count, size = 0, 0
    for key in list(store.list("cache")):
        if store.changed(key) < limit:
            size += store.size(key)
            store.delete(key)
            count += 1
    return Freed(count, size / 1e6)


@dataclass(frozen=True)
class Forgotten:
    """What Dagster has forgotten of deleted tunes.

    Attributes:
        runs: Deleted with their events, thumbnails and captured output.
        kept: Runs that stay, because they also made something for others.
    """

    runs: int
    kept: list[str]

    def sentence(self) -> str:
        """Return it in words."""
        said = f"Deleted {self.runs} runs of Dagster with their thumbnails and logs."
        if self.kept:
            said += (
                f" {len(self.kept)} runs were shared with other tunes and stay; their events hold thumbnails."
            )
        return said


# Of Dagster's history at a time.
_PAGE = 200


def forget_history(instance: dg.DagsterInstance) -> int:
    """Delete all runs that have ended, with their events and captured output; returns how many.

    Earlier versions wrote thumbnails, captions and texts into events, of which Dagster can delete whole runs only. Its
    assets look as if they had never been made afterwards; the registry and the store keep everything.
    """
    ended = dg.RunsFilter(
        statuses=[DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
    )
    deleted = 0
    while runs := instance.get_runs(ended, limit=_PAGE):
        deleted += delete_runs(instance, [run.run_id for run in runs])
    return deleted


def forget_deleted(instance: dg.DagsterInstance, registry: Registry) -> int:
    """Delete the runs and partitions of tunes whose deletion is under way; returns how many tunes that were."""
    gone = [
        row.subject_id
        for row in registry.deletions.under_way(_PAGE)
        if row.kind == "tune" and instance.has_dynamic_partition(TUNES, row.subject_id)
    ]
    if gone:
        forget_tunes(instance, registry, gone)
    return len(gone)


def forget_tunes(instance: dg.DagsterInstance, registry: Registry, tune_ids: Sequence[str]) -> Forgotten:
    """Delete the runs and partitions of deleted tunes: the events of a run hold thumbnails of its pictures."""
    gone = set(tune_ids)
    own: dict[str, bool] = {}
    for tune_id in tune_ids:
        for tags in ({"tunes/tune": tune_id}, {"dagster/partition": tune_id}):
            own.update({run.run_id: True for run in instance.get_runs(dg.RunsFilter(tags=tags))})
        for work in registry.work.of(tune_id):
            if work.cohort_id:
                alone = {member.subject_id for member in registry.groups.members(work.cohort_id)} <= gone
                for run in instance.get_runs(dg.RunsFilter(tags={"tunes/cohort": work.cohort_id})):
                    own[run.run_id] = alone
    shown = registry.uses.prompts_of(list(tune_ids))
    theirs = {prompt.id for prompt in shown}
    alone_in: dict[str, bool] = {}
    for batch_id in sorted({prompt.batch_id for prompt in shown if prompt.batch_id}):
        alone = {prompt.id for prompt in registry.prompts.rows(batch_id=batch_id)} <= theirs
        alone_in[batch_id] = alone
        for run in instance.get_runs(dg.RunsFilter(tags={"dagster/partition": batch_id})):
            own[run.run_id] = alone
    told_of = [*tune_ids, *(batch_id for batch_id, alone in alone_in.items() if alone)]
    own.update(dict.fromkeys(registry.device_runs.forget(told_of), True))
    # Batches share runs, and these show numbers only.
    own.update(
        {run_id: False for run_id, alone in own.items() if alone and registry.device_runs.of_run(run_id)}
    )
    deleted = [run_id for run_id, alone in own.items() if alone]
    delete_runs(instance, deleted)
    for name, keys in (
        (TUNES, tune_ids),
        (RENDER_BATCHES, [one for one, alone in alone_in.items() if alone]),
    ):
        for key in keys:
            if instance.has_dynamic_partition(name, key):
                instance.delete_dynamic_partition(name, key)
    return Forgotten(len(deleted), [run_id for run_id, alone in own.items() if not alone])
