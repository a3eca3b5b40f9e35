"""Whose the files below each storage root are: by the marks in the roots, and by this database's identity.

Invariant: a place that another database marked never passes, nor a place of a copy's original until
a person has transferred it to the copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from gcd.artifacts.base import MARK, MarkableArtifactStore
from gcd.artifacts.registry import Registry
from gcd.errors import (
    ArtifactError,
    PermanentArtifactError,
    TransientArtifactError,
    UnsafeTarget,
)
from gcd.model import Claim, Identity, Kind, Ownership, Place, Target
from gcd.planning.guard import contains, place_uri
from gcd.planning.ownership import (
    Mark,
    accepting,
    claim_place,
    home_of,
    ladder,
    make_mark,
    parse_mark,
)
from gcd.planning.plan import sentence


class Seen(NamedTuple):
    """What a look for a mark found."""

    data: bytes | None = None
    mark: Mark | None = None
    problem: ArtifactError | None = None


NOTHING = Seen()


class Claims:
    """Whose the places of one store are. Each mark is read once."""

    def __init__(
        self,
        registry: Registry,
        identity: Identity,
        *,
        accepted: Iterable[Place] = (),
        why_twin: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.registry = registry
        self.identity = identity
        self._accepted = tuple(accepted)
        """Places that a person gave to this database."""
        self._why_twin = why_twin
        """Why another store of the configuration seems to be a copy of this one, or may be."""
        self._seen: dict[Place, Seen] = {}
        self._claims: dict[tuple[Place, Place, str], Claim] = {}

    def of(self, kind: Kind, experiment_id: str, target: Target) -> Claim:
        """Whose the place is that a tree lies in."""
        home = home_of(kind, target.place, target.root)
        key = (home, target.root, experiment_id)
        if key not in self._claims:
            self._claims[key] = self._judged(*key)
        return self._claims[key]

    def noted(self) -> dict[Place, Claim]:
        """Every place that was asked for, by where its mark belongs."""
        return {claim.place: claim for claim in self._claims.values()}

    # -- judging ---------------------------------------------------------------------------------

    def _judged(self, home: Place, root: Place, experiment_id: str) -> Claim:
        free = Claim(claim_place(home, root, experiment_id), Ownership.FREE)
        if self.identity.doubt is not None:
            return replace(free, owner=Ownership.UNREADABLE, detail=self.identity.doubt)
        if self._markable(home) is None:
            return self._without_mark(home, replace(free, owner=Ownership.UNMARKABLE))
        return self._by_marks(ladder(home, root, experiment_id), free) or self._without_mark(
            home, free
        )

    def _by_marks(self, places: Iterable[Place], free: Claim) -> Claim | None:
        """What the nearest mark says; None where there is none.

        A mark of the database that this one is a copy of gives way to one of ours further up: a
        person who gave that place to this database gave it what the other had marked below.
        """
        foreign: Claim | None = None
        for place in places:
            seen = self._look(place)
            if seen.problem is not None:
                is_above = contains(place, free.place) and place != free.place
                if is_above and isinstance(seen.problem, PermanentArtifactError):
                    continue  # these credentials are not for what lies around the root
                return foreign or unreadable(free, place, seen.problem)
            if seen.mark is None:
                continue
            if seen.mark.database == self.identity.id:
                return replace(free, owner=Ownership.OURS)
            foreign = foreign or foreign_by(free, place, seen.mark)
            if seen.mark.database != self.identity.copied_from:
                return foreign
        return foreign

    def _without_mark(self, home: Place, claim: Claim) -> Claim:
        """Where no mark tells, the databases do, and people."""
        if any(contains(place, home) for place in self._accepted):
            return claim
        if (original := self.identity.copied_from) is not None:
            detail = (
                f"this database is a copy of the one with the id {original[:8]}, and its files"
                f" were not transferred to this one; {accepting(claim.place)}"
            )
            return replace(claim, owner=Ownership.FOREIGN, detail=detail)
        if (twin := self._why_twin()) is not None:
            detail = f"{twin}; {accepting(claim.place)}"
            return replace(claim, owner=Ownership.FOREIGN, detail=detail)
        return claim

    # -- marks -----------------------------------------------------------------------------------

    def _markable(self, place: Place) -> MarkableArtifactStore | None:
        """The backend of a place, where it can hold marks."""
        if self.registry.problem(place.scheme) is not None:
            return None
        backend = self.registry.open(place.scheme)
        return backend if isinstance(backend, MarkableArtifactStore) else None

    def _look(self, place: Place) -> Seen:
        """The mark of a place; it is read once."""
        if place not in self._seen:
            self._seen[place] = self._read(place)
        return self._seen[place]

    def _read(self, place: Place) -> Seen:
        backend = self._markable(place)
        if backend is None:
            return NOTHING
        try:
            data = backend.read_mark(place)
        except ArtifactError as error:
            return Seen(problem=error)
        try:
            return NOTHING if data is None else Seen(data, parse_mark(data))
        except ValueError as error:
            text = f"its mark {MARK} makes no sense: {error}"
            return Seen(data, problem=UnsafeTarget(text, hint=accepting(place)))

    def mark(self, claim: Claim, now: datetime) -> Claim:
        """Leave this database's mark where it belongs, before anything relies on it.

        The claim as it is then: somebody else may have been first, or none can be written there.
        """
        if claim.owner not in (Ownership.OURS, Ownership.FREE) or self.identity.id is None:
            return claim
        seen = self._look(claim.place)
        if seen.problem is not None:
            return unreadable(claim, claim.place, seen.problem)
        if seen.mark is not None and seen.mark.database == self.identity.id:
            return claim
        return self._written(claim, seen, now)

    def _written(self, claim: Claim, seen: Seen, now: datetime) -> Claim:
        backend = self._markable(claim.place)
        if backend is None or self.identity.id is None:
            return claim
        before = seen.mark.database if seen.mark else None
        data = make_mark(self.identity.id, self.identity.name, now, before)
        try:
            is_written = backend.write_mark(claim.place, data, before=seen.data)
        except TransientArtifactError as error:
            return unreadable(claim, claim.place, error)
        except ArtifactError as error:
            return self._noted(replace(claim, owner=Ownership.UNMARKABLE, detail=sentence(error)))
        self._seen.pop(claim.place, None)
        seen = self._look(claim.place)
        if not is_written and seen.mark is not None and seen.mark.database != self.identity.id:
            return self._noted(foreign_by(claim, claim.place, seen.mark))
        if seen.problem is not None:
            return self._noted(unreadable(claim, claim.place, seen.problem))
        return self._noted(replace(claim, owner=Ownership.OURS))

    def take(self, place: Place, now: datetime) -> Mark | None:
        """Give a place to this database, whoever had it; the mark that was there.

        Raises an ArtifactError where the mark cannot be read, or none can be written.
        """
        seen, backend = self._look(place), self._markable(place)
        if seen.problem is not None and seen.data is None:
            raise seen.problem
        is_ours = seen.mark is not None and seen.mark.database == self.identity.id
        if backend is None or self.identity.id is None or is_ours:
            return seen.mark
        before = seen.mark.database if seen.mark else self.identity.copied_from
        data = make_mark(self.identity.id, self.identity.name, now, before)
        self._seen.pop(place, None)
        if not backend.write_mark(place, data, before=seen.data):
            raise TransientArtifactError(
                f"somebody else changed the mark of {place_uri(place)}", hint="look again"
            )
        return seen.mark

    def _noted(self, claim: Claim) -> Claim:
        """Keep a claim in mind for all that lies in its place."""
        for key, known in self._claims.items():
            if known.place == claim.place:
                self._claims[key] = claim
        return claim


def foreign_by(claim: Claim, place: Place, mark: Mark) -> Claim:
    """A place that another database's mark speaks for."""
    detail = f"{place_uri(place)} belongs to {mark.who}; {accepting(place)}"
    return replace(claim, owner=Ownership.FOREIGN, detail=detail)


def unreadable(claim: Claim, place: Place, error: ArtifactError) -> Claim:
    """A place of which it cannot be told now whose it is."""
    detail = f"whose {place_uri(place)} is cannot be told: {sentence(error)}"
    return replace(claim, owner=Ownership.UNREADABLE, detail=detail)
