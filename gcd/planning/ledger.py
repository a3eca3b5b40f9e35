"""Large maps from keys to small numbers, in little memory.

Invariant: what was added is found, by every thread, from the moment that `add` returns.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

HASHES, TEXTS = 65_536, 8192
"""Keys that are kept in a dict, which is fast and large, before they are packed."""

K = TypeVar("K", int, str)


class Ledger(Generic[K]):
    """Keys with a number each; the first number that a key got stays.

    New keys are in a dict; each full dict is packed into two sorted arrays. 300,000 numbers take
    5 MB where a dict of them takes 40 MB.
    """

    def __init__(self, pack: Callable[[Sequence[K]], Sequence[K]], segment: int) -> None:
        self._pack: Callable[[Sequence[K]], Sequence[K]] = pack
        self._segment = segment
        self._packed: list[tuple[Sequence[K], array[int]]] = []
        self._fresh: dict[K, int] = {}
        self._order: tuple[dict[K, int], list[K]] = ({}, [])
        """A dict and its keys in order, as of the last look: dicts only grow."""

    def add(self, key: K, number: int) -> None:
        """Note a key; one that is known keeps its number. To be called by one thread at a time."""
        self._fresh.setdefault(key, number)
        if len(self._fresh) >= self._segment:
            keys = sorted(self._fresh)
            numbers = array("q", map(self._fresh.__getitem__, keys))
            self._packed.append((self._pack(keys), numbers))
            self._fresh = {}

    def at(self, key: K) -> int | None:
        """The number of a key."""
        # The dict comes first: a key that is packed meanwhile is found among the packed ones.
        if (number := self._fresh.get(key)) is not None:
            return number
        for keys, numbers in self._packed:
            place = bisect_left(keys, key)
            if place < len(keys) and keys[place] == key:
                return numbers[place]
        return None

    def from_on(self, key: K) -> list[tuple[K, int]]:
        """Of each part of the map: the first key that is not below this one, with its number."""
        found: list[tuple[K, int]] = []
        fresh = self._fresh
        of, order = self._order
        if of is not fresh or len(order) != len(fresh):
            order = sorted(fresh)
            self._order = fresh, order
        place = bisect_left(order, key)
        if place < len(order):
            found.append((order[place], fresh[order[place]]))
        for keys, numbers in self._packed:
            place = bisect_left(keys, key)
            if place < len(keys):
                found.append((keys[place], numbers[place]))
        return found


def hashes() -> Ledger[int]:
    """A ledger of hashed texts: 16 bytes each. Two texts with one hash are both found: a keep."""
    return Ledger(lambda keys: array("q", keys), HASHES)


def texts() -> Ledger[str]:
    """A ledger of texts, in whose order one can look for what begins with another."""
    return Ledger(list, TEXTS)
