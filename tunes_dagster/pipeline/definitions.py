"""The code location: every asset, check, job, sensor, schedule and resource, put together once.

Loads without torch, diffusers or transformers (a test holds it to that): the web server, the daemon and every
run worker import this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from tunes_dagster.assets import CHECKS, SURROUNDINGS, all_assets
from tunes_dagster.assets.campaigns import campaign_defs, load_campaigns
from tunes_dagster.pipeline.forking import fork_prepared
from tunes_dagster.pipeline.jobs import jobs_of
from tunes_dagster.pipeline.schedules import ALL_SCHEDULES, campaign_schedule
from tunes_dagster.pipeline.sensors import finished_campaigns_sensor, without_sessions
from tunes_dagster.resources import default_resources, installed

if TYPE_CHECKING:
    from tunes_dagster.core.settings import Settings
    from tunes_dagster.registry import Campaign


def build_defs(
    *,
    resource_overrides: dict[str, Any] | None = None,
    campaigns: Sequence[Campaign] | None = None,
    settings: dict[str, Any] | None = None,
) -> dg.Definitions:
    """Assemble the definitions.

    Args:
        resource_overrides: Resources by key that replace the default ones, for tests and other deployments.
        campaigns: Rows of the campaigns to show; None shows those of this installation.
        settings: Settings by name (`heartbeat_seconds`) instead of the environment's.
    """
    resources = {**default_resources(), **(resource_overrides or {})}
    resources.setdefault("installation", installed(resources, settings))
    chosen: Settings = resources["installation"].settings
    jobs = jobs_of(chosen)
    if chosen.uses_sessions:
        from tunes_dagster.pipeline.session_sensors import with_sessions

        sensors = with_sessions(jobs)
    else:
        sensors = without_sessions(jobs)
    rows = list(load_campaigns(resources["installation"]) if campaigns is None else campaigns)
    shown = [campaign_defs(row, chosen) for row in rows]
    working = {one.name for one in shown if not one.problem}
    return dg.Definitions(
        assets=[*all_assets(chosen), *SURROUNDINGS, *(asset for one in shown for asset in one.assets)],
        asset_checks=CHECKS,
        jobs=[*jobs.values(), *(job for one in shown for job in one.jobs)],
        sensors=[*sensors, finished_campaigns_sensor(sorted(working))],
        schedules=[*ALL_SCHEDULES, *(campaign_schedule(row) for row in rows if row.name in working)],
        resources=resources,
        # One process per run: a process per step costs seconds and would load the model again.
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """What Dagster loads: nothing is opened before it asks."""
    fork_prepared()
    return build_defs()
