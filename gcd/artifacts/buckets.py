"""What every store of objects has in common: a bucket of raw keys, listed in pages, deleted in batches.

It must never change a key on its way, nor know which SDK answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from threading import Semaphore
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from gcd.artifacts.pace import Pace
from gcd.errors import ArtifactError, PermanentArtifactError, TransientArtifactError

if TYPE_CHECKING:
    from gcd.artifacts.tree import Tree

T = TypeVar("T")

ATTEMPTS = 5
"""How often a request is sent that the store answers with a reason to try again."""


class Refused(TransientArtifactError):
    """The store did nothing, and asks for patience."""


class NoBucket(TransientArtifactError):
    """The bucket is not there."""


class NotOffered(PermanentArtifactError):
    """The store does not know this request."""


class Denied(PermanentArtifactError):
    """The credentials do not allow it."""


class Item(NamedTuple):
    """One object, or one of its versions or delete markers."""

    key: str
    version: str | None
    size: int
    changed_at: datetime | None
    is_marker: bool = False


class Bucket(ABC):
    """One bucket at one endpoint. Threads share it.

    A backend supplies the requests: `pages`, `delete` and `delete_one`, and what else it knows.
    """

    batch: int = 250
    """Objects in a request that deletes many. With fewer than a store allows, eight hands have
    something to do already in a small store, and real servers were faster for it."""

    def __init__(self, name: str, identity: str, *, slots: Semaphore, pace: Pace) -> None:
        self.name = name
        self.identity = identity
        """Endpoint and name: what tells this bucket from another one of its name."""
        self.slots = slots
        self.pace = pace
        self.takes_one_by_one = False
        """Whether the store knows no deletion of many keys."""
        self.walks = False
        """Whether keys of many trees are looked for with one listing, by `page_after`."""

    # -- what a backend supplies -------------------------------------------------------------------

    @abstractmethod
    def pages(
        self, prefix: str, *, all_versions: bool, limit: int | None = None
    ) -> Iterator[list[Item]]:
        """Everything below a raw prefix, at most `limit` on a page, keys as the store has them.

        Raises an ArtifactError; PermanentArtifactError for a key that does not begin with the prefix.
        """

    @abstractmethod
    def delete(self, items: Sequence[Item]) -> Mapping[Item, ArtifactError]:
        """Delete with one request: what the reply says was not deleted, and why.

        What is gone already is not in it; nor is what the reply is silent about, which the listing
        afterwards tells. The caller holds a slot. Raises an ArtifactError for the request.
        """

    @abstractmethod
    def delete_one(self, item: Item) -> ArtifactError | None:
        """Delete one by itself; why the store did not, for good. The caller holds a slot.

        Raises TransientArtifactError for what may pass.
        """

    def takes_together(self, item: Item) -> bool:  # noqa: ARG002
        """Whether a request for many can carry this one."""
        return not self.takes_one_by_one

    def explained(self, item: Item, error: ArtifactError) -> ArtifactError:  # noqa: ARG002
        """Why it was refused, if the store says more when it is asked. The caller holds no slot."""
        return error

    def read(self, key: str, most: int) -> bytes | None:  # noqa: ARG002
        """The first bytes of an object, None if there is none. Raises an ArtifactError.

        Denied where these credentials may not read it, or may not know whether it is there.
        """
        raise NotOffered(f"bucket {self.name}: this backend reads no objects")

    def write(self, key: str, data: bytes, *, is_new: bool) -> bool:  # noqa: ARG002
        """Write a small object; with `is_new` False comes back where there is one, if the store says.

        Raises an ArtifactError.
        """
        raise NotOffered(f"bucket {self.name}: this backend writes no objects")

    def clear_unseen(self, trees: Sequence[Tree]) -> None:  # noqa: B027 - most stores hide nothing
        """Remove what the trees hold that is in no listing of objects, such as unfinished uploads."""

    def page_after(self, prefix: str, key: str) -> tuple[list[Item], bool]:
        """A page of what is below a prefix and behind a key, and whether more is behind it.

        Asked only where `walks` is set, by a store that lists in the order of its keys' bytes.
        Raises an ArtifactError.
        """
        raise NotImplementedError

    @property
    def keeps(self) -> str | None:
        """A sentence on what stays in the store when objects are deleted; None if nothing does."""
        return None

    def close(self) -> None:  # noqa: B027 - not all keep something open
        """End the connections that are kept; the bucket is not used again."""

    # -- what they share ---------------------------------------------------------------------------

    def is_empty(self, prefix: str, *, all_versions: bool) -> bool:
        """Whether nothing is below a prefix."""
        return not any(self.pages(prefix, all_versions=all_versions, limit=1))

    def counted(self, call: Callable[[], T]) -> T:
        """Send one request, in a slot that the caller holds; the bucket's pace learns how it went.

        The call raises ArtifactErrors only.
        """
        try:
            reply = call()
        except Refused as error:
            self.pace.throttled()
            self.pace.failed(_with_mend(error))
            raise
        except TransientArtifactError as error:
            self.pace.failed(_with_mend(error))
            raise
        except ArtifactError:
            self.pace.succeeded()  # it answered
            raise
        self.pace.succeeded()
        return reply

    def again(self, call: Callable[[], T]) -> T:
        """A request that may be sent twice, tried again where that may help."""
        attempt = 0
        while True:
            self.pace.check()
            try:
                with self.slots:
                    return self.counted(call)
            except TransientArtifactError as error:
                attempt += 1
                # A hint means that something is to be mended: trying again at once mends nothing.
                if attempt >= (2 if error.hint else ATTEMPTS):
                    raise
                self.pace.pause(attempt)

    def checked(self, key: str, prefix: str) -> str:
        """The key, if it lies below the prefix. Raises PermanentArtifactError."""
        if not key.startswith(prefix):
            text = f"bucket {self.name}: a listing of {prefix!r} answers with the key {key!r}"
            raise PermanentArtifactError(text)
        return key


def _with_mend(error: ArtifactError) -> str:
    return f"{error.message}; {error.hint}" if error.hint else error.message
