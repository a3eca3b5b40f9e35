"""What age and state say about a candidate.

It must never look at where its files are: that is the guard's and the gate's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from gcd.durations import format_duration, parse_duration
from gcd.errors import UsageError
from gcd.model import Candidate, KeepReason, Kind
from gcd.planning.patterns import matches

DEFAULT_EXPERIMENT = "0"


class RunsOfLiveModels(StrEnum):
    """What to do with a deleted run whose metrics belong to a logged model that stays."""

    KEEP = "keep"
    COLLECT_RUN = "collect_run"
    COLLECT_BOTH = "collect_both"
    """The model too, where the run made it and nothing else that is live uses it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator wants collected."""

    older_than: timedelta
    runs_of_live_models: RunsOfLiveModels = RunsOfLiveModels.KEEP
    running_grace: timedelta = timedelta(days=1)
    """MLflow accepts uploads to a deleted run: one that was active this recently is kept."""
    ages: tuple[tuple[str, timedelta], ...] = ()
    """Patterns of experiments' names, each with the age of what is in those."""
    shortest: timedelta | None = None
    """To what an age of an experiment's own may shorten `older_than`; None: not at all."""
    exclude: tuple[str, ...] = ()
    """Patterns of the names of experiments of which nothing is collected."""

    @property
    def patterns(self) -> dict[str, tuple[str, ...]]:
        """Every pattern of names, by the key of the configuration that has it."""
        ages = tuple(pattern for pattern, _ in self.ages)
        return {"retention.ages": ages, "retention.exclude": self.exclude}


@dataclass(frozen=True, slots=True)
class Keep:
    """One reason to keep a candidate, with what is particular to this one."""

    reason: KeepReason
    detail: str


def judge(candidate: Candidate, policy: Policy, now: datetime) -> tuple[Keep, ...]:
    """Every reason of age and state to keep it; none means that nothing speaks against it."""
    found = (
        excluded(candidate, policy),
        default_experiment(candidate),
        *inhabited(candidate),
        feeds_live_model(candidate, policy),
        still_running(candidate, policy, now),
        undated(candidate, policy, now),
        too_young(candidate, policy, now),
    )
    return tuple(keep for keep in found if keep is not None)


def judge_member(candidate: Candidate, policy: Policy, now: datetime) -> tuple[Keep, ...]:
    """The same for what goes with its experiment: it may have come after that was judged."""
    young = too_young(candidate, policy, now)
    return () if young is None else (young,)


def excluded(candidate: Candidate, policy: Policy) -> Keep | None:
    """Its experiment is one that the operator wants left alone."""
    name = candidate.experiment or ""
    pattern = next((each for each in policy.exclude if matches(name, each)), None)
    if pattern is None:
        return None
    return Keep(KeepReason.EXCLUDED, f"its experiment {name} matches {pattern!r} in exclude")


def default_experiment(candidate: Candidate) -> Keep | None:
    """MLflow makes experiment 0 again if it is gone, and needs it."""
    if candidate.kind is not Kind.EXPERIMENT or candidate.id != DEFAULT_EXPERIMENT:
        return None
    detail = "MLflow's default experiment is never collected, only the deleted runs in it"
    return Keep(KeepReason.DEFAULT_EXPERIMENT, detail)


def inhabited(candidate: Candidate) -> Iterator[Keep]:
    """What is live in an experiment keeps all that goes only with it."""
    contents = candidate.contents
    if contents is None:
        return
    if contents.live_runs:
        are = "run in it is" if contents.live_runs == 1 else "runs in it are"
        yield Keep(KeepReason.HAS_LIVE_CHILDREN, f"{contents.live_runs:,} {are} not deleted")
    if contents.live_model:
        detail = f"something live uses the logged model {contents.live_model} in it"
        yield Keep(KeepReason.HAS_LIVE_CHILDREN, detail)
    if contents.guarding:
        detail = f"a guardrail of a gateway endpoint needs the scorer {contents.guarding} in it"
        yield Keep(KeepReason.IN_USE, detail)


def feeds_live_model(candidate: Candidate, policy: Policy) -> Keep | None:
    """Metrics have the run in their key and a foreign key on it: they would go with it."""
    if not candidate.feeds or policy.runs_of_live_models is RunsOfLiveModels.COLLECT_RUN:
        return None
    model, *more = candidate.feeds
    others = f" and {len(more)} more" if more else ""
    stay = "which stay" if more else "which stays"
    detail = f"its metrics belong to the logged model {model}{others}, {stay}, and would go with it"
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


def required_age(candidate: Candidate, policy: Policy) -> timedelta:
    """How long ago it must have been deleted: the longest age that was asked for counts.

    An experiment's own age, by its tag or by a pattern, shortens the general one only down to
    `shortest`. Raises UsageError where the tag is no duration.
    """
    name = candidate.experiment or ""
    own = [age for pattern, age in policy.ages if matches(name, pattern)]
    if candidate.own_age is not None:
        own.append(parse_duration(candidate.own_age))
    if not own:
        return policy.older_than
    if max(own) >= policy.older_than:
        return max(own)
    if policy.shortest is None:
        return policy.older_than
    return max(*own, min(policy.shortest, policy.older_than))


def undated(candidate: Candidate, policy: Policy, now: datetime) -> Keep | None:
    """Without a stamp it ages from when gcd first saw it; an age of zero needs no stamp."""
    if candidate.deleted_at is not None or (age := safe_age(candidate, policy)) is None:
        return None
    if age == timedelta(0):
        return None
    first = candidate.first_seen_at
    if first is None:
        detail = "MLflow left no deletion time; it ages from the first `gcd gc` that sees it"
        return Keep(KeepReason.UNDATED, detail)
    if first + age <= now:
        return None
    detail = f"no deletion time; first seen {told(first)}, due {told(first + age)}"
    return Keep(KeepReason.UNDATED, detail)


def too_young(candidate: Candidate, policy: Policy, now: datetime) -> Keep | None:
    """Deleted after now, or less than the age ago; due exactly at its end."""
    deleted_at, age = candidate.deleted_at, safe_age(candidate, policy)
    if age is None:
        detail = f"the tag gcd.older_than of its experiment is no duration: {candidate.own_age!r}"
        return Keep(KeepReason.TOO_YOUNG, detail)
    if deleted_at is None:
        return None
    if deleted_at > now:
        detail = f"deleted at {told(deleted_at)}, which is after the database's {told(now)}"
        return Keep(KeepReason.FROM_THE_FUTURE, detail)
    if deleted_at + age <= now:
        return None
    ago = format_duration(timedelta(seconds=int((now - deleted_at).total_seconds())))
    due = told(deleted_at + age)
    longer = (
        f" (its experiment's age is {format_duration(age)})" if age != policy.older_than else ""
    )
    return Keep(KeepReason.TOO_YOUNG, f"deleted {ago} ago, due {due}{longer}")


def safe_age(candidate: Candidate, policy: Policy) -> timedelta | None:
    """The age that it needs, None where its experiment's tag cannot be read: then it stays."""
    try:
        return required_age(candidate, policy)
    except UsageError:
        return None


def told(at: datetime) -> str:
    """A time for people."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
