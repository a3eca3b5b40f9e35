"""The pulse of running cycles: a cycle that has not moved for too long is hung.

It must never take waiting for work: whoever waits on purpose beats too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from gcd import clock


class Pulse:
    """When each running cycle was last seen to move."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._beats: dict[str, float] = {}

    @contextmanager
    def watched(self, store: str) -> Iterator[None]:
        """Watch the cycle that runs inside."""
        with self._lock:
            self._beats[store] = clock.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._beats.pop(store, None)

    def beat(self, store: str) -> None:
        """The store's cycle has moved; one that has ended is not watched any more."""
        with self._lock:
            if store in self._beats:
                self._beats[store] = clock.monotonic()

    def hung(self, longest: timedelta) -> list[str]:
        """The stores whose cycle has not moved for longer than this."""
        oldest = clock.monotonic() - longest.total_seconds()
        with self._lock:
            return sorted(store for store, at in self._beats.items() if at < oldest)
