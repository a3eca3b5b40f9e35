"""The survey: gathers from store and roots what planning needs, and plans page by page.

It must never write, anywhere: `gcd plan`, a dry run and a cycle all decide by it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

from gcd.artifacts.base import Options
from gcd.artifacts.registry import Registry
from gcd.claims import Claims
from gcd.evidence import Evidence, has_tree
from gcd.model import Candidate, Claim, KeepReason, Kind, Ownership, Target, Usage
from gcd.places import Places
from gcd.planning.gate import Gate
from gcd.planning.guard import Scope, place_uri
from gcd.planning.holds import HoldIndex
from gcd.planning.ownership import check_claim
from gcd.planning.plan import Decision, Facts, Plan, locate, make_plan
from gcd.planning.policy import Keep, Policy, RunsOfLiveModels
from gcd.planning.quota import Choice, Key, Quota, check_fuse, within
from gcd.sampling import refuse_wrong_destination
from gcd.store.read import Wanted
from gcd.store.tracking import TrackingStore
from gcd.store.twins import Twins
from gcd.watch import Watch

PAGE = 1000
"""Candidates planned at a time: bounds memory."""
GROUP = 100
"""Deleted experiments planned, and collected, together."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What a person narrowed the collection to; None where nothing of a kind was said."""

    runs: tuple[str, ...] | None = None
    logged_models: tuple[str, ...] | None = None
    experiments: tuple[str, ...] | None = None
    jobs: tuple[str, ...] | None = None
    with_jobs: bool = False
    workspaces: tuple[str, ...] | None = None

    @property
    def is_narrowed(self) -> bool:
        """Whether single entities were named: then only those are collected."""
        named = (self.runs, self.logged_models, self.experiments, self.jobs)
        return any(ids is not None for ids in named)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a cycle is to do, from configuration and command line."""

    policy: Policy
    scope: Scope
    gate: Gate
    selection: Selection = field(default_factory=Selection)
    hands: int = 8
    batch_entities: int = 500
    batch_rows: int = 50_000
    harmless: frozenset[str] = frozenset()
    """Tables and triggers that gcd does not know and that are no reason to keep or to refuse."""
    unread_registry: str | None = None
    """The variable that names a model registry which gcd cannot read: it may refer to anything."""
    keep_history: timedelta = timedelta(days=90)
    quota: Quota = field(default_factory=Quota)
    max_share: float | None = None
    """The fuse: the largest share of the store's entities that a cycle may collect."""
    sweep_delay: timedelta = timedelta(0)
    """How long after their rows trees go: a database may lose its last commits in a crash."""
    export_to: Path | None = None
    keep_exports: timedelta = timedelta(days=365)
    options: Options = field(default_factory=Options)
    """For the backends of artifact stores."""
    others: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The URIs of the other stores of the configuration, by name."""


class Survey:
    """What is known of one store and its storage roots, as of one `now`."""

    def __init__(
        self, store: TrackingStore, registry: Registry, settings: Settings, now: datetime
    ) -> None:
        self.store = store
        self.registry = registry
        self.now = now
        self.settings = settings
        self.places = Places(store, registry, settings.scope, now)
        self.evidence = Evidence(self.places, settings.gate, settings.hands)
        self.watch = Watch(store.news(), self.places.reader)
        self.twins = Twins(store.engine, settings.others)
        self.claims = self.new_claims()
        self._chosen: set[Key] | None = None
        self._leaving: set[str] = set()
        """Logged models that this plan collects together with the runs that made them."""

    def new_claims(self) -> Claims:
        """Whose each place is, as of now: nothing that was read before counts."""
        return Claims(
            self.registry,
            self.store.identity(),
            accepted=self.store.accepted_roots(),
            why_twin=self.twins.why,
        )

    # -- what there is ---------------------------------------------------------------------------

    def plans(self) -> Iterator[Plan]:
        """The plan, page by page, experiments last, within the quota; it writes nothing, anywhere."""
        if self._chosen is None:
            yield from self._unlimited()
            return
        for plan in self._unlimited():
            yield within(plan, self._chosen)

    def choose(self) -> None:
        """Decide beforehand what a quota leaves, where one is set. Raises FuseBlown."""
        settings = self.settings
        if not settings.gate.collect_absent_trees:
            refuse_wrong_destination(self.store, settings.selection, self.plan_page, self.holds)
        quota, share = self.settings.quota, self.settings.max_share
        if not quota.chooses and share is None:
            return
        choice = Choice(quota)
        for plan in self._unlimited():
            sizes = self.measured(plan) if quota.max_bytes is not None else {}
            choice.add(plan, {entity: usage.bytes for entity, usage in sizes.items()})
        self._chosen = choice.chosen() if quota.chooses else None
        planned = choice.seen if self._chosen is None else len(self._chosen)
        check_fuse(planned, sum(self.store.counts().values()), share)

    def _unlimited(self) -> Iterator[Plan]:
        holds = self.holds()
        selection = self.settings.selection
        if selection.logged_models is not None or not selection.is_narrowed:
            yield from self._plans_of(Kind.LOGGED_MODEL, selection.logged_models, holds)
        if selection.runs is not None or not selection.is_narrowed:
            yield from self._plans_of(Kind.RUN, selection.runs, holds)
        if selection.experiments is not None or not selection.is_narrowed:
            for group in self._groups(selection.experiments):
                yield from self._plans_of_group(group, holds)
        if selection.jobs is not None or selection.with_jobs:
            for page in self.store.finished_jobs(
                self._oldest_job(), selection.jobs, self._workspaces
            ):
                yield self.plan_page(page, holds)

    @property
    def _workspaces(self) -> tuple[str, ...] | None:
        return self.settings.selection.workspaces

    def _oldest_job(self) -> datetime:
        return self.now - self.settings.policy.older_than

    def _plans_of(
        self, kind: Kind, ids: tuple[str, ...] | None, holds: HoldIndex
    ) -> Iterator[Plan]:
        """Entities by themselves: those that were named, or all that are in live experiments."""
        wanted = Wanted(
            ids=ids,
            workspaces=self._workspaces,
            in_live_experiments=ids is None,
            with_source_run=self._collects_models_of_runs,
        )
        for page in self.store.candidates(kind, wanted, PAGE):
            yield self._planned_apart(page, holds)

    def _planned_apart(self, page: Sequence[Candidate], holds: HoldIndex) -> Plan:
        """A page of runs or logged models; a run whose models go before it feeds none that is live."""
        deleted = [
            replace(each, feeds=tuple(m for m in each.feeds if m not in self._leaving))
            for each in page
            if not each.is_in_use
        ]
        plan = self.plan_page(deleted, holds)
        if self._collects_models_of_runs:
            self._leaving.update(
                d.candidate.id for d in plan.collect if d.candidate.kind is Kind.LOGGED_MODEL
            )
        return plan

    @property
    def _collects_models_of_runs(self) -> bool:
        return self.settings.policy.runs_of_live_models is RunsOfLiveModels.COLLECT_BOTH

    def feeding_both(self, plan: Plan) -> int:
        """How many runs are kept for their live models that `collect_both` would collect."""
        fed = {
            decision.candidate.id: decision.candidate.feeds
            for decision in plan.keep
            if decision.keep[0].reason is KeepReason.FEEDS_LIVE_MODEL
        }
        models = tuple({model for feeds in fed.values() for model in feeds})
        wanted = Wanted(ids=models, with_source_run=True)
        free = {
            each.id
            for page in (self.store.candidates(Kind.LOGGED_MODEL, wanted, PAGE) if models else ())
            for each in page
            if not each.is_in_use
        }
        return sum(free.issuperset(feeds) for feeds in fed.values())

    def _groups(self, ids: tuple[str, ...] | None) -> Iterator[list[Candidate]]:
        wanted = Wanted(ids=ids, workspaces=self._workspaces)
        yield from self.store.candidates(Kind.EXPERIMENT, wanted, GROUP)

    def _plans_of_group(self, group: Sequence[Candidate], holds: HoldIndex) -> Iterator[Plan]:
        """Deleted experiments: first the runs and models in them that are deleted, then themselves.

        Whoever collects one plan before asking for the next has the experiments judged by what is
        left in them then.
        """
        kept: dict[str, Keep] = {}
        wanted = Wanted(experiments=tuple(each.id for each in group))
        for kind in (Kind.LOGGED_MODEL, Kind.RUN):
            for page in self.store.candidates(kind, wanted, PAGE):
                plan = self._planned_apart(page, holds)
                for decision in plan.keep:
                    part = decision.candidate
                    kept.setdefault(part.experiment_id, because(part, decision.keep[0]))
                yield plan
        full = self.store.with_contents(group, lambda model: holds.on(model) is not None)
        yield self._with_members(self.plan_page(full, holds).without(kept), holds)

    def _with_members(self, plan: Plan, holds: HoldIndex) -> Plan:
        """A plan of experiments with what goes with them; what keeps a part of one keeps all of it."""
        kept: dict[str, Keep] = {}
        going: dict[str, Counter[Kind]] = defaultdict(Counter)
        for page in self.members(plan, holds):
            for decision in page.keep:
                part = decision.candidate
                kept.setdefault(part.experiment_id, because(part, decision.keep[0]))
            for decision in page.collect:
                going[decision.candidate.experiment_id][decision.candidate.kind] += 1
        return replace(plan.without(kept), members=going)

    def members(self, plan: Plan, holds: HoldIndex) -> Iterator[Plan]:
        """What goes with the experiments that a plan collects: logged models, then traces, by page."""
        experiments = tuple(
            d.candidate.id for d in plan.collect if d.candidate.kind is Kind.EXPERIMENT
        )
        wanted = Wanted(experiments=experiments, is_member=True)
        for kind in (Kind.LOGGED_MODEL, Kind.TRACE) if experiments else ():
            for page in self.store.candidates(kind, wanted, PAGE):
                yield self.plan_page(page, holds, are_members=True)

    def holds(self) -> HoldIndex:
        """Everything that may keep an entity or a tree, read now."""
        found = self.places.placed(self.store.holds())
        return HoldIndex.build(found, self.now, (self.watch.refreshed(),))

    def notes(self) -> tuple[str, ...]:
        """What people should know of the store and of the roots that were looked at."""
        return (
            *self.store.schema.notes(),
            *self._registry_notes(),
            *self.unmatched,
            *self.places.notes(),
            *self._unmarked(),
            *self.evidence.notes(),
        )

    def _registry_notes(self) -> Iterator[str]:
        if self.settings.unread_registry:
            yield unread(self.settings.unread_registry)
        if self.store.versions_elsewhere:
            yield (
                f"{self.store.versions_elsewhere} runs and logged models are kept for model versions "
                "that this database does not have; where the registry is another database, name it "
                "with --registry-store-uri"
            )

    @cached_property
    def unmatched(self) -> tuple[str, ...]:
        """What is said of patterns that match no experiment: they may be misspelt."""
        return self.store.unmatched(self.settings.policy.patterns)

    def _unmarked(self) -> Iterator[str]:
        """Roots in which no mark could be written, although their store can hold one."""
        for place, claim in self.claims.noted().items():
            if claim.owner is Ownership.UNMARKABLE and claim.detail:
                yield f"{place_uri(place)} carries no mark of this database: {claim.detail}"

    # -- deciding --------------------------------------------------------------------------------

    def plan_page(
        self, page: Sequence[Candidate], holds: HoldIndex, *, are_members: bool = False
    ) -> Plan:
        """Decide on one page of candidates: pure decisions, then a look at each tree."""
        sites, scope = self.places.sites(page), self.places.scope
        targets = {each.id: locate(each, sites, scope) for each in page}
        facts = Facts(
            holds=holds,
            targets=targets,
            roots=self.places.roots(page, targets),
            claims=self._claims_of(page, targets),
            policy=self.settings.policy,
            gate=self.settings.gate,
            now=self.now,
            are_members=are_members,
        )
        plan = make_plan(page, facts)
        plan = plan.without(self._held_otherwise(plan, holds))
        found = self.evidence.of(plan, facts.roots)
        return found.applied(plan).without({**self._unknown(plan), **self._unread(plan)})

    def _claims_of(
        self, page: Sequence[Candidate], targets: Mapping[str, tuple[Target, ...] | Keep]
    ) -> dict[Target, Claim]:
        """Whose the place of each tree is."""
        found: dict[Target, Claim] = {}
        for each in page:
            trees = targets[each.id]
            for target in () if isinstance(trees, Keep) else trees:
                found[target] = self.claims.of(each.kind, each.experiment_id, target)
        return found

    def mark(self, decision: Decision) -> Keep | None:
        """Leave this database's mark where a decision relies on it; why it is kept after all."""
        each = decision.candidate
        for target in decision.targets:
            claim = self.claims.of(each.kind, each.experiment_id, target)
            if has_tree(decision) and self.places.probe_of(target.root).is_there:
                claim = self.claims.mark(claim, self.now)
            if keep := check_claim(claim):
                return keep
        return None

    def _unknown(self, plan: Plan) -> dict[str, Keep]:
        """Those that something refers to, or may, which gcd does not know."""
        found: dict[str, Keep] = {}
        for kind in {decision.candidate.kind for decision in plan.collect}:
            ids = [d.candidate.id for d in plan.collect if d.candidate.kind is kind]
            for entity, detail in self.store.unknown_references(kind, ids).items():
                found[entity] = Keep(KeepReason.UNKNOWN_REFERENCE, detail)
        return found

    def _held_otherwise(self, plan: Plan, holds: HoldIndex) -> dict[str, Keep]:
        """Those whose tree is held under another name: another mount point of its disk."""
        other_names = self.places.naming()
        found: dict[str, Keep] = {}
        for decision in plan.collect if holds.has_other_names else ():
            for target in decision.targets if has_tree(decision) else ():
                if hold := holds.over_any(other_names(target.place)):
                    found[decision.candidate.id] = Keep(hold.reason, hold.because)
        return found

    def _unread(self, plan: Plan) -> dict[str, Keep]:
        """Everything that a registry which gcd cannot read may refer to."""
        variable = self.settings.unread_registry
        if variable is None:
            return {}
        keep = Keep(KeepReason.REGISTERED, unread(variable))
        return {
            each.candidate.id: keep for each in plan.collect if each.candidate.kind is not Kind.JOB
        }

    def measured(self, plan: Plan) -> dict[str, Usage]:
        """Objects and bytes of the trees to collect, by entity, measured many at once.

        An experiment's are those of the logged models and traces that go with it.
        """
        found: dict[str, Usage] = defaultdict(Usage)
        for decision, usage in self._sizes(plan.collect):
            found[decision.candidate.id] += usage
        if plan.members:
            for page in self.members(plan, self.holds()):
                for decision, usage in self._sizes(page.collect):
                    found[decision.candidate.experiment_id] += usage
        return found

    def _sizes(self, decisions: Sequence[Decision]) -> Iterator[tuple[Decision, Usage]]:
        """Each tree that is to be collected, with its size."""
        pairs = [(d, target) for d in decisions for target in d.targets if has_tree(d)]
        with ThreadPoolExecutor(self.settings.hands, thread_name_prefix="gcd-measure") as pool:
            sizes = pool.map(self._measure, [target for _, target in pairs], chunksize=16)
            for (decision, _), usage in zip(pairs, sizes, strict=True):
                yield decision, usage

    def _measure(self, target: Target) -> Usage:
        return self.registry.open(target.place.scheme).measure(target)


def unread(variable: str) -> str:
    """Why everything stays where the environment names a registry that gcd cannot read."""
    return (
        f"{variable} names a model registry that is not a database, and its versions may refer to "
        "this; name the registry's database with --registry-store-uri"
    )


TELLING = frozenset(
    {
        KeepReason.HELD,
        KeepReason.REGISTERED,
        KeepReason.TOO_YOUNG,
        KeepReason.UNSAFE_TARGET,
        KeepReason.NO_BACKEND,
        KeepReason.FOREIGN_ROOT,
        KeepReason.UNREACHABLE,
        KeepReason.ROOT_UNHEALTHY,
        KeepReason.OVER_QUOTA,
    }
)
"""Reasons that say the same of an experiment as of a part of it."""


def because(part: Candidate, keep: Keep) -> Keep:
    """Why an experiment stays in which something is kept."""
    reason = keep.reason if keep.reason in TELLING else KeepReason.HAS_LIVE_CHILDREN
    what = f"the {part.kind.replace('_', ' ')} {part.id} in it is kept, {keep.reason}"
    return Keep(reason, f"{what}: {keep.detail}")
