"""Work whose run is gone: given up by the sensor `stuck_work`, and by whoever drives the pipeline without a daemon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from tunes_dagster.assets.names import POOLS
from tunes_dagster.pipeline.launches import (
    cancel_what_people_cancelled,
    forgotten_runs,
    give_up_runs,
    run_is_alive,
    without_work,
)
from tunes_dagster.service import decide

if TYPE_CHECKING:
    from tunes_dagster.service.installation import Installation


@dataclass(frozen=True)
class GivenUp:
    """What one look gave up.

    Attributes:
        stuck: Attempts that were lost.
        cancelled: How many were cancelled in Dagster.
        forgotten: Runs that went on although their work had ended.
    """

    stuck: list[decide.Stuck]
    cancelled: int
    forgotten: list[str]


def give_up_lost(
    installation: Installation,
    instance: dg.DagsterInstance,
    watch: decide.Watch | None = None,
    alive: Callable[[str], bool | None] | None = None,
) -> GivenUp:
    """Give attempts up whose run is gone: requeue them, or fail them with a reason; end runs that nobody needs.

    Args:
        installation: Where the attempts are.
        instance: Where the runs are.
        watch: Of this look; see `decide.find_stuck`.
        alive: Says of a run id or run key whether its run lives; None asks the instance.
    """
    rows, settings = installation.registry, installation.settings
    cancelled = cancel_what_people_cancelled(instance, rows)
    now, patience = rows.now(), settings.lost_after_seconds
    stuck = decide.find_stuck(
        rows,
        now,
        alive or (lambda name: run_is_alive(instance, name)),
        decide.Patience(lost_after_seconds=patience, longest=settings.longest),
        watch=watch,
    )
    forgotten = forgotten_runs(instance, rows, POOLS, now, patience)
    give_up_runs(instance, [*without_work(rows, [one.run_id for one in stuck]), *forgotten])
    return GivenUp(stuck, cancelled, forgotten)
