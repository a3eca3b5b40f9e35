"""Takes turns with other writers where a database has but one write lock, as SQLite has.

It must never wait while it holds the lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from gcd import clock

HELD = 0.25
"""Seconds that gcd may hold the lock, in one turn or in several that follow closely."""
FREE = 0.12
"""Seconds that the lock is then left free: whoever waits for SQLite's looks for it every 0.1 s."""
ROWS = 10_000
"""Rows that one transaction may then delete: as many take about 0.05 s."""

T = TypeVar("T")


@dataclass
class Turns:
    """How long the lock was held lately, by all threads of this process."""

    _guard: threading.Lock = field(default_factory=threading.Lock)
    _held: float = 0.0
    _ended_at: float = 0.0

    @contextmanager
    def taken(self, writing: AbstractContextManager[T]) -> Iterator[T]:
        """A write transaction in its turn: before it the lock is left free if it was held for long."""
        while wait := self._wait():
            threading.Event().wait(wait)
        began = None
        try:
            with writing as conn:
                began = clock.monotonic()
                yield conn
        finally:
            if began is not None:
                self._note(began)

    def _wait(self) -> float:
        """Seconds until gcd may take the lock again."""
        with self._guard:
            free = clock.monotonic() - self._ended_at
            if free >= FREE:
                self._held = 0.0
            return FREE - free if self._held >= HELD else 0.0

    def _note(self, began: float) -> None:
        """The lock was held from then until now, its commit included."""
        with self._guard:
            self._ended_at = clock.monotonic()
            self._held += self._ended_at - began
