"""Asks the database of now, and today's scope, whether trees that the journal names may be deleted.

The journal may be a restored backup's, and others can write to it. Invariant: no tree passes whose
row, whose entity and whose place were not looked at within the last moments (`FRESH`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from gcd import clock
from gcd.errors import BackendError, UnsafeTarget
from gcd.model import Entry, Kind, Place, Target
from gcd.planning.entries import check_form, home_of, ids_of, is_expected, is_sibling
from gcd.planning.guard import Site, layout_root, parse_place, place_uri
from gcd.planning.policy import Keep
from gcd.store.presence import Evidence
from gcd.survey import Survey

FRESH = 0.5
"""Seconds that a look at the database is believed."""
LOOK = 50
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
        locations = self.survey.store.locations({each.experiment_id for each in page})
        places = self.survey.places
        sites = {each: places.site(uri, each) for each, uri in locations.items()}
        refused = {
            entry.id: because
            for entry in page
            if (because := self._why_outside(entry, sites.get(entry.experiment_id)))
        }
        return PageCheck(self.survey, page, refused)

    def _why_outside(self, entry: Entry, site: Site | Keep | None) -> str | None:
        """Why a tree is not one of this store's by its form and place, None if it is."""
        scope = self.survey.places.scope
        if (because := check_form(entry, scope)) or entry.target is None:
            return because
        home = home_of(entry.kind, entry.target.place)
        known = site if isinstance(site, Site) else None
        if home in self._homes or is_expected(home, known, scope) or self._is_vouched(entry, home):
            return None
        return (
            f"nothing says that files below {place_uri(home)} are this store's: its experiment is gone; "
            f"list {place_uri(entry.target.root)} in artifacts.roots if they are, then run "
            f"`gcd retry {entry.entity_id}`"
        )

    def _is_vouched(self, entry: Entry, home: Place) -> bool:
        """Whether something outside the journal says that a place is this store's."""
        if any(is_sibling(home, root, entry.experiment_id) for root in self._layout_roots(home)):
            return True
        target = entry.target
        if target is None:
            return False
        root = self.survey.places.known_roots([target])[target.root]
        return root.remembered_identity not in (None, "") and (
            root.remembered_identity == root.probe.identity
        )

    def _layout_roots(self, home: Place) -> Iterator[Place]:
        """Those artifact roots of experiments that are there which may be around a location."""
        places, seen = self.survey.places, set[Place]()
        for experiment, uri in self.survey.store.every_location():
            try:
                recorded = layout_root(parse_place(uri, places.scope), experiment, places.scope)
            except (UnsafeTarget, BackendError):
                continue
            if recorded.scheme == home.scheme and recorded not in seen:
                seen.add(recorded)
                yield places.resolved(recorded)


class PageCheck:
    """Asks about entries shortly before their trees go, several at a time; for many threads."""

    def __init__(self, survey: Survey, page: Sequence[Entry], refused: dict[int, str]) -> None:
        self.refused = refused
        """Entries whose trees are not this store's, and why."""
        self._store = survey.store
        self._waiting = {each.id: each for each in page if each.id not in refused}
        self._asked: dict[int, Entry] = {}
        self._evidence: Evidence | None = None
        self._read_at = 0.0
        self._lock = threading.Lock()

    def why_not(self, entry: Entry) -> str | None:
        """Why an entry's tree may not be deleted now; asked once, immediately before that.

        Raises StoreReplaced where the database is another one than the one that was opened.
        """
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
