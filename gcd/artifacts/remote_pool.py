"""Connections to one server: opened when needed, kept while they live, never more than allowed.

It must never use a connection that failed once more, nor go on asking a server that does not answer.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock, Semaphore
from typing import TypeVar

from gcd import clock
from gcd.artifacts.pace import Pace
from gcd.artifacts.remote_files import Files, Lost

T = TypeVar("T")

IDLE_SECONDS = 120.0
"""How long a connection that nobody uses is trusted to live."""


class Pool:
    """Threads share it; each that works has a connection of its own."""

    def __init__(self, connect: Callable[[], Files], limit: int, pace: Pace) -> None:
        self.pace = pace
        self._connect = connect
        self._slots = Semaphore(limit)
        self._opening = Lock()  # servers drop who comes with many at once (sshd: MaxStartups)
        self._lock = Lock()
        self._idle: list[tuple[Files, float]] = []

    def use(self, work: Callable[[Files], T]) -> T:
        """What the work comes to on some connection.

        It is done anew where a connection was found dead that had been idle: it must be work that
        may be done twice. Raises Lost, and what the work raises.
        """
        with self._slots:
            while (files := self._take()) is not None:
                try:
                    return self._used(files, work)
                except Lost:
                    continue
            try:
                result = self._used(self._open(), work)
            except Lost as error:
                self.pace.failed(error.message)
                raise
            self.pace.succeeded()
            return result

    def _used(self, files: Files, work: Callable[[Files], T]) -> T:
        is_whole = False
        try:
            result = work(files)
            is_whole = True
            return result
        except Lost:
            raise
        except Exception:  # gcd's own, of a tree: the connection is as good as before
            is_whole = True
            raise
        finally:
            if is_whole and files.is_alive:
                with self._lock:
                    self._idle.append((files, clock.boottime()))
            else:
                files.close()

    def _take(self) -> Files | None:
        """A connection that is idle and seems to live."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                files, since = self._idle.pop()
            if files.is_alive and clock.boottime() - since < IDLE_SECONDS:
                return files
            files.close()

    def _open(self) -> Files:
        with self._opening:
            self.pace.check()
            return self._connect()

    def close(self) -> None:
        """End the connections that nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for files, _ in idle:
            files.close()
