"""When a campaign's dates are: its cron in its time zone, and how a date is written as a partition key.

The dates are those of Dagster's time windows, which schedules and partitions follow, worked out without it. Where
clocks are put forward, a cron that comes each hour passes over what is not there, and any other comes at the end of
the gap. Where they are put back, a cron that comes each hour comes in both hours, the second written with its offset
(`2026-10-25-02:00+0100`), and any other comes in the second one only. `tests/campaigns/test_dates.py` compares.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import groupby, takewhile
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import croniter

DAY, MINUTE = "%Y-%m-%d", "%Y-%m-%d-%H:%M"
# Hours in which Dagster looks for changes of the clock where a cron names one time of a day.
_CHANGES = (1, 2, 3)
_MONTHLY_AT_MOST = 28
# More than clocks are ever changed by.
_LONGEST_CHANGE = timedelta(hours=4)
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


def problem_of_both(cron: str, timezone: str) -> str:
    """Return what is wrong with a good cron in a good time zone, as it follows its name, or an empty string.

    Dagster's windows take every change of the clock for one of an hour.
    """
    zone, hour = ZoneInfo(timezone), timedelta(hours=1)
    days = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=15 * number) for number in range(48)]
    offsets = {_offset(day.astimezone(zone), 0) for day in days}
    change = max(offsets) - min(offsets)
    if change > hour or (change % hour and _each_hour(cron)):
        return f"is {cron!r}, but {timezone} changes its clock by {change}, not by an hour; write it in UTC"
    return ""


@lru_cache(maxsize=512)
def key_format(cron: str) -> str:
    """Return how dates are written: with the time only when a day can have several."""
    ticks = croniter(cron, datetime(2026, 1, 1))
    days = [ticks.get_next(datetime).date() for _ in range(60)]
    return DAY if len(set(days)) == len(days) else MINUTE


def tick_before(cron: str, timezone: str, moment: datetime) -> datetime:
    """Return the newest date at or before a moment, in the campaign's time zone."""
    zone = ZoneInfo(timezone)
    well_before = croniter(cron, _clock(moment, zone) - _LONGEST_CHANGE).get_prev(datetime)
    # Further still, so that what falls into a gap is looked at from before the gap.
    ticks = _ticks(cron, zone, well_before - _LONGEST_CHANGE)
    come = takewhile(lambda tick: tick.timestamp() <= moment.timestamp(), ticks)
    return deque(come, maxlen=1)[0]


def tick_after(cron: str, timezone: str, moment: datetime) -> datetime:
    """Return the first date after a moment, in the campaign's time zone."""
    zone = ZoneInfo(timezone)
    ticks = _ticks(cron, zone, _clock(moment, zone) - _LONGEST_CHANGE)
    return next(tick for tick in ticks if tick.timestamp() > moment.timestamp())


def key_of(cron: str, tick: datetime) -> str:
    """Return how a date is written; the second of two that read the same carries its offset."""
    shape = key_format(cron)
    second = tick.fold == 1 and _offset(tick, 0) > _offset(tick, 1)
    return tick.strftime(f"{shape}%z" if second and _each_hour(cron) else shape)


def first_day(cron: str, timezone: str, asked: date | None, now: datetime) -> date:
    """Return the day from which a campaign has dates: the one asked for, or that of the date before now."""
    return asked or tick_before(cron, timezone, now).date()


def dates_between(cron: str, timezone: str, starts: date, until: datetime) -> list[str]:
    """Return the partition keys from the first day on, up to a moment."""
    zone = ZoneInfo(timezone)
    first = datetime.combine(starts, time(), zone)
    keys: list[str] = []
    for tick in _ticks(cron, zone, datetime.combine(starts, time()) - _LONGEST_CHANGE):
        if tick.timestamp() > until.timestamp():
            return keys
        if tick.timestamp() >= first.timestamp():
            keys.append(key_of(cron, tick))
    return keys


def last_date(cron: str, timezone: str, starts: date, now: datetime) -> str | None:
    """Return the partition key of the newest date that has come, or None before the first one."""
    tick = tick_before(cron, timezone, now)
    return key_of(cron, tick) if tick.date() >= starts else None


def _clock(moment: datetime, zone: ZoneInfo) -> datetime:
    """Return what the clock of a zone shows."""
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def _ticks(cron: str, zone: ZoneInfo, clock: datetime) -> Iterator[datetime]:
    """Yield the dates from a time on that a clock shows, in the order in which they come, each moment once."""
    written = croniter(cron, clock - timedelta(seconds=1))
    last = float("-inf")

    def twice(shown: datetime) -> datetime | None:
        return None if len(_moments(cron, shown.replace(tzinfo=zone))) == 2 else shown

    # Times that come twice are taken together: all of the first hour come before those of the second.
    for _, together in groupby(iter(lambda: written.get_next(datetime), None), key=twice):
        found = [tick for shown in together for tick in _moments(cron, shown.replace(tzinfo=zone))]
        for tick in sorted(found, key=datetime.timestamp):
            if tick.timestamp() > last:
                last = tick.timestamp()
                yield tick


def _moments(cron: str, tick: datetime) -> list[datetime]:
    """Return when something that is written in the cron comes: never, once or twice."""
    zone = tick.tzinfo
    if tick.astimezone(UTC).astimezone(zone).replace(tzinfo=None, fold=0) != tick.replace(tzinfo=None):
        return [] if _each_hour(cron) else [_after_the_gap(cron, tick)]
    if _offset(tick, 0) == _offset(tick, 1):
        return [tick]
    if _each_hour(cron):
        return [tick, tick.replace(fold=1)]
    first = _one_time_of_day(cron) and tick.hour not in _CHANGES
    return [tick if first else tick.replace(fold=1)]


def _after_the_gap(cron: str, tick: datetime) -> datetime:
    if tick.hour not in _CHANGES:
        return tick
    leap = (tick + timedelta(hours=1)).dst() or timedelta()
    after = tick.replace(minute=0) + leap
    # Where winter is what is saved (Europe/Dublin) the leap is none, and the two ways to reckon differ.
    return (
        after.replace(fold=1) if _one_time_of_day(cron) and _offset(after, 0) != _offset(after, 1) else after
    )


def _offset(tick: datetime, fold: int) -> timedelta:
    return tick.replace(fold=fold).utcoffset() or timedelta()


@lru_cache(maxsize=512)
def _each_hour(cron: str) -> bool:
    """Whether a cron names no hour."""
    return bool(croniter.expand(cron)[0][1] == ["*"])


@lru_cache(maxsize=512)
def _one_time_of_day(cron: str) -> bool:
    """Whether a cron is one time each day, on weekdays, or on a day of each month."""
    (minute, hour, day, month, weekday), nth, *_ = croniter.expand(cron)
    if nth or not all(len(part) == 1 and isinstance(part[0], int) for part in (minute, hour)):
        return False
    if month != ["*"]:
        return False
    if weekday == ["*"]:
        return day == ["*"] or (len(day) == 1 and isinstance(day[0], int) and day[0] <= _MONTHLY_AT_MOST)
    return bool(day == ["*"] and all(isinstance(one, int) for one in weekday))
