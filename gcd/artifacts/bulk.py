"""Deletes many trees of buckets at once: lists them, packs their keys into full requests, looks again.

It must never delete a key that is not below a tree whose permit was asked immediately before, nor call
a tree deleted that does not list empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from queue import SimpleQueue
from threading import Lock, Semaphore

from gcd.artifacts import cursor
from gcd.artifacts.base import Deletion, Order
from gcd.artifacts.batches import send
from gcd.artifacts.buckets import Bucket, Item
from gcd.artifacts.tree import Packer, Piece, Tree
from gcd.errors import ArtifactError

Search = Callable[[Sequence[Tree], Callable[[Tree], None]], None]
"""Looks for keys of trees, and says of each when it is through with it."""

GROUP = 500
"""Trees that are taken on together. While half of twice as many are left, the next ones come:
bounds memory, and leaves no hand idle."""
SHARED_LISTINGS = 2
"""For how many of its listings a tree's keys share requests with those of others."""
LISTINGS = 5
"""How often a tree is listed and what is left of it deleted, before it is given up for now."""


class BulkDeletion:
    """Deletes trees with so many hands for listing and as many for deleting.

    A tree goes its own way: found, deleted, listed again once all its keys are answered for. One
    that met trouble waits until no other is under way, and none is taken on before it is done.
    """

    def __init__(
        self, bucket_of: Callable[[Order], Bucket], hands: int, *, all_versions: bool
    ) -> None:
        self.bucket_of = bucket_of
        self.hands = hands
        self.all_versions = all_versions
        self._ready: SimpleQueue[Tree | None] = SimpleQueue()
        """Trees that nothing is under way for; None for each search that has ended."""
        self._searches = 0
        """Searches that have not ended, as the thread knows that takes from the queue."""
        self._packers: dict[Bucket | Tree, Packer] = {}
        self._lock = Lock()
        self._room = Semaphore(2 * hands)
        """Requests that are packed and not answered: who lists waits for room."""
        self._is_closing = False
        self._listing = ThreadPoolExecutor(hands, thread_name_prefix="gcd-list")
        self._deleting = ThreadPoolExecutor(hands, thread_name_prefix="gcd-delete")

    def run(self, orders: Iterable[Order]) -> Iterator[Deletion]:
        """A deletion for each order, as they come."""
        waiting = iter(orders)
        is_more = True
        left = 0
        troubled: list[Tree] = []
        try:
            while True:
                if is_more and left <= GROUP and not troubled:
                    group = list(islice(waiting, GROUP))
                    is_more = bool(group)
                    trees, ended = self._opened(group)
                    left += len(trees)
                    self._look_for(trees)
                    yield from ended
                elif not left:
                    return
                elif left == len(troubled):
                    self._try_again(troubled)
                    troubled = []
                elif tree := self._next():
                    if tree.is_open and tree.listings < LISTINGS:
                        if tree.trouble is not None:
                            troubled.append(tree)
                        else:
                            self._search(self._empty, tree)
                        continue
                    left -= 1
                    self._packers.pop(tree, None)
                    yield Deletion(tree.order, tree.result())
        finally:
            self._close()

    def _close(self) -> None:
        """Wait for the requests in hand; what is only packed is not sent."""
        self._is_closing = True
        self._listing.shutdown(wait=True, cancel_futures=True)
        self._deleting.shutdown(wait=True, cancel_futures=True)

    # -- who is next -------------------------------------------------------------------------------

    def _opened(self, orders: Sequence[Order]) -> tuple[list[Tree], list[Deletion]]:
        """Trees for orders, rid of what is in no listing, and how the rest of the orders ended."""
        trees: list[Tree] = []
        ended: list[Deletion] = []
        for order in orders:
            try:
                trees.append(Tree(order, self.bucket_of(order)))
            except Exception as error:  # one order's trouble is not another's
                ended.append(Deletion(order, error))
        for bucket in dict.fromkeys(tree.bucket for tree in trees):
            bucket.clear_unseen([tree for tree in trees if tree.bucket is bucket])
        ended += (Deletion(tree.order, tree.result()) for tree in trees if not tree.is_open)
        return [tree for tree in trees if tree.is_open], ended

    def _look_for(self, trees: Sequence[Tree]) -> None:
        """Look for the keys of trees, of many with one listing where that is worth it."""
        together, alone = cursor.side_by_side([] if self.all_versions else trees)
        for row in together:
            self._search(self._walk, *row)
        for tree in trees if self.all_versions else alone:
            self._search(self._empty, tree)

    def _try_again(self, trees: Sequence[Tree]) -> None:
        """Wait, and list the trees that met trouble."""
        for bucket in {tree.bucket for tree in trees}:
            bucket.pace.pause(max(tree.listings for tree in trees if tree.bucket is bucket))
        for tree in trees:
            self._search(self._empty, tree)

    def _next(self) -> Tree | None:
        """The next tree that nothing is under way for; None if the end of a search is all there is.

        Where nobody looks for keys any more, those that wait for company are sent without.
        """
        if self._searches == 0 and self._ready.empty():
            for owner, packer in list(self._packers.items()):
                bucket = owner.bucket if isinstance(owner, Tree) else owner
                self._send(bucket, packer.rest())
        tree = self._ready.get()
        if tree is None:
            self._searches -= 1
        return tree

    # -- looking for keys --------------------------------------------------------------------------

    def _search(self, look: Search, *trees: Tree) -> None:
        """Hand out a search for the keys of trees."""

        def work() -> None:
            left = dict.fromkeys(trees)

            def passed(tree: Tree) -> None:
                if left.pop(tree, tree) is None:
                    self._answered(tree, 1)

            try:
                look(trees, passed)
            except Exception as error:  # a hand outlives whatever is raised
                for tree in left:
                    tree.give_up(error)
            finally:
                for tree in list(left):
                    passed(tree)
                self._ready.put(None)

        self._searches += 1
        for tree in trees:
            tree.unanswered += 1
        self._listing.submit(work)

    def _empty(self, trees: Sequence[Tree], passed: Callable[[Tree], None]) -> None:
        """Delete what the own prefixes of trees list."""
        for tree in trees:
            for page in self._listed(tree):
                self._pack(tree, page)
            if tree in self._packers:
                self._send(tree.bucket, self._packers[tree].rest())
            passed(tree)

    def _walk(self, trees: Sequence[Tree], passed: Callable[[Tree], None]) -> None:
        """Delete what is found of trees that lie side by side; none of them is gone by that."""

        def behind(tree: Tree) -> None:
            tree.is_walked = True
            passed(tree)

        try:
            for tree, items in cursor.walk(trees, behind, lambda: not self._is_closing):
                tree.count(items)
                self._pack(tree, items)
        except ArtifactError:
            pass  # each tree is listed by itself next, and meets it there

    def _listed(self, tree: Tree) -> Iterator[list[Item]]:
        """The pages of a tree, counted; one without any is gone, one that fails is given up."""
        if tree.listings == 0 and tree.usage.objects and tree.trouble is not None:
            tree.is_counted = True  # what a walk found of it is still there
        tree.trouble = None
        tree.listings += 1
        is_empty = True
        try:
            for page in tree.bucket.pages(tree.prefix, all_versions=self.all_versions):
                is_empty = is_empty and not page
                if not tree.is_counted:
                    tree.count(page)
                if tree.is_forbidden or self._is_closing:
                    return
                yield page
        except Exception as error:  # a hand outlives whatever the library raises
            tree.give_up(error)
            return
        if tree.is_walked and not is_empty and not tree.is_counted:
            tree.bucket.walks = False  # a walk missed something: the store has another order
        tree.is_counted = True
        tree.is_gone = is_empty

    # -- deleting ----------------------------------------------------------------------------------

    def _pack(self, tree: Tree, items: Sequence[Item]) -> None:
        """Send what fills requests, with others' keys at first; later each tree is by itself.

        What fails again and again may be one tree's fault.
        """
        owner = tree.bucket if tree.listings <= SHARED_LISTINGS else tree
        with self._lock:
            tree.unanswered += len(items)
            packer = self._packers.setdefault(owner, Packer(tree.bucket.batch))
        for batch in packer.add(tree, items):
            self._send(tree.bucket, batch)

    def _send(self, bucket: Bucket, batch: list[Piece]) -> None:
        """Hand out a request, when there is room for it."""
        if batch:
            self._room.acquire()
            self._deleting.submit(self._delete, bucket, batch)

    def _delete(self, bucket: Bucket, batch: list[Piece]) -> None:
        try:
            if not self._is_closing:
                send(bucket, batch)
        finally:
            self._room.release()
            for tree, keys in Counter(tree for tree, _ in batch).items():
                self._answered(tree, keys)

    def _answered(self, tree: Tree, keys: int) -> None:
        """So many keys are answered for; the tree is ready if nothing is under way for it now."""
        with self._lock:
            tree.unanswered -= keys
            is_ready = tree.unanswered == 0
        if is_ready:
            self._ready.put(tree)
