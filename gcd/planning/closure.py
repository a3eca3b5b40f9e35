"""What stays because of what else stays.

It must never leave out what a thing that stays needs, however long the way there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from typing import TypeVar

from gcd.planning.policy import Keep

T = TypeVar("T", bound=Hashable)


def staying(
    seeds: Mapping[T, Keep], kept_by: Callable[[Collection[T]], Mapping[T, Keep]]
) -> dict[T, Keep]:
    """All that stays, with why: what stays by itself, what that keeps, and so on.

    `kept_by` says what some things keep directly. It is asked for each thing once, so there are at
    most as many rounds as things, and circles end. It is the least set: two experiments that need
    each other, and that nothing else keeps, both go.
    """
    found = dict(seeds)
    front: Collection[T] = list(seeds)
    while front:
        new = {each: keep for each, keep in kept_by(front).items() if each not in found}
        found.update(new)
        front = list(new)
    return found
