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
* Prove it: inherit `gcd.testing.ArtifactStoreContract` in a test and supply its fixtures.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple, Protocol

from gcd.model import Place, Probe, Root, Target, Usage


class Deleted(NamedTuple):
    """What a deletion removed, and when the newest thing it removed was last changed, if known."""

    usage: Usage
    changed_at: datetime | None


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
