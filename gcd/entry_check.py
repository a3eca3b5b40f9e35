"""Asks the database of now, and today's scope, whether trees that the journal names may be deleted.

The journal may be a restored backup's, and others can write to it. Invariant: no tree passes whose
row, whose entity and whose place were not looked at within the last moments (`FRESH`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice

from gcd import clock
from gcd.errors import BackendError, TransientArtifactError, UnsafeTarget
from gcd.model import Entry, Kind, Ownership, Place, Target
from gcd.planning.entries import check_form, home_of, ids_of, is_expected, is_sibling
from gcd.planning.guard import Site, layout_root, parse_place, place_uri
from gcd.store.presence import Evidence
from gcd.survey import Survey

FRESH = 0.5
"""Seconds that a look at the database is believed."""
VOUCHED = frozenset({Ownership.OURS, Ownership.FOREIGN, Ownership.UNREADABLE})
"""What marks say of a place so that the sweep itself knows what to do with it."""
LOOK = 200
"""Entries that one look asks about."""


class EntryCheck:
    """What this process knows of the places that it purges from."""

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self._homes: set[Place] = set()
        """Experiments' locations from which this process itself has purged."""

    def note_purged(self, kind: Kind, targets: Iterable[Target]) -> None:
        """Remember where the trees lie of what was purged just now: the plan has checked them."""
        self._homes.update(home_of(kind, target.place) for target in targets)

    def look_at(self, page: Sequence[Entry]) -> PageCheck:
        """A check of the entries of a page, each of which is asked about before its tree goes."""
        places = self.survey.places
        locations = self.survey.store.locations({each.experiment_id for each in page})
        sites = {each: places.site(uri, each) for each, uri in locations.items()}
        refused: dict[int, str] = {}
        unsure: list[tuple[Entry, Target]] = []
        for entry in page:
            if because := check_form(entry, places.scope):
                refused[entry.id] = because
            elif entry.target is not None:
                home = home_of(entry.kind, entry.target.place)
                site = sites.get(entry.experiment_id)
                known = site if isinstance(site, Site) else None
                if home not in self._homes and not is_expected(home, known, places.scope):
                    unsure.append((entry, entry.target))
        unclear: dict[int, str] = {}
        for entry, target in self._strange(unsure):
            is_there = places.known_roots([target])[target.root].probe.is_there
            (refused if is_there else unclear)[entry.id] = unknown_place(entry, target)
        return PageCheck(self.survey, page, refused, unclear)

    def _strange(self, unsure: Sequence[tuple[Entry, Target]]) -> Iterator[tuple[Entry, Target]]:
        """Those entries whose places neither a mark nor an experiment that is there speaks for."""
        if not unsure:
            return
        claims, roots = self.survey.new_claims(), None
        for entry, target in unsure:
            if claims.of(entry.kind, entry.experiment_id, target).owner in VOUCHED:
                continue
            home = home_of(entry.kind, target.place)
            roots = self._layout_roots() if roots is None else roots
            if not any(is_sibling(home, root, entry.experiment_id) for root in roots):
                yield entry, target

    def _layout_roots(self) -> set[Place]:
        """The artifact roots of the experiments that are there."""
        places, recorded = self.survey.places, set[Place]()
        for experiment, uri in self.survey.store.every_location():
            with suppress(UnsafeTarget, BackendError):
                place = parse_place(uri, places.scope)
                recorded.add(layout_root(place, experiment, places.scope))
        true = set[Place]()
        for each in recorded:
            with suppress(UnsafeTarget, BackendError):
                true.add(places.resolved(each))
        return true


class PageCheck:
    """Asks about entries shortly before their trees go, several at a time; for many threads."""

    def __init__(
        self,
        survey: Survey,
        page: Sequence[Entry],
        refused: Mapping[int, str],
        unclear: Mapping[int, str],
    ) -> None:
        self.refused = refused
        """Entries whose trees are not this store's, and why."""
        self._unclear = unclear
        """Entries whose roots are not there, so that no mark in them tells whose they are."""
        self._store = survey.store
        self._waiting = {each.id: each for each in page if each.id not in refused}
        self._asked: dict[int, Entry] = {}
        self._evidence: Evidence | None = None
        self._read_at = 0.0
        self._lock = threading.Lock()

    def why_not(self, entry: Entry) -> str | None:
        """Why an entry's tree may not be deleted now; asked once, immediately before that.

        Raises StoreReplaced where the database is another one than the one that was opened,
        TransientArtifactError where it cannot be told now.
        """
        if entry.id in self._unclear:
            raise TransientArtifactError(self._unclear[entry.id], hint="is the disk mounted?")
        with self._lock:
            self._waiting.pop(entry.id, None)
            evidence = self._evidence
            if evidence is None or entry.id not in self._asked or self._is_stale(evidence):
                evidence = self._ask(entry)
            del self._asked[entry.id]
        return self.refused.get(entry.id) or against(entry, evidence)

    def _is_stale(self, evidence: Evidence) -> bool:
        """Whether a look is too old, or somebody has written to SQLite's file since."""
        is_old = clock.boottime() - self._read_at > FRESH
        return self._store.stamps() != evidence.stamps or is_old

    def _ask(self, entry: Entry) -> Evidence:
        """Look at this entry's row and entity, and at those of the entries that come next."""
        group = [entry, *islice(self._waiting.values(), LOOK - 1)]
        self._read_at = clock.boottime()
        self._evidence = evidence = self._store.evidence(group)
        self._asked = {each.id: each for each in group}
        return evidence


def unknown_place(entry: Entry, target: Target) -> str:
    """Why a tree is left alone of which nothing but the journal says that it is this store's."""
    home = home_of(entry.kind, target.place)
    return (
        f"nothing says that files below {place_uri(home)} are this store's: its experiment is gone, and "
        f"no mark of this database is found there; if they are, list {place_uri(target.root)} in "
        f"artifacts.roots and run `gcd retry {entry.entity_id}`"
    )


def against(entry: Entry, evidence: Evidence) -> str | None:
    """What the database of now says against deleting an entry's tree."""
    if entry.id not in evidence.unchanged:
        return (
            "its line in the journal is not there any more, or was changed: was a backup restored?"
        )
    for name in ids_of(entry):
        what = evidence.present.get(name)
        if what and name == entry.entity_id:
            return f"a {what} with this id is back: its files are kept"
        if what:
            return f"it lies in a folder of the {what} {name}, which exists"
    return None
