"""For tests of gcd and of artifact backends by others: a clock, stores in memory, and the contract.

It must never be imported by gcd itself, and needs no test runner to be imported.
"""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

from gcd.artifacts.base import (
    MARK,
    MOST_OF_A_MARK,
    ArtifactStore,
    BulkArtifactStore,
    ClosingArtifactStore,
    Deleted,
    FolderedArtifactStore,
    MarkableArtifactStore,
    Order,
    SearchableArtifactStore,
    WayEnd,
)
from gcd.errors import TransientArtifactError, UnsafeTarget
from gcd.model import Place, Probe, Root, Target, Usage

T = TypeVar("T")


class FrozenClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: datetime) -> None:
        self._now = now

    def now(self) -> datetime:
        """The time it shows."""
        return self._now

    def advance(self, duration: timedelta) -> None:
        """Move it forward, or back."""
        self._now += duration


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What a MemoryArtifactStore holds under a key."""

    data: bytes
    changed_at: datetime


class MemoryArtifactStore:
    """Scheme "memory": buckets of raw keys, like an object store, in this process.

    `buckets` (authority to key to object) and `identities` (authority to identity) are for tests to
    read and to write: a bucket that is taken out is a root that is absent.
    """

    def __init__(self, *authorities: str, clock: Callable[[], datetime] | None = None) -> None:
        self.buckets: dict[str, dict[str, StoredObject]] = {name: {} for name in authorities}
        self.identities = {name: f"memory:{name}" for name in authorities}
        self.flushed: list[Target] = []
        self._now = clock or (lambda: datetime.now(UTC))
        self._lock = threading.RLock()

    def put(self, authority: str, key: str, data: bytes = b"") -> None:
        """Store an object; its bucket is made if it is not there."""
        with self._lock:
            self.identities.setdefault(authority, f"memory:{authority}")
            bucket = self.buckets.setdefault(authority, {})
            bucket[key] = StoredObject(data, self._now())

    def keys(self, authority: str) -> set[str]:
        """All keys of a bucket, none if it is not there."""
        with self._lock:
            return set(self.buckets.get(authority, ()))

    def resolve(self, place: Place) -> Place:
        """The place itself: a key has one name."""
        return place

    def storage_root(self, location: Place, root: Place) -> Place:  # noqa: ARG002
        """The root itself: nothing is mounted in a bucket."""
        return root

    def probe(self, root: Place, named: Iterable[Place]) -> Probe:
        """The bucket's identity, and whether a key begins with one of the named places."""
        with self._lock:
            if root.authority not in self.buckets:
                return Probe(is_there=False)
            found = any(self._below(place) for place in named)
            return Probe(True, self.identities[root.authority], is_named_found=found)

    def examine(self, target: Target) -> None:
        """Refuse a root and what is not below it."""
        _refuse_unsafe(target)

    def measure(self, target: Target) -> Usage:
        """Objects and bytes below the place."""
        _refuse_unsafe(target)
        with self._lock:
            return _usage(self._below(target.place).values())

    def delete(self, target: Target, root: Root) -> Deleted:
        """Take out every key that begins with the place."""
        _refuse_unsafe(target)
        with self._lock:
            if target.root.authority not in self.buckets:
                raise TransientArtifactError(f"the bucket {target.root.authority} is not there")
            expected = root.remembered_identity
            if expected not in (None, self.identities[target.root.authority]):
                raise TransientArtifactError(f"the bucket {target.root.authority} is another one")
            found = self._below(target.place)
            for key in found:
                del self.buckets[target.place.authority][key]
            newest = max((stored.changed_at for stored in found.values()), default=None)
            return Deleted(_usage(found.values()), newest)

    def prune(self, folder: Target) -> None:
        """Nothing: a bucket has no folders."""

    def flush(self, targets: Iterable[Target]) -> None:
        """Note what was asked to be made durable."""
        with self._lock:
            self.flushed += targets

    def read_mark(self, root: Place) -> bytes | None:
        """The object of that name."""
        with self._lock:
            found = self.buckets.get(root.authority, {}).get(root.path + MARK)
            return None if found is None else found.data[: MOST_OF_A_MARK + 1]

    def write_mark(self, root: Place, data: bytes, *, before: bytes | None) -> bool:
        """Put the object, if what is there is `before`."""
        with self._lock:
            if self.read_mark(root) != before:
                return False
            self.put(root.authority, root.path + MARK, data)
            return True

    def _below(self, place: Place) -> dict[str, StoredObject]:
        bucket = self.buckets.get(place.authority, {})
        return {key: stored for key, stored in bucket.items() if key.startswith(place.path)}


def _usage(objects: Iterable[StoredObject]) -> Usage:
    sizes = [len(stored.data) for stored in objects]
    return Usage(len(sizes), sum(sizes))


def _refuse_unsafe(target: Target) -> None:
    place, root = target.place, target.root
    below = place.path.removeprefix(root.path)
    is_below = (
        (place.scheme, place.authority) == (root.scheme, root.authority)
        and place.path.startswith(root.path)
        and below.endswith("/")
    )
    if not is_below or below.count("/") < 2:
        raise UnsafeTarget(
            f"{place.path!r} is not a tree in a folder of its own below {root.path!r}"
        )


@dataclass(frozen=True, slots=True)
class Fault:
    """An error that one call meets.

    It is raised instead of the call; with `after`, when the call is done. For `delete`, `part`
    names a tree inside the target ("model/") that is deleted first: a deletion that broke off.
    """

    error: BaseException
    after: bool = False
    part: str | None = None


class FaultyArtifactStore:
    """Another store, with faults: a queue for each method by name, where None lets a call pass."""

    def __init__(
        self, inner: ArtifactStore, faults: Mapping[str, Iterable[Fault | None]] | None = None
    ) -> None:
        self.inner = inner
        self.faults = {name: deque(queue) for name, queue in (faults or {}).items()}

    def resolve(self, place: Place) -> Place:
        """As `inner`, or a fault."""
        return self._call("resolve", lambda: self.inner.resolve(place))

    def storage_root(self, location: Place, root: Place) -> Place:
        """As `inner`, or a fault."""
        return self._call("storage_root", lambda: self.inner.storage_root(location, root))

    def probe(self, root: Place, named: Iterable[Place]) -> Probe:
        """As `inner`, or a fault."""
        return self._call("probe", lambda: self.inner.probe(root, named))

    def examine(self, target: Target) -> None:
        """As `inner`, or a fault."""
        self._call("examine", lambda: self.inner.examine(target))

    def measure(self, target: Target) -> Usage:
        """As `inner`, or a fault."""
        return self._call("measure", lambda: self.inner.measure(target))

    def delete(self, target: Target, root: Root) -> Deleted:
        """As `inner`, or a fault, perhaps when a part of the tree is gone."""

        def delete_part(part: str) -> None:
            place = replace(target.place, path=target.place.path + part)
            self.inner.delete(replace(target, place=place), root)

        return self._call("delete", lambda: self.inner.delete(target, root), delete_part)

    def prune(self, folder: Target) -> None:
        """As `inner`, or a fault."""
        self._call("prune", lambda: self.inner.prune(folder))

    def flush(self, targets: Iterable[Target]) -> None:
        """As `inner`, or a fault."""
        self._call("flush", lambda: self.inner.flush(targets))

    def _call(
        self, name: str, call: Callable[[], T], partly: Callable[[str], None] | None = None
    ) -> T:
        try:
            fault = self.faults[name].popleft()
        except (KeyError, IndexError):
            fault = None
        if fault is None:
            return call()
        if fault.part is not None and partly is not None:
            partly(fault.part)
        if fault.after:
            call()
        raise fault.error


ODD_NAMES = (
    "with space",
    " leading and trailing ",
    "100%",
    "%2e%2e",
    "%2F",
    "hash#mark",
    "question?mark",
    "a+b&c=d",
    "semi;colon:and,comma",
    'quote\'d "and" back\\slash',
    "star*[x]{y}",
    "~tilde",
    ".hidden",
    "..hidden",
    "trailing.",
    "-rf",
    "caf\u00e9",
    "cafe\u0301",
    "\u6a21\u578b",
    "\U0001f680",
    "line\nbreak",
    "tab\tbed",
    "\udcff\udcfe",
)
"""Components that are ordinary names to a careful store."""

ODD_KEYS = ("twice//slashed", "./here", "up/../down", "marker/", "/absolute", "a/./b")
"""Keys that an object store may hold and a file system cannot; an engine that tidies them errs."""


class ArtifactStoreContract:
    """What every artifact backend must do. Inherit it in a class named `Test...`.

    Set `store` and `root` in an autouse fixture: a store, and a root of it that is there, empty and
    this test's own. Override `put` and `keys`; their keys are raw and relative to the root::

        class TestMyStore(ArtifactStoreContract):
            unsupported = frozenset(ODD_KEYS)

            @pytest.fixture(autouse=True)
            def _fresh(self, tmp_path):
                self.store, self.root = MyStore(), Place("my", "bucket", "some/root/")
    """

    store: ArtifactStore
    root: Place
    unsupported: ClassVar[frozenset[str]] = frozenset()
    """Those of ODD_NAMES and ODD_KEYS that the store cannot hold."""
    has_marks: ClassVar[bool] = True
    """Whether what stands behind the store can hold one: a stub of a server may not."""
    marks_are_exclusive: ClassVar[bool] = True
    """Whether the store itself lets one of two win who make a mark at the same moment."""

    def put(self, key: str, data: bytes) -> None:
        """Store an object, past the store under test."""
        raise NotImplementedError

    def keys(self) -> set[str]:
        """Every object below the root, past the store under test."""
        raise NotImplementedError

    def folders(self) -> set[str]:
        """Every folder below the root, without "/" at its end; none where folders are only names."""
        return set()

    def absent_root(self) -> Place:
        """A root that is not there: another bucket or, without authority, another folder."""
        if self.root.authority:
            return replace(self.root, authority=self.root.authority + "-absent")
        return replace(self.root, path=self.root.path + "absent/")

    def target(self, path: str) -> Target:
        """The tree at `path`, relative to the root and ending in "/"."""
        return Target(replace(self.root, path=self.root.path + path), self.root)

    def known_root(self) -> Root:
        """The root as a cycle that found it knows it."""
        probe = self.store.probe(self.root, ())
        return Root(self.root, probe, remembered_identity=probe.identity)

    def delete(self, path: str) -> Deleted:
        """Delete the tree at `path` below the root as it is known."""
        return self.store.delete(self.target(path), self.known_root())

    def test_deletes_all_of_a_tree_and_nothing_else(self) -> None:
        kept = {"1/run2/artifacts/f", "1/f", "1/run1/f", "f", "2/run1/artifacts/f"}
        gone = {f"1/run1/artifacts/{key}" for key in ("f", "model/f", "model/data/deep/er/f", "g")}
        self._put_all(kept | gone)
        self.delete("1/run1/artifacts/")
        assert self.keys() == kept

    def test_leaves_neighbours_with_similar_names(self) -> None:
        kept = {
            "1/run10/artifacts/f",
            "1/run1.bak/artifacts/f",
            "1/run/artifacts/f",
            "1/Run1/artifacts/f",
            "1/run1/artifacts2/f",
            "1/run1/artifacts.bak",
            "11/run1/artifacts/f",
        }
        self._put_all({*kept, "1/run1/artifacts/f"})
        self.delete("1/run1/artifacts/")
        assert self.keys() == kept

    def test_a_missing_tree_is_success(self) -> None:
        self.put("1/run2/artifacts/f", b"x")
        assert self.delete("1/run1/artifacts/").usage == Usage()
        assert self.delete("7/run1/artifacts/").usage == Usage()
        assert self.keys() == {"1/run2/artifacts/f"}

    def test_deleting_twice_is_success(self) -> None:
        self.put("1/run1/artifacts/f", b"x")
        self.delete("1/run1/artifacts/")
        assert self.delete("1/run1/artifacts/") == Deleted(Usage(), None)

    def test_tells_what_was_freed(self) -> None:
        for number, key in enumerate(("a", "b", "model/c", "model/empty")):
            self.put(f"1/run1/artifacts/{key}", b"x" * number * 1000)
        measured = self.store.measure(self.target("1/run1/artifacts/"))
        assert measured == Usage(4, 6000)
        assert len(self.keys()) == 4
        assert self.delete("1/run1/artifacts/").usage == measured
        assert self.store.measure(self.target("1/run1/artifacts/")) == Usage()

    def test_tells_when_the_tree_was_changed(self) -> None:
        self.put("1/run1/artifacts/f", b"x")
        changed_at = self.delete("1/run1/artifacts/").changed_at
        if changed_at is not None:
            age = datetime.now(UTC) - changed_at
            assert timedelta(minutes=-1) < age < timedelta(hours=1)

    def test_odd_names_of_files_are_deleted(self) -> None:
        gone = {f"1/run1/artifacts/{name}" for name in self._supported(*ODD_NAMES, *ODD_KEYS)}
        self._put_all(gone | {"1/run2/artifacts/f"})
        assert self.delete("1/run1/artifacts/").usage.objects == len(gone)
        assert self.keys() == {"1/run2/artifacts/f"}

    def test_odd_names_of_trees_are_told_apart(self) -> None:
        names = self._supported(*ODD_NAMES)
        left = {f"1/{name}/artifacts/f" for name in names}
        self._put_all(left)
        for name in names:
            assert self.delete(f"1/{name}/artifacts/").usage.objects == 1, name
            left.discard(f"1/{name}/artifacts/f")
            assert self.keys() == left, name

    def test_the_own_folder_goes_with_its_tree(self) -> None:
        self._put_all({"1/run1/artifacts/f", "1/run2/artifacts/f", "1/run2/sibling"})
        self.delete("1/run1/artifacts/")
        self.delete("1/run2/artifacts/")
        assert self.keys() == {"1/run2/sibling"}
        assert self.folders() <= {"1", "1/run2"}

    def test_the_folder_above_the_own_folder_stays(self) -> None:
        self.put("1/run1/artifacts/f", b"x")
        before = self.folders()
        self.delete("1/run1/artifacts/")
        assert self.keys() == set()
        assert self.folders() == before & {"1"}
        assert self.store.probe(self.root, ()).is_there

    def test_an_absent_root_is_no_empty_tree(self) -> None:
        absent = self.absent_root()
        probe = self.store.probe(absent, ())
        assert not probe.is_there
        place = replace(absent, path=absent.path + "1/run1/artifacts/")
        error = _raised(partial(self.store.delete, Target(place, absent), Root(absent, probe)))
        assert isinstance(error, TransientArtifactError), repr(error)

    def test_another_root_in_its_place_is_not_touched(self) -> None:
        self.put("1/run1/artifacts/f", b"x")
        root = replace(self.known_root(), remembered_identity="another one")
        for path in ("1/run1/artifacts/", "1/missing/artifacts/"):
            error = _raised(partial(self.store.delete, self.target(path), root))
            assert isinstance(error, TransientArtifactError), repr(error)
        assert self.keys() == {"1/run1/artifacts/f"}

    def test_the_identity_of_a_root_stays(self) -> None:
        before = self.store.probe(self.root, ())
        self.put("1/run1/artifacts/f", b"x")
        assert before.is_there
        assert self.store.probe(self.root, ()).identity == before.identity

    def test_roots_and_what_is_not_below_them_are_refused(self) -> None:
        self._put_all({"1/run1/artifacts/f", "f"})
        unsafe = [self.target(path) for path in ("", "1/", "1/run1", "1/run1/artifacts")]
        above = replace(self.root, path=self.root.path[:-1].rpartition("/")[0] + "/")
        unsafe += [Target(above, self.root), Target(self.root, replace(self.root, path="other/"))]
        unsafe.append(replace(self.target("1/run1/artifacts/"), root=self.absent_root()))
        before = self.keys()
        for target in unsafe:
            root = replace(self.known_root(), place=target.root)
            error = _raised(partial(self.store.delete, target, root))
            assert isinstance(error, UnsafeTarget), f"{target.place}: {error!r}"
        assert self.keys() == before

    def test_a_probe_finds_a_named_tree(self) -> None:
        self.put("1/run1/artifacts/f", b"x")
        missing, named = (self.target(f"1/{name}/artifacts/").place for name in ("run", "run1"))
        assert not self.store.probe(self.root, ()).is_named_found
        assert not self.store.probe(self.root, [missing]).is_named_found
        assert self.store.probe(self.root, iter([missing, named])).is_named_found
        assert self.store.probe(self.root, [named]).problem is None

    def test_looking_changes_nothing(self) -> None:
        self._put_all({"1/run1/artifacts/f", "1/run2/artifacts/f"})
        before = self.keys(), self.folders()
        target = self.target("1/run1/artifacts/")
        self.store.examine(target)
        self.store.examine(self.target("1/missing/artifacts/"))
        self.store.measure(target)
        self.store.probe(self.root, [target.place])
        assert self.store.resolve(target.place) == target.place
        assert self.store.storage_root(self.target("1/").place, self.root) == self.root
        assert (self.keys(), self.folders()) == before

    def test_many_are_deleted_at_once(self) -> None:
        runs = [f"{number % 3}/run{number}/artifacts/" for number in range(60)]
        self._put_all({run + key for run in runs for key in ("a", "model/b")} | {"0/live/f"})
        root = self.known_root()
        with ThreadPoolExecutor(8) as hands:
            targets = [self.target(run) for run in runs]
            deleted = list(hands.map(lambda target: self.store.delete(target, root), targets))
            self.store.flush(targets)
        assert [one.usage.objects for one in deleted] == [2] * 60
        assert self.keys() == {"0/live/f"}

    def test_trees_that_are_deleted_together_go_each_their_own_way(self) -> None:
        """Only of a store that can: see `BulkArtifactStore`."""
        if not isinstance(self.store, BulkArtifactStore):
            return
        runs = [f"{number % 3}/run{number}/artifacts/" for number in range(40)]
        self._put_all({run + key for run in runs for key in ("a", "model/b")} | {"0/run/f"})
        root, asked = self.known_root(), Counter[str]()

        def permit(path: str) -> None:
            asked[path] += 1
            if path == runs[7]:
                raise PermissionError(path)

        orders = [Order(self.target(path), root, partial(permit, path)) for path in runs]
        orders.append(Order(self.target("0/"), root, partial(permit, "0/")))
        results = {d.order: d.result for d in self.store.delete_many(iter(orders))}
        assert set(results) == set(orders)
        assert isinstance(results[orders[7]], PermissionError)
        assert isinstance(results[orders[40]], UnsafeTarget)
        others = [results[order] for order in orders[:40] if order is not orders[7]]
        usages = [each.usage.objects for each in others if isinstance(each, Deleted)]
        assert usages == [2] * 39
        assert set(asked) == set(runs)
        assert self.keys() == {runs[7] + "a", runs[7] + "model/b", "0/run/f"}

    def test_a_tree_with_anything_in_it_is_not_empty(self) -> None:
        """Only of a store that can tell without measuring."""
        if not isinstance(self.store, SearchableArtifactStore):
            return
        for number, name in enumerate(self._supported(*ODD_NAMES, "deep/er/f")):
            self.put(f"1/run{number}/artifacts/{name}", b"")
            assert self.store.has_files(self.target(f"1/run{number}/artifacts/")), name
        for path in (
            "1/run/artifacts/",
            "1/Run1/artifacts/",
            "1/run1/artifact/",
            "7/run1/artifacts/",
        ):
            assert not self.store.has_files(self.target(path)), path
        self.delete("1/run1/artifacts/")
        assert not self.store.has_files(self.target("1/run1/artifacts/"))
        error = _raised(partial(self.store.has_files, self.target("")))
        assert isinstance(error, UnsafeTarget), repr(error)

    def test_tells_where_the_way_to_a_place_ends(self) -> None:
        """Only of a store of real folders: what is empty there may be a mount point."""
        store = self.store
        if not isinstance(store, FolderedArtifactStore):
            return
        assert store.way_end(self.root, self.root) is None
        assert store.way_end(self.target("1/").place, self.root) is None
        self._put_all({"1/run1/artifacts/f", "2/run2/artifacts/f"})
        one, two = self.target("1/").place, self.target("2/").place
        assert store.way_end(one, self.root) == WayEnd(one, is_empty=False)
        self.delete("1/run1/artifacts/")
        if "1" in self.folders():
            end = WayEnd(one, is_empty=True)
            assert store.way_end(one, self.root) == end
            assert store.way_end(self.target("1/models/").place, self.root) == end
        assert store.way_end(self.target("2/models/").place, self.root) == WayEnd(
            two, is_empty=False
        )
        assert store.way_end(self.target("3/").place, self.root) is None

    def test_a_mark_is_written_once_and_replaced_on_purpose(self) -> None:
        """Only of a store that can: see `MarkableArtifactStore`."""
        if (store := self._markable()) is None:
            return
        assert store.read_mark(self.root) is None
        assert store.read_mark(self.absent_root()) is None
        assert store.write_mark(self.root, b"first", before=None)
        assert not store.write_mark(self.root, b"second", before=None)
        assert not store.write_mark(self.root, b"second", before=b"another")
        assert store.read_mark(self.root) == b"first"
        assert store.write_mark(self.root, b"second", before=b"first")
        assert store.read_mark(self.root) == b"second"
        assert self.keys() == {MARK}

    def test_of_many_who_mark_at_once_one_wins(self) -> None:
        store, root = self._markable(), self.root
        if store is None or not self.marks_are_exclusive:
            return
        marks = [f"database {number}".encode() for number in range(8)]
        with ThreadPoolExecutor(8) as hands:
            won = list(hands.map(lambda data: store.write_mark(root, data, before=None), marks))
        winners = [mark for mark, has_won in zip(marks, won, strict=True) if has_won]
        assert [store.read_mark(root)] == winners
        assert self.keys() == {MARK}

    def test_a_mark_is_read_up_to_its_limit(self) -> None:
        if (store := self._markable()) is None:
            return
        self.put(MARK, b"x" * (MOST_OF_A_MARK + 10))
        assert store.read_mark(self.root) == b"x" * (MOST_OF_A_MARK + 1)

    def test_a_mark_is_no_part_of_a_tree(self) -> None:
        if (store := self._markable()) is None:
            return
        self.put("1/run1/artifacts/f", b"x")
        store.write_mark(self.root, b"mark", before=None)
        target = self.target("1/run1/artifacts/")
        assert self.store.measure(target).objects == 1
        assert self.delete("1/run1/artifacts/").usage.objects == 1
        self.store.prune(self.target("1/"))
        self.store.prune(Target(self.root, self.root))
        assert self.store.probe(self.root, ()).is_there
        assert self.keys() == {MARK}

    def test_a_store_that_is_closed_leaves_nothing_open(self) -> None:
        """Only of a store that can be closed; it may be used again."""
        if not isinstance(self.store, ClosingArtifactStore):
            return
        self.put("1/run0/f", b"x")  # what puts it stays connected
        self.store.close()
        before = _open_files()
        for run in ("1/run1/artifacts/", "1/run2/artifacts/"):
            self.put(run + "f", b"x")
            assert self.delete(run).usage.objects == 1
            self.store.close()
            assert _settled(before) <= before
        assert self.keys() == {"1/run0/f"}

    def _markable(self) -> MarkableArtifactStore | None:
        is_markable = self.has_marks and isinstance(self.store, MarkableArtifactStore)
        return self.store if is_markable else None  # type: ignore[return-value]

    def _put_all(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.put(key, b"x")

    def _supported(self, *names: str) -> list[str]:
        return [name for name in names if name not in self.unsupported]


def _open_files() -> int:
    """How many descriptors this process has open, 0 where the system does not tell."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def _settled(most: int) -> int:
    """As many, once a server in this process had time to notice that somebody hung up.

    An SDK may leave a reply without a body to the garbage collector.
    """
    gc.collect()
    until = time.monotonic() + 10
    while (found := _open_files()) > most and time.monotonic() < until:
        time.sleep(0.02)
    return found


def _raised(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except Exception as error:  # the caller says which it must be
        return error
    return None
