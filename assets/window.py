"""What Dagster shows of what the registry keeps: the newest tunes and batches.

Each key and each run makes the pages of its asset slower and larger, for ever, and Dagster itself deletes neither. So
the keys of what has ended leave with their runs once there are too many of them, or after an age. The registry and the
store keep everything; who runs something of it again brings its key back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg
from dagster import DagsterRunStatus

from tunes_dagster.pipeline.history import backfill_goes_on, delete_runs
from tunes_dagster.pipeline.partitions import RENDER_BATCHES, TUNES

if TYPE_CHECKING:
    from tunes_dagster.registry import Registry
    from tunes_dagster.service.installation import Installation

_ENDED = (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)
_PARTITION_TAG = "dagster/partition"
_RANGE_TAG = "dagster/asset_partition_range_start"
# Keys that are looked at together: one query of each kind for all of them.
_PAGE = 200


@dataclass(frozen=True)
class Left:
    """What has left the window.

    Attributes:
        tunes: Keys of tunes.
        batches: Keys of batches.
        runs: Runs of both.
    """

    tunes: int = 0
    batches: int = 0
    runs: int = 0

    def sentence(self) -> str:
        """Return it in words."""
        return (
            f"{self.tunes} tunes and {self.batches} batches that ended long ago are no longer shown by Dagster "
            f"({self.runs} runs); the registry keeps them."
        )


def close_window(instance: dg.DagsterInstance, installation: Installation) -> Left:
    """Take out of Dagster what ended and is beyond what the settings let it show."""
    if _range_goes_on(instance):
        return Left()  # a run over a range of keys fails when one of them goes
    registry, settings = installation.registry, installation.settings
    before = registry.now() - timedelta(days=settings.shown_days) if settings.shown_days else None
    rows = registry.window
    tunes, of_tunes = _close(instance, registry, TUNES, rows.ended_tunes, settings.shown_tunes, before)
    batches, of_batches = _close(
        instance, registry, RENDER_BATCHES, rows.ended_batches, settings.shown_batches, before
    )
    return Left(tunes, batches, of_tunes + of_batches)


def _close(
    instance: dg.DagsterInstance,
    registry: Registry,
    name: str,
    ended_of: Callable[[Sequence[str], datetime | None], set[str]],
    most: int,
    before: datetime | None,
) -> tuple[int, int]:
    """Take keys out of a set of partitions, the oldest first; returns how many, and how many runs.

    Args:
        instance: Dagster's.
        registry: Whose tunes and batches the keys are.
        name: Of the set.
        ended_of: Tells which of some keys have ended, before a time.
        most: Keys that stay, whatever their age.
        before: What ended before leaves whatever their number; None lets all stay.
    """
    keys = instance.get_dynamic_partitions(name)  # in the order in which they came
    too_many = max(0, len(keys) - most)
    shown, left, runs = set(keys), 0, 0
    for start in range(0, len(keys) if before else too_many, _PAGE):
        page = keys[start : start + _PAGE]
        over = page[: max(0, too_many - start)]
        ended = ended_of(over, None) if over else set()
        ended |= ended_of(page, before) if before else set()
        gone = ended - _alive(instance, sorted(ended))
        if gone:
            shown -= gone
            runs += delete_runs(instance, _runs_only_of(instance, registry, gone, shown))
            registry.device_runs.forget(sorted(gone))
            for key in gone:
                instance.delete_dynamic_partition(name, key)
            back = gone - ended_of(sorted(gone), None)
            if back:  # asked for again while it was being taken out
                instance.add_dynamic_partitions(name, sorted(back))
            left += len(gone - back)
    if left:
        # The cache of which keys are materialized only grows; Dagster makes it anew from what is there.
        instance.wipe_asset_cached_status(instance.get_asset_keys())
    return left, runs


def _range_goes_on(instance: dg.DagsterInstance) -> bool:
    """Whether a backfill or a run over several keys is under way."""
    if backfill_goes_on(instance):
        return True
    return any(_RANGE_TAG in run.tags for run in _unfinished(instance, {}))


def _alive(instance: dg.DagsterInstance, keys: Sequence[str]) -> set[str]:
    """Return the keys that a run of Dagster is under way for, by hand too."""
    return (
        {run.tags[_PARTITION_TAG] for run in _unfinished(instance, {_PARTITION_TAG: list(keys)})}
        if keys
        else set()
    )


def _unfinished(instance: dg.DagsterInstance, tags: dict[str, str | list[str]]) -> Sequence[dg.DagsterRun]:
    open_statuses = [status for status in DagsterRunStatus if status not in _ENDED]
    return instance.get_runs(dg.RunsFilter(statuses=open_statuses, tags=tags))


def _runs_only_of(
    instance: dg.DagsterInstance, registry: Registry, gone: Set[str], shown: Set[str]
) -> list[str]:
    """Return the runs that tell of nothing but keys that leave or have left.

    A run of a cohort or of a session may tell of several; it stays for as long as one of them is shown.
    """
    keys = sorted(gone)
    found = {
        run.run_id
        for tag in (_PARTITION_TAG, "tunes/tune", "tunes/batch")
        for run in instance.get_runs(dg.RunsFilter(tags={tag: keys}))
    }
    found |= registry.window.runs_of(keys)
    if cohorts := registry.window.cohorts_without(keys, shown):
        found |= {run.run_id for run in instance.get_runs(dg.RunsFilter(tags={"tunes/cohort": cohorts}))}
    told = registry.window.told_by(sorted(found))
    return sorted(run_id for run_id in found if not told.get(run_id, set()) & shown)
