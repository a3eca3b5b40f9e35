"""When cycles are due: schedules, the windows that they may run in, and jitter.

It must never read a clock, and never leave a fire out: what falls outside the windows waits for one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gcd.durations import parse_duration
from gcd.errors import UsageError

if TYPE_CHECKING:
    from apscheduler.triggers.base import BaseTrigger

ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
EXAMPLE = '"every 6h", "@daily", or a cron line such as "30 2 * * *"'
SHORTEST = timedelta(seconds=1)
LEAP_YEAR = datetime(2024, 1, 1, tzinfo=UTC)
"""From here every date that the calendar has comes within eight years."""
WHOLE_DAY = timedelta(days=1)


def parse_zone(name: str) -> tzinfo:
    """A time zone by its IANA name. Raises UsageError."""
    if name.upper() == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UsageError(
            f"{name!r} is no time zone that is known here",
            hint='as in "Europe/Berlin"; where the system has no tzdata, `pip install tzdata`',
        ) from error


# -- schedules -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Every:
    """At a fixed interval from one fire to the next."""

    interval: timedelta

    def after(self, previous: datetime | None, now: datetime) -> datetime:
        """The first fire after `now` that is a whole number of intervals from the previous one."""
        if previous is None or previous > now:
            return now + self.interval
        missed = (now - previous) // self.interval
        return previous + (missed + 1) * self.interval


@dataclass(frozen=True, slots=True)
class Cron:
    """By a cron line of five fields."""

    triggers: tuple[BaseTrigger, ...]
    """More than one where the line names days of the month and of the week: either is enough."""

    def after(self, _previous: datetime | None, now: datetime) -> datetime | None:
        """The first fire after `now`, None if none ever comes."""
        later = now + timedelta(microseconds=1)
        found = (trigger.get_next_fire_time(None, later) for trigger in self.triggers)
        return min((at for at in found if at is not None), default=None)


def parse_schedule(text: str, zone: tzinfo) -> Every | Cron:
    """A schedule from its text. Raises UsageError."""
    words = text.strip().lower()
    every = re.fullmatch(r"(?:@?every)\s+(\S+)", words)
    if every:
        interval = parse_duration(every[1])
        if interval < SHORTEST:
            raise UsageError(f"{text!r} is too often", hint="once a second at most")
        return Every(interval)
    if words.startswith("@") and words not in ALIASES:
        known = ", ".join(ALIASES)
        raise UsageError(f"{text!r} is no schedule", hint=f"known names are {known}")
    schedule = Cron(tuple(parse_cron(ALIASES.get(words, words), zone)))
    if schedule.after(None, LEAP_YEAR) is None:
        raise UsageError(f"{text!r} never comes: no calendar has such a day")
    return schedule


def parse_cron(line: str, zone: tzinfo) -> list[BaseTrigger]:
    """What fires by a cron line of five fields. Raises UsageError."""
    from apscheduler.triggers.cron import CronTrigger

    fields = line.split()
    if len(fields) != 5:
        raise UsageError(f"{line!r} is no schedule", hint=f"give {EXAMPLE}")
    minute, hour, day, month, weekday = fields
    try:
        days = cron_weekdays(weekday)
        choices = [(day, days)]
        if not day.startswith("*") and not weekday.startswith("*"):
            choices = [(day, "*"), ("*", days)]
        return [
            CronTrigger(
                minute=minute,
                hour=hour,
                day=each_day,
                month=month,
                day_of_week=each_weekday,
                timezone=zone,
            )
            for each_day, each_weekday in choices
        ]
    except ValueError as error:
        raise UsageError(f"{line!r} is no cron line: {error}", hint=f"give {EXAMPLE}") from error


def cron_weekdays(field: str) -> str:
    """The days of the week by name: cron counts from Sunday, APScheduler from Monday."""
    if field == "*":
        return field
    names: set[int] = set()
    for part in field.split(","):
        found = re.fullmatch(r"(\*|\w+)(?:-(\w+))?(?:/(\d+))?", part)
        if found is None:
            raise ValueError(f"{part!r} is no day of the week")
        first, last, step = found.groups()
        begin = 0 if first == "*" else weekday(first)
        to_the_end = first == "*" or (step and not last)
        end = 6 if to_the_end else upto(last) if last else begin
        if last and end < begin:
            end += 7  # "fri-mon", or "5-7" with Sunday as 7
        names.update(each % 7 for each in range(begin, end + 1, positive(step)))
    return ",".join(WEEKDAYS[each] for each in sorted(names))


def weekday(name: str) -> int:
    """A day of the week, Sunday as 0. Raises ValueError."""
    if name.isdecimal() and int(name) <= 7:
        return int(name) % 7
    if name[:3] in WEEKDAYS and name.isalpha():
        return WEEKDAYS.index(name[:3])
    raise ValueError(f"{name!r} is no day of the week")


def upto(name: str) -> int:
    """The end of a range of days, in which 7 is the Sunday after."""
    return 7 if name == "7" else weekday(name)


def positive(step: str | None) -> int:
    """A step, 1 where none is given. Raises ValueError."""
    if step is not None and int(step) < 1:
        raise ValueError("a step must be 1 or more")
    return int(step or 1)


# -- windows ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Window:
    """The hours of each day in which cycles may run; it may pass midnight."""

    start: time
    end: time
    """Equal to the start: the whole day."""

    def bounds(self, day: datetime) -> tuple[datetime, datetime]:
        """When it opens on a local day, and when it closes, both in UTC.

        Local times must not be compared: where clocks are set back, the later can be the smaller.
        A window within the hour that is left out in spring closes when it opens, or before.
        """
        opens = datetime.combine(day.date(), self.start, day.tzinfo)
        closes = datetime.combine(day.date(), self.end, day.tzinfo)
        closes = closes if self.end > self.start else closes + WHOLE_DAY
        return opens.astimezone(UTC), closes.astimezone(UTC)


def parse_window(text: str) -> Window:
    """A window from a text like "22:00-06:00". Raises UsageError."""
    found = re.fullmatch(r"\s*(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)\s*", text)
    if found is None:
        raise UsageError(f"{text!r} is no window", hint='write it as "22:00-06:00"')
    first, first_minute, last, last_minute = map(int, found.groups())
    is_whole = (first, first_minute, last, last_minute) == (0, 0, 24, 0)
    if (first, first_minute) == (last, last_minute):
        raise UsageError(f"{text!r} never opens", hint='the whole day is "00:00-24:00"')
    try:
        end = time(0) if (last, last_minute) == (24, 0) else time(last, last_minute)
        window = Window(time(first, first_minute), end)
    except ValueError as error:
        raise UsageError(f"{text!r} is no window: {error}", hint='as in "22:00-06:00"') from error
    if window.start == window.end and not is_whole:
        raise UsageError(f"{text!r} never opens", hint='the whole day is "00:00-24:00"')
    return window


@dataclass(frozen=True)
class Timetable:
    """When the cycles of one store are due."""

    schedule: Every | Cron
    zone: tzinfo = UTC
    windows: Sequence[Window] = ()
    jitter: timedelta = timedelta(0)

    def after(self, previous: datetime | None, now: datetime) -> datetime | None:
        """The next fire after `now`, in a window and with its jitter; None if none ever comes."""
        due = self.schedule.after(previous, now)
        if due is None:
            return None
        due = self.opens(due.astimezone(UTC))
        closes = self.closes(due)
        most = self.jitter if closes is None else min(self.jitter, (closes - due) / 2)
        return due + random.random() * most

    def opens(self, at: datetime) -> datetime:
        """`at` where a window is open then, else when the next one opens."""
        if not self.windows or self.closes(at) is not None:
            return at
        local = at.astimezone(self.zone)
        days = (local, local + WHOLE_DAY, local + 2 * WHOLE_DAY)
        bounds = (window.bounds(day) for window in self.windows for day in days)
        return min(start for start, end in bounds if at < start < end)

    def closes(self, at: datetime) -> datetime | None:
        """When the window that is open at a time closes; None if none is, or there are none."""
        local = at.astimezone(self.zone)
        ends = [
            end
            for window in self.windows
            for start, end in (window.bounds(local - WHOLE_DAY), window.bounds(local))
            if start <= at < end
        ]
        return max(ends, default=None)

    def is_open(self, at: datetime) -> bool:
        """Whether a cycle may run at a time."""
        return not self.windows or self.closes(at) is not None
