"""Dates around changes of the clock: the same ones, under the same keys, in Dagster, its schedule and here."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._utils.schedules import cron_string_iterator

from tunes_dagster.campaigns.dates import (
    dates_between,
    last_date,
    problem_of_both,
    tick_after,
    tick_before,
)
from tunes_dagster.pipeline.partitions import campaign_dates
from tunes_dagster.pipeline.schedules import campaign_schedule

# Both changes of a year, by zone: an hour at night, at midnight, half an hour, two hours, the other way round, none.
CHANGES = {
    "Europe/Berlin": ("2026-03-29", "2026-10-25"),
    "Europe/Dublin": ("2026-03-29", "2026-10-25"),
    "Atlantic/Azores": ("2026-03-29", "2026-10-25"),
    "America/New_York": ("2026-03-08", "2026-11-01"),
    "America/St_Johns": ("2026-03-08", "2026-11-01"),
    "America/Havana": ("2026-03-08", "2026-11-01"),
    "Africa/Cairo": ("2026-04-24", "2026-10-30"),
    "Asia/Beirut": ("2026-03-29", "2026-10-25"),
    "Australia/Sydney": ("2026-10-04", "2026-04-05"),
    "Australia/Lord_Howe": ("2026-10-04", "2026-04-05"),
    "Pacific/Chatham": ("2026-09-27", "2026-04-05"),
    "Asia/Kathmandu": ("2026-03-29", "2026-10-25"),
    "UTC": ("2026-03-29", "2026-10-25"),
}
CRONS = (
    "0 * * * *",
    "30 * * * *",
    "*/15 * * * *",
    "5,35 * * * *",
    "0 * * * 0",
    "*/30 1-3 * * *",
    "0 1-3 * * *",
    "15 0,2,23 * * *",
    "0 */2 * * *",
    "0 0-23 * * *",
    "30 2 * * *",
    "0 0 * * *",
    "30 1 * * 0,6",
    "0 3 * * 0",
    "30 2 25 * *",
    "30 0 * * 1#1",
    "0 2 29 3 *",
)


@pytest.mark.parametrize("zone", CHANGES)
def test_each_date_comes_once_under_the_key_that_dagster_shows(zone: str) -> None:
    for cron in CRONS:
        if problem_of_both(cron, zone):
            continue
        for sunday in map(date.fromisoformat, CHANGES[zone]):
            starts, midnight = sunday, datetime.combine(sunday, datetime.min.time(), ZoneInfo(zone))
            until = datetime.fromtimestamp(midnight.timestamp() + 15 * 3600, UTC)
            shown = campaign_dates(cron, zone, starts.isoformat()).get_partition_keys(until)
            keys = dates_between(cron, zone, starts, until)
            begun = cron_string_iterator(midnight.timestamp(), cron, zone)
            ticks = [tick for tick, _ in zip(begun, keys[:20], strict=False)]
            assert keys == list(shown)[: len(keys)], (zone, cron, sunday)
            assert len(shown) - len(keys) in (0, 1)  # Dagster's first date is there before it comes
            assert len(set(keys)) == len(keys)
            assert [last_date(cron, zone, starts, tick) for tick in ticks] == keys[:20], (zone, cron, sunday)
            for earlier, later in zip(ticks, ticks[1:], strict=False):
                assert tick_after(cron, zone, earlier).timestamp() == later.timestamp(), (zone, cron, earlier)
                just_before = datetime.fromtimestamp(later.timestamp() - 1, UTC)
                assert tick_before(cron, zone, just_before).timestamp() == earlier.timestamp()


def test_the_schedule_asks_for_each_hour_of_an_autumn_sunday_once() -> None:
    cron, zone, starts = "0 1-3 * * *", "Europe/Berlin", "2026-10-24"
    row = SimpleNamespace(
        id="c1", name="looks", cron=cron, timezone=zone, starts=starts, definition={}, state="good"
    )
    hourly = SimpleNamespace(**{**vars(row), "cron": "0 * * * *"})
    for campaign in (row, hourly):
        schedule = campaign_schedule(campaign)
        first = datetime(2026, 10, 24, 22, 30, tzinfo=UTC)
        asked = []
        for tick in cron_string_iterator(first.timestamp(), campaign.cron, zone):
            if tick.timestamp() > first.timestamp() + 5 * 3600:
                break
            context = dg.build_schedule_context(scheduled_execution_time=tick)
            asked.append(schedule._execution_fn(context).partition_key)
        shown = campaign_dates(campaign.cron, zone, starts).get_partition_keys(first + timedelta(hours=5))
        assert asked == [key for key in shown if key.startswith("2026-10-25-0")][-len(asked) :]
        assert len(set(asked)) == len(asked) >= 3
    assert "2026-10-25-02:00+0100" in asked


def test_what_cannot_follow_a_clock_that_changes_by_another_time_is_refused() -> None:
    assert "Lord_Howe" in problem_of_both("0 * * * *", "Australia/Lord_Howe")
    assert problem_of_both("0 0,12 * * *", "Australia/Lord_Howe") == ""
    assert "UTC" in problem_of_both("30 1 * * 0,6", "Antarctica/Troll")
    assert problem_of_both("0 * * * *", "America/St_Johns") == ""
