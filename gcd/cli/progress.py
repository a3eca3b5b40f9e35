"""Shows how far a cycle is: a bar on a terminal, a plain line now and then elsewhere.

It must never slow a cycle down, or fail it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from gcd import clock
from gcd.cli.named import Named
from gcd.cli.words import counted, noun
from gcd.logs import mask
from gcd.model import Candidate, Kind, Outcome, Result
from gcd.planning.plan import Plan
from gcd.planning.policy import Keep

logger = logging.getLogger("gcd.cycle")

EVERY = 10.0
"""Seconds between two plain lines."""


class Progress:
    """The observer of a cycle for people: counts what is planned, purged and swept."""

    def __init__(self, named: Named, now: Callable[[], float] = clock.monotonic) -> None:
        self.named = named
        self.planned_entities = self.purged_entities = self.swept_trees = 0
        self._now = now
        self._told_at = now()
        self._bar = make_bar() if sys.stderr.isatty() else None
        self._task = self._bar.add_task("collecting", total=None) if self._bar else None

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def began(self, cycle: int) -> None:
        """The cycle has its number."""
        logger.debug("cycle %d begins", cycle)

    def planned(self, plan: Plan) -> None:
        """A page was planned."""
        self.named.note(plan)
        self.planned_entities += len(plan.collect)
        self._tell()

    def purged(self, kind: Kind, count: int, rows: int) -> None:
        """A batch was purged."""
        self.purged_entities += count
        logger.debug("purged %s, %s", counted(count, noun(kind)), counted(rows, "row"))
        self._tell()

    def kept(self, candidate: Candidate, keep: Keep) -> None:
        """An entity that the plan collected is kept after all."""
        self.named.keep(candidate, keep)
        what = noun(candidate.kind)
        logger.info("kept %s %s, %s: %s", what, candidate.id, keep.reason, mask(keep.detail))

    def swept(self, outcome: Outcome) -> None:
        """An entry was swept, or not."""
        self.swept_trees += outcome.result is Result.SWEPT
        if outcome.result is not Result.SWEPT:
            what, entity = noun(outcome.entry.kind), outcome.entry.entity_id
            error = mask(outcome.error or "")
            logger.warning("%s: files of %s %s: %s", outcome.result, what, entity, error)
        self._tell()

    def moves(self) -> None:
        """It does not hang."""
        self._tell()

    def _tell(self) -> None:
        """Move the bar, or write a line if the last one is long ago."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.swept_trees, total=self.planned_entities)
        elif self._now() - self._told_at >= EVERY:
            self._told_at = self._now()
            logger.info(
                "planned %d, purged %d, swept %d",
                self.planned_entities,
                self.purged_entities,
                self.swept_trees,
            )


def make_bar() -> Bar:
    """Trees swept of entities to collect, on standard error."""
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("trees"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
