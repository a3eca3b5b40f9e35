"""Reads and writes durations ("30d", "1h 30m"), and MLflow's milliseconds since 1970.

It must never round an age down: what somebody asked to keep for a moment is not due at once.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import ceil

from gcd.errors import UsageError

UNITS = {
    "w": timedelta(weeks=1),
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
}
"""In the order in which a text has them."""
EXAMPLE = 'write it as "30d", "12h" or "1d2h30m"; the units are w, d, h, m, s and ms'
LONGEST = timedelta(days=365_000)
"""A thousand years: the most that can be taken from today's date, with room to spare."""

_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_PART = re.compile(rf"({_NUMBER})([A-Za-z]+)")
_WHOLE = re.compile(rf"{_NUMBER}[A-Za-z]+(?: *{_NUMBER}[A-Za-z]+)*")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TICK = timedelta(microseconds=1)


def parse_duration(text: str) -> timedelta:
    """The duration that a text such as "30d", "1.5h" or "1d2h3m4s" names; "0s" is none at all.

    The grammar is that of `mlflow gc --older-than`, and weeks, milliseconds, capital letters and
    spaces between the parts. Fractions of a microsecond are rounded up. Raises UsageError, with an
    example, for everything else: a bare number, a sign, units repeated or out of order, and what
    is longer than LONGEST.
    """
    written = text.strip()
    if len(written) > 100 or not _WHOLE.fullmatch(written):
        raise _refused(written)
    parts = [(Fraction(number), _unit(unit, written)) for number, unit in _PART.findall(written)]
    order = [list(UNITS).index(unit) for _, unit in parts]
    if order != sorted(set(order)):
        raise _wrong(written, "has a unit twice, or a smaller one before a larger one")
    ticks = ceil(sum(number * (UNITS[unit] // _TICK) for number, unit in parts))
    if ticks > LONGEST // _TICK:
        raise _wrong(written, f"is longer than {format_duration(LONGEST)}, the longest there is")
    return timedelta(microseconds=ticks)


def format_duration(duration: timedelta) -> str:
    """A duration for people, which `parse_duration` reads back: "30d", "1h 30m", "0s"."""
    if duration < timedelta(0):
        return f"-{format_duration(-duration)}"
    parts = []
    for unit in ("d", "h", "m", "s"):
        count, duration = divmod(duration, UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
    if duration:
        whole, rest = divmod(duration // _TICK, 1000)
        parts.append(f"{whole}.{rest:03}".rstrip("0").rstrip(".") + "ms")
    return " ".join(parts) or "0s"


def from_millis(milliseconds: int) -> datetime | None:
    """The time that MLflow writes as milliseconds since 1970, in UTC.

    None for what no datetime can hold: MLflow's columns take any 64-bit number.
    """
    try:
        return _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return None


def to_millis(at: datetime) -> int:
    """Whole milliseconds since 1970 of an aware time, rounded down; no float is involved."""
    return (at - _EPOCH) // timedelta(milliseconds=1)


def _unit(unit: str, written: str) -> str:
    if unit == "M":
        raise _wrong(written, "has the unit M: minutes are m, and months differ in length")
    if unit.lower() not in UNITS:
        raise _wrong(written, f"has the unknown unit {unit!r}")
    return unit.lower()


def _refused(written: str) -> UsageError:
    """Why a text has not even the form of a duration."""
    if not written:
        return UsageError("the duration is empty", hint=EXAMPLE)
    if re.fullmatch(_NUMBER, written):
        return _wrong(written, f"has no unit; did you mean {written[:20]}d?")
    if re.match(rf"-{_NUMBER}", written):
        return _wrong(written, "is negative")
    return _wrong(written, "is no duration")


def _wrong(written: str, why: str) -> UsageError:
    shown = written if len(written) <= 40 else written[:37] + "..."
    return UsageError(f"{shown!r} {why}", hint=EXAMPLE)
