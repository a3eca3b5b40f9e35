"""The backlog: what the journal has of purged entities is finished, rows first, then trees, and settled.

It must never purge, never delete a byte itself (sweep does), and never sweep what it has not looked up anew.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import closing
from itertools import chain

from gcd.artifacts.base import Naming
from gcd.entry_check import EntryCheck
from gcd.errors import TransientArtifactError
from gcd.model import Entry, KeepReason, Kind, Outcome, Place, Result
from gcd.observer import Observer, Tally
from gcd.planning.holds import HoldIndex
from gcd.planning.ownership import check_claim
from gcd.planning.policy import Keep
from gcd.store.eraser import slices
from gcd.store.finish import finish_rows
from gcd.store.lease import Lease
from gcd.survey import Survey
from gcd.sweep import sweep as sweep_trees

SWEEP_PAGE = 500
"""Entries swept after one reading of the holds; new model versions are asked for before each."""
SETTLED = 500
"""Outcomes settled in one transaction."""

FAILED = frozenset({Result.DEFERRED, Result.LOCKED, Result.STUCK})
NUMBERED = frozenset({Kind.EXPERIMENT, Kind.JOB})
"""Kinds that leave nothing to be saved should their id come back: SQLite reuses experiments'."""


class Backlog:
    """What is still to be deleted of what was purged, by whichever cycle."""

    def __init__(
        self,
        survey: Survey,
        lease: Lease,
        observer: Observer,
        stop: threading.Event,
        tally: Tally,
    ) -> None:
        self.survey = survey
        self.store = survey.store
        self.lease = lease
        self.observer = observer
        self.stop = stop
        self.tally = tally
        self.check = EntryCheck(survey)
        self.closed: dict[Place, Keep] = {}
        """Roots below which nothing more may be purged, since their sweeps fail."""
        self.sweeping = threading.Lock()
        """One sweep at a time: two would delete the same trees. Held too while the lease is offered."""

    def finish(self) -> None:
        """Finish what is journalled and due: rows first, then trees."""
        self.tally.rows += self.finish_rows()
        self.sweep()

    def finish_rows(self) -> int:
        """Delete the rows that purged giants have left; how many there were."""
        most = self.survey.settings.batch_rows
        return finish_rows(self.store, self.lease, most, self._goes_on)

    def _goes_on(self) -> bool:
        self.observer.moves()
        return not self.stop.is_set()

    def sweep(self) -> None:
        """Sweep all that is due now, page by page; the page in hand is finished on a stop."""
        with self.sweeping:
            self.store.check_clock()  # on a jump ahead trees would be due before their time
            after = 0
            while page := self.store.due(self.store.now(), after=after, limit=SWEEP_PAGE):
                self._sweep_page(page)
                after = page[-1].id
                if self.stop.is_set():
                    return

    def _sweep_page(self, page: Sequence[Entry]) -> None:
        """Look at everything anew, delete what still may be deleted, settle what became of it."""
        check = self.check.look_at(page)
        refused = [
            Outcome(e, Result.PARKED, error=check.refused[e.id])
            for e in page
            if e.id in check.refused
        ]
        page = [entry for entry in page if entry.id not in check.refused]
        holds = self.survey.holds()
        foreign = self._foreign(page)
        other_names = self.survey.places.naming()  # of one moment, as those of `holds` are

        def veto(entry: Entry) -> str | None:
            self.observer.moves()
            if not self.lease.is_fresh():
                raise TransientArtifactError("the lease could not be renewed in time")
            if entry.id in foreign:
                raise TransientArtifactError(foreign[entry.id])
            return check.why_not(entry) or self._held(entry, holds, other_names)

        swept = sweep_trees(
            page,
            open_store=self.survey.registry.open,
            roots=self.survey.places.known_roots([e.target for e in page if e.target]),
            veto=veto,
            now=self.survey.now,
            hands=self.survey.settings.hands,
        )
        outcomes: list[Outcome] = []
        with closing(swept):  # no hand goes on where settling fails
            for part in slices(chain(refused, swept), SETTLED):
                self.store.settle(self.lease, part, self.store.now())
                outcomes += part
        self._count(outcomes)
        self._close_failing_roots(outcomes)

    def _foreign(self, page: Sequence[Entry]) -> dict[int, str]:
        """Why entries are left alone: their trees may be another database's now."""
        claims = self.survey.new_claims()
        found: dict[int, str] = {}
        for entry in page:
            if entry.target is not None:
                claim = claims.of(entry.kind, entry.experiment_id, entry.target)
                if keep := check_claim(claim):
                    found[entry.id] = f"{keep.reason}: {keep.detail}"
        return found

    def _held(self, entry: Entry, holds: HoldIndex, other_names: Naming) -> str | None:
        """What holds an entry's tree; an experiment's empty folder is nobody's loss."""
        if entry.kind in NUMBERED:
            return None
        place = entry.target.place if entry.target is not None else None
        names = other_names(place) if place is not None else ()
        self.survey.watch.refreshed()  # which `holds` looks into too; nothing slow comes after it
        hold = holds.on(entry.entity_id)
        if hold is None and place is not None:
            hold = holds.over(place) or holds.over_any(names)
        return f"{hold.reason}: {hold.because}" if hold else None

    def _close_failing_roots(self, outcomes: Sequence[Outcome]) -> None:
        """Let nothing more be purged below a root where every sweep of a page failed."""
        by_root: dict[Place, list[Outcome]] = {}
        for outcome in outcomes:
            if outcome.entry.target is not None:
                by_root.setdefault(outcome.entry.target.root, []).append(outcome)
        for root, found in by_root.items():
            failed = [outcome for outcome in found if outcome.result in FAILED]
            if failed and not any(outcome.result is Result.SWEPT for outcome in found):
                detail = f"its last sweep failed: {failed[-1].error}"
                self.closed[root] = Keep(KeepReason.ROOT_UNHEALTHY, detail)

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        """Add outcomes to the tally, and tell."""
        for outcome in outcomes:
            self.tally.results[outcome.result] += 1
            self.tally.usage += outcome.usage
            self.observer.swept(outcome)
