"""Aborts uploads that nobody finished: their bytes are in no listing of objects.

It must never abort an upload outside of the trees that it was given.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from os.path import commonprefix
from typing import TYPE_CHECKING

from gcd.artifacts.tree import Tree
from gcd.errors import PermanentArtifactError

if TYPE_CHECKING:
    from gcd.artifacts.s3_bucket import S3Bucket

logger = logging.getLogger(__name__)


def abort_uploads(bucket: S3Bucket, trees: Sequence[Tree]) -> None:
    """Abort the uploads below the trees that nobody finished.

    One listing for all the trees. Where the store refuses it, there is a warning.
    """
    by_prefix = {tree.prefix: tree for tree in trees}
    shared = commonprefix(list(by_prefix))  # noqa: RUF071 - cut at its last "/" below
    if not bucket.tells_uploads:
        return
    try:
        for key, upload in bucket.uploads(shared[: shared.rfind("/") + 1]):
            tree = _tree_around(key, by_prefix)
            if tree is not None and tree.is_permitted():
                bucket.abort(key, upload)
    except PermanentArtifactError as error:
        bucket.tells_uploads = False
        logger.warning("unfinished uploads are not looked for: %s", error)
    except Exception as error:  # as for a listing of objects
        for tree in trees:
            tree.give_up(error)


def _tree_around(key: str, by_prefix: Mapping[str, Tree]) -> Tree | None:
    """The tree that a key lies in."""
    ends = (at + 1 for at, character in enumerate(key) if character == "/")
    return next((by_prefix[key[:end]] for end in ends if key[:end] in by_prefix), None)
