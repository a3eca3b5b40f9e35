"""Deletes many trees of buckets at once: lists them, packs their keys into full requests, looks again.

It must never delete a key that is not below a tree whose permit was asked immediately before, nor call
a tree deleted that does not list empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from threading import Semaphore

from gcd.artifacts.base import Deletion, Order
from gcd.artifacts.buckets import ATTEMPTS, Bucket, Denied, Item, NotOffered, Refused
from gcd.artifacts.tree import Packer, Piece, Tree
from gcd.errors import ArtifactError, PermanentArtifactError, TransientArtifactError

Request = Callable[[Bucket, list[Piece]], Mapping[Item, ArtifactError]]

GROUP = 500
"""Trees that are worked on together: bounds memory."""
SHARED_ROUNDS = 2
"""How often keys of several trees share requests."""
ROUNDS = 5
"""How often a tree is listed and what is left of it deleted, before it is given up for now."""


class BulkDeletion:
    """Deletes trees in groups, with so many hands for listing and as many for deleting."""

    def __init__(
        self, bucket_of: Callable[[Order], Bucket], hands: int, *, all_versions: bool
    ) -> None:
        self.bucket_of = bucket_of
        self.hands = hands
        self.all_versions = all_versions
        self._room = Semaphore(2 * hands)
        """Requests that are packed and not answered: who lists waits for room."""

    def run(self, orders: Iterable[Order]) -> Iterator[Deletion]:
        """A deletion for each order, group by group."""
        waiting = iter(orders)
        while group := list(islice(waiting, GROUP)):
            yield from self._group(group)

    def _group(self, orders: Sequence[Order]) -> list[Deletion]:
        trees: list[Tree] = []
        refused: list[Deletion] = []
        for order in orders:
            try:
                trees.append(Tree(order, self.bucket_of(order)))
            except Exception as error:  # one order's trouble is not another's
                refused.append(Deletion(order, error))
        for bucket in dict.fromkeys(tree.bucket for tree in trees):
            bucket.clear_unseen([tree for tree in trees if tree.bucket is bucket])
        with (
            ThreadPoolExecutor(self.hands, thread_name_prefix="gcd-list") as listing,
            ThreadPoolExecutor(self.hands, thread_name_prefix="gcd-delete") as deleting,
        ):
            for number in range(ROUNDS):
                if not self._round(number, trees, listing, deleting):
                    break
        return [*refused, *(Deletion(tree.order, tree.result()) for tree in trees)]

    def _round(
        self,
        number: int,
        trees: Sequence[Tree],
        listing: ThreadPoolExecutor,
        deleting: ThreadPoolExecutor,
    ) -> bool:
        """List the trees that are not known to be gone, and delete what is listed; False if none is.

        The round after the last deletion is what shows that a tree is gone.
        """
        left = [tree for tree in trees if tree.is_open]
        for bucket in {tree.bucket for tree in left if tree.trouble is not None}:
            bucket.pace.pause(number)
        # What fails again and again may be one tree's fault: in the end each is by itself.
        together = {tree: tree.bucket if number < SHARED_ROUNDS else tree for tree in left}
        packers = {owner: Packer(tree.bucket.batch) for tree, owner in together.items()}

        def send(bucket: Bucket, batch: list[Piece]) -> None:
            self._room.acquire()
            deleting.submit(self._send, bucket, batch)

        def empty(tree: Tree) -> None:
            for page in self._listed(tree):
                for batch in packers[together[tree]].add(tree, page):
                    send(tree.bucket, batch)

        list(listing.map(empty, left))
        for packer in packers.values():
            if rest := packer.rest():
                send(rest[0][0].bucket, rest)
        for _ in range(2 * self.hands):  # all room is free once all requests are answered
            self._room.acquire()
        self._room.release(2 * self.hands)
        return bool(left)

    def _listed(self, tree: Tree) -> Iterator[list[Item]]:
        """The pages of a tree, counted; one without any is gone, one that fails is given up."""
        tree.trouble = None
        is_empty = True
        try:
            for page in tree.bucket.pages(tree.prefix, all_versions=self.all_versions):
                is_empty = is_empty and not page
                if not tree.is_counted:
                    tree.count(page)
                if tree.is_forbidden:
                    return
                yield page
        except Exception as error:  # a hand outlives whatever the library raises
            tree.give_up(error)
            return
        tree.is_counted = True
        tree.is_gone = is_empty

    # -- deleting ----------------------------------------------------------------------------------

    def _send(self, bucket: Bucket, batch: list[Piece]) -> None:
        """Delete a batch; whatever is raised is a reason to look again."""
        try:
            many = [piece for piece in batch if bucket.takes_together(piece[1])]
            one_by_one = [piece for piece in batch if not bucket.takes_together(piece[1])]
            try:
                self._delete(bucket, many, self._many)
            except Denied:
                for tree in dict.fromkeys(tree for tree, _ in many):
                    self._alone(bucket, [piece for piece in many if piece[0] is tree], self._many)
            except PermanentArtifactError as error:
                bucket.takes_one_by_one |= isinstance(error, NotOffered)
                one_by_one = batch
            for piece in one_by_one:
                self._alone(bucket, [piece], self._one)
        except Exception as error:  # a hand outlives whatever the library raises
            for tree in {tree for tree, _ in batch}:
                tree.trouble = error
        finally:
            self._room.release()

    def _alone(
        self,
        bucket: Bucket,
        pieces: list[Piece],
        request: Request,
    ) -> None:
        """Delete what is one tree's, so that a refusal is that tree's and no other's."""
        try:
            self._delete(bucket, pieces, request)
        except PermanentArtifactError as error:
            for tree in {tree for tree, _ in pieces}:
                tree.give_up(error)

    def _delete(
        self,
        bucket: Bucket,
        pieces: list[Piece],
        request: Request,
    ) -> None:
        """Send one request when its turn comes, permits asked before it; again while it is refused.

        A request of which it is not known what it did is not sent again: the next listing tells.
        """
        for attempt in range(1, ATTEMPTS + 1):
            if not pieces:
                return
            bucket.pace.check()
            bucket.pace.admit(len(pieces))
            try:
                with bucket.slots:
                    concerned = {tree for tree, _ in pieces}
                    permitted = {tree for tree in concerned if tree.is_permitted()}
                    pieces = [piece for piece in pieces if piece[0] in permitted]
                    failed = request(bucket, pieces) if pieces else {}
                break
            except Refused as error:
                if attempt < ATTEMPTS:
                    bucket.pace.pause(attempt)
                    continue
                for tree in permitted:
                    tree.give_up(error)
                return
        for tree, item in pieces:
            if item in failed:
                self._note(bucket, tree, item, failed[item])

    @staticmethod
    def _many(bucket: Bucket, pieces: list[Piece]) -> Mapping[Item, ArtifactError]:
        return bucket.delete([item for _, item in pieces])

    @staticmethod
    def _one(bucket: Bucket, pieces: list[Piece]) -> Mapping[Item, ArtifactError]:
        for _, item in pieces:
            if error := bucket.delete_one(item):
                return {item: error}
        return {}

    @staticmethod
    def _note(bucket: Bucket, tree: Tree, item: Item, error: ArtifactError) -> None:
        """Take down what the store said of one key."""
        if isinstance(error, Refused):
            bucket.pace.throttled()
        if isinstance(error, TransientArtifactError):
            tree.trouble = error
        else:
            tree.give_up(bucket.explained(item, error))
