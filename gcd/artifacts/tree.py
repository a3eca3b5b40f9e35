"""What is known of a tree in a bucket while it is deleted with others, and its keys on their way.

It must never call a tree gone that was not listed empty, nor forget that one was forbidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from threading import Lock

from gcd.artifacts.base import Deleted, Order
from gcd.artifacts.buckets import Bucket, Item
from gcd.errors import ArtifactError, LockedArtifactError, TransientArtifactError
from gcd.model import Usage


@dataclass(slots=True, eq=False)
class Tree:
    """What is known of one tree while it is deleted."""

    order: Order
    bucket: Bucket
    usage: Usage = field(default_factory=Usage)
    changed_at: datetime | None = None
    is_counted: bool = False
    """Whether it was listed once: what is listed later was counted then."""
    is_gone: bool = False
    is_forbidden: bool = False
    failure: Exception | None = None
    """Why it is given up."""
    trouble: Exception | None = None
    """Why something of it may be left."""
    is_walked: bool = False
    """Whether its keys were looked for together with those of others."""
    listings: int = 0
    """How often its own prefix was listed."""
    unanswered: int = 0
    """Keys that are found and not answered for, and one more while it is looked through."""

    @property
    def prefix(self) -> str:
        """The raw prefix of its keys, ending in "/"."""
        return self.order.target.place.path

    @property
    def is_open(self) -> bool:
        """Whether something is still to be done about it."""
        return not self.is_gone and self.failure is None

    def count(self, page: Sequence[Item]) -> None:
        """Add what a page of its first listing holds."""
        objects = sum(not item.is_marker for item in page)
        self.usage += Usage(objects, sum(item.size for item in page))
        times = [item.changed_at for item in page if item.changed_at is not None]
        self.changed_at = max(filter(None, [*times, self.changed_at]), default=None)

    def is_permitted(self) -> bool:
        """Ask whether it may still be deleted; a refusal is final."""
        if self.is_forbidden:
            return False
        try:
            self.order.permit()
        except Exception as error:  # whoever forbids says it by whatever it raises
            self.is_forbidden, self.failure = True, error
            return False
        return True

    def give_up(self, error: Exception) -> None:
        """Note why it cannot be deleted: the longest that the store holds it, or the first reason."""
        if self.failure is None or _holds_longer(error, self.failure):
            self.failure = error

    def result(self) -> Deleted | Exception:
        """How it went."""
        if self.failure is not None:
            return self.failure
        if self.is_gone:
            return Deleted(self.usage, self.changed_at)
        text = f"bucket {self.bucket.name}: what the store says it deleted is still listed"
        return self.trouble or TransientArtifactError(text)


Piece = tuple[Tree, Item]


@dataclass(slots=True)
class Packer:
    """Keys of one bucket on their way into full requests."""

    size: int
    waiting: list[Piece] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def add(self, tree: Tree, page: Iterable[Item]) -> list[list[Piece]]:
        """Take keys; the requests that are full now."""
        with self.lock:
            self.waiting += ((tree, item) for item in page)
            full = len(self.waiting) - len(self.waiting) % self.size
            batches = [self.waiting[at : at + self.size] for at in range(0, full, self.size)]
            self.waiting = self.waiting[full:]
            return batches

    def rest(self) -> list[Piece]:
        """The last keys."""
        with self.lock:
            rest, self.waiting = self.waiting, []
            return rest


def _holds_longer(new: Exception, old: Exception) -> bool:
    """Whether an error says that the store holds something longer than another does."""
    if not isinstance(new, LockedArtifactError):
        return False
    if not isinstance(old, LockedArtifactError):
        return isinstance(old, ArtifactError)
    return old.until is not None and (new.until is None or new.until > old.until)
