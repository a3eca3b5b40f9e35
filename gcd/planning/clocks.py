"""Whether the clock that ages are told by has jumped since the last cycle. Pure.

A clock that is a month ahead would collect what was deleted a minute ago.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from gcd.durations import format_duration

MOST_JUMP = timedelta(hours=1)
"""How far a clock may move beyond the time that has passed: NTP corrects less, and drift is slower."""
SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Reading:
    """What two clocks showed at one moment."""

    boot: str
    """The id of the host's boot; "-" where there is none."""
    running: timedelta
    """How long the host had been running then, time asleep included."""
    at: datetime
    """The database's time."""


def why_ahead(before: Sequence[Reading], now: Reading) -> str | None:
    """How the database's clock has jumped ahead since the last reading in this boot of the host."""
    jump = jumped(before, now)
    if jump is None or jump <= MOST_JUMP:
        return None
    return (
        f"the database's clock shows {moment(now.at)}: since the last cycle it has gone ahead by "
        f"{shown(jump)} more than time has passed on this host"
    )


def why_behind(before: Sequence[Reading], now: Reading, newest: datetime | None) -> str | None:
    """How the clock was set back, where something was deleted later than it shows.

    Then ages are told by two clocks, and one of them is wrong. A stamp in the future alone is no
    reason: it may be one bad row, which is kept by itself.
    """
    if newest is None or newest <= now.at:
        return None
    jump = jumped(before, now)
    if jump is None and before:  # the host was booted since
        jump = min(timedelta(0), now.at - max(each.at for each in before))
    if jump is None or jump >= -MOST_JUMP:
        return None
    return (
        f"the database's clock shows {moment(now.at)}: it was set back by {shown(-jump)} since the "
        f"last cycle, and the newest deletion is of {moment(newest)}"
    )


def jumped(before: Sequence[Reading], now: Reading) -> timedelta | None:
    """By how much the database's clock went ahead of the host's uptime; None where nothing tells.

    Without a boot of its own, or with an uptime that went back, a reading is not comparable.
    """
    for each in before:
        if each.boot == now.boot != "-" and each.running <= now.running:
            return (now.at - each.at) - (now.running - each.running)
    return None


def moment(at: datetime) -> str:
    """A time for people."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def shown(duration: timedelta) -> str:
    """A duration for people, in whole seconds."""
    return format_duration(duration - duration % SECOND)
