"""Whose turn it is: whether a call starts a cycle here, or what to wait for. Pure.

It must never start a second cycle for one fire, nor let a cycle that died be forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

LOOK_AGAIN = timedelta(seconds=60)
"""When to look at a store again where another collector is at work: it may die."""
LONGEST_WAIT = timedelta(minutes=30)
"""The longest back-off for a store that does not answer."""
MOST_DEATHS = 3
"""Cycles in a row that were killed, after which only the schedule starts another: a crash loop must
not become a delete loop."""


class Call(StrEnum):
    """Why a store gets its turn."""

    DUE = "due"
    """Its schedule has fired."""
    LOOK = "look"
    """Nothing is known to be due; something may have been missed, or somebody may have died."""
    START = "start"
    """The daemon has started, and is to collect then."""


@dataclass(frozen=True, slots=True)
class Wait:
    """No cycle now: when to call again, and as what."""

    until: datetime
    call: Call = Call.DUE


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at a store found."""

    due_at: datetime | None = None
    """When its next cycle is due, where some daemon has said so."""
    holder: str | None = None
    """Who collects now."""
    is_abandoned: bool = False
    """Its last cycle never ended, and nobody collects."""
    deaths: int = 0
    """How many of its last cycles in a row were killed, an abandoned one included."""


def wait_for(seen: Seen, call: Call, now: datetime, own: datetime) -> Wait | None:
    """What to wait for, None where a cycle starts now.

    `own` is when this daemon's own schedule fires next.
    """
    if seen.holder is not None:
        return soon(now + LOOK_AGAIN, own)
    if seen.is_abandoned and seen.deaths < MOST_DEATHS:
        return None
    if call is Call.START and seen.deaths == 0:
        return None
    if seen.due_at is None:
        return None if call is Call.DUE else Wait(own)
    return Wait(seen.due_at) if seen.due_at > now else None


def soon(at: datetime, own: datetime) -> Wait:
    """A look at a time, unless the schedule fires before."""
    return Wait(at, Call.LOOK) if at < own else Wait(own)


def back_off(failures: int, now: datetime, own: datetime) -> Wait:
    """When to try a store again that did not answer `failures` times in a row."""
    wait: timedelta = min(LOOK_AGAIN * 2 ** min(failures - 1, 10), LONGEST_WAIT)
    return soon(now + wait, own)
