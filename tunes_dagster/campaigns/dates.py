"""When a campaign's dates are: its cron in its time zone, and how a date is written as a partition key."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import croniter

DAY, MINUTE = "%Y-%m-%d", "%Y-%m-%d-%H:%M"
# Two dates closer than this are planned on top of each other; Dagster looks at schedules every 5 s.
_CLOSEST = timedelta(minutes=5)


@lru_cache(maxsize=512)
def problem_of_cron(cron: str) -> str:
    """Return what is wrong with a cron expression, as it follows its name, or an empty string."""
    if len(cron.split()) != 5:
        return f"is {cron!r}, but should have five fields: minute, hour, day, month, weekday"
    if not croniter.is_valid(cron):
        return f"is {cron!r}, which is no cron expression"
    try:
        ticks = croniter(cron, datetime(2026, 1, 1))
        first = [ticks.get_next(datetime) for _ in range(10)]
    except ValueError:
        return f"is {cron!r}, which never comes"
    if min(b - a for a, b in zip(first, first[1:], strict=False)) < _CLOSEST:
        return f"is {cron!r}, which comes more often than every 5 minutes"
    return ""


def problem_of_timezone(name: str) -> str:
    """Return what is wrong with the name of a time zone, as it follows that, or an empty string."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return f"is {name!r}, which is not a time zone such as Europe/Berlin or UTC"
    return ""


@lru_cache(maxsize=512)
def key_format(cron: str) -> str:
    """Return how dates are written: with the time only when a day can have several."""
    ticks = croniter(cron, datetime(2026, 1, 1))
    days = [ticks.get_next(datetime).date() for _ in range(60)]
    return DAY if len(set(days)) == len(days) else MINUTE


def tick_before(cron: str, timezone: str, moment: datetime) -> datetime:
    """Return the newest date at or before a moment, in the campaign's time zone."""
    local = moment.astimezone(ZoneInfo(timezone))
    # Just after the moment, so that a moment that is a date itself counts.
    return croniter(cron, local + timedelta(seconds=1)).get_prev(datetime)


def tick_after(cron: str, timezone: str, moment: datetime) -> datetime:
    """Return the first date after a moment, in the campaign's time zone."""
    return croniter(cron, moment.astimezone(ZoneInfo(timezone))).get_next(datetime)


def first_day(cron: str, timezone: str, asked: date | None, now: datetime) -> date:
    """Return the day from which a campaign has dates: the one asked for, or that of the date before now."""
    return asked or tick_before(cron, timezone, now).date()


def dates_between(cron: str, timezone: str, starts: date, until: datetime) -> list[str]:
    """Return the partition keys from the first day on, up to a moment."""
    zone, shape = ZoneInfo(timezone), key_format(cron)
    moment = datetime.combine(starts, time(), zone) - timedelta(seconds=1)
    keys = []
    ticks = croniter(cron, moment)
    while (tick := ticks.get_next(datetime)) <= until:
        keys.append(tick.strftime(shape))
    return keys


def last_date(cron: str, timezone: str, starts: date, now: datetime) -> str | None:
    """Return the partition key of the newest date that has come, or None before the first one."""
    tick = tick_before(cron, timezone, now)
    return tick.strftime(key_format(cron)) if tick.date() >= starts else None
