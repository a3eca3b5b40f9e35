"""What a cycle tells of itself while it runs, and what it counts.

It must never change what the cycle does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from gcd.model import Candidate, KeepReason, Kind, Outcome, Result, Usage
from gcd.planning.plan import Plan
from gcd.planning.policy import Keep


class Observer(Protocol):
    """Somebody who wants to know how far a cycle is."""

    def began(self, cycle: int) -> None:
        """The cycle has its number."""

    def planned(self, plan: Plan) -> None:
        """A page was planned."""

    def purged(self, kind: Kind, count: int, rows: int) -> None:
        """A batch was purged."""

    def kept(self, candidate: Candidate, keep: Keep) -> None:
        """An entity that was to be collected is kept after all."""

    def swept(self, outcome: Outcome) -> None:
        """An entry was swept, or not."""

    def moves(self) -> None:
        """It goes on within a step, or waits on purpose: it does not hang. Any thread may say so."""


@dataclass(slots=True)
class Tally:
    """What a cycle has done so far."""

    candidates: int = 0
    purged: Counter[Kind] = field(default_factory=Counter)
    rows: int = 0
    usage: Usage = field(default_factory=Usage)
    results: Counter[Result] = field(default_factory=Counter)
    kept: Counter[KeepReason] = field(default_factory=Counter)
    already_empty: int = 0
