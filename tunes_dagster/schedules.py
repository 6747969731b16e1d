"""What runs by the clock."""

import dagster as dg

from tunes_dagster.jobs import housekeeping

housekeeping_daily = dg.ScheduleDefinition(
    name="housekeeping_daily",
    job=housekeeping,
    # At night, and not on the full hour, when everybody else's jobs start.
    cron_schedule="17 4 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Deletes what nobody needs any more: old runs of Dagster and cache files that were not used.",
)

ALL_SCHEDULES = [housekeeping_daily]
