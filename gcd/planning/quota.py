"""How much one cycle may collect: a quota takes the oldest, a fuse refuses all of it.

It must never add to a plan.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from gcd.errors import FuseBlown
from gcd.model import Candidate, KeepReason, Kind
from gcd.planning.plan import Plan
from gcd.planning.policy import Keep

MOST = 200_000
"""Entities that a quota of bytes chooses among in one cycle: bounds its memory."""
UNDATED = datetime(1970, 1, 1, tzinfo=UTC)
"""Without a stamp an entity is from before MLflow wrote them: it is among the oldest."""

OVER = Keep(KeepReason.OVER_QUOTA, "this cycle's quota goes to what was deleted earlier")

Key = tuple[Kind, str]


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits of one cycle; None is no limit."""

    max_entities: int | None = None
    max_bytes: int | None = None
    max_duration: timedelta | None = None

    @property
    def chooses(self) -> bool:
        """Whether what is to be collected has to be known before the first purge."""
        return self.max_entities is not None or self.max_bytes is not None


@dataclass(slots=True)
class Choice:
    """The oldest of what plans collect, as much as a quota allows; fed page by page."""

    quota: Quota
    passed_over: Collection[Key] = ()
    """What is left for a later cycle whatever its age."""
    seen: int = 0
    """How many were to be collected before the quota."""
    _oldest: list[tuple[float, Kind, str, int]] = field(default_factory=list)
    """A heap with the newest of the chosen on top: (minus seconds, kind, id, bytes)."""
    _bound: dict[str, int] = field(default_factory=dict)
    """Experiment to the bytes of the runs that go only with it: they count as a part of it."""

    def add(self, plan: Plan, sizes: Mapping[str, int]) -> None:
        """Look at a page; `sizes` has the bytes of each entity, where the quota needs them."""
        most = MOST if self.quota.max_entities is None else self.quota.max_entities
        for decision in plan.collect:
            each = decision.candidate
            self.seen += 1
            if (each.kind, each.id) in self.passed_over:
                continue
            if each.goes_with:
                bound = each.goes_with[0]
                self._bound[bound] = self._bound.get(bound, 0) + sizes.get(each.id, 0)
                continue
            item = (-age_key(each), each.kind, each.id, sizes.get(each.id, 0))
            heapq.heappush(self._oldest, item)
            if len(self._oldest) > most:
                heapq.heappop(self._oldest)

    def chosen(self) -> set[Key]:
        """What the quota allows: oldest first, up to the first that does not fit."""
        allowed: set[Key] = set()
        size = 0
        for _, kind, entity, bytes_ in sorted(self._oldest, reverse=True):
            size += bytes_ + (self._bound.get(entity, 0) if kind is Kind.EXPERIMENT else 0)
            if self.quota.max_bytes is not None and size > self.quota.max_bytes:
                break
            allowed.add((kind, entity))
        return allowed


def age_key(candidate: Candidate) -> float:
    """Seconds since 1970 of an entity's deletion."""
    return (candidate.deleted_at or candidate.first_seen_at or UNDATED).timestamp()


def within(plan: Plan, chosen: Collection[Key]) -> Plan:
    """The plan with only what was chosen collected."""
    over = {
        each.candidate.id: OVER for each in plan.collect if not is_chosen(each.candidate, chosen)
    }
    return plan.without(over)


def is_chosen(candidate: Candidate, chosen: Collection[Key]) -> bool:
    """Whether a quota allows an entity, or the experiments that it goes only with.

    What is in an experiment that goes is allowed with it: once its models are gone, nothing tells any
    more that a run was to go only with them.
    """
    if candidate.goes_with:
        return all((Kind.EXPERIMENT, each) in chosen for each in candidate.goes_with)
    is_inside = candidate.is_in_deleted and (Kind.EXPERIMENT, candidate.experiment_id) in chosen
    return is_inside or (candidate.kind, candidate.id) in chosen


def check_fuse(planned: int, total: int, max_share: float | None) -> None:
    """Raise FuseBlown where a plan is a larger share of a store than is allowed."""
    if max_share is None or planned == 0 or planned <= max_share * total:
        return
    raise FuseBlown(
        f"{planned:,} of the store's {total:,} entities would be collected, "
        f"more than the allowed share of {max_share:g}",
        hint="look at `gcd plan`; if it is right, raise fuse.max_share, or collect in steps by --limit",
    )
