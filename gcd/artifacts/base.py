"""The protocol that every artifact backend implements, and the guide for those who write one.

It must never learn of a particular store: what differs between them stays behind these methods.

A backend author's guide
------------------------
One class for a family of schemes, in a module of its own that imports its SDK at the top; the module
is imported when the first URI of its scheme is met. Register it by entry point `gcd.artifact_stores`
(`scheme = "package.module:Class"`), or, inside gcd, by a row in `registry.BUILTIN`.

* Keys are raw. List with the path as given (it ends in "/"), delete what was listed, compare bytes.
  Nothing is collapsed, decoded or normalised: an engine that rewrites keys deletes the wrong tree.
* Everything is idempotent. A tree that is not there is success, under a root that is there.
* Believe the reply, not the call: read every per-key error, and return from `delete` only when the
  tree lists empty.
* Translate the SDK's exceptions here, `raise ... from error`: `TransientArtifactError` for what may
  pass, `LockedArtifactError` for what the store itself holds, `PermanentArtifactError` for the rest,
  `UnsafeTarget` for what must never be touched.
* Methods are called from several threads at once.
* A store that can delete the objects of many trees with one request has `delete_many` too
  (`BulkArtifactStore`); one that waits before it deletes has `delete_order` (`AskingArtifactStore`);
  one that knows more about its places than a probe tells has `inspect`
  (`InspectableArtifactStore`); one that need not measure a tree to see that it is not empty has
  `has_files` (`SearchableArtifactStore`); one of real folders has `way_end`
  (`FolderedArtifactStore`); one in which a tree may have several names has `other_names`
  (`AliasingArtifactStore`); one that logs in by passwords in URIs has `learn`
  (`LearningArtifactStore`); one that keeps connections has `close` (`ClosingArtifactStore`); one that
  can hold the mark of the database that collects in a root has `read_mark` and `write_mark`
  (`MarkableArtifactStore`); a class that wants the operator's options has a class method
  `with_options(options)`. A class without it is called without arguments.
* A store of objects need only say how its requests are sent: see `object_store.py` and `buckets.py`.
* A server of files and folders need only be asked and told by name: see `folder_store.py` and
  `remote_files.py`.
* Prove it: inherit `gcd.testing.ArtifactStoreContract` in a test and supply its fixtures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from gcd.model import Place, Probe, Root, Target, Usage, Way

MARK = ".gcd-root.json"
"""The name of the mark that says which database collects in a root, directly below it."""
MOST_OF_A_MARK = 4096
"""Bytes read of a mark: what is longer is none of gcd's."""


class Deleted(NamedTuple):
    """What a deletion removed, and when the newest thing it removed was last changed, if known."""

    usage: Usage
    changed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator wants of a backend."""

    versions: Literal["current", "all"] = "current"
    """Whether older versions of objects and delete markers go too, where a store keeps them."""
    requests: int = 8
    """The most requests at once."""
    objects_per_second: int | None = None
    """The most objects deleted in a second in one bucket, None for no ceiling."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables that this MLflow store has for itself, credentials among them, over the process's."""
    proxy: str | None = None
    """The MLflow server that may be asked to delete what it keeps; None where nobody asked for that."""
    uris: tuple[str, ...] = field(default=(), repr=False)
    """The URIs of the configuration as they are written, passwords among them."""


class ArtifactStore(Protocol):
    """Deletes artifact trees in one family of stores."""

    def resolve(self, place: Place) -> Place:
        """The same place under its true name: symlinks of a local path followed, else unchanged."""

    def storage_root(self, location: Place, root: Place) -> Place:
        """The root to probe and remember for an experiment's `location`, `root` by MLflow's layout.

        Either `root` itself or something nearer to the location: the mount point between them.
        """

    def probe(self, root: Place, named: Iterable[Place]) -> Probe:
        """Look at the root without changing it.

        `named` are trees that the database says are below it, lazily, as many as a caller thinks
        worth looking for; the look stops at the first one that is there.
        """

    def examine(self, target: Target) -> None:
        """Raise what is known to stop `delete(target)`, found without changing anything.

        Raises UnsafeTarget (a symlink, another mount in the way) or PermanentArtifactError (a
        permission). A store that cannot tell cheaply returns at once.
        """

    def measure(self, target: Target) -> Usage:
        """Objects and bytes of the tree now; zero if it is not there."""

    def delete(self, target: Target, root: Root) -> Deleted:
        """Delete the tree and the entity's own folder around it, and see that it lists empty.

        `root.remembered_identity` is checked first where it is known: a root that is absent or
        another one is a TransientArtifactError, not an empty tree. Raises an ArtifactError.
        """

    def prune(self, folder: Target) -> None:
        """Remove the folder of an experiment that is gone, with MLflow's own folders in it, if empty.

        What is not there, or holds anything, is left as it is. A store without folders does nothing.
        """

    def flush(self, targets: Iterable[Target]) -> None:
        """Make finished deletions durable, before they are settled in the journal."""


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """A tree to delete with others. Orders are told apart by identity."""

    target: Target
    root: Root
    permit: Callable[[], None]
    """Asked immediately before each request that deletes something of the tree; raises what forbids it."""


class Deletion(NamedTuple):
    """How one order went."""

    order: Order
    result: Deleted | Exception


@runtime_checkable
class AskingArtifactStore(ArtifactStore, Protocol):
    """A store that has much to do before it removes anything, and may have to wait for its turn."""

    def delete_order(self, order: Order) -> Deleted:
        """Do as `delete`; the permit is asked immediately before the first removal.

        What the permit raises is passed on, and nothing was removed then.
        """


@runtime_checkable
class BulkArtifactStore(ArtifactStore, Protocol):
    """A store that packs the objects of many trees into full requests."""

    def delete_many(self, orders: Iterable[Order]) -> Iterator[Deletion]:
        """Delete the trees as `delete` would each; a deletion for each order, in no particular order.

        A tree that fails, or is forbidden by its permit, keeps no other from going: what was raised
        is its result. Memory is bounded whatever the trees hold. Closing the iterator early waits
        for the requests in hand.
        """


class Remark(NamedTuple):
    """Something to tell an operator about a place; a warning if `mend` says what to do about it."""

    seen: str
    mend: str | None = None


@runtime_checkable
class InspectableArtifactStore(ArtifactStore, Protocol):
    """A store that knows more about a storage root than a probe tells."""

    def inspect(self, root: Place) -> Iterator[Remark]:
        """Settings of the store that matter to a deletion, found without changing anything."""


@runtime_checkable
class LearningArtifactStore(ArtifactStore, Protocol):
    """A store that needs what a URI has and a place has not: the password."""

    def learn(self, uri: str) -> None:
        """Take the password of a URI of any scheme, if it has one. It stays in memory."""


Naming = Callable[[Place], tuple[Place | Way, ...]]
"""Tells what else a place is called."""


@runtime_checkable
class AliasingArtifactStore(ArtifactStore, Protocol):
    """A store in which one tree may have several names."""

    def other_names(self) -> Naming:
        """Tells what else a resolved place is called at this moment, to compare it with others."""


@runtime_checkable
class SearchableArtifactStore(ArtifactStore, Protocol):
    """A store that finds out whether a tree holds anything without measuring all of it."""

    def has_files(self, target: Target) -> bool:
        """Whether anything is in the tree that a deletion would count. Raises an ArtifactError."""


class WayEnd(NamedTuple):
    """The deepest folder that is there on the way to a place, and whether nothing is in it."""

    folder: Place
    is_empty: bool


@runtime_checkable
class FolderedArtifactStore(ArtifactStore, Protocol):
    """A store of real folders, on disks that may be away: an unmounted one is an empty folder."""

    def way_end(self, place: Place, root: Place) -> WayEnd | None:
        """Where the way to a place ends below its root; None if not even its first folder is there.

        Raises an ArtifactError where that cannot be seen.
        """


@runtime_checkable
class ClosingArtifactStore(ArtifactStore, Protocol):
    """A store that keeps something open between its calls."""

    def close(self) -> None:
        """End what is kept open; the store may be used again."""


@runtime_checkable
class MarkableArtifactStore(ArtifactStore, Protocol):
    """A store that can hold the mark of the database that collects in a root, under the name MARK."""

    def read_mark(self, root: Place) -> bytes | None:
        """The beginning of the root's mark, one byte more than MOST_OF_A_MARK; None without a mark.

        Raises TransientArtifactError and PermanentArtifactError where that cannot be told, `Denied`
        where these credentials may not even look. No link is followed.
        """

    def write_mark(self, root: Place, data: bytes, *, before: bytes | None) -> bool:
        """Write the root's mark if what is there still is `before`; True once it is durable.

        With `before` None it is made only if there is none: of two who make it at once one wins,
        where the store has a way of saying so. It is there whole, or not at all. Raises
        PermanentArtifactError where none can be written here, TransientArtifactError for what may pass.
        """
