"""SIGINT and SIGTERM while something is deleted: the first finishes the batch in hand, the second ends.

It must never leave a signal without an effect.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from gcd.errors import Interrupted


class Stop:
    """Whether, and by which signal, the work was asked to stop."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.signum: int | None = None

    def ask(self, signum: int, _frame: FrameType | None) -> None:
        """The first signal asks for an end between batches; a second one ends at once."""
        if self.event.is_set():
            # All is journalled, and a dead holder of the lease is succeeded at once; an exception
            # would wait for threads that may hang with a disk.
            os._exit(128 + signum)
        self.signum = signum
        self.event.set()
        click.echo("gcd: stopping after the batch in hand; once more to stop at once", err=True)

    def check(self, message: str) -> None:
        """Raise Interrupted if a signal came."""
        if self.signum is not None:
            raise Interrupted(message, signum=self.signum)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Catch SIGINT and SIGTERM for a time."""
    stop = Stop()
    before = {each: signal.signal(each, stop.ask) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
