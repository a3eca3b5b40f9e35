"""The collector: the one place that knows the order of a cycle.

It must never decide (planning does), never send SQL (store does), never delete a byte (sweep does, for the backlog).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime

from sqlalchemy.engine import Connection

from gcd import clock
from gcd.backlog import FAILED, Backlog
from gcd.export import exporting
from gcd.fates import GROUP, because
from gcd.model import Candidate, KeepReason, Kind, Place, Report
from gcd.observer import Observer, Tally
from gcd.places import told
from gcd.planning.plan import Decision, Plan
from gcd.planning.policy import Keep
from gcd.planning.quota import OVER
from gcd.rejudge import held_now, rejudge
from gcd.store.eraser import slices
from gcd.store.lease import Lease
from gcd.store.purge import Batch, Item
from gcd.survey import Survey

DELAYED_CANARIES = 100
"""Entities whose rows go before a root is proved, where trees go later than rows: no tree may go
earlier than others, since a database that loses its last commits has its run again."""
WAITING = 1.0
"""Seconds between two looks while commits settle."""

UNWELL = frozenset({KeepReason.ROOT_UNHEALTHY, KeepReason.UNREACHABLE, KeepReason.FOREIGN_ROOT})
WITHOUT_STAMP = frozenset({Kind.TRACE, Kind.JOB})


@dataclass(frozen=True, slots=True)
class Step:
    """What one purge transaction takes: entities of one kind."""

    kind: Kind
    decisions: tuple[Decision, ...]
    within: Mapping[str, Candidate] = field(default_factory=dict)
    is_giant: bool = False


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
        self.backlog = Backlog(survey, lease, observer, stop, self.tally)
        self._began = clock.boottime()
        self._last_due: datetime | None = None
        """When the last tree of what this cycle purged is due."""
        self._proved: set[Place] = set()
        self._blocked: dict[str, Keep] = {}
        """Experiments in which something turned out to stay."""

    def collect(self) -> Report:
        """Run the cycle; what stops all of it is noted in the history and raised."""
        self.number = self.store.begin_cycle(self.lease, self.survey.now)
        self.observer.began(self.number)
        try:
            self.store.check_clock(self.survey.now)
            self.store.note_clock(self.lease)
            self.survey.choose()
            with exporting(self.store, self.settings, self.number, self.survey.now):
                self.backlog.finish()
                self._collect_pages()
                self._let_commits_settle()
                self.backlog.finish()
            self.store.forget_seen(self.lease)
            self.store.prune(self.lease, self.survey.now - self.settings.keep_history)
        except BaseException as error:
            self._end("failed", told(error))
            raise
        return self._end("interrupted" if self.stop.is_set() else self._state(), None)

    def _let_commits_settle(self) -> None:
        """Wait until the trees of what this cycle purged may go, or until it is asked to stop."""
        until = self._last_due
        while until is not None and not self.stop.is_set():
            left = (until - self.store.now()).total_seconds()
            if left <= 0:
                return
            self.observer.moves()
            with self.backlog.sweeping:
                self.lease.offer(self.stop)
            self.stop.wait(min(left, WAITING))

    @property
    def _is_out_of_time(self) -> bool:
        most = self.settings.quota.max_duration
        return most is not None and clock.boottime() - self._began > most.total_seconds()

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
                sweeping = background.submit(self.backlog.sweep)
            if sweeping is not None:
                sweeping.result()

    def _steps(self) -> Iterator[Step]:
        """What is to be collected, in batches that one transaction can bear, experiments last."""
        for plan in self.survey.plans():
            self._note(plan)
            if self.stop.is_set():
                return
            fates = self.survey.fates
            yield from self._of_members(fates.measured_members(plan.first), fates.experiments)
            experiments = [d for d in plan.collect if d.candidate.kind is Kind.EXPERIMENT]
            others = [d for d in plan.collect if d.candidate.kind is not Kind.EXPERIMENT]
            yield from self._of_entities(others, {})
            if experiments:
                yield from self._of_experiments(experiments)

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

    def _of_members(self, pages: Iterable[Plan], within: Mapping[str, Candidate]) -> Iterator[Step]:
        """What goes only with experiments; where something stays, its experiment stays."""
        for members in pages:
            for decision in members.keep:
                self._block(decision.candidate, decision.keep[0])
            standing = [
                d for d in members.collect if d.candidate.experiment_id not in self._blocked
            ]
            homes = {d.candidate.experiment_id for d in standing}
            around = {each: within[each] for each in homes}
            yield from self._of_entities(standing, around)

    def _of_experiments(self, decisions: Sequence[Decision]) -> Iterator[Step]:
        """Experiments: the logged models and traces in them, then what is left of each.

        By now no run is in them. Where something stays, its experiment stays, with the rest of it.
        """
        within = {d.candidate.id: d.candidate for d in decisions}
        members = self.survey.fates.members(within, self.survey.holds())
        yield from self._of_members(members, within)
        for part in slices(decisions, self.store.most_at_once(Kind.EXPERIMENT, GROUP)):
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
        """Take a first few of each root that is not proved yet from end to end, before the others.

        Returns the ids of those taken. A root whose canaries fail is closed for this cycle; where
        all of them are kept after all, the next ones of that root take their place.
        """
        if self.settings.sweep_delay:
            self._proved |= self._proved_before(decisions)
        taken: set[str] = set()
        while canaries := self._canaries(decisions, taken):
            going = list({d.candidate.id: d for few in canaries.values() for d in few}.values())
            taken |= {decision.candidate.id for decision in going}
            for root in canaries:
                self._remember(root)
            purged: set[str] = set()
            for step in self._packed(going, within):
                purged |= self._purge(step)
            self._let_commits_settle()
            self.backlog.sweep()
            self._proved |= {
                root
                for root, few in canaries.items()
                if any(decision.candidate.id in purged for decision in few)
            }
        return taken

    def _proved_before(self, decisions: Sequence[Decision]) -> set[Place]:
        """Roots where the last sweep of an earlier cycle succeeded: no canary waits for their delay."""
        probe_of = self.survey.places.probe_of
        roots = {target.root for decision in decisions for target in decision.targets}
        found = self.store.roots({root: probe_of(root) for root in roots}, self.survey.now)
        return {place for place, root in found.items() if root.is_proved and not root.failures}

    def _canaries(
        self, decisions: Sequence[Decision], taken: set[str]
    ) -> dict[Place, list[Decision]]:
        """The next entities of each root that is neither proved nor closed, while time is left.

        One of each; several where trees wait for their delay, which would be waited for in vain.
        """
        found: dict[Place, list[Decision]] = {}
        if self.stop.is_set() or self._is_out_of_time:
            return found
        most = DELAYED_CANARIES if self.settings.sweep_delay else 1
        for decision in decisions:
            if decision.candidate.id in taken:
                continue
            for target in decision.targets:
                if target.root not in self._proved and target.root not in self.backlog.closed:
                    few = found.setdefault(target.root, [])
                    if len(few) < most:
                        few.append(decision)
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
        many = self.store.most_at_once(kind, self.settings.batch_entities)
        batch: list[Decision] = []
        rows = 0
        for decision in unique:
            size = counts[decision.candidate.id]
            if size > most and self.store.splits_giants:
                yield Step(kind, (decision,), within, is_giant=True)
                continue
            if batch and (len(batch) >= many or rows + size > most):
                yield Step(kind, tuple(batch), within)
                batch, rows = [], 0
            batch.append(decision)
            rows += size
        if batch:
            yield Step(kind, tuple(batch), within)

    def _still_open(self, step: Step) -> Step | None:
        """The step without what may not be purged any more: its root is closed, or time is up."""
        closed = self.backlog.closed
        standing = []
        for decision in step.decisions:
            shut = next((closed[t.root] for t in decision.targets if t.root in closed), None)
            against = OVER if self._is_out_of_time else shut
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

    def _marked(self, step: Step) -> Step:
        """The step without what lies in a root that turns out to be another database's.

        The mark is written before the first row is purged that relies on it.
        """
        standing = []
        for decision in step.decisions:
            if keep := self.survey.mark(decision):
                self._stay(step, decision.candidate, keep)
            else:
                standing.append(decision)
        return replace(step, decisions=tuple(standing))

    def _purge(self, step: Step) -> set[str]:
        """Purge one batch; the ids of the entities that went."""
        step = self._marked(step)
        if not step.decisions:
            return set()
        by_id = {decision.candidate.id: decision for decision in step.decisions}

        def judged(conn: Connection, ids: Sequence[str]) -> Mapping[str, Keep]:
            return rejudge(self.survey, conn, step.kind, by_id, ids, is_giant=step.is_giant)

        def held(conn: Connection, ids: Sequence[str]) -> Mapping[str, Keep]:
            return held_now(self.survey, conn, by_id, ids)

        self.store.check_unchanged()
        self.survey.watch.refreshed()  # most of it before anything is locked
        items = tuple(self._item(decision) for decision in step.decisions)
        delay = self.settings.sweep_delay
        batch = Batch(self.number, step.kind, items, step.within, step.is_giant, delay)
        done = self.store.purge(self.lease, batch, judged, held)
        for entity in done.ids:
            self.backlog.check.note_purged(step.kind, by_id[entity].targets)
        if done.ids and delay:
            self._last_due = self.store.now() + delay
        for entity, keep in done.kept.items():
            self._stay(step, by_id[entity].candidate, keep)
        rows = done.rows + (self.backlog.finish_rows() if step.is_giant else 0)
        self.tally.purged[step.kind] += len(done.ids)
        self.tally.rows += rows
        self.tally.already_empty += sum(bool(by_id[entity].empty) for entity in done.ids)
        self.observer.purged(step.kind, len(done.ids), rows)
        return set(done.ids)

    def _item(self, decision: Decision) -> Item:
        """An entity with the trees to journal: none below a root that is not there and need not be."""
        probe_of = self.survey.places.probe_of
        there = (target for target in decision.targets if probe_of(target.root).is_there)
        return Item(decision.candidate, tuple(there))

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
            already_empty=tally.already_empty,
            stuck=self.store.stuck(),
            error=error,
            notes=self.survey.notes(),
        )
        self.store.end_cycle(report)
        return report

    def _state(self) -> str:
        """How a cycle that came to its end is called: not done while anything waits for a person."""
        failed = FAILED & set(+self.tally.results)
        unwell = UNWELL & set(+self.tally.kept)
        return "partial" if failed or unwell or self.store.stuck() else "done"
