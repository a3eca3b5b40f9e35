"""SIGINT and SIGTERM while something is deleted: the first finishes the batch in hand, the second ends.

It must never leave a signal without an effect.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from gcd.errors import Interrupted

CAUGHT = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether, and by which signal, the work was asked to stop."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.signum: int | None = None
        self._count = 0

    def note(self, signum: int, _frame: FrameType | None = None) -> None:
        """End between batches."""
        self.signum = self.signum or signum
        self.event.set()

    def count(self, signum: int) -> None:
        """The first signal asks for an end between batches; a second one ends at once."""
        self._count += 1
        if self._count > 1:
            # All is journalled, and a dead holder of the lease is succeeded at once; an exception
            # would wait for threads that may hang with a disk.
            os._exit(128 + signum)
        self.note(signum)
        click.echo("gcd: stopping after the batch in hand; once more to stop at once", err=True)

    def check(self, message: str) -> None:
        """Raise Interrupted if a signal came."""
        if self.signum is not None:
            raise Interrupted(message, signum=self.signum)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Catch SIGINT and SIGTERM for a time.

    A thread of its own acts on them too: Python's handlers wait for the main thread, which may hang
    with a disk or a database.
    """
    stop = Stop()
    told, tell = socket.socketpair()
    tell.setblocking(False)
    watcher = threading.Thread(target=watch, args=(told, stop), name="gcd-signals", daemon=True)
    watcher.start()
    before_fd = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    before = {each: signal.signal(each, stop.note) for each in CAUGHT}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(before_fd)
        tell.close()  # what came before is still read
        watcher.join()
        told.close()


def watch(told: socket.socket, stop: Stop) -> None:
    """Act on each signal as it comes, until the other end is closed."""
    while numbers := told.recv(64):
        for signum in numbers:
            if signum in CAUGHT:
                stop.count(signum)
