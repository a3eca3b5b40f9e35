"""The collector: the one place that knows the order of a cycle.

It must never decide (planning does), never send SQL (store does), never delete a byte (sweep does).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from sqlalchemy.engine import Connection

from gcd import clock
from gcd.errors import TransientArtifactError
from gcd.export import exporting
from gcd.model import Candidate, Entry, KeepReason, Kind, Outcome, Place, Report, Result, Usage
from gcd.places import told
from gcd.planning.holds import HoldIndex
from gcd.planning.plan import Decision, Plan
from gcd.planning.policy import Keep
from gcd.planning.quota import OVER
from gcd.rejudge import rejudge
from gcd.store.eraser import slices
from gcd.store.finish import finish_rows
from gcd.store.lease import Lease
from gcd.store.purge import Batch, Item
from gcd.survey import GROUP, Survey, because
from gcd.sweep import sweep

SWEEP_PAGE = 500
"""Entries swept after one reading of the holds."""
SETTLED = 500
"""Outcomes settled in one transaction."""
WAITING = 1.0
"""Seconds between two looks while commits settle."""

FAILED = frozenset({Result.DEFERRED, Result.LOCKED, Result.STUCK})
UNWELL = frozenset({KeepReason.ROOT_UNHEALTHY, KeepReason.UNREACHABLE})
WITHOUT_STAMP = frozenset({Kind.TRACE, Kind.JOB})
NUMBERED = frozenset({Kind.EXPERIMENT, Kind.JOB})
"""Kinds that leave nothing to be saved should their id come back: SQLite reuses experiments'."""


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


@dataclass(frozen=True, slots=True)
class Step:
    """What one purge transaction takes: entities of one kind."""

    kind: Kind
    decisions: tuple[Decision, ...]
    within: Mapping[str, Candidate] = field(default_factory=dict)
    is_giant: bool = False
    is_canary: bool = False
    """Its trees go at once: they show whether those of the others would."""


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
        self._began = clock.monotonic()
        self._last_due: datetime | None = None
        """When the last tree of what this cycle purged is due."""
        self._proved: set[Place] = set()
        self._closed: dict[Place, Keep] = {}
        self._blocked: dict[str, Keep] = {}
        """Experiments in which something turned out to stay."""
        self._sweeping = threading.Lock()
        """One sweep at a time: two would delete the same trees."""

    def collect(self) -> Report:
        """Run the cycle; what stops all of it is noted in the history and raised."""
        self.number = self.store.begin_cycle(self.lease, self.survey.now)
        self.observer.began(self.number)
        try:
            self.survey.choose()
            with exporting(self.store, self.settings, self.number, self.survey.now):
                self._leftovers()
                self._collect_pages()
                self._let_commits_settle()
                self._leftovers()
            self.store.forget_seen(self.lease)
            self.store.prune(self.lease, self.survey.now - self.settings.keep_history)
        except BaseException as error:
            self._end("failed", told(error))
            raise
        return self._end("interrupted" if self.stop.is_set() else self._state(), None)

    def _leftovers(self) -> None:
        """Finish what is journalled: rows first, then trees."""
        self.tally.rows += self._finish_rows()
        self._sweep_due()

    def _let_commits_settle(self) -> None:
        """Wait until the trees of what this cycle purged may go, or until it is asked to stop."""
        until = self._last_due
        while until is not None and not self.stop.is_set():
            left = (until - self.store.now()).total_seconds()
            if left <= 0:
                return
            self.observer.moves()
            self.lease.offer(self.stop)
            self.stop.wait(min(left, WAITING))

    def _finish_rows(self) -> int:
        return finish_rows(self.store, self.lease, self.settings.batch_rows, self._goes_on)

    def _goes_on(self) -> bool:
        self.observer.moves()
        return not self.stop.is_set()

    @property
    def _is_out_of_time(self) -> bool:
        most = self.settings.quota.max_duration
        return most is not None and clock.monotonic() - self._began > most.total_seconds()

    # -- 3 to 5: plan, journal, purge ------------------------------------------------------------

    def _collect_pages(self) -> None:
        """Purge batch by batch, sweeping one while the next is purged."""
        with ThreadPoolExecutor(1, thread_name_prefix="gcd-sweep") as background:
            sweeping: Future[None] | None = None
            for step in self._steps():
                if not self._purge(step):
                    continue
                if sweeping is not None:
                    sweeping.result()
                self.lease.offer(self.stop)
                sweeping = background.submit(self._sweep_due)
            if sweeping is not None:
                sweeping.result()

    def _steps(self) -> Iterator[Step]:
        """What is to be collected, in batches that one transaction can bear, experiments last."""
        for plan in self.survey.plans():
            self._note(plan)
            if self.stop.is_set():
                return
            experiments = [d for d in plan.collect if d.candidate.kind is Kind.EXPERIMENT]
            others = [d for d in plan.collect if d.candidate.kind is not Kind.EXPERIMENT]
            yield from self._of_entities(others, {})
            if experiments:
                yield from self._of_experiments(plan, experiments)

    def _of_entities(
        self, decisions: Sequence[Decision], within: Mapping[str, Candidate]
    ) -> Iterator[Step]:
        """Entities with trees of their own: one of each new root first, then the rest in batches."""
        tried = self._try_canaries(decisions, within)
        rest = [d for d in decisions if d.candidate.id not in tried]
        for step in self._packed(rest, within):
            if self.stop.is_set():
                return
            if standing := self._still_open(step):
                yield standing

    def _of_experiments(self, plan: Plan, decisions: Sequence[Decision]) -> Iterator[Step]:
        """Experiments: the logged models and traces in them, then what is left of each.

        By now no run is in them. Where something stays, its experiment stays, with the rest of it.
        """
        within = {d.candidate.id: d.candidate for d in decisions}
        holds = self.survey.holds()
        for members in self.survey.members(plan, holds):
            for decision in members.keep:
                self._block(decision.candidate, decision.keep[0])
            standing = [
                d for d in members.collect if d.candidate.experiment_id not in self._blocked
            ]
            yield from self._of_entities(standing, within)
        for part in slices(decisions, GROUP):
            if self.stop.is_set() or self._is_out_of_time:
                return
            last = tuple(d for d in part if d.candidate.id not in self._blocked)
            if last:
                yield Step(Kind.EXPERIMENT, last)
        for decision in decisions:
            if decision.candidate.id in self._blocked:
                self._keep(decision.candidate, self._blocked[decision.candidate.id])

    def _block(self, member: Candidate, keep: Keep) -> None:
        """Something in an experiment stays, hence the experiment does."""
        self._blocked.setdefault(member.experiment_id, because(member, keep))

    def _note(self, plan: Plan) -> None:
        """Count a planned page, and remember what gcd sees undated for the first time."""
        self.observer.planned(plan)
        self.tally.candidates += len(plan.collect) + len(plan.keep)
        self.tally.kept.update(decision.keep[0].reason for decision in plan.keep)
        undated: dict[Kind, list[str]] = {}
        for decision in plan.keep:
            each = decision.candidate
            if each.deleted_at is None and each.kind not in WITHOUT_STAMP:
                undated.setdefault(each.kind, []).append(each.id)
        for kind, ids in undated.items():
            self.store.note_undated(self.lease, kind, ids, self.survey.now)

    def _keep(self, candidate: Candidate, keep: Keep) -> None:
        """Count an entity that the plan collected and that is kept after all."""
        self.tally.kept[keep.reason] += 1
        self.observer.kept(candidate, keep)

    def _try_canaries(
        self, decisions: Sequence[Decision], within: Mapping[str, Candidate]
    ) -> set[str]:
        """Take one entity of each root that this cycle has not proved yet from end to end, alone.

        Returns the ids of those taken. A root whose canary fails is closed for this cycle; where
        the canary itself is kept after all, the next one of that root takes its place.
        """
        taken: set[str] = set()
        while canaries := self._canaries(decisions, taken):
            taken |= {decision.candidate.id for decision in canaries.values()}
            for root in canaries:
                self._remember(root)
            purged: set[str] = set()
            for step in self._packed(list(canaries.values()), within):
                purged |= self._purge(replace(step, is_canary=True))
            self._sweep_due()
            self._proved |= {r for r, d in canaries.items() if d.candidate.id in purged}
        return taken

    def _canaries(self, decisions: Sequence[Decision], taken: set[str]) -> dict[Place, Decision]:
        """The next entity of each root that is neither proved nor closed, while time is left."""
        found: dict[Place, Decision] = {}
        if self.stop.is_set() or self._is_out_of_time:
            return found
        for decision in decisions:
            if decision.candidate.id in taken:
                continue
            for target in decision.targets:
                if target.root not in self._proved and target.root not in self._closed:
                    found.setdefault(target.root, decision)
        return found

    def _remember(self, root: Place) -> None:
        """Remember a root's identity before the first row is purged that relies on it."""
        identity = self.survey.places.probe_of(root).identity
        if identity is not None:
            self.store.remember_root(self.lease, root, {"identity": identity})

    def _packed(
        self, decisions: Sequence[Decision], within: Mapping[str, Candidate]
    ) -> Iterator[Step]:
        """Batches of one kind, bounded in entities and rows; a giant is a batch of its own."""
        if not decisions:
            return
        kind = decisions[0].candidate.kind
        unique = list({d.candidate.id: d for d in decisions}.values())
        counts = self.store.row_counts(kind, [d.candidate.id for d in unique])
        most = self.settings.batch_rows
        batch: list[Decision] = []
        rows = 0
        for decision in unique:
            size = counts[decision.candidate.id]
            if size > most and self.store.splits_giants:
                yield Step(kind, (decision,), within, is_giant=True)
                continue
            if batch and (len(batch) >= self.settings.batch_entities or rows + size > most):
                yield Step(kind, tuple(batch), within)
                batch, rows = [], 0
            batch.append(decision)
            rows += size
        if batch:
            yield Step(kind, tuple(batch), within)

    def _still_open(self, step: Step) -> Step | None:
        """The step without what may not be purged any more: its root is closed, or time is up."""
        standing = []
        for decision in step.decisions:
            closed = next(
                (self._closed[t.root] for t in decision.targets if t.root in self._closed), None
            )
            against = OVER if self._is_out_of_time else closed
            if against is None:
                standing.append(decision)
            else:
                self._stay(step, decision.candidate, against)
        kept = tuple(standing)
        return replace(step, decisions=kept) if kept else None

    def _stay(self, step: Step, candidate: Candidate, keep: Keep) -> None:
        """An entity stays after all; what is a part of an experiment keeps that."""
        if step.within:
            self._block(candidate, keep)
        else:
            self._keep(candidate, keep)

    def _purge(self, step: Step) -> set[str]:
        """Purge one batch; the ids of the entities that went."""
        by_id = {decision.candidate.id: decision for decision in step.decisions}

        def judged(conn: Connection, ids: Sequence[str]) -> Mapping[str, Keep]:
            return rejudge(self.survey, conn, step.kind, by_id, ids)

        self.store.check_unchanged()
        items = tuple(self._item(decision) for decision in step.decisions)
        delay = timedelta(0) if step.is_canary else self.settings.sweep_delay
        batch = Batch(self.number, step.kind, items, step.within, step.is_giant, delay)
        done = self.store.purge(self.lease, batch, judged)
        if done.ids and delay:
            self._last_due = self.store.now() + delay
        for entity, keep in done.kept.items():
            self._stay(step, by_id[entity].candidate, keep)
        rows = done.rows + (self._finish_rows() if step.is_giant else 0)
        self.tally.purged[step.kind] += len(done.ids)
        self.tally.rows += rows
        self.observer.purged(step.kind, len(done.ids), rows)
        return set(done.ids)

    def _item(self, decision: Decision) -> Item:
        """An entity with the trees to journal: none below a root that is not there and need not be."""
        probe_of = self.survey.places.probe_of
        there = (target for target in decision.targets if probe_of(target.root).is_there)
        return Item(decision.candidate, tuple(there))

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
        back = self._back(page)

        def veto(entry: Entry) -> str | None:
            self.observer.moves()
            if not self.lease.is_fresh():
                raise TransientArtifactError("the lease could not be renewed in time")
            if (entry.kind, entry.entity_id) in back:
                return f"a {entry.kind.replace('_', ' ')} with this id is back: its files are kept"
            return self._held(entry, holds)

        swept = sweep(
            page,
            open_store=self.survey.registry.open,
            roots=self.survey.places.known_roots([e.target for e in page if e.target]),
            veto=veto,
            now=self.survey.now,
            hands=self.settings.hands,
        )
        outcomes: list[Outcome] = []
        with closing(swept):  # no hand goes on where settling fails
            for part in slices(swept, SETTLED):
                self.store.settle(self.lease, part, self.store.now())
                outcomes += part
        self._count(outcomes)
        self._close_failing_roots(outcomes)

    def _back(self, page: Sequence[Entry]) -> set[tuple[Kind, str]]:
        """Entities of the entries whose row is there again, as from a backup."""
        by_kind: dict[Kind, list[str]] = {}
        for entry in page:
            if entry.kind not in NUMBERED:
                by_kind.setdefault(entry.kind, []).append(entry.entity_id)
        return {(kind, e) for kind, ids in by_kind.items() for e in self.store.stages(kind, ids)}

    def _held(self, entry: Entry, holds: HoldIndex) -> str | None:
        """What holds an entry's tree; an experiment's empty folder is nobody's loss."""
        if entry.kind in NUMBERED:
            return None
        hold = holds.on(entry.entity_id)
        if hold is None and entry.target is not None:
            hold = holds.over(entry.target.place)
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
                self._closed[root] = Keep(KeepReason.ROOT_UNHEALTHY, detail)

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        """Add outcomes to the tally, and tell."""
        for outcome in outcomes:
            self.tally.results[outcome.result] += 1
            self.tally.usage += outcome.usage
            self.observer.swept(outcome)

    # -- 8: report -------------------------------------------------------------------------------

    def _end(self, state: str, error: str | None) -> Report:
        """Note the end of the cycle; the report of it."""
        tally = self.tally
        report = Report(
            cycle=self.number,
            started_at=self.survey.now,
            ended_at=self.store.now(),
            state=state,
            candidates=tally.candidates,
            purged=dict(+tally.purged),
            rows=tally.rows,
            results=dict(tally.results),
            usage=tally.usage,
            kept=dict(+tally.kept),
            stuck=self.store.stuck(),
            error=error,
            notes=self.survey.places.notes(),
        )
        self.store.end_cycle(report)
        return report

    def _state(self) -> str:
        """How a cycle that came to its end is called: not done while anything waits for a person."""
        failed = FAILED & set(+self.tally.results)
        unwell = UNWELL & set(+self.tally.kept)
        return "partial" if failed or unwell or self.store.stuck() else "done"
