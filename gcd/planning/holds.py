"""An index of what must stay: by the id of an entity, and by the place of a tree.

It must never forget a hold that it could not place: its text still holds every id that it names.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from datetime import datetime
from urllib.parse import unquote

from gcd.model import Candidate, Hold, KeepReason, Place, Reach
from gcd.planning.guard import UNQUOTINGS

ALIASES = {
    "s3a": "s3",
    "s3n": "s3",
    "r2": "s3",
    "b2": "s3",
    "wasb": "azure",
    "wasbs": "azure",
    "abfs": "azure",
    "abfss": "azure",
}
"""Schemes under which one tree is recorded in several spellings."""
WORD = re.compile(r"[0-9A-Za-z_.-]{16,}")
"""What may be an id of an importer's."""
MLFLOW_ID = re.compile(r"(?=((?:m-|tr-)?[0-9A-Fa-f]{32}))")
"""MLflow's own ids, wherever in a word they stand."""


class HoldIndex:
    """Built in one streamed pass; asked once for each candidate, in time that hardly grows."""

    def __init__(self) -> None:
        self._entities: dict[str, Hold] = {}
        self._overlapping: dict[str, Hold] = {}
        self._within: dict[str, Hold] = {}
        self._sorted: list[str] = []

    @classmethod
    def build(cls, holds: Iterable[tuple[Hold, Place | None]], now: datetime) -> HoldIndex:
        """An index of the holds that are in force at `now`, each with the place of its URI."""
        index = cls()
        for hold, place in holds:
            if hold.until is None or hold.until > now:
                index._add(hold, place)
        index._sorted = sorted({*index._overlapping, *index._within})
        return index

    def _add(self, hold: Hold, place: Place | None) -> None:
        if hold.entity_id is not None:
            self._entities.setdefault(hold.entity_id, hold)
        if place is not None:
            trees = self._overlapping if hold.reach is Reach.OVERLAP else self._within
            trees.setdefault(key(place), hold)
        if hold.uri and (place is None or hold.reason is KeepReason.REGISTERED):
            # Sources come in many spellings, and some nobody can place: an id in them is enough.
            for entity in ids_in(hold.uri):
                self._entities.setdefault(entity, hold)

    def on(self, entity_id: str) -> Hold | None:
        """What holds an entity by its id."""
        return self._entities.get(entity_id)

    def ids(self) -> Iterator[str]:
        """Every id that something holds, in whatever form it was written."""
        return iter(self._entities)

    def on_candidate(self, candidate: Candidate) -> Hold | None:
        """What holds a candidate by its id, or by its experiment's."""
        return self.on(candidate.id) or self.on(f"experiment/{candidate.experiment_id}")

    def over(self, place: Place) -> Hold | None:
        """What holds a tree: something that equals it, contains it or lies inside it."""
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


def ids_in(text: str) -> set[str]:
    """Whatever in a text may be the id of an entity, however often it is quoted."""
    found: set[str] = set()
    for _ in range(UNQUOTINGS):
        found.update(WORD.findall(text), MLFLOW_ID.findall(text))
        before, text = text, unquote(text)
        if text == before:
            break
    return found


def key(place: Place) -> str:
    """A place as a text of which a container's is a prefix; spellings of one store are alike.

    Two stores may come out alike, by a bucket of the same name or a host that a user is left out of:
    then a tree is kept for another's sake. The other way round it would be lost.
    """
    scheme = ALIASES.get(place.scheme, place.scheme)
    separator = "" if scheme == "file" else "/"
    return f"{scheme}://{_store_name(scheme, place.authority)}{separator}{place.path}"


def _store_name(scheme: str, authority: str) -> str:
    before, at, after = authority.rpartition("@")
    match scheme:
        case "azure":
            return re.sub(r"\.(?:blob|dfs)\.", ".", authority)
        case "s3":  # r2 and b2 name the endpoint too, s3 leaves it to the environment
            return before if at else after
        case "sftp" | "ftp":
            return after
    return authority
