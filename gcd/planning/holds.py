"""An index of what must stay: by the id of an entity, and by the place of a tree.

It must never forget a hold that it could not place: its text still holds every id that it names.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Protocol

from gcd.model import Candidate, Hold, Kind, Place, Reach, Way
from gcd.planning.names import ids_in, key, names_in


class Holding(Protocol):
    """Something that holds entities and trees, whatever it knows them by."""

    def on(self, entity_id: str) -> Hold | None:
        """What holds an entity by its id."""

    def over(self, place: Place) -> Hold | None:
        """What holds a tree."""

    def along(self, way: Way) -> Hold | None:
        """What holds a tree by the folders on its way."""

    @property
    def has_other_names(self) -> bool:
        """Whether anything is known by more than its path."""


class HoldIndex:
    """Built in one streamed pass; asked once for each candidate, in time that hardly grows."""

    def __init__(self, others: Sequence[Holding] = ()) -> None:
        self._others = tuple(others)
        self._entities: dict[str, Hold] = {}
        self._named: dict[str, Hold] = {}
        """By an id that is in the text of a URI, as it is written and in small letters."""
        self._overlapping: dict[str, Hold] = {}
        self._within: dict[str, Hold] = {}
        self._sorted: list[str] = []
        self._trees: dict[tuple[int, int], Hold] = {}
        """By the inode of a tree that holds all that lies in it."""
        self._on_way: dict[tuple[int, int], Hold] = {}
        """By the inode of each folder that is held, or in which something is that is."""

    @classmethod
    def build(
        cls,
        holds: Iterable[tuple[Hold, Place | Way | None]],
        now: datetime,
        others: Sequence[Holding] = (),
    ) -> HoldIndex:
        """An index of the holds in force at `now`, each with a place that its URI may mean.

        What `others` hold is held too, and told first.
        """
        index = cls(others)
        for hold, place in holds:
            if hold.until is not None and hold.until <= now:
                continue
            if isinstance(place, Way):
                index._add_way(hold, place)
            else:
                index._add(hold, place)
        index._sorted = sorted({*index._overlapping, *index._within})
        return index

    def _add(self, hold: Hold, place: Place | None) -> None:
        if hold.entity_id is not None:
            self._entities.setdefault(hold.entity_id, hold)
        if place is not None:
            trees = self._overlapping if hold.reach is Reach.OVERLAP else self._within
            trees.setdefault(key(place), hold)
        if hold.uri:
            # URIs come in many spellings, and some nobody can place: an id in them is enough.
            found = ids_in(hold.uri) if place else names_in(hold.uri)
            for entity in found - own_ids(hold):
                self._named.setdefault(entity, hold)

    def _add_way(self, hold: Hold, way: Way) -> None:
        for node in way.nodes:
            self._on_way.setdefault(node, hold)
        if way.is_whole and hold.reach is Reach.OVERLAP:
            self._trees.setdefault(way.nodes[-1], hold)

    def on(self, entity_id: str) -> Hold | None:
        """What holds an entity by its id."""
        held = (other.on(entity_id) for other in self._others)
        return (
            next(filter(None, held), None)
            or self._entities.get(entity_id)
            or self._named.get(entity_id)
            or self._named.get(entity_id.casefold())
        )

    def on_candidate(self, candidate: Candidate) -> Hold | None:
        """What holds a candidate by its id, or by its experiment's."""
        # An experiment's id is a number: in the text of a URI, its own location first, it says nothing.
        is_number = candidate.kind is Kind.EXPERIMENT
        own = self._entities.get(candidate.id) if is_number else self.on(candidate.id)
        return own or self._entities.get(f"experiment/{candidate.experiment_id}")

    def over(self, place: Place) -> Hold | None:
        """What holds a tree: something that equals it, contains it or lies inside it."""
        held = next(filter(None, (other.over(place) for other in self._others)), None)
        return held or self._over(place)

    def _over(self, place: Place) -> Hold | None:
        tree = key(place)
        at = bisect_left(self._sorted, tree)
        if at < len(self._sorted) and self._sorted[at].startswith(tree):
            inside = self._sorted[at]
            return self._overlapping.get(inside) or self._within[inside]
        end = tree.rfind("/", 0, len(tree) - 1)
        while end > 0:
            around = self._overlapping.get(tree[: end + 1])
            if around is not None:
                return around
            end = tree.rfind("/", 0, end)
        return None

    @property
    def has_other_names(self) -> bool:
        """Whether anything is known by more than its path: else no tree need be."""
        return bool(self._on_way) or any(other.has_other_names for other in self._others)

    def over_any(self, names: Iterable[Place | Way]) -> Hold | None:
        """What holds a tree by one of its other names."""
        found = (self.along(name) if isinstance(name, Way) else self.over(name) for name in names)
        return next(filter(None, found), None)

    def along(self, way: Way) -> Hold | None:
        """What holds a tree by the folders on its way."""
        held = next(filter(None, (other.along(way) for other in self._others)), None)
        return held or self._along(way)

    def _along(self, way: Way) -> Hold | None:
        if way.is_whole and way.nodes[-1] in self._on_way:
            return self._on_way[way.nodes[-1]]
        return next((self._trees[node] for node in way.nodes if node in self._trees), None)


def own_ids(hold: Hold) -> set[str]:
    """The id of the entity whose own URI it is: that does not hold itself."""
    return {hold.owner, hold.owner.casefold()} if hold.owner is not None else set()
