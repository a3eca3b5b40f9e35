"""The host's clock, read here and nowhere else.

It must never decide what is old: ages are judged by the database's time, which comes from `store/`.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime


def utc_now() -> datetime:
    """The host's time, aware, in UTC."""
    return datetime.now(UTC)


def monotonic() -> float:
    """Seconds on a clock that is never set back, for measuring how long something took.

    On Linux it stands still while the machine is suspended.
    """
    return time.monotonic()


def boottime() -> float:
    """Seconds on a clock that is never set back and goes on while the machine is suspended.

    Time-outs that others rely on are measured by it: the lease's term runs out in the database too.
    """
    # macOS has no CLOCK_BOOTTIME; its monotonic clock counts the time asleep.
    number = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(number)
