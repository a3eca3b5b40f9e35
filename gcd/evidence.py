"""Looks at the trees that a plan collects: may they be deleted, and are the files there that the database names?

Only trees with a witness are searched for a file, each of them, many at once: on a local disk that is
one more folder to open, in a bucket one listing of one key. A tree is listed twice more when it is
swept, so a cycle becomes at most half as long again, and only for what has a witness. Where experiments log is looked at once
each, whatever they hold. Nothing is looked at twice for one `now`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice

from gcd.artifacts.base import FolderedArtifactStore, SearchableArtifactStore, WayEnd
from gcd.errors import (
    ArtifactError,
    BackendError,
    TransientArtifactError,
    UnsafeTarget,
)
from gcd.model import Candidate, KeepReason, Kind, Place, Root, Target
from gcd.places import Places, told
from gcd.planning.emptiness import Look, Witness, judge_look
from gcd.planning.gate import Gate
from gcd.planning.guard import contains, written_place
from gcd.planning.plan import Decision, Plan
from gcd.planning.policy import Keep

NEWEST = 100
"""Runs, logged models and traces of an experiment of which one with files proves its location: the
newest, since those log where the experiment logs now."""
NOTES = 3
"""Experiments of which one entity that is kept is told to people."""


@dataclass(slots=True)
class Found:
    """What a look at the trees of a page came to, by entity."""

    keep: dict[str, Keep] = field(default_factory=dict)
    witnesses: dict[str, str] = field(default_factory=dict)
    empty: dict[str, list[Target]] = field(default_factory=lambda: defaultdict(list))

    def applied(self, plan: Plan) -> Plan:
        """The plan with what was found."""
        return plan.with_looks(self.witnesses, self.empty).without(self.keep)


class Evidence:
    """What was found of trees and of where experiments log, as of one `now`."""

    def __init__(self, places: Places, gate: Gate, hands: int) -> None:
        self.places = places
        self.store = places.store
        self.registry = places.registry
        self.gate = gate
        self.hands = hands
        self._proved: set[Place] = set()
        """Homes below which a tree that the database names has files."""
        self._unproved: set[Place] = set()
        self._ends: dict[Place, WayEnd | None] = {}
        """Where the way to each folder ends that holds entities' folders."""
        self._swept: dict[str, list[tuple[str, str]]] = {}
        """Experiment to trees, with their roots, in which gcd deleted something."""
        self._notes: dict[str, str] = {}
        self._filled: set[Place] = set()
        """Folders that were seen with something in them; gcd itself may empty them later."""

    def of(self, plan: Plan, roots: Mapping[Place, Root]) -> Found:
        """What a look at each tree to be collected says, many at once."""
        pairs = [(d, target) for d in plan.collect for target in d.targets if has_tree(d)]
        if not pairs:
            return Found()
        found, looks = Found(), self._planned(pairs)
        with ThreadPoolExecutor(self.hands, thread_name_prefix="gcd-examine") as pool:
            self._look_around(pool, looks)
            for at, seen in enumerate(pool.map(self._look, list(looks), chunksize=16)):
                if isinstance(seen, Keep):
                    found.keep.setdefault(pairs[at][0].candidate.id, seen)
                else:
                    looks[at] = seen
        self._proved |= {look.home for look in looks if look.has_files}
        self._remember_swept(pairs, looks)
        for (decision, target), look in zip(pairs, looks, strict=True):
            each = decision.candidate
            self._judge(found, each, self._completed(each, look, roots[target.root]))
        return found

    def _judge(self, found: Found, candidate: Candidate, look: Look) -> None:
        """Note what a look says."""
        if look.witness is not None:
            found.witnesses[candidate.id] = look.witness
        keep = judge_look(look, collect_absent=self.gate.collect_absent_trees)
        if keep is not None:
            found.keep.setdefault(candidate.id, keep)
            self._note(candidate, keep)
        elif look.is_missed:
            found.empty[candidate.id].append(look.target)

    def _note(self, candidate: Candidate, keep: Keep) -> None:
        """Remember one entity of an experiment that is kept, with what to do about it."""
        if len(self._notes) < NOTES:
            kind = candidate.kind.replace("_", " ")
            self._notes.setdefault(
                candidate.experiment_id, f"{kind} {candidate.id} is kept: {keep.detail}"
            )

    def notes(self) -> tuple[str, ...]:
        """Some of what is kept because of what was found, one of an experiment."""
        return tuple(self._notes.values())

    # -- single trees ----------------------------------------------------------------------------

    def _planned(self, pairs: Sequence[tuple[Decision, Target]]) -> list[Look]:
        """The look to take at each tree: at what, and with which witness."""
        ids: dict[Kind, list[str]] = defaultdict(list)
        for decision, _ in pairs:
            ids[decision.candidate.kind].append(decision.candidate.id)
        named = {kind: self.store.witnesses(kind, each) for kind, each in ids.items()}
        return [
            Look(target, self._home(d.candidate, target), self._witness(named, d, target))
            for d, target in pairs
        ]

    def _witness(
        self, named: Mapping[Kind, Mapping[str, Witness]], decision: Decision, target: Target
    ) -> str | None:
        """What says that files are in this very tree; an operator knows better what is uncertain."""
        found = named[decision.candidate.kind].get(decision.candidate.id)
        if found is None or (self.gate.collect_absent and not found.is_certain):
            return None
        tree = decision.targets[-1 if found.is_of_archive else 0]
        return found.says if tree == target else None

    def _home(self, candidate: Candidate, target: Target) -> Place:
        """The location of its experiment where the tree is below that, else its storage root."""
        location = self.places.location(candidate)
        return location if location and contains(location, target.place) else target.root

    def _look(self, look: Look) -> Keep | Look:
        """What speaks against deleting a tree; else whether files are in it, where that matters."""
        try:
            self.registry.open(look.target.place.scheme).examine(look.target)
            others = self.places.elsewhere(look.target)
            if look.witness is None and not others:
                return look
            if self._has_files(look.target):
                return replace(look, has_files=True)
            elsewhere = next((each.place for each in others if self._has_files(each)), None)
            return replace(look, has_files=False, elsewhere=elsewhere)
        except UnsafeTarget as error:
            return Keep(KeepReason.UNSAFE_TARGET, told(error))
        except TransientArtifactError as error:
            return Keep(KeepReason.UNREACHABLE, told(error))
        except (ArtifactError, BackendError) as error:
            return Keep(KeepReason.ROOT_UNHEALTHY, told(error))

    def _has_files(self, target: Target) -> bool:
        backend = self.registry.open(target.place.scheme)
        if isinstance(backend, SearchableArtifactStore):
            return backend.has_files(target)
        return backend.measure(target).objects > 0

    def _completed(self, candidate: Candidate, look: Look, root: Root) -> Look:
        """The look with what is known of the places around the tree, as far as that matters."""
        if look.has_files or self.gate.collect_absent_trees:
            return look
        look = replace(look, hollow=self._hollow(candidate, look.target))
        if look.is_missed:
            look = replace(look, is_home_proved=self._is_proved(candidate, look.home, root))
        return look

    # -- where experiments log -------------------------------------------------------------------

    def _is_proved(self, candidate: Candidate, home: Place, root: Root) -> bool:
        """Whether what is at the home is what belongs there."""
        if home not in self._proved and home not in self._unproved:
            is_proved = (
                (home == root.place and is_known_disk(root))
                or self._was_swept(candidate, home, root.place)
                or self._has_named(candidate, home, root.place)
            )
            (self._proved if is_proved else self._unproved).add(home)
        return home in self._proved

    def _has_named(self, candidate: Candidate, home: Place, root: Place) -> bool:
        """Whether one of the experiment's newest trees has files."""
        places = map(self.places.of, self.store.newest_trees(candidate.experiment_id, NEWEST))
        near = (Target(each, root) for each in places if each and contains(home, each))
        return any(self._are_filled(near))

    def _are_filled(self, targets: Iterable[Target]) -> Iterator[bool]:
        """Whether each tree has files, looked at a few at a time."""
        left = iter(targets)
        with ThreadPoolExecutor(self.hands, thread_name_prefix="gcd-examine") as pool:
            while part := list(islice(left, self.hands)):
                yield from pool.map(self._is_filled, part)

    def _is_filled(self, target: Target) -> bool:
        try:
            return self._has_files(target)
        except (ArtifactError, BackendError):
            return False

    def _was_swept(self, candidate: Candidate, folder: Place, root: Place) -> bool:
        """Whether gcd deleted something of the experiment below the folder, on this very root."""
        return any(
            written_place(at) == root and contains(folder, written_place(tree))
            for tree, at in self._swept.get(candidate.experiment_id, ())
        )

    def _remember_swept(
        self, pairs: Sequence[tuple[Decision, Target]], looks: Sequence[Look]
    ) -> None:
        """Read what gcd deleted of those experiments where something is missing."""
        missing = {
            decision.candidate.experiment_id
            for (decision, target), look in zip(pairs, looks, strict=True)
            if look.is_missed or ((end := self._ends[around(target)]) and end.is_empty)
        }
        self._swept.update(self.store.swept_with_files(sorted(missing - self._swept.keys())))

    def _look_around(self, pool: ThreadPoolExecutor, looks: Sequence[Look]) -> None:
        """See where the ways to the trees end, before any of them is emptied in this cycle."""
        new = {around(look.target): look.target.root for look in looks}
        new = {place: root for place, root in new.items() if place not in self._ends}
        for place, end in zip(new, pool.map(self._way_end, new, new.values()), strict=True):
            self._ends[place] = end
            if end is not None and not end.is_empty:
                self._filled.update(folders_between(new[place], end.folder))

    def _way_end(self, place: Place, root: Place) -> WayEnd | None:
        """Where the way to a place ends; None also where that cannot be seen: `examine` says why."""
        try:
            backend = self.registry.open(place.scheme)
            return (
                backend.way_end(place, root) if isinstance(backend, FolderedArtifactStore) else None
            )
        except (ArtifactError, BackendError):
            return None

    def _hollow(self, candidate: Candidate, target: Target) -> Place | None:
        """An empty folder where the way to the tree ends, unless gcd itself emptied it."""
        end = self._ends[around(target)]
        if end is None or not end.is_empty or end.folder in self._filled:
            return None
        if self._was_swept(candidate, end.folder, target.root):
            self._filled.add(end.folder)
            return None
        return end.folder


def has_tree(decision: Decision) -> bool:
    """Whether it has a tree of its own: an experiment has but a folder that must be empty."""
    return decision.candidate.kind is not Kind.EXPERIMENT


def around(target: Target) -> Place:
    """The folder in which an entity's own folder is."""
    own = target.place.path[:-1].rpartition("/")[0]
    above, slash, _ = own.rpartition("/")
    return replace(target.place, path=above + slash)


def folders_between(root: Place, folder: Place) -> Iterator[Place]:
    """The folder and those above it, up to but not including the root."""
    path = root.path
    for name in folder.path.removeprefix(root.path).split("/")[:-1]:
        path += name + "/"
        yield replace(root, path=path)


def is_known_disk(root: Root) -> bool:
    """Whether a person accepted the root, or gcd knows its disk from before."""
    is_same = (
        root.remembered_identity is not None and root.remembered_identity == root.probe.identity
    )
    return root.is_accepted or is_same
