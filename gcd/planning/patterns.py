"""Matches patterns of experiments' names, and tells which of them match none.

Invariant: case decides nothing, here or on any database: a pattern that protects must not miss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase


def matches(name: str, pattern: str) -> bool:
    """Whether a name is of the pattern, in any case."""
    return fnmatchcase(name.casefold(), pattern.casefold())


def unmatched(patterns: Mapping[str, Iterable[str]], names: Iterable[str]) -> tuple[str, ...]:
    """A sentence for each pattern, by the key that has it, that no name is of."""
    left = {(key, pattern) for key, found in patterns.items() for pattern in found}
    if left:
        for name in names:
            left = {each for each in left if not matches(name, each[1])}
            if not left:
                break
    return tuple(
        f"the pattern {pattern!r} in {key} matches no experiment" for key, pattern in sorted(left)
    )
