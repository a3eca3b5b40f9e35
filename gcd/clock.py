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
    """Seconds on a clock that is never set back, for measuring how long something took."""
    return time.monotonic()
