"""What age and state say about a candidate.

It must never look at where its files are: that is the guard's and the gate's.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from gcd.durations import format_duration
from gcd.model import Candidate, KeepReason


class RunsOfLiveModels(StrEnum):
    """What to do with a deleted run whose metrics belong to a live logged model."""

    KEEP = "keep"
    COLLECT_RUN = "collect_run"


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator wants collected."""

    older_than: timedelta
    runs_of_live_models: RunsOfLiveModels = RunsOfLiveModels.KEEP
    running_grace: timedelta = timedelta(days=1)
    """MLflow accepts uploads to a deleted run: one that was active this recently is kept."""


@dataclass(frozen=True, slots=True)
class Keep:
    """One reason to keep a candidate, with what is particular to this one."""

    reason: KeepReason
    detail: str


def judge(candidate: Candidate, policy: Policy, now: datetime) -> tuple[Keep, ...]:
    """Every reason of age and state to keep it; none means that nothing speaks against it."""
    found = (
        feeds_live_model(candidate, policy),
        still_running(candidate, policy, now),
        undated(candidate, policy, now),
        too_young(candidate, policy, now),
    )
    return tuple(keep for keep in found if keep is not None)


def feeds_live_model(candidate: Candidate, policy: Policy) -> Keep | None:
    """Metrics have the run in their key and a foreign key on it: they would go with it."""
    if candidate.feeds is None or policy.runs_of_live_models is not RunsOfLiveModels.KEEP:
        return None
    detail = f"its metrics belong to the live logged model {candidate.feeds} and would go with it"
    return Keep(KeepReason.FEEDS_LIVE_MODEL, detail)


def still_running(candidate: Candidate, policy: Policy, now: datetime) -> Keep | None:
    """A client may still be uploading; without a sign of when it was active, it may."""
    if not candidate.is_running:
        return None
    active_at = candidate.last_active_at
    if active_at is None:
        return Keep(KeepReason.STILL_RUNNING, "its status is RUNNING; nothing says since when")
    if active_at < now - policy.running_grace:
        return None
    return Keep(KeepReason.STILL_RUNNING, f"its status is RUNNING, active at {told(active_at)}")


def undated(candidate: Candidate, policy: Policy, now: datetime) -> Keep | None:
    """Without a stamp it ages from when gcd first saw it; an age of zero needs no stamp."""
    if candidate.deleted_at is not None or policy.older_than == timedelta(0):
        return None
    first = candidate.first_seen_at
    if first is None:
        detail = "MLflow left no deletion time; it ages from the first `gcd gc` that sees it"
        return Keep(KeepReason.UNDATED, detail)
    if first + policy.older_than <= now:
        return None
    due = told(first + policy.older_than)
    return Keep(KeepReason.UNDATED, f"no deletion time; first seen {told(first)}, due {due}")


def too_young(candidate: Candidate, policy: Policy, now: datetime) -> Keep | None:
    """Deleted after now, or less than the age ago; due exactly at its end."""
    deleted_at = candidate.deleted_at
    if deleted_at is None:
        return None
    if deleted_at > now:
        detail = f"deleted at {told(deleted_at)}, which is after the database's {told(now)}"
        return Keep(KeepReason.FROM_THE_FUTURE, detail)
    due = deleted_at + policy.older_than
    if due <= now:
        return None
    age = format_duration(timedelta(seconds=int((now - deleted_at).total_seconds())))
    return Keep(KeepReason.TOO_YOUNG, f"deleted {age} ago, due {told(due)}")


def told(at: datetime) -> str:
    """A time for people."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
