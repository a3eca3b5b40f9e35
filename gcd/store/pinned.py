"""Whether a SQLite database is still the file that was opened.

A backup moved over the file leaves every open connection with the old one, which nobody else sees.
Invariant: nothing is read or written through a connection to a file that is no longer at its path.
"""

from __future__ import annotations

import os
from pathlib import Path

from gcd.errors import StoreReplaced

Stamp = tuple[int, int, int]
"""Tells two states of a file apart, as far as the file system tells: size and times of change."""
Stamps = tuple[Stamp, Stamp | None]
"""The states of a database's file and of its write-ahead log: a commit changes one of them."""


class PinnedFile:
    """A database's file as it was when the store was opened."""

    def __init__(self, path: Path) -> None:
        """Remember the file at `path`, which must be there."""
        self.path = path
        self._name, self._log = str(path), f"{path}-wal"
        # Held open, so that its inode's number is not given to another file. Closing an ordinary
        # descriptor would drop the locks that SQLite has on the file; O_PATH's drops none.
        flag = getattr(os, "O_PATH", None)
        self._fd = None if flag is None else os.open(path, flag | os.O_CLOEXEC)
        found = os.stat(path) if self._fd is None else os.fstat(self._fd)
        self._identity = (found.st_dev, found.st_ino)

    def refuse_replaced(self) -> None:
        """StoreReplaced where another file is at the path now, or none."""
        self._found()

    def stamps(self) -> Stamps:
        """The state of the database. Raises StoreReplaced as `refuse_replaced` does."""
        return stamp(self._found()), self._log_stamp()

    def _found(self) -> os.stat_result:
        """What is at the path, which must be the file that was opened."""
        try:
            found = os.stat(self._name)
        except OSError as error:
            raise StoreReplaced(
                f"the database file {self.path} is not there any more: {error.strerror}",
                hint="put it back, or correct the backend store URI; then run gcd again",
            ) from error
        if (found.st_dev, found.st_ino) != self._identity:
            raise StoreReplaced(
                f"the database file {self.path} was replaced while gcd had it open, as by a backup",
                hint="nothing more was deleted; run gcd again: it opens the file that is there now",
            )
        return found

    def _log_stamp(self) -> Stamp | None:
        try:
            return stamp(os.stat(self._log))
        except OSError:
            return None

    def close(self) -> None:
        """Let the file go."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def stamp(found: os.stat_result) -> Stamp:
    """The state of a file."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns
