"""Watches one cycle for the daemon: its pulse, its log, and its numbers as they grow.

It must never slow the cycle down, nor fail it.
"""

from __future__ import annotations

import logging

from gcd.daemon.metrics import Metrics
from gcd.daemon.pulse import Pulse
from gcd.model import Candidate, Kind, Outcome, Result
from gcd.observer import Observer
from gcd.planning.plan import Plan
from gcd.planning.policy import Keep

logger = logging.getLogger(__name__)


class Watcher(Observer):
    """The observer of a cycle that nobody looks at."""

    def __init__(self, store: str, pulse: Pulse, metrics: Metrics) -> None:
        self._store = store
        self._pulse = pulse
        self._metrics = metrics
        self.cycle: int | None = None

    def began(self, cycle: int) -> None:
        """The cycle has its number."""
        self.cycle = cycle
        self._info("cycle %d begins", cycle)

    def planned(self, plan: Plan) -> None:
        """A page was planned."""
        self._pulse.beat(self._store)
        logger.debug(
            "planned: %d to collect, %d to keep",
            len(plan.collect),
            len(plan.keep),
            extra=self._fields(None),
        )

    def purged(self, kind: Kind, count: int, rows: int) -> None:
        """A batch was purged."""
        self._pulse.beat(self._store)
        self._metrics.purged(self._store, kind, count, rows)
        if count:
            self._info("purged %d of kind %s, %d rows", count, kind.value, rows)

    def kept(self, candidate: Candidate, keep: Keep) -> None:
        """An entity that the plan collected is kept after all."""
        what = candidate.kind.value
        self._info("kept %s, %s: %s", what, keep.reason.value, keep.detail, entity=candidate.id)

    def swept(self, outcome: Outcome) -> None:
        """An entry was swept, or not."""
        self._pulse.beat(self._store)
        self._metrics.swept(self._store, outcome)
        if outcome.result is not Result.SWEPT:
            entry = outcome.entry
            extra = self._fields(entry.entity_id)
            what = outcome.result.value, entry.kind.value, outcome.error
            logger.warning("%s: files of a %s: %s", *what, extra=extra)

    def moves(self) -> None:
        """The cycle does not hang."""
        self._pulse.beat(self._store)

    def _info(self, text: str, *arguments: object, entity: str | None = None) -> None:
        logger.info(text, *arguments, extra=self._fields(entity))

    def _fields(self, entity: str | None) -> dict[str, object]:
        return {"store": self._store, "cycle": self.cycle, "entity": entity}
