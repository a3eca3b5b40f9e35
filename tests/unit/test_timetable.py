"""Schedules and windows: every fire comes, after now, in an open window, whatever clocks are set to."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gcd.errors import UsageError
from gcd.timetable import (
    ALIASES,
    Cron,
    Every,
    Timetable,
    Window,
    parse_schedule,
    parse_window,
    parse_zone,
)

BERLIN = ZoneInfo("Europe/Berlin")
SPRING = datetime(2026, 3, 29, 1, tzinfo=UTC)
"""From here Berlin has 03:00 where it had 02:00."""
AUTUMN = datetime(2026, 10, 25, 1, tzinfo=UTC)
"""From here Berlin has 02:00 for the second time."""
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]


def at(text: str, zone: tzinfo = UTC) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone)


def fires(timetable: Timetable, since: datetime, count: int) -> list[datetime]:
    """The first fires, each found from the one before it."""
    found: list[datetime] = []
    for _ in range(count):
        now = found[-1] if found else since
        due = timetable.after(found[-1] if found else None, now)
        assert due is not None
        found.append(due)
    return found


# -- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("every 6h", timedelta(hours=6)),
        ("@every 90m", timedelta(minutes=90)),
        (" Every  1d12h ", timedelta(hours=36)),
        ("every 1s", timedelta(seconds=1)),
    ],
)
def test_an_interval_is_read(text: str, interval: timedelta) -> None:
    assert parse_schedule(text, UTC) == Every(interval)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30 2 * * *", "2026-11-26T02:30"),
        ("@hourly", "2026-11-25T16:00"),
        ("@daily", "2026-11-26T00:00"),
        ("@midnight", "2026-11-26T00:00"),
        ("@WEEKLY", "2026-11-29T00:00"),
        ("@monthly", "2026-12-01T00:00"),
        ("@yearly", "2027-01-01T00:00"),
        ("@annually", "2027-01-01T00:00"),
        ("0 0 29 2 *", "2028-02-29T00:00"),
        ("0 0 * * 0", "2026-11-29T00:00"),
        ("0 0 * * 7", "2026-11-29T00:00"),
        ("0 0 * * SUN", "2026-11-29T00:00"),
        ("0 0 * * 5-7", "2026-11-27T00:00"),
        ("0 0 * * sat-mon", "2026-11-28T00:00"),
        ("0 0 * * 6-0", "2026-11-28T00:00"),
        ("0 0 * * 1/3", "2026-11-26T00:00"),
        ("0 0 * * monday", "2026-11-30T00:00"),
        ("0 0 1 jan *", "2027-01-01T00:00"),
        ("0 0 31 2,12 *", "2026-12-31T00:00"),
        ("0 0 30 2 1", "2027-02-01T00:00"),
        ("0 0 13 * fri", "2026-11-27T00:00"),
        ("*/20 16-17 * * *", "2026-11-25T16:00"),
    ],
)
def test_a_cron_line_is_read(text: str, expected: str) -> None:
    now = at("2026-11-25T15:30")  # a Wednesday
    assert Timetable(parse_schedule(text, UTC)).after(None, now) == at(expected)


def test_every_alias_is_a_schedule() -> None:
    for name in ALIASES:
        assert isinstance(parse_schedule(name, UTC), Cron)


def test_days_of_month_and_week_are_either_enough_only_where_both_are_restricted() -> None:
    first_or_monday = Timetable(parse_schedule("0 0 1 * 1", UTC))
    assert fires(first_or_monday, at("2026-11-25T00:00"), 3) == [
        at("2026-11-30T00:00"), at("2026-12-01T00:00"), at("2026-12-07T00:00"),
    ]  # fmt: skip
    odd_mondays = Timetable(parse_schedule("0 0 */2 * 1", UTC))
    assert fires(odd_mondays, at("2026-11-25T00:00"), 2) == [
        at("2026-12-07T00:00"), at("2026-12-21T00:00"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no schedule"),
        ("daily", "is no schedule"),
        ("@dayly", "known names are @hourly"),
        ("@every", "known names are @hourly"),
        ("every", "is no schedule"),
        ("every 6", "did you mean 6d?"),
        ("every 6 hours", "is no schedule"),
        ("every 0s", "is too often"),
        ("every 999ms", "is too often"),
        ("every -1h", "is negative"),
        ("30 2 * *", "is no schedule"),
        ("0 30 2 * * *", "is no schedule"),
        ("60 * * * *", "is no cron line"),
        ("* 24 * * *", "is no cron line"),
        ("* * 0 * *", "is no cron line"),
        ("* * 32 * *", "is no cron line"),
        ("* * * 13 *", "is no cron line"),
        ("* * * * 8", "'8' is no day of the week"),
        ("* * * * someday", "'someday' is no day of the week"),
        ("* * * * ?", "is no day of the week"),
        ("* * * * */0", "a step must be 1 or more"),
        ("*/0 * * * *", "is no cron line"),
        ("5-1 * * * *", "is no cron line"),
        ("1,, * * * *", "is no cron line"),
        ("x * * * *", "is no cron line"),
        ("0 0 30 2 *", "never comes: no calendar has such a day"),
        ("0 0 31 4,6,9,11 *", "never comes"),
    ],
)
def test_what_is_no_schedule_is_refused_with_a_mend(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_schedule(text, UTC)
    assert words in f"{caught.value.message}; {caught.value.hint}"


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [("22:00-06:00", "22:00", "06:00"), (" 9:30 - 17:00 ", "09:30", "17:00"),
     ("18:00-24:00", "18:00", "00:00"), ("00:00-24:00", "00:00", "00:00"),
     ("23:59-00:00", "23:59", "00:00")],
)  # fmt: skip
def test_a_window_is_read(text: str, start: str, end: str) -> None:
    window = parse_window(text)
    assert (f"{window.start:%H:%M}", f"{window.end:%H:%M}") == (start, end)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 'write it as "22:00-06:00"'),
        ("22-06", 'write it as "22:00-06:00"'),
        ("22:00", 'write it as "22:00-06:00"'),
        ("22:00-6", 'write it as "22:00-06:00"'),
        ("25:00-06:00", "is no window"),
        ("22:60-06:00", "is no window"),
        ("24:00-06:00", "is no window"),
        ("22:00-24:30", "is no window"),
        ("22:00-22:00", "never opens; the whole day is"),
        ("00:00-00:00", "never opens; the whole day is"),
        ("24:00-24:00", "never opens; the whole day is"),
    ],
)
def test_a_window_that_is_none_or_never_opens_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_window(text)
    assert words in f"{caught.value.message}; {caught.value.hint}"


def test_a_zone_is_known_by_its_name() -> None:
    assert parse_zone("utc") is UTC
    assert parse_zone("Europe/Berlin") == BERLIN


@pytest.mark.parametrize(
    "name", ["", "Berlin", "Europe", "../etc/passwd", "/etc/localtime", "a\0b", "x" * 5000]
)
def test_an_unknown_zone_is_refused_with_a_mend(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_zone(name)
    assert "tzdata" in (caught.value.hint or "")


# -- cron against an evaluation of its own -------------------------------------------------------


def spelled(low: int, high: int, names: list[str] | None = None) -> st.SearchStrategy[str]:
    """Fields of a cron line: stars, numbers, ranges, steps, lists, and names where there are any."""

    def name(number: int) -> str:
        return names[(number - low) % len(names)] if names else str(number)

    def stepped(bounds: tuple[int, int], step: int) -> str:
        first, last = sorted(bounds)
        return f"{first}-{last}" + (f"/{step}" if 1 < step <= last - first else "")

    number = st.integers(low, high)
    part = st.one_of(
        number.map(str),
        number.map(name),
        st.builds(stepped, st.tuples(number, number), st.integers(1, high)),
    )
    listed = st.lists(part, min_size=1, max_size=3).map(",".join)
    return st.one_of(st.just("*"), st.integers(1, high - low).map("*/{}".format), listed)


def members(field: str, low: int, high: int, names: list[str] | None = None) -> set[int]:
    """What a field of a cron line stands for, read without the program's help."""
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        ends = [low, high] if span == "*" else [
            low + names.index(end) if names and end in names else int(end)
            for end in span.split("-")
        ]  # fmt: skip
        found |= set(range(ends[0], ends[-1] + 1, int(step or 1)))
    return found


def first_fire(line: str, now: datetime, zone: tzinfo, longest: timedelta) -> datetime | None:
    """The first minute after `now` that a cron line names, found by trying one after another."""
    minute, hour, day, month, weekday = line.split()
    minutes, hours = members(minute, 0, 59), members(hour, 0, 23)
    days, months = members(day, 1, 31), members(month, 1, 12, MONTHS)
    weekdays = {each % 7 for each in members(weekday, 0, 7, DAYS)}
    if weekday.startswith("*/"):
        weekdays = members(weekday, 0, 6)
    is_either = not day.startswith("*") and not weekday.startswith("*")
    each = now.replace(second=0, microsecond=0) + MINUTE
    while each <= now + longest:
        local = each.astimezone(zone)
        named = local.day in days, local.isoweekday() % 7 in weekdays
        if local.month not in months or not (any(named) if is_either else all(named)):
            each += HOUR - each.minute * MINUTE  # zones here begin their days at full hours
        elif local.hour in hours and local.minute in minutes:
            return each
        else:
            each += MINUTE
    return None


lines = st.tuples(
    spelled(0, 59), spelled(0, 23), spelled(1, 31), spelled(1, 12, MONTHS), spelled(0, 7, DAYS)
).map(" ".join)
moments = st.timedeltas(timedelta(0), 2000 * DAY).map(lambda age: at("2024-01-01") + age)


@settings(max_examples=150, deadline=None)
@given(lines, moments)
@example("0 0 * * 7", at("2026-11-25T00:00"))
@example("0 0 * * 0,7", at("2026-11-25T00:00"))
@example("0 0 * * */2", at("2026-11-25T00:00"))
@example("0 0 13 * fri", at("2026-11-25T00:00"))
@example("59 23 31 12 *", at("2026-12-31T23:59"))
@example("* * * * *", at("2026-11-25T15:00:00.000001"))
def test_cron_fires_at_the_first_minute_that_the_line_names(line: str, now: datetime) -> None:
    longest = 366 * DAY
    expected = first_fire(line, now, UTC, longest)
    try:
        schedule = parse_schedule(line, UTC)
    except UsageError:
        assert expected is None
        return
    found = schedule.after(None, now)
    if expected is None:
        assert found is None or found > now + longest
    else:
        assert found == expected


@settings(max_examples=60, deadline=None)
@given(
    spelled(0, 59),
    st.sampled_from(["*", "*/2", "1", "2", "3", "0-4", "2,3"]),
    st.sampled_from([SPRING, AUTUMN]),
    st.timedeltas(-DAY, 6 * HOUR),
)
@example("15", "*", AUTUMN, -30 * MINUTE)
@example("30", "2", AUTUMN, -30 * MINUTE)
def test_cron_misses_no_local_time_where_clocks_are_changed(
    minute: str, hour: str, change: datetime, offset: timedelta
) -> None:
    now, line = change + offset, f"{minute} {hour} * * *"
    found = Timetable(parse_schedule(line, BERLIN), BERLIN).after(None, now)
    expected = first_fire(line, now, BERLIN, 3 * DAY)
    assert found is not None
    assert expected is not None
    if change is SPRING and found != expected:  # made up after the hour that is left out
        assert max(now, SPRING) <= found < min(expected, SPRING + HOUR)
        wall = found.astimezone(BERLIN) - HOUR
        assert wall.minute in members(minute, 0, 59)
        assert wall.hour == 2
    else:
        assert found == expected


@pytest.mark.parametrize("change", [SPRING, AUTUMN])
@pytest.mark.parametrize("windows", [(), ("01:30-04:30",)])
def test_each_fire_leads_on_where_clocks_are_changed(
    change: datetime, windows: tuple[str, ...]
) -> None:
    table = Timetable(
        parse_schedule("15 * * * *", BERLIN), BERLIN, tuple(map(parse_window, windows)), 5 * MINUTE
    )
    found = fires(table, change - 4 * HOUR, 8)
    assert all(one < two for one, two in pairwise(found))
    if not windows:
        assert [each.replace(minute=0, second=0, microsecond=0) for each in found] == [
            change + hours * HOUR for hours in range(-4, 4)
        ]


# -- intervals -----------------------------------------------------------------------------------

intervals = st.timedeltas(timedelta(seconds=1), 40 * DAY)


@given(intervals, moments, st.timedeltas(timedelta(0), 400 * DAY))
def test_an_interval_keeps_to_its_grid_and_makes_up_one_fire_only(
    interval: timedelta, previous: datetime, late: timedelta
) -> None:
    now = previous + late
    due = Timetable(Every(interval)).after(previous, now)
    assert due is not None
    assert (due - previous) % interval == timedelta(0)
    assert now < due <= now + interval


@given(intervals, moments, st.none() | st.timedeltas(timedelta(seconds=1), DAY))
def test_without_a_fire_before_it_the_first_is_an_interval_away(
    interval: timedelta, now: datetime, ahead: timedelta | None
) -> None:
    previous = None if ahead is None else now + ahead
    assert Every(interval).after(previous, now) == now + interval


def test_an_interval_is_the_same_time_where_clocks_are_changed() -> None:
    table = Timetable(Every(6 * HOUR), BERLIN)
    assert {two - one for one, two in pairwise(fires(table, SPRING - DAY, 12))} == {6 * HOUR}


# -- windows -------------------------------------------------------------------------------------


def windows_of(*texts: str, zone: tzinfo = UTC, schedule: str = "@hourly") -> Timetable:
    return Timetable(parse_schedule(schedule, zone), zone, tuple(map(parse_window, texts)))


@pytest.mark.parametrize(
    ("now", "closes", "opens"),
    [
        ("2026-11-25T21:59", None, "2026-11-25T22:00"),
        ("2026-11-25T22:00", "2026-11-26T06:00", "2026-11-25T22:00"),
        ("2026-11-26T00:00", "2026-11-26T06:00", "2026-11-26T00:00"),
        ("2026-11-26T05:59", "2026-11-26T06:00", "2026-11-26T05:59"),
        ("2026-11-26T06:00", None, "2026-11-26T22:00"),
    ],
)
def test_a_window_passes_midnight(now: str, closes: str | None, opens: str) -> None:
    table = windows_of("22:00-06:00")
    assert table.closes(at(now)) == (closes and at(closes))
    assert table.is_open(at(now)) == (closes is not None)
    assert table.opens(at(now)) == at(opens)


def test_without_windows_it_is_always_open() -> None:
    table = windows_of()
    assert table.is_open(at("2026-11-25T12:00"))
    assert table.closes(at("2026-11-25T12:00")) is None
    assert table.opens(at("2026-11-25T12:00")) == at("2026-11-25T12:00")


def test_the_whole_day_never_closes() -> None:
    table = windows_of("00:00-24:00")
    assert all(table.is_open(at("2026-11-25T00:00") + n * MINUTE) for n in range(0, 3000, 7))


def test_of_several_windows_the_first_to_open_counts() -> None:
    table = windows_of("12:00-13:00", "22:00-06:00", "05:00-07:00")
    assert table.opens(at("2026-11-25T08:00")) == at("2026-11-25T12:00")
    assert table.opens(at("2026-11-25T13:00")) == at("2026-11-25T22:00")
    assert table.closes(at("2026-11-26T05:30")) == at("2026-11-26T07:00")


def test_windows_are_in_the_zone() -> None:
    table = windows_of("22:00-06:00", zone=BERLIN)
    assert table.opens(at("2026-11-25T12:00")) == at("2026-11-25T21:00")
    assert table.opens(at("2026-07-25T12:00")) == at("2026-07-25T20:00")


def test_what_is_due_outside_waits_for_the_next_window() -> None:
    table = windows_of("22:00-06:00", schedule="0 12 * * *")
    assert fires(table, at("2026-11-25T10:00"), 3) == [
        at("2026-11-25T22:00"), at("2026-11-26T22:00"), at("2026-11-27T22:00"),
    ]  # fmt: skip


def test_a_window_within_the_hour_that_is_left_out_opens_the_day_after() -> None:
    for text in ("02:00-03:00", "02:30-03:15"):
        table = windows_of(text, zone=BERLIN)
        opens = at(f"2026-03-30T{text[:5]}", BERLIN).astimezone(UTC)
        assert table.opens(SPRING - 2 * HOUR) == opens
        assert not table.is_open(SPRING)


def test_a_window_in_the_hour_that_comes_twice_is_open_for_both() -> None:
    table = windows_of("02:15-03:00", zone=BERLIN)
    opens = [n for n in range(180) if table.is_open(AUTUMN - 90 * MINUTE + n * MINUTE)]
    assert opens == list(range(45, 150))


windows = st.builds(Window, st.times().map(lambda t: t.replace(second=0, microsecond=0)),
                    st.times().map(lambda t: t.replace(second=0, microsecond=0)))  # fmt: skip
schedules = st.one_of(
    intervals.map(Every),
    st.sampled_from(["@hourly", "30 2 * * *", "*/7 1-3 * * *", "@weekly", "0 0 1 * 1"]).map(
        lambda text: parse_schedule(text, BERLIN)
    ),
)
changes = st.builds(
    lambda change, offset: change + offset,
    st.sampled_from([SPRING, AUTUMN]),
    st.timedeltas(-2 * DAY, 2 * DAY),
)


@settings(max_examples=300, deadline=None)
@given(
    schedules,
    st.lists(windows, max_size=3),
    st.one_of(moments, changes),
    st.none() | st.timedeltas(timedelta(0), 3 * DAY),
    st.timedeltas(timedelta(0), DAY),
)
def test_a_fire_is_after_now_in_a_window_and_in_its_jitter(
    schedule: Every | Cron,
    open_: list[Window],
    now: datetime,
    since: timedelta | None,
    jitter: timedelta,
) -> None:
    previous = None if since is None else now - since
    calm = Timetable(schedule, BERLIN, tuple(open_))
    at_best = calm.after(previous, now)
    due = Timetable(schedule, BERLIN, tuple(open_), jitter).after(previous, now)
    assert at_best is not None
    assert due is not None
    assert now < at_best <= due <= at_best + jitter
    assert due.tzinfo is UTC
    assert calm.is_open(at_best)
    assert calm.is_open(due)


@settings(max_examples=200, deadline=None)
@given(windows, st.one_of(moments, changes))
def test_a_window_is_open_at_the_local_times_that_it_names(window: Window, now: datetime) -> None:
    local = now.astimezone(BERLIN)
    offsets = {(now + n * HOUR).astimezone(BERLIN).utcoffset() for n in range(-26, 27)}
    assume(len(offsets) == 1)
    wall = local.time()
    if window.start < window.end:
        expected = window.start <= wall < window.end
    else:
        expected = wall >= window.start or wall < window.end
    assert Timetable(Every(DAY), BERLIN, (window,)).is_open(now) == expected


# -- jitter --------------------------------------------------------------------------------------


def test_jitter_spreads_over_all_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Timetable(parse_schedule("@daily", UTC), jitter=10 * MINUTE)
    now = at("2026-11-25T15:00")
    monkeypatch.setattr(random, "random", lambda: 0.0)
    assert table.after(None, now) == at("2026-11-26T00:00")
    monkeypatch.setattr(random, "random", lambda: 0.5)
    assert table.after(None, now) == at("2026-11-26T00:05")


def test_jitter_leaves_half_of_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Timetable(
        parse_schedule("@daily", UTC), UTC, (parse_window("02:00-03:00"),), jitter=10 * HOUR
    )
    monkeypatch.setattr(random, "random", lambda: 0.999)
    due = table.after(None, at("2026-11-25T15:00"))
    assert due is not None
    assert at("2026-11-26T02:29") < due <= at("2026-11-26T02:30")
