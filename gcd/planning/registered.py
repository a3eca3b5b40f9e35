"""What model versions refer to, for hundreds of thousands of them in little memory.

Invariant: a version holds whatever its run id and its URIs may mean. Nothing is ever taken out.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from gcd.model import Hold, KeepReason, Place, Way
from gcd.planning.ledger import Ledger, hashes, texts
from gcd.planning.names import (
    Versions,
    as_text,
    has_mlflow_id,
    ids_in,
    is_relative,
    key,
    named_versions,
    names_in,
)

Meanings = Callable[[str, bool], Iterable[Place | Way | None]]
"""Every place that a URI may mean; None among them where the ids in it must tell. If told that no id
tells anything, their other names too."""
K = TypeVar("K", int, str)

CANONICAL = re.compile(
    r"(?P<above>[0-9A-Za-z_@=+,.:/-]*)/(?P<id>(?:m-|tr-)?[0-9a-f]{32})"
    r"(?P<rest>/artifacts(?:/[0-9A-Za-z_@=+,./-]*)?)"
)
"""A tree in MLflow's layout, read alike by all: somewhere, the folder of one entity, its artifacts."""
ENTITY = re.compile(r"(?:m-|tr-)?[0-9a-f]{32}")
NAMING = re.compile(r"(?:runs|models):/((?:m-)?[0-9a-f]{32})(?:/[0-9A-Za-z_.-]{0,15})?")
"""A URI that names an entity, and nothing else that could be an id."""
SHAPES = 4096
"""Places of trees that are remembered while versions are read: most are alike."""


class Version(NamedTuple):
    """A model version, as far as it refers to anything."""

    name: str
    version: int
    run_id: str | None
    source: str | None
    storage_location: str | None


class By(NamedTuple):
    """The version by which something is held."""

    name: str
    version: int


class Names:
    """Texts by number, one after the other in one piece of memory."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends = array("q", [0])
        self._last: str | None = None

    def add(self, name: str) -> int:
        """The number of a text; the one that was added last gets the same again."""
        if name != self._last:
            self._text += name.encode("utf-8", "surrogatepass")
            self._ends.append(len(self._text))
            self._last = name
        return len(self._ends) - 2

    def __getitem__(self, number: int) -> str:
        piece = self._text[self._ends[number] : self._ends[number + 1]]
        return piece.decode("utf-8", "surrogatepass")


class VersionIndex:
    """What must stay because a model version refers to it.

    Filled by one thread at a time, asked by many. A tree in MLflow's layout is held by the id of its
    entity: a target carries its own id, lies inside a tree that carries another, or contains the
    place above all of them, which is noted once. Trees elsewhere are noted one by one.
    """

    def __init__(self) -> None:
        self.is_filled = False
        """Whether every version was added once: what is added then is mostly known."""
        self._names = Names()
        self._entities = hashes()
        """Ids of entities whose trees are in MLflow's layout, or that are named alone."""
        self._words = hashes()
        """Whatever else in a URI may be an id, in small letters too."""
        self._trees = texts()
        self._above = texts()
        """Places in which trees in MLflow's layout lie."""
        self._shapes: set[tuple[str, str]] = set()
        self._usual: set[tuple[str, str]] = set()
        """What is in front of an id and behind it, where the id is all that is new: most versions."""
        self._named: set[Versions] = set()
        self._asked: set[Versions] = set()
        """Versions that others name, and that were added."""
        self._ways: dict[tuple[int, int], int] = {}
        """By the inode of each folder on the way to a tree of its own."""
        self._ends: dict[tuple[int, int], int] = {}
        """By the inode of such a tree."""

    def add(self, version: Version, meanings: Meanings) -> None:
        """Note what a version refers to."""
        name, number = version.name, version.version
        run, source, location = version[2:]
        is_text = isinstance(source, str) and isinstance(name, str)
        if location is None and is_text and (usual := CANONICAL.fullmatch(source or "")):
            above, entity, rest = usual.groups()
            if (above, rest) in self._usual and (not run or run == entity):
                self._note(self._entities, hash(entity), By(name, number))
                return
        run, source, location = (as_text(each) for each in (run, source, location))
        by = By(as_text(name) or "", number)
        for text in {run, run.casefold()} if run else ():
            self._note(self._entities, hash(text), by)
        # MLflow takes a relative path only in the tree of its run, and reads from where it stored.
        is_known = bool(run) or not is_relative(location or "model")
        for uri in dict.fromkeys(filter(None, (source, location))):
            self._named |= named_versions(uri)
            if is_known and is_relative(uri):
                self._add_places(self._trees, uri, (None,), by)
            else:
                self._add_uri(uri, meanings, by)

    def named(self) -> set[Versions]:
        """Versions that others name as their source, until `answer`: what was deleted is needed still."""
        return self._named - self._asked

    def answer(self, named: set[Versions]) -> None:
        """All that is there of these versions was added."""
        self._asked |= named
        self._named -= named

    def _note(self, ledger: Ledger[K], what: K, by: By) -> None:
        if not (self.is_filled and ledger.at(what) is not None):
            ledger.add(what, self._packed(by))

    def _packed(self, by: By) -> int:
        """A version as one number: where its name is, and its own."""
        number = by.version if isinstance(by.version, int) else 0  # SQLite keeps any text there
        return self._names.add(by.name) << 32 | (number & 0xFFFFFFFF)

    def _add_uri(self, uri: str, meanings: Meanings, by: By) -> None:
        if found := NAMING.fullmatch(uri):
            self._note(self._entities, hash(found[1]), by)
            return
        canonical = CANONICAL.fullmatch(uri)
        if canonical is None or "/." in uri or "//" in canonical["rest"]:
            self._add_places(self._trees, uri, meanings(uri, not has_mlflow_id(uri)), by)
            return
        above, entity, rest = canonical.groups()
        self._note(self._entities, hash(entity), by)
        if (above, rest) not in self._shapes:
            self._add_places(self._above, above + rest, meanings(above, False), by)
            if len(self._shapes) >= SHAPES:
                self._shapes.clear()
                self._usual.clear()
            self._shapes.add((above, rest))
            if not is_relative(uri) and uri[:7].lower() != "models:":
                self._usual.add((above, rest))

    def _add_places(
        self, ledger: Ledger[str], text: str, places: Iterable[Place | Way | None], by: By
    ) -> None:
        """Note places, and every id that a text may name."""
        words = ids_in(text)
        for place in places:
            match place:
                case None:
                    words |= names_in(text)
                case Way():
                    self._add_way(place, by)
                case _:
                    self._note(ledger, key(place), by)
        for word in words:
            self._note(self._words, hash(word), by)

    def _add_way(self, way: Way, by: By) -> None:
        version = self._packed(by)
        for node in way.nodes:
            self._ways.setdefault(node, version)
        if way.is_whole:
            self._ends.setdefault(way.nodes[-1], version)

    # -- questions -------------------------------------------------------------------------------

    def on(self, entity_id: str) -> Hold | None:
        """The version that refers to an entity by its id."""
        for text in dict.fromkeys((entity_id, entity_id.casefold())):
            for ledger in (self._entities, self._words):
                if (version := ledger.at(hash(text))) is not None:
                    return self._hold(version)
        return None

    def over(self, place: Place) -> Hold | None:
        """The version that refers to a tree: something that equals it, contains it or lies inside it."""
        tree = key(place)
        for ledger in (self._trees, self._above):
            for inside, version in ledger.from_on(tree):
                if inside.startswith(tree):
                    return self._hold(version)
        return self._around(tree) or self._of_entities(place)

    def _around(self, tree: str) -> Hold | None:
        """The version that refers to a tree in which this one lies."""
        end = tree.rfind("/", 0, len(tree) - 1)
        while end > 0:
            if (version := self._trees.at(tree[: end + 1])) is not None:
                return self._hold(version)
            end = tree.rfind("/", 0, end)
        return None

    def _of_entities(self, place: Place) -> Hold | None:
        """The version that refers to an entity in whose tree, in MLflow's layout, this one lies."""
        for name in place.path.split("/"):
            entity = name.casefold()
            if (
                ENTITY.fullmatch(entity)
                and (version := self._entities.at(hash(entity))) is not None
            ):
                return self._hold(version)
        return None

    @property
    def has_other_names(self) -> bool:
        """Whether anything is known by more than its path."""
        return bool(self._ways)

    def along(self, way: Way) -> Hold | None:
        """The version that refers to a tree by the folders on its way."""
        if way.is_whole and (version := self._ways.get(way.nodes[-1])) is not None:
            return self._hold(version)
        found = (self._ends[node] for node in way.nodes if node in self._ends)
        return next(map(self._hold, found), None)

    def _hold(self, version: int) -> Hold:
        because = f"version {version & 0xFFFFFFFF} of {self._names[version >> 32]}"
        return Hold(KeepReason.REGISTERED, because)
