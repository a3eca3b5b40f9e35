"""What the backends of all object stores do alike: look below a prefix, delete below a prefix.

It must never rewrite a key, nor take a bucket that is missing, or may not be listed, for an empty one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from threading import Lock, Semaphore
from typing import Generic, Self, TypeVar

from gcd.artifacts.base import MARK, MOST_OF_A_MARK, Deleted, Deletion, Options, Order
from gcd.artifacts.buckets import Bucket, Denied, NoBucket
from gcd.artifacts.bulk import BulkDeletion
from gcd.artifacts.pace import Pace
from gcd.errors import ArtifactError, PermanentArtifactError, TransientArtifactError, UnsafeTarget
from gcd.model import Place, Probe, Root, Target, Usage

LOOKED_FOR = 500
"""Trees that a probe looks for, each with a request."""

B = TypeVar("B", bound=Bucket)


class ObjectArtifactStore(ABC, Generic[B]):
    """A family of schemes whose paths are raw prefixes of keys, ending in "/".

    A backend says which bucket a place is in (`check`, `open_bucket`).
    """

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self.slots = Semaphore(self.options.requests)
        self._buckets: dict[tuple[str, str], B] = {}
        self._lock = Lock()

    @classmethod
    def with_options(cls, options: Options) -> Self:
        """A store as the operator wants it."""
        return cls(options)

    # -- what a backend supplies -------------------------------------------------------------------

    @abstractmethod
    def check(self, place: Place) -> None:
        """Raise UnsafeTarget where a place names no bucket."""

    @abstractmethod
    def open_bucket(self, place: Place, pace: Pace) -> B:
        """The bucket of a place, without asking the store. Raises an ArtifactError."""

    # -- looking -----------------------------------------------------------------------------------

    @property
    def deletes_versions(self) -> bool:
        """Whether every version goes."""
        return self.options.versions == "all"

    def bucket(self, place: Place) -> B:
        """The bucket of a place, the same one each time. Raises an ArtifactError."""
        name = (place.scheme, place.authority)
        with self._lock:  # clients are made for several threads, what makes them often is not
            if name not in self._buckets:
                pace = Pace(self.options.objects_per_second)
                self._buckets[name] = self.open_bucket(place, pace)
            return self._buckets[name]

    def resolve(self, place: Place) -> Place:
        """The place itself: a key has one name. Raises UnsafeTarget where it names no bucket."""
        self.check(place)
        return place

    def storage_root(self, location: Place, root: Place) -> Place:  # noqa: ARG002
        """The root itself: nothing is mounted in a bucket."""
        return root

    def probe(self, root: Place, named: Iterable[Place]) -> Probe:
        """Look whether a named tree is there, or whether the bucket may be listed at all."""
        identity = None
        try:
            bucket = self.bucket(root)
            identity = bucket.identity
            below = islice((place for place in named if _is_below(place, root)), LOOKED_FOR)
            is_found = any(not bucket.is_empty(p.path, all_versions=False) for p in below)
            if not is_found:
                bucket.is_empty(root.path, all_versions=False)
            return Probe(True, identity, is_found, note=self._note(bucket))
        except NoBucket:
            return Probe(is_there=False)
        except ArtifactError as error:
            is_there = isinstance(error, PermanentArtifactError)  # it answers, and refuses
            text = f"{error.message}; {error.hint}" if error.hint else error.message
            return Probe(is_there, identity if is_there else None, problem=text)

    def _note(self, bucket: Bucket) -> str | None:
        return None if self.deletes_versions else bucket.keeps

    def examine(self, target: Target) -> None:
        """Refuse a root and what is not below it; the store itself is not asked."""
        _refuse_unsafe(target)
        self.check(target.place)

    def measure(self, target: Target) -> Usage:
        """Objects and bytes below the place, as many versions as would be deleted."""
        _refuse_unsafe(target)
        usage = Usage()
        pages = self.bucket(target.place).pages(
            target.place.path, all_versions=self.deletes_versions
        )
        for page in pages:
            objects = sum(not item.is_marker for item in page)
            usage += Usage(objects, sum(item.size for item in page))
        return usage

    def has_files(self, target: Target) -> bool:
        """Whether a listing of one key below the place finds one, of the versions that would go."""
        _refuse_unsafe(target)
        bucket = self.bucket(target.place)
        return not bucket.is_empty(target.place.path, all_versions=self.deletes_versions)

    # -- the mark ----------------------------------------------------------------------------------

    def read_mark(self, root: Place) -> bytes | None:
        """The object of the mark's name. Who may list, but not read, still knows if there is none."""
        bucket, key = self.bucket(root), root.path + MARK
        try:
            return bucket.read(key, MOST_OF_A_MARK + 1)
        except NoBucket:
            return None
        except Denied as error:
            first = next(bucket.pages(key, all_versions=False, limit=1), [])
            if not any(item.key == key for item in first):
                return None
            raise UnsafeTarget(error.message, hint=error.hint) from error

    def write_mark(self, root: Place, data: bytes, *, before: bytes | None) -> bool:
        """Write the object, and see that it is there: not every store honours a condition."""
        bucket, key = self.bucket(root), root.path + MARK
        # Without the right to read nothing is written that could not be read afterwards.
        if bucket.read(key, MOST_OF_A_MARK + 1) != before:
            return False
        is_written = bucket.write(key, data, is_new=before is None)
        return is_written and bucket.read(key, MOST_OF_A_MARK + 1) == data

    # -- deleting ----------------------------------------------------------------------------------

    def delete(self, target: Target, root: Root) -> Deleted:
        """Delete everything below the place, and see that it lists empty."""
        order = Order(target, root, permit=lambda: None)
        [deletion] = self.delete_many([order])
        if isinstance(deletion.result, Exception):
            raise deletion.result
        return deletion.result

    def delete_many(self, orders: Iterable[Order]) -> Iterator[Deletion]:
        """Delete many trees, their keys packed into full requests."""
        bulk = BulkDeletion(
            self._bucket_of, self.options.requests, all_versions=self.deletes_versions
        )
        return bulk.run(orders)

    def _bucket_of(self, order: Order) -> Bucket:
        """The bucket of a tree that may be deleted. Raises an ArtifactError for one that may not."""
        _refuse_unsafe(order.target)
        root = order.root
        if root.place != order.target.root:
            raise UnsafeTarget(f"{order.target.place.path!r} is not below {root.place.path!r}")
        bucket = self.bucket(order.target.place)
        expected = root.remembered_identity or root.probe.identity
        if expected not in (None, bucket.identity):
            raise TransientArtifactError(
                f"the bucket {bucket.identity} is another one than before ({expected})",
                hint="if it was replaced on purpose: gcd doctor --accept-root",
            )
        return bucket

    def prune(self, folder: Target) -> None:
        """Nothing: a bucket has no folders, and a marker of one is somebody's object."""

    def flush(self, targets: Iterable[Target]) -> None:
        """Nothing: what the store answered is durable."""

    def close(self) -> None:
        """End the connections that buckets keep."""
        with self._lock:
            buckets, self._buckets = list(self._buckets.values()), {}
        for bucket in buckets:
            bucket.close()


def _is_below(place: Place, root: Place) -> bool:
    same = (place.scheme, place.authority) == (root.scheme, root.authority)
    return same and place.path.startswith(root.path) and place.path.endswith("/")


def _refuse_unsafe(target: Target) -> None:
    """UnsafeTarget for what is not a tree in a folder of its own below its root."""
    place, root = target.place, target.root
    below = place.path.removeprefix(root.path)
    if not _is_below(place, root) or len(below.rstrip("/").split("/")) < 2:
        raise UnsafeTarget(
            f"{place.path!r} is not a tree in a folder of its own below {root.path!r}"
        )
