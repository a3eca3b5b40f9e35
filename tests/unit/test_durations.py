"""Durations and milliseconds: what is written is what is meant, or refused with an example."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gcd.durations import LONGEST, format_duration, from_millis, parse_duration, to_millis
from gcd.errors import UsageError

durations = st.timedeltas(min_value=timedelta(0), max_value=LONGEST)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30d", timedelta(days=30)),
        ("0s", timedelta(0)),
        ("1d2h3m4s", timedelta(days=1, hours=2, minutes=3, seconds=4)),
        ("2d8h5m20s", timedelta(days=2, hours=8, minutes=5, seconds=20)),
        ("1.5d", timedelta(hours=36)),
        (".5h", timedelta(minutes=30)),
        ("2.h", timedelta(hours=2)),
        ("2w", timedelta(days=14)),
        ("1w1d", timedelta(days=8)),
        ("250ms", timedelta(milliseconds=250)),
        ("1m250ms", timedelta(minutes=1, milliseconds=250)),
        ("30D", timedelta(days=30)),
        ("1W2H3S4MS", timedelta(weeks=1, hours=2, seconds=3, milliseconds=4)),
        ("90m", timedelta(minutes=90)),
        (" 1h 30m ", timedelta(minutes=90)),
        ("0.1s", timedelta(milliseconds=100)),
        ("365000d", LONGEST),
    ],
)
def test_durations_are_read(text: str, expected: timedelta) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("30", "did you mean 30d?"),
        ("0", "did you mean 0d?"),
        ("1.5", "did you mean 1.5d?"),
        ("", "empty"),
        ("  ", "empty"),
        ("-1d", "negative"),
        ("-1", "negative"),
        ("-.5h", "negative"),
        ("nan", "no duration"),
        ("nand", "no duration"),
        ("inf", "no duration"),
        ("infd", "no duration"),
        ("1e3d", "unknown unit 'e'"),
        ("7 weeks ago", "no duration"),
        ("1.2.3d", "no duration"),
        ("1_000d", "no duration"),
        ("+1d", "no duration"),
        ("1d,2h", "no duration"),
        ("1d\n2h", "no duration"),
        ("٣d", "no duration"),
        ("d", "no duration"),
        ("1y", "unknown unit 'y'"),
        ("1dd", "unknown unit 'dd'"),
        ("6M", "months"),
        ("1h1h", "twice"),
        ("1h1H", "twice"),
        ("1h2d", "smaller one before a larger"),
        ("1ms1s", "smaller one before a larger"),
        ("365001d", "longest"),
        ("9" * 90 + "w", "longest"),
        ("9" * 5000 + "d", "no duration"),
    ],
)
def test_what_is_no_duration_is_refused_with_an_example(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_duration(text)
    assert words in caught.value.message
    assert len(caught.value.message) < 120
    assert '"30d"' in str(caught.value.hint)


def test_an_age_is_never_rounded_down_to_nothing() -> None:
    assert parse_duration("0.0000000001s") == timedelta(microseconds=1)
    assert parse_duration("0.0000d") == timedelta(0)


@given(st.text(alphabet="0123456789.wdhms -MDeE+", max_size=12))
def test_any_text_is_a_duration_or_a_usage_error(text: str) -> None:
    try:
        found = parse_duration(text)
    except UsageError:
        return
    assert timedelta(0) <= found <= LONGEST


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(days=30), "30d"),
        (timedelta(minutes=90), "1h 30m"),
        (timedelta(hours=24), "1d"),
        (timedelta(0), "0s"),
        (timedelta(milliseconds=1500), "1s 500ms"),
        (timedelta(microseconds=1500), "1.5ms"),
        (timedelta(microseconds=20), "0.02ms"),
        (timedelta(milliseconds=100), "100ms"),
        (timedelta(days=-1, hours=-2), "-1d 2h"),
    ],
)
def test_durations_are_written(duration: timedelta, text: str) -> None:
    assert format_duration(duration) == text


@given(durations)
@example(LONGEST)
@example(timedelta(microseconds=1))
def test_what_is_written_is_read_back(duration: timedelta) -> None:
    assert parse_duration(format_duration(duration)) == duration


@given(durations)
def test_ages_can_be_taken_from_any_date_of_ours(duration: timedelta) -> None:
    for now in (datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)):
        assert to_millis(now - duration) <= to_millis(now) <= to_millis(now + duration)


def test_milliseconds_become_times_in_utc() -> None:
    found = from_millis(1_700_000_000_123)
    assert found == datetime(2023, 11, 14, 22, 13, 20, 123_000, tzinfo=UTC)
    assert found is not None
    assert found.tzinfo is UTC
    assert from_millis(-1) == datetime(1969, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), 10**30, 253_402_300_800_000])
def test_milliseconds_that_no_time_has_are_none(number: int) -> None:
    assert from_millis(number) is None


def test_the_last_millisecond_is_a_time() -> None:
    assert from_millis(253_402_300_799_999) == datetime(
        9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC
    )


@given(st.integers(-62_135_596_800_000, 253_402_300_799_999))
def test_milliseconds_survive_exactly(number: int) -> None:
    found = from_millis(number)
    assert found is not None
    assert to_millis(found) == number


def test_milliseconds_are_rounded_down_and_know_time_zones() -> None:
    assert to_millis(datetime(1970, 1, 1, 0, 0, 0, 1999, tzinfo=UTC)) == 1
    east = timezone(timedelta(hours=2))
    assert to_millis(datetime(1970, 1, 1, 2, tzinfo=east)) == 0
    with pytest.raises(TypeError):
        to_millis(datetime(1970, 1, 1))  # noqa: DTZ001, a naive time is what is refused
