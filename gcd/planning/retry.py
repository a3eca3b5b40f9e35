"""When a sweep that failed for a passing reason is tried again.

It must never give up: what is purged is owed.
"""

from __future__ import annotations

from datetime import datetime, timedelta

FIRST = timedelta(minutes=1)
LONGEST = timedelta(hours=6)


def next_attempt(attempts: int, now: datetime) -> datetime:
    """The time of the next attempt after `attempts` that failed: a minute, doubled, at most 6 h."""
    doublings = min(max(attempts, 1) - 1, 16)
    return now + min(FIRST * (1 << doublings), LONGEST)
