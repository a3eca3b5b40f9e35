"""The collector: the one place that knows the order of a cycle.

It must never decide (planning does), never send SQL (store does), never delete a byte (sweep does).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from sqlalchemy.engine import Connection

from gcd.errors import TransientArtifactError
from gcd.model import Entry, KeepReason, Kind, Outcome, Place, Report, Result, Target, Usage
from gcd.planning.plan import Decision, Plan
from gcd.planning.policy import Keep
from gcd.store.lease import Lease
from gcd.store.purge import Batch
from gcd.store.tracking import batched
from gcd.survey import Survey, told
from gcd.sweep import sweep

SWEEP_PAGE = 500
"""Entries swept after one reading of the holds."""
SETTLED = 100
"""Outcomes settled in one transaction."""

FAILED = frozenset({Result.DEFERRED, Result.LOCKED, Result.STUCK})
UNWELL = frozenset({KeepReason.ROOT_UNHEALTHY, KeepReason.UNREACHABLE})


class Observer(Protocol):
    """Somebody who wants to know how far a cycle is."""

    def planned(self, plan: Plan) -> None:
        """A page was planned."""

    def purged(self, runs: int, rows: int) -> None:
        """A batch was purged."""

    def kept(self, run: str, keep: Keep) -> None:
        """A run that was to be collected is kept after all."""

    def swept(self, outcome: Outcome) -> None:
        """An entry was swept, or not."""


@dataclass(slots=True)
class Tally:
    """What a cycle has done so far."""

    candidates: int = 0
    purged: int = 0
    rows: int = 0
    usage: Usage = field(default_factory=Usage)
    results: Counter[Result] = field(default_factory=Counter)
    kept: Counter[KeepReason] = field(default_factory=Counter)


class Collector:
    """One cycle over one store, under a lease."""

    def __init__(
        self, survey: Survey, lease: Lease, observer: Observer, stop: threading.Event
    ) -> None:
        self.survey = survey
        self.store = survey.store
        self.settings = survey.settings
        self.lease = lease
        self.observer = observer
        self.stop = stop
        self.number = 0
        self.tally = Tally()
        self._proved: set[Place] = set()
        self._closed: dict[Place, Keep] = {}
        self._sweeping = threading.Lock()
        """One sweep at a time: two would delete the same trees."""

    def collect(self) -> Report:
        """Run the cycle; what stops all of it is noted in the history and raised."""
        self.number = self.store.begin_cycle(self.lease, self.survey.now)
        try:
            self._leftovers()
            self._collect_pages()
            self._leftovers()
            self.store.forget_seen()
            self.store.prune(self.survey.now - self.settings.keep_history)
        except BaseException as error:
            self._end("failed", told(error))
            raise
        return self._end("interrupted" if self.stop.is_set() else self._state(), None)

    def _leftovers(self) -> None:
        """Finish what is journalled: rows first, then trees."""
        rows = self.store.finish_rows(self.lease, self.settings.batch_rows, self._goes_on)
        self.tally.rows += rows
        self._sweep_due()

    def _goes_on(self) -> bool:
        return not self.stop.is_set()

    # -- 3 to 5: plan, journal, purge ------------------------------------------------------------

    def _collect_pages(self) -> None:
        """Purge batch by batch, sweeping one while the next is purged."""
        with ThreadPoolExecutor(1, thread_name_prefix="gcd-sweep") as background:
            sweeping: Future[None] | None = None
            for decisions, is_giant in self._batches():
                if not self._purge(decisions, is_giant=is_giant):
                    continue
                if sweeping is not None:
                    sweeping.result()
                sweeping = background.submit(self._sweep_due)
            if sweeping is not None:
                sweeping.result()

    def _batches(self) -> Iterator[tuple[list[Decision], bool]]:
        """What is to be collected, in batches that one transaction can bear."""
        for plan in self.survey.plans():
            self._note(plan)
            if self.stop.is_set():
                return
            tried = self._try_canaries(plan)
            rest = [d for d in plan.collect if d.candidate.id not in tried]
            for decisions, is_giant in self._packed(rest):
                if self.stop.is_set():
                    return
                standing = self._still_open(decisions)
                if standing:
                    yield standing, is_giant

    def _note(self, plan: Plan) -> None:
        """Count a planned page, and remember what gcd sees undated for the first time."""
        self.observer.planned(plan)
        self.tally.candidates += len(plan.collect) + len(plan.keep)
        self.tally.kept.update(decision.keep[0].reason for decision in plan.keep)
        undated = [d.candidate.id for d in plan.keep if d.candidate.deleted_at is None]
        self.store.note_undated(undated, self.survey.now)

    def _keep(self, run: str, keep: Keep) -> None:
        """Count a run that the plan collected and that is kept after all."""
        self.tally.kept[keep.reason] += 1
        self.observer.kept(run, keep)

    def _try_canaries(self, plan: Plan) -> set[str]:
        """Take one run of each root that this cycle has not proved yet from end to end, alone.

        Returns the ids of the runs taken. A root whose canary fails is closed for this cycle; where
        the canary itself is kept after all, the next run of that root takes its place.
        """
        taken: set[str] = set()
        while canaries := self._canaries(plan, taken):
            taken |= {decision.candidate.id for decision in canaries.values()}
            for root in canaries:
                self._remember(root)
            purged: set[str] = set()
            for decisions, is_giant in self._packed(list(canaries.values())):
                purged |= self._purge(decisions, is_giant=is_giant)
            self._sweep_due()
            self._proved |= {r for r, d in canaries.items() if d.candidate.id in purged}
        return taken

    def _canaries(self, plan: Plan, taken: set[str]) -> dict[Place, Decision]:
        """The next run of each root that is neither proved nor closed."""
        found: dict[Place, Decision] = {}
        for decision in plan.collect:
            if decision.target is None or decision.candidate.id in taken:
                continue
            root = decision.target.root
            if root not in self._proved and root not in self._closed:
                found.setdefault(root, decision)
        return {} if self.stop.is_set() else found

    def _remember(self, root: Place) -> None:
        """Remember a root's identity before the first row is purged that relies on it."""
        identity = self.survey.probe_of(root).identity
        if identity is not None:
            self.store.remember_root(root, {"identity": identity})

    def _packed(self, decisions: Sequence[Decision]) -> Iterator[tuple[list[Decision], bool]]:
        """Batches bounded in runs and rows; a giant run is a batch of its own."""
        counts = self.store.row_counts([d.candidate.id for d in decisions]) if decisions else {}
        most = self.settings.batch_rows
        batch: list[Decision] = []
        rows = 0
        for decision in decisions:
            size = counts[decision.candidate.id]
            if size > most and self.store.splits_giants:
                yield [decision], True
                continue
            if batch and (len(batch) >= self.settings.batch_runs or rows + size > most):
                yield batch, False
                batch, rows = [], 0
            batch.append(decision)
            rows += size
        if batch:
            yield batch, False

    def _still_open(self, decisions: Sequence[Decision]) -> list[Decision]:
        """The decisions whose roots are not closed; the others are kept."""
        standing = []
        for decision in decisions:
            closed = self._closed.get(decision.target.root) if decision.target else None
            if closed is None:
                standing.append(decision)
            else:
                self._keep(decision.candidate.id, closed)
        return standing

    def _purge(self, decisions: Sequence[Decision], *, is_giant: bool) -> set[str]:
        """Purge one batch; the ids of the runs that went."""
        by_id = {decision.candidate.id: decision for decision in decisions}

        def rejudge(conn: Connection, ids: Sequence[str]) -> Mapping[str, Keep]:
            return self.survey.rejudge(conn, by_id, ids)

        self.store.check_unchanged()
        runs = tuple((d.candidate, self._on_disk(d.target)) for d in decisions)
        done = self.store.purge(self.lease, Batch(self.number, runs, is_giant), rejudge)
        for run, keep in done.kept.items():
            self._keep(run, keep)
        rows = done.rows
        if is_giant:
            rows += self.store.finish_rows(self.lease, self.settings.batch_rows, self._goes_on)
        self.tally.purged += len(done.ids)
        self.tally.rows += rows
        self.observer.purged(len(done.ids), rows)
        return set(done.ids)

    def _on_disk(self, target: Target | None) -> Target | None:
        """The tree to journal: none below a root that is not there and need not be."""
        if target is None or not self.survey.probe_of(target.root).is_there:
            return None
        return target

    # -- 6 and 7: sweep, settle ------------------------------------------------------------------

    def _sweep_due(self) -> None:
        """Sweep all that is due now, page by page; the batch in hand is finished on a stop."""
        with self._sweeping:
            after = 0
            while page := self.store.due(self.store.now(), after=after, limit=SWEEP_PAGE):
                self._sweep_page(page)
                after = page[-1].id
                if self.stop.is_set():
                    return

    def _sweep_page(self, page: Sequence[Entry]) -> None:
        """Look at everything anew, delete what still may be deleted, settle what became of it."""
        holds = self.survey.holds()
        back = self.store.stages([entry.entity_id for entry in page])

        def veto(entry: Entry) -> str | None:
            if not self.lease.is_fresh():
                raise TransientArtifactError("the lease could not be renewed in time")
            if entry.entity_id in back:
                return "a run with this id is back: its files are kept"
            hold = holds.on(entry.entity_id)
            if hold is None and entry.target is not None:
                hold = holds.over(entry.target.place)
            return f"{hold.reason}: {hold.because}" if hold else None

        swept = sweep(
            page,
            open_store=self.survey.registry.open,
            roots=self.survey.known_roots([entry.target for entry in page if entry.target]),
            veto=veto,
            now=self.survey.now,
            hands=self.settings.hands,
        )
        outcomes: list[Outcome] = []
        for part in batched(swept, SETTLED):
            self.store.settle(self.lease, part, self.store.now())
            outcomes += part
        self._count(outcomes)
        self._close_failing_roots(outcomes)

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
                self._closed[root] = Keep(KeepReason.ROOT_UNHEALTHY, detail)

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        """Add outcomes to the tally, and tell."""
        for outcome in outcomes:
            self.tally.results[outcome.result] += 1
            self.tally.usage += outcome.usage
            self.observer.swept(outcome)

    def _end(self, state: str, error: str | None) -> Report:
        """Note the end of the cycle; the report of it."""
        tally = self.tally
        report = Report(
            cycle=self.number,
            started_at=self.survey.now,
            ended_at=self.store.now(),
            state=state,
            candidates=tally.candidates,
            purged={Kind.RUN: tally.purged},
            rows=tally.rows,
            results=dict(tally.results),
            usage=tally.usage,
            kept=dict(+tally.kept),
            error=error,
        )
        self.store.end_cycle(report)
        return report

    def _state(self) -> str:
        """How a cycle that came to its end is called."""
        failed = FAILED & set(+self.tally.results)
        unwell = UNWELL & set(+self.tally.kept)
        return "partial" if failed or unwell else "done"
