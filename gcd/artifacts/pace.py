"""Keeps the pace of deletions in one bucket: a ceiling, slower where the store throttles, a breaker.

It must never let a failing store be asked without end, nor know what is asked of it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from threading import Lock

from gcd import clock
from gcd.errors import TransientArtifactError

FLOOR = 50.0
"""Objects a second below which throttling slows nothing down any more."""
GROWTH = 1.05
QUIET = 1.0
"""Seconds without throttling after which the rate grows again."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
TRIPS, COOL = 6, 30.0
"""Requests that failed in a row, after which nothing is asked for so many seconds."""


class Pace:
    """The pace in one bucket. Threads share it."""

    def __init__(
        self,
        ceiling: float | None,
        monotonic: Callable[[], float] = clock.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ceiling = self._rate = ceiling
        self._monotonic, self._sleep = monotonic, sleep
        self._lock = Lock()
        self._began = self._free_at = self._changed_at = monotonic()
        self._admitted = 0
        self._failures = 0
        self._closed_until = self._began
        self._why = ""

    @property
    def rate(self) -> float | None:
        """Objects a second now, None for as fast as it goes."""
        return self._rate

    def admit(self, objects: int) -> None:
        """Wait until so many objects may be deleted."""
        with self._lock:
            now = self._monotonic()
            start = max(now, self._free_at)
            if self._rate is not None:
                self._free_at = start + objects / self._rate
            self._admitted += objects
        if start > now:
            self._sleep(start - now)

    def pause(self, attempt: int) -> None:
        """Wait before trying again, longer each time, and not as long as others do."""
        most = min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt)
        self._sleep(most * (0.5 + random.random() / 2))

    def check(self) -> None:
        """Raise TransientArtifactError while the store is left alone."""
        with self._lock:
            if self._failures >= TRIPS and self._monotonic() < self._closed_until:
                text = f"not tried: {self._failures} requests failed in a row"
                raise TransientArtifactError(f"{text}, the last because: {self._why}")

    def throttled(self) -> None:
        """The store asked for patience: half the rate from now on, once for all that it refused."""
        with self._lock:
            now = self._monotonic()
            if self._rate is not None and now - self._changed_at < QUIET / 2:
                return
            had = self._rate or self._admitted / max(now - self._began, 1.0)
            self._rate = max(FLOOR, had / 2)
            if self._ceiling is not None:
                self._rate = min(self._rate, self._ceiling)
            self._changed_at = now

    def failed(self, why: str) -> None:
        """A request failed for a reason that is the store's."""
        with self._lock:
            self._failures += 1
            self._why = why
            self._closed_until = self._monotonic() + COOL

    def succeeded(self) -> None:
        """A request was answered."""
        with self._lock:
            self._failures = 0
            now = self._monotonic()
            if self._rate is None or now - self._changed_at < QUIET:
                return
            if self._ceiling is None or self._rate < self._ceiling:
                self._rate = min(self._rate * GROWTH, self._ceiling or self._rate * GROWTH)
            self._changed_at = now
