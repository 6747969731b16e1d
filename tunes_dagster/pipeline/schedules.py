"""What runs by the clock: housekeeping, and each campaign on its own cron in its own time zone."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

import dagster as dg

from tunes_dagster.assets.campaigns import plan_job_name
from tunes_dagster.campaigns.dates import last_date
from tunes_dagster.pipeline.jobs import housekeeping, look_around

if TYPE_CHECKING:
    from tunes_dagster.registry import Campaign

housekeeping_daily = dg.ScheduleDefinition(
    name="housekeeping_daily",
    job_name=housekeeping.name,
    # At night, and not on the full hour, when everybody else's jobs start.
    cron_schedule="17 4 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Deletes what nobody needs any more: old runs of Dagster and cache files that were not used.",
)


look_around_daily = dg.ScheduleDefinition(
    name="look_around_daily",
    job_name=look_around.name,
    # After housekeeping, which deletes some of what would be found.
    cron_schedule="47 4 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Checks whether anything lies about that nobody will ever move.",
)


def campaign_schedule(campaign: Campaign) -> dg.ScheduleDefinition:
    """Return the schedule of a campaign: each tick plans the date that has just come."""
    starts = date.fromisoformat(campaign.starts)

    def plan(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        key = last_date(campaign.cron, campaign.timezone, starts, context.scheduled_execution_time)
        if key is None:
            return dg.SkipReason(f"The campaign {campaign.name} starts on {campaign.starts}.")
        return dg.RunRequest(
            run_key=f"{campaign.id}:{key}",
            partition_key=key,
            tags={"tunes/campaign": campaign.name, "tunes/date": key, "tunes/origin": "schedule"},
        )

    active = bool(campaign.definition.get("active", True))
    broken = " BROKEN: see the problems of its plan." if campaign.state == "broken" else ""
    return dg.ScheduleDefinition(
        name=f"campaign_{campaign.name}",
        job_name=plan_job_name(campaign.name),
        cron_schedule=campaign.cron,
        execution_timezone=campaign.timezone,
        execution_fn=plan,
        default_status=dg.DefaultScheduleStatus.RUNNING if active else dg.DefaultScheduleStatus.STOPPED,
        description=f"Renders the campaign {campaign.name}.{broken}",
    )


ALL_SCHEDULES = [housekeeping_daily, look_around_daily]
