"""Where recorded URIs really lie: the places of trees, and the storage roots around them.

It must never write, and looks at each storage root once for one `now`; at one that has no identity
once more, where the first look was for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import chain, pairwise

from gcd.artifacts.base import AliasingArtifactStore, LearningArtifactStore, Naming
from gcd.artifacts.registry import Registry
from gcd.errors import BackendError, UnsafeTarget
from gcd.model import Candidate, Hold, KeepReason, Place, Probe, Root, Target, Way
from gcd.planning.guard import (
    PROXIED,
    Scope,
    Site,
    closed,
    contains,
    layout_root,
    nearest,
    parse_place,
    place_uri,
)
from gcd.planning.names import ANYWHERE, is_adrift, is_plain, readings
from gcd.planning.policy import Keep
from gcd.planning.registered import Meanings
from gcd.store.tracking import TrackingStore

ADRIFT = 20
"""Relative paths of model versions that are told one by one."""
NAMED_TREES = 5000
"""Trees that are looked for under a root before it is taken for an empty mount point."""


class Places:
    """What is known of the storage roots of one store, as of one `now`."""

    def __init__(
        self, store: TrackingStore, registry: Registry, scope: Scope, now: datetime
    ) -> None:
        self.store = store
        self.registry = registry
        self.now = now
        self.scope = replace(
            scope,
            destination=scope.destination and self.resolved(scope.destination),
            roots=tuple(self.resolved(root) for root in scope.roots),
        )
        self._remembered = store.remembered_roots()
        self._sites: dict[str, Site | Keep] = {}
        self._probes: dict[Place, Probe] = {}
        self._glanced: set[Place] = set()
        """Roots that were looked at without looking for anything that the database names."""
        self._learned: set[str] = set()
        self._adrift: dict[str, None] = {}
        """Sources of model versions that may lie in any local tree."""

    def of(self, uri: str | None) -> Place | None:
        """The true place of a recorded URI, None if it has none that gcd can tell."""
        if not uri:
            return None
        try:
            place = parse_place(without_query(uri), self.scope)
            self._learn(uri)
            return self.resolved(place)
        except (UnsafeTarget, BackendError):
            return None

    def placed(self, holds: Iterable[Hold]) -> Iterator[tuple[Hold, Place | Way | None]]:
        """Each hold with every place that its URI may mean, and their other names, for an index."""
        other_names = self.naming()
        for hold in holds:
            for place in self.meanings(hold.uri):
                yield hold, place
                for name in other_names(place) if place else ():
                    yield hold, name

    def reader(self) -> Meanings:
        """Tells what the URIs of model versions may mean at this moment.

        One that has the id of what it needs is found by that, under whatever name.
        """
        other_names = self.naming()

        def meanings(uri: str, is_nameless: bool) -> Iterator[Place | Way | None]:
            for place in self.meanings(uri):
                yield place
                yield from other_names(place) if place and is_nameless else ()
            if is_adrift(uri, self.scope):
                self._adrift.setdefault(uri)
                yield ANYWHERE

        return meanings

    def naming(self) -> Naming:
        """Tells what else true places are called at this moment, where that may be anything."""
        known: dict[str, Naming] = {}

        def other_names(place: Place) -> tuple[Place | Way, ...]:
            if place.scheme not in known:
                is_served = self.registry.problem(place.scheme) is None
                backend = self.registry.open(place.scheme) if is_served else None
                known[place.scheme] = (
                    backend.other_names()
                    if isinstance(backend, AliasingArtifactStore)
                    else _no_names
                )
            return known[place.scheme](place)

        return other_names

    def meanings(self, uri: str | None) -> Iterator[Place | None]:
        """The true places that a live URI may mean; None among them if ids in it must tell."""
        if not uri:
            yield None
            return
        place = self.of(uri)
        is_certain = place is not None and self.registry.problem(place.scheme) is None
        if is_certain and is_plain(uri):
            yield place
            return
        yield from {self._true(each) for each in readings(uri, self.scope)}
        if not is_certain:
            yield None

    def _true(self, place: Place) -> Place:
        """A place under its true name, as far as it can be told."""
        try:
            return self.resolved(place)
        except (UnsafeTarget, BackendError):
            return place

    def resolved(self, place: Place) -> Place:
        """A place under its true name, where a backend is there to ask."""
        if self.registry.problem(place.scheme):
            return place
        return self.registry.open(place.scheme).resolve(place)

    def _learn(self, uri: str) -> None:
        """Let the backend have the password of a recorded URI: its place has none."""
        scheme = uri.partition(":")[0].lower()
        if "@" not in uri or scheme not in self.registry.schemes:
            return
        if self.registry.problem(scheme) is None:
            backend = self.registry.open(scheme)
            if isinstance(backend, LearningArtifactStore):
                backend.learn(uri)

    # -- sites -----------------------------------------------------------------------------------

    def sites(self, page: Sequence[Candidate]) -> dict[str, Site | Keep]:
        """Where the experiments of a page log, or why nothing can be deleted there, by location."""
        return {
            each.location: self.site(each.location, each.experiment_id)
            for each in page
            if each.location is not None
        }

    def site(self, location: str, experiment_id: str) -> Site | Keep:
        """Where an experiment logs, or why nothing can be deleted there."""
        if location not in self._sites:
            self._sites[location] = self._new_site(location, experiment_id)
        return self._sites[location]

    def _new_site(self, location: str, experiment_id: str) -> Site | Keep:
        try:
            recorded = parse_place(location, self.scope)
            backend = self.registry.open(recorded.scheme)
            self._learn(location)
            true = backend.resolve(recorded)
        except UnsafeTarget as error:
            return Keep(KeepReason.UNSAFE_TARGET, told(error))
        except BackendError as error:
            return Keep(KeepReason.NO_BACKEND, told(error))
        inside = self.store.entities_inside(self._owners(true))
        if inside:
            entity, what = next(iter(inside.items()))
            return Keep(KeepReason.SHARED, f"it lies inside the files of {what} {entity}")
        root = backend.storage_root(true, layout_root(true, experiment_id, self.scope))
        return Site(recorded, true, nearest(root, true, self._remembered))

    def location(self, candidate: Candidate) -> Place | None:
        """The true place of the location of a candidate's experiment, once `sites` had it."""
        site = self._sites.get(candidate.location or "")
        return site.true if isinstance(site, Site) else None

    def elsewhere(self, target: Target) -> tuple[Target, ...]:
        """Other places that MLflow may have used for a tree.

        Moving an experiment to a workspace changes its rows alone: what it had logged before stays
        without the workspace's prefix.
        """
        destination = self.scope.destination
        if destination is None or not contains(destination, target.place):
            return ()
        first, _, rest = target.place.path.removeprefix(destination.path).partition("/")
        _, _, below_it = rest.partition("/")
        if first != "workspaces" or not below_it:
            return ()
        place = replace(destination, path=closed(destination.path) + below_it)
        return (Target(place, destination),)

    def _owners(self, location: Place) -> list[str]:
        """The names, on the way to a location by whatever path, of folders that may be an entity's."""
        others = (name.path for name in self.naming()(location) if isinstance(name, Place))
        return [
            owner
            for path in (location.path, *others)
            for owner, name in pairwise(path.split("/"))
            if name == "artifacts"
        ]

    # -- roots -----------------------------------------------------------------------------------

    def roots(
        self,
        page: Sequence[Candidate],
        targets: Mapping[str, tuple[Target, ...] | Keep],
    ) -> dict[Place, Root]:
        """The storage roots of the trees of a page, with what is remembered of them read anew."""
        likely: dict[Place, Candidate] = {}
        for candidate in page:
            found = targets[candidate.id]
            for target in () if isinstance(found, Keep) else found:
                likely.setdefault(target.root, candidate)
        for place, candidate in likely.items():
            if place not in self._probes or self._is_unproved(place):
                backend = self.registry.open(place.scheme)
                self._probes[place] = backend.probe(place, self._named(candidate, page))
                self._glanced.discard(place)
        return self.store.roots({place: self._probes[place] for place in likely}, self.now)

    def _is_unproved(self, root: Place) -> bool:
        """Whether only what is found there could tell that it is the right one, and nobody looked."""
        return root in self._glanced and self._probes[root].identity is None

    def _named(self, candidate: Candidate, page: Sequence[Candidate]) -> Iterator[Place]:
        """Trees that the database names and that may be where the candidate's is, likely first."""
        uris = (uri for each in page for uri in (each.uri, each.archive_uri))
        location = (candidate.location or "").rstrip("/")
        prefix = location.removesuffix("/" + candidate.experiment_id)
        if location.startswith(f"{PROXIED}:/") and not location.startswith(f"{PROXIED}://"):
            prefix = f"{PROXIED}:"  # all of them are in one place, whatever their workspace
        for uri in chain(uris, self.store.some_trees(prefix, NAMED_TREES)):
            place = self.of(uri)
            if place is not None:
                yield place

    def looked_at(self) -> dict[Place, Root]:
        """Every root that was looked at, with what is remembered of it."""
        return self.store.roots(self._probes, self.now)

    def notes(self) -> tuple[str, ...]:
        """What people should know of the roots that were looked at."""
        noted = (f"{place_uri(place)}: {p.note}" for place, p in self._probes.items() if p.note)
        return (*sorted(noted), *map(adrift, list(self._adrift)[:ADRIFT]))

    def _learn_for(self, place: Place) -> None:
        """Find a password for a place of the journal: other trees are recorded with it."""
        if place.scheme in self._learned:
            return
        self._learned.add(place.scheme)
        if isinstance(self.registry.open(place.scheme), LearningArtifactStore):
            for uri in self.store.some_trees(f"{place.scheme}:/", NAMED_TREES):
                self._learn(uri)

    def probe_of(self, root: Place) -> Probe:
        """What a look at the root found; it is looked at once."""
        return self._probes.get(root, Probe(is_there=False))

    def known_roots(self, targets: Iterable[Target]) -> dict[Place, Root]:
        """The roots of purged trees, as remembered: what a sweep checks the disk against."""
        places = {target.root for target in targets}
        for place in places - self._probes.keys():
            if self.registry.problem(place.scheme) is None:
                self._learn_for(place)
                self._probes[place] = self.registry.open(place.scheme).probe(place, ())
                self._glanced.add(place)
        return self.store.roots({place: self.probe_of(place) for place in places}, self.now)


def _no_names(_: Place) -> tuple[Place | Way, ...]:
    return ()


def adrift(uri: str) -> str:
    """What people should know of a source that is a relative path, and what to do about it."""
    return (
        f"a model version has the source {uri!r}, relative to an unknown folder: it may lie in any "
        "local tree, so all of them stay. Register it anew by an absolute path or delete the version; "
        f"if it lies in no artifact tree, set artifacts.ignored_sources = [{uri!r}]"
    )


def without_query(uri: str) -> str:
    """A URI whose tree is to be held: MLflow leaves query and fragment out of the place it writes."""
    is_local = uri.startswith(("/", "file:"))
    return uri if is_local else uri.partition("?")[0].partition("#")[0]


def told(error: BaseException) -> str:
    """An error as one sentence with its hint."""
    hint = getattr(error, "hint", None)
    return f"{error}; {hint}" if hint else str(error) or type(error).__name__
