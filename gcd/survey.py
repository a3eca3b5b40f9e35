"""The survey: gathers from store and roots what planning needs, and plans page by page.

It must never write, anywhere: `gcd plan`, a dry run and a cycle all decide by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise

from sqlalchemy.engine import Connection

from gcd.artifacts.registry import Registry
from gcd.errors import ArtifactError, BackendError, TransientArtifactError, UnsafeTarget
from gcd.model import Candidate, KeepReason, Place, Probe, Root, Target, Usage
from gcd.planning.gate import Gate
from gcd.planning.guard import Scope, Site, layout_root, nearest, parse_place
from gcd.planning.holds import HoldIndex
from gcd.planning.plan import Decision, Plan, make_plan
from gcd.planning.policy import Keep, Policy, RunsOfLiveModels
from gcd.store import read
from gcd.store.tracking import TrackingStore

PAGE = 1000
"""Candidates planned at a time: bounds memory."""
NAMED_TREES = 5000
"""Trees that are looked for under a root before it is taken for an empty mount point."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a cycle is to do, from configuration and command line."""

    policy: Policy
    scope: Scope
    gate: Gate
    hands: int = 8
    batch_runs: int = 500
    batch_rows: int = 50_000
    keep_history: timedelta = timedelta(days=90)
    run_ids: tuple[str, ...] | None = None


class Survey:
    """What is known of one store and its storage roots, as of one `now`."""

    def __init__(
        self, store: TrackingStore, registry: Registry, settings: Settings, now: datetime
    ) -> None:
        self.store = store
        self.registry = registry
        self.now = now
        self.settings = settings
        self.settings = replace(settings, scope=self._true_scope(settings.scope))
        self._remembered = store.remembered_roots()
        self._sites: dict[str, Site | Keep] = {}
        self._probes: dict[Place, Probe] = {}

    def plans(self) -> Iterator[Plan]:
        """The plan, page by page; it writes nothing, anywhere."""
        holds = self.holds()
        for page in self.store.candidates(self.settings.run_ids, PAGE):
            yield self.plan_page(page, holds)

    def holds(self) -> HoldIndex:
        """Everything that may keep a run or a tree, read now."""
        pairs = ((hold, self._place(hold.uri)) for hold in self.store.holds())
        return HoldIndex.build(pairs, self.now)

    def plan_page(self, page: Sequence[Candidate], holds: HoldIndex) -> Plan:
        """Decide on one page of candidates: pure decisions, then a look at each tree."""
        sites = self._sites_of(page)
        roots = self._roots(page, sites)
        plan = make_plan(
            page,
            holds,
            sites,
            roots,
            self.settings.policy,
            self.settings.scope,
            self.settings.gate,
            self.now,
        )
        strangers = self.store.unknown_references([each.candidate.id for each in plan.collect])
        unknown = {
            run: Keep(KeepReason.UNKNOWN_REFERENCE, f"the table {table} refers to it")
            for run, table in strangers.items()
        }
        return plan.without({**self._examined(plan.collect), **unknown})

    def measured(self, plan: Plan) -> Usage:
        """Objects and bytes of all trees to collect, measured many at once."""
        targets = [decision.target for decision in plan.collect if decision.target]
        with ThreadPoolExecutor(self.settings.hands, thread_name_prefix="gcd-measure") as pool:
            return sum(pool.map(self._measure, targets, chunksize=16), Usage())

    def _measure(self, target: Target) -> Usage:
        return self.registry.open(target.place.scheme).measure(target)

    def root_pages(self) -> Iterator[dict[Place, Root]]:
        """The storage roots that soft-deleted runs lie below, page by page."""
        for page in self.store.candidates(self.settings.run_ids, PAGE):
            yield self._roots(page, self._sites_of(page))

    def _true_scope(self, scope: Scope) -> Scope:
        """The scope with its places under their true names."""
        destination = scope.destination and self._resolved(scope.destination)
        return replace(
            scope, destination=destination, roots=tuple(self._resolved(r) for r in scope.roots)
        )

    def _resolved(self, place: Place) -> Place:
        """A place under its true name, where a backend is there to ask."""
        if self.registry.problem(place.scheme):
            return place
        return self.registry.open(place.scheme).resolve(place)

    def _place(self, uri: str | None) -> Place | None:
        """The true place of a recorded URI, None if it has none that gcd can tell."""
        if not uri:
            return None
        try:
            return self._resolved(parse_place(without_query(uri), self.settings.scope))
        except (UnsafeTarget, BackendError):
            return None

    def _sites_of(self, page: Sequence[Candidate]) -> dict[str, Site | Keep]:
        """The site of each artifact location on a page."""
        return {each.location: self._site(each) for each in page if each.location is not None}

    def _site(self, candidate: Candidate) -> Site | Keep:
        """Where the candidate's experiment logs, or why nothing can be deleted there."""
        location = candidate.location or ""
        if location not in self._sites:
            self._sites[location] = self._new_site(location, candidate.experiment_id)
        return self._sites[location]

    def _new_site(self, location: str, experiment_id: str) -> Site | Keep:
        try:
            recorded = parse_place(location, self.settings.scope)
            backend = self.registry.open(recorded.scheme)
        except UnsafeTarget as error:
            return Keep(KeepReason.UNSAFE_TARGET, told(error))
        except BackendError as error:
            return Keep(KeepReason.NO_BACKEND, told(error))
        true = backend.resolve(recorded)
        names = true.path.split("/")
        owners = [owner for owner, name in pairwise(names) if name == "artifacts"]
        inside = self.store.entities_inside(owners)
        if inside:
            entity, what = next(iter(inside.items()))
            return Keep(KeepReason.SHARED, f"it lies inside the files of {what} {entity}")
        root = backend.storage_root(true, layout_root(true, experiment_id, self.settings.scope))
        return Site(recorded, true, nearest(root, true, self._remembered))

    def _roots(
        self, page: Sequence[Candidate], sites: Mapping[str, Site | Keep]
    ) -> dict[Place, Root]:
        """The storage roots of a page: probed once a cycle, what is remembered read anew."""
        places: dict[Place, Candidate] = {}
        for candidate in page:
            site = sites.get(candidate.location or "")
            if isinstance(site, Site):
                places.setdefault(site.root, candidate)
            for root in self.settings.scope.roots:
                places.setdefault(root, candidate)
        for place, candidate in places.items():
            if place not in self._probes:
                backend = self.registry.open(place.scheme)
                self._probes[place] = backend.probe(place, self._named(candidate, page))
        probes = {place: self._probes[place] for place in places}
        return self.store.roots(probes, self.now)

    def _named(self, candidate: Candidate, page: Sequence[Candidate]) -> Iterator[Place]:
        """Trees that the database names and that may be where the candidate's is, likely first."""
        for each in page:
            place = self._place(each.uri)
            if place is not None:
                yield place
        location = (candidate.location or "").rstrip("/")
        prefix = location.removesuffix("/" + candidate.experiment_id)
        for uri in self.store.some_trees(prefix, NAMED_TREES):
            place = self._place(uri)
            if place is not None:
                yield place

    def _examined(self, decisions: Sequence[Decision]) -> dict[str, Keep]:
        """What a look at each tree says against deleting it, many at once."""
        with ThreadPoolExecutor(self.settings.hands, thread_name_prefix="gcd-examine") as pool:
            looks = pool.map(self._examine, decisions, chunksize=16)
            return {
                decision.candidate.id: keep
                for decision, keep in zip(decisions, looks, strict=True)
                if keep is not None
            }

    def _examine(self, decision: Decision) -> Keep | None:
        if decision.target is None:
            return None
        try:
            self.registry.open(decision.target.place.scheme).examine(decision.target)
        except UnsafeTarget as error:
            return Keep(KeepReason.UNSAFE_TARGET, told(error))
        except TransientArtifactError as error:
            return Keep(KeepReason.UNREACHABLE, told(error))
        except ArtifactError as error:
            return Keep(KeepReason.ROOT_UNHEALTHY, told(error))
        return None

    # -- judged again ----------------------------------------------------------------------------

    def rejudge(
        self, conn: Connection, targets: Mapping[str, Decision], ids: Sequence[str]
    ) -> dict[str, Keep]:
        """Of runs locked in a purge transaction: those that something holds now."""
        pairs = ((hold, self._place(hold.uri)) for hold in self.store.entity_holds(conn, ids))
        holds = HoldIndex.build(pairs, self.now)
        kept: dict[str, Keep] = {}
        for run in ids:
            decision = targets[run]
            hold = holds.on_candidate(decision.candidate)
            if hold is None and decision.target is not None:
                hold = holds.over(decision.target.place)
            if hold is not None:
                kept[run] = Keep(hold.reason, hold.because)
        if self.settings.policy.runs_of_live_models is RunsOfLiveModels.KEEP:
            for run, model in read.live_models_fed(conn, self.store.schema, ids).items():
                detail = f"its metrics belong to the live logged model {model}"
                kept.setdefault(run, Keep(KeepReason.FEEDS_LIVE_MODEL, detail))
        for run, table in read.unknown_references(conn, self.store.schema, ids).items():
            kept.setdefault(run, Keep(KeepReason.UNKNOWN_REFERENCE, f"{table} refers to it"))
        return kept

    def probe_of(self, root: Place) -> Probe:
        """What a look at the root found; it is looked at once a cycle."""
        return self._probes.get(root, Probe(is_there=False))

    def known_roots(self, targets: Sequence[Target]) -> dict[Place, Root]:
        """The roots of purged trees, as remembered: what a sweep checks the disk against."""
        places = {target.root for target in targets}
        for place in places - self._probes.keys():
            if self.registry.problem(place.scheme) is None:
                self._probes[place] = self.registry.open(place.scheme).probe(place, ())
        return self.store.roots({place: self.probe_of(place) for place in places}, self.now)


def without_query(uri: str) -> str:
    """A URI whose tree is to be held: MLflow leaves query and fragment out of the place it writes."""
    is_local = uri.startswith(("/", "file:"))
    return uri if is_local else uri.partition("?")[0].partition("#")[0]


def told(error: BaseException) -> str:
    """An error as one sentence with its hint."""
    hint = getattr(error, "hint", None)
    return f"{error}; {hint}" if hint else str(error) or type(error).__name__
