"""Finds the keys of many trees that lie side by side with few listings, of what is around them.

It must never decide that a tree is gone: only a listing of its own prefix shows that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise

from gcd.artifacts.buckets import Bucket, Item
from gcd.artifacts.tree import Tree

LEAST, MOST = 4, 100
"""Trees that are looked for together."""
WORTH = 4
"""A page is worth its cost while at least one key of so many is a tree's."""


def side_by_side(trees: Sequence[Tree]) -> tuple[list[list[Tree]], list[Tree]]:
    """Trees to look for together, in the order of their keys, and those that have no company."""
    together: list[list[Tree]] = []
    alone: list[Tree] = []

    def place(tree: Tree) -> tuple[int, str, bytes]:
        return id(tree.bucket), around(tree), order(tree.prefix)

    able = [tree for tree in trees if tree.bucket.walks]
    for _, group in groupby(sorted(able, key=place), key=lambda tree: place(tree)[:2]):
        row = list(group)
        if len(row) < LEAST:
            alone += row
        else:
            together += [row[at : at + MOST] for at in range(0, len(row), MOST)]
    return together, [*alone, *(tree for tree in trees if not tree.bucket.walks)]


def around(tree: Tree) -> str:
    """The prefix that a tree shares with its like: without its own folder and its entity's."""
    parts = tree.prefix.split("/")
    return "/".join([*parts[:-3], ""]) if len(parts) > 3 else ""


def order(key: str) -> bytes:
    """What S3 sorts keys by."""
    return key.encode("utf-8", "surrogatepass")


def walk(
    trees: Sequence[Tree], passed: Callable[[Tree], None], may_go_on: Callable[[], bool]
) -> Iterator[tuple[Tree, list[Item]]]:
    """Keys of trees that are sorted and have one prefix around them, tree by tree.

    `passed` is told of each tree that is behind. It ends early where it is not worth its cost, or
    where the store keeps another order: who was not passed is to be looked for by itself.
    Raises an ArtifactError.
    """
    bucket, shared = trees[0].bucket, around(trees[0])
    left, after = deque(trees), ""
    while left and bucket.walks and may_go_on():
        after = max(after, _just_before(left[0]), key=order)
        page, is_cut = bucket.page_after(shared, after)
        if not _is_in_order(bucket, page, after):
            return
        hits = 0
        for tree, items in _of_trees(page, left, passed):
            hits += len(items)
            yield tree, items
        if not is_cut:
            while left:
                passed(left.popleft())
        elif not page or hits * WORTH < len(page):
            return
        else:
            after = page[-1].key


def _just_before(tree: Tree) -> str:
    """A key before all of a tree's, a marker of its folder included: its entity's own folder.

    With its closing slash: stores that keep folders would pass one that is named without it.
    """
    above = tree.prefix.rstrip("/").rpartition("/")[0]
    return f"{above}/" if above else ""


def _is_in_order(bucket: Bucket, page: Sequence[Item], after: str) -> bool:
    """Whether keys ascend, as S3 has it; a bucket where they do not is never walked again."""
    keys = [order(after), *(order(item.key) for item in page)]
    if any(one >= next_one for one, next_one in pairwise(keys)):
        bucket.walks = False
        return False
    return True


def _of_trees(
    page: Sequence[Item], left: deque[Tree], passed: Callable[[Tree], None]
) -> Iterator[tuple[Tree, list[Item]]]:
    """The keys on a page that are below the prefixes of trees, which is looked at for each."""
    found: list[Item] = []
    for item in page:
        while left and not item.key.startswith(left[0].prefix):
            if order(item.key) < order(left[0].prefix):
                break
            if found:
                yield left[0], found
                found = []
            passed(left.popleft())
        if left and item.key.startswith(left[0].prefix):
            found.append(item)
    if left and found:
        yield left[0], found
