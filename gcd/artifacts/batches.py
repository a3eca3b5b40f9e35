"""Sends one request's worth of keys of many trees, and notes on each tree what the store said of its keys.

It must never delete a key of a tree whose permit was not asked immediately before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gcd.artifacts.buckets import ATTEMPTS, Bucket, Denied, Item, NotOffered, Refused
from gcd.artifacts.tree import Piece, Tree
from gcd.errors import ArtifactError, PermanentArtifactError, TransientArtifactError

Request = Callable[[Bucket, list[Piece]], Mapping[Item, ArtifactError]]


def send(bucket: Bucket, batch: list[Piece]) -> None:
    """Delete a batch; whatever is raised is a reason to look again."""
    try:
        many = [piece for piece in batch if bucket.takes_together(piece[1])]
        one_by_one = [piece for piece in batch if not bucket.takes_together(piece[1])]
        try:
            _delete(bucket, many, _many)
        except Denied:
            for tree in dict.fromkeys(tree for tree, _ in many):
                _alone(bucket, [piece for piece in many if piece[0] is tree], _many)
        except PermanentArtifactError as error:
            bucket.takes_one_by_one |= isinstance(error, NotOffered)
            one_by_one = batch
        for piece in one_by_one:
            _alone(bucket, [piece], _one)
    except Exception as error:  # a hand outlives whatever the library raises
        for tree in {tree for tree, _ in batch}:
            tree.trouble = error


def _alone(
    bucket: Bucket,
    pieces: list[Piece],
    request: Request,
) -> None:
    """Delete what is one tree's, so that a refusal is that tree's and no other's."""
    try:
        _delete(bucket, pieces, request)
    except PermanentArtifactError as error:
        for tree in {tree for tree, _ in pieces}:
            tree.give_up(error)


def _delete(
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
            _note(bucket, tree, item, failed[item])


def _many(bucket: Bucket, pieces: list[Piece]) -> Mapping[Item, ArtifactError]:
    return bucket.delete([item for _, item in pieces])


def _one(bucket: Bucket, pieces: list[Piece]) -> Mapping[Item, ArtifactError]:
    for _, item in pieces:
        if error := bucket.delete_one(item):
            return {item: error}
    return {}


def _note(bucket: Bucket, tree: Tree, item: Item, error: ArtifactError) -> None:
    """Take down what the store said of one key."""
    if isinstance(error, Refused):
        bucket.pace.throttled()
    if isinstance(error, TransientArtifactError):
        tree.trouble = error
    else:
        tree.give_up(bucket.explained(item, error))
