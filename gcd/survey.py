"""The survey: gathers from store and roots what planning needs, and plans page by page.

It must never write, anywhere: `gcd plan`, a dry run and a cycle all decide by it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

from gcd.artifacts.base import Options
from gcd.artifacts.registry import Registry
from gcd.claims import Claims
from gcd.evidence import Evidence, has_tree
from gcd.fates import GROUP, PAGE, Fates
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
from gcd.selection import Selection
from gcd.store.read import Wanted
from gcd.store.tracking import TrackingStore
from gcd.store.twins import Twins
from gcd.watch import Watch

ROUNDS = 10
"""How often a quota is divided anew because of what turned out to need more than is left of it."""


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
        self._fates: Fates | None = None

    def new_claims(self) -> Claims:
        """Whose each place is, as of now: nothing that was read before counts."""
        return Claims(
            self.registry,
            self.store.identity(),
            accepted=self.store.accepted_roots(),
            why_twin=self.twins.why,
        )

    # -- what there is ---------------------------------------------------------------------------

    def plans(self, asked: Selection | None = None) -> Iterator[Plan]:
        """The plan, page by page, experiments last, within the quota; it writes nothing, anywhere.

        `asked` narrows what is planned, and not what goes: the rest of the plan is taken as it is.
        """
        for plan in self._pages(asked or self.settings.selection):
            yield plan if self._chosen is None else within(plan, self._chosen)

    def choose(self) -> None:
        """Decide beforehand what a quota leaves, where one is set. Raises FuseBlown."""
        settings = self.settings
        if not settings.gate.collect_absent_trees:
            refuse_wrong_destination(self.store, settings.selection, self.plan_page, self.holds)
        quota, share = self.settings.quota, self.settings.max_share
        if not quota.chooses and share is None:
            return
        passed_over: set[Key] = set()
        for _ in range(ROUNDS):
            choice = self._choice(quota, passed_over)
            if not quota.chooses:
                break
            self._chosen = choice.chosen()
            is_linked, self._fates = self.fates.is_linked, self._new_fates()
            kept = self._kept_of_chosen() if is_linked else set()
            if not kept:
                break
            passed_over |= kept
        planned = choice.seen if self._chosen is None else len(self._chosen)
        check_fuse(planned, sum(self.store.counts().values()), share)

    def _choice(self, quota: Quota, passed_over: Collection[Key]) -> Choice:
        """The oldest of all that would go without a quota."""
        self._chosen, self._fates = None, None
        choice = Choice(quota, passed_over)
        for plan in self._pages(self.settings.selection):
            sizes = self.measured(plan) if quota.max_bytes is not None else {}
            choice.add(plan, {entity: usage.bytes for entity, usage in sizes.items()})
        return choice

    def _kept_of_chosen(self) -> set[Key]:
        """What was chosen and stays because the quota leaves out something that it needs gone."""
        keys = {
            (decision.candidate.kind, decision.candidate.id)
            for plan in self.plans()
            for decision in plan.keep
        }
        return keys & (self._chosen or set())

    @property
    def fates(self) -> Fates:
        """What stays for the sake of what else stays."""
        if self._fates is None:
            self._fates = self._new_fates()
        return self._fates

    def _new_fates(self) -> Fates:
        settings = self.settings
        return Fates(self.store, self.plan_page, settings.policy, settings.selection, self._chosen)

    def _pages(self, asked: Selection) -> Iterator[Plan]:
        """The pages of a plan: what is needed by nothing that follows comes first."""
        holds = self.holds()
        yield from self._models(asked, holds)
        if asked.runs is not None or not asked.is_narrowed:
            yield from self._plans_of(Kind.RUN, asked.runs, holds)
        if asked.experiments is not None or not asked.is_narrowed:
            for group in self._groups(asked.experiments):
                yield from self.fates.planned_group(group, holds)
        if asked.jobs is not None or asked.with_jobs:
            for page in self.store.finished_jobs(self._oldest_job(), asked.jobs, self._workspaces):
                yield self.plan_page(page, holds)

    @property
    def _workspaces(self) -> tuple[str, ...] | None:
        return self.settings.selection.workspaces

    def _oldest_job(self) -> datetime:
        return self.now - self.settings.policy.older_than

    def _models(self, asked: Selection, holds: HoldIndex) -> Iterator[Plan]:
        """Soft-deleted logged models wherever they are, and active ones that go with their runs."""
        if asked.logged_models is not None or not asked.is_narrowed:
            yield from self._plans_of(Kind.LOGGED_MODEL, asked.logged_models, holds)
        for group in self._groups(asked.experiments) if asked.experiments is not None else ():
            wanted = Wanted(experiments=tuple(each.id for each in group))
            for page in self.store.candidates(Kind.LOGGED_MODEL, wanted, PAGE):
                yield self.fates.planned(page, holds)

    def _plans_of(
        self, kind: Kind, ids: tuple[str, ...] | None, holds: HoldIndex
    ) -> Iterator[Plan]:
        """Entities by themselves: those that were named, or all that do not go with experiments."""
        wanted = Wanted(
            ids=ids,
            workspaces=self._workspaces,
            in_live_experiments=ids is None and kind is Kind.RUN,
            with_source_run=self._collects_models_of_runs,
        )
        for page in self.store.candidates(kind, wanted, PAGE):
            yield from self.fates.in_order(self.fates.planned(page, holds))

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
            for page in self.fates.members(plan.members, self.holds()):
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
