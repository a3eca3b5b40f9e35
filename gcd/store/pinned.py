"""Whether a SQLite database is still the file that was opened.

A backup moved over the file leaves every open connection with the old one, which nobody else sees.
Invariant: nothing is read or written through a connection to a file that is no longer at its path.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from gcd.errors import StoreReplaced

JOURNALS = ("-wal", "-journal")
"""What SQLite keeps beside the file while transactions run."""


class Stamp(NamedTuple):
    """Tells two states of a file apart, as far as the file system tells."""

    device: int
    inode: int
    size: int
    changed_ns: int


class PinnedFile:
    """A database's file as it was when the store was opened."""

    def __init__(self, path: Path) -> None:
        """Remember the file at `path`, which must be there."""
        self.path = path
        # Held open, so that its inode's number is not given to another file. Closing an ordinary
        # descriptor would drop the locks that SQLite has on the file; O_PATH's drops none.
        flag = getattr(os, "O_PATH", None)
        self._fd = None if flag is None else os.open(path, flag | os.O_CLOEXEC)
        found = os.stat(path) if self._fd is None else os.fstat(self._fd)
        self._identity = (found.st_dev, found.st_ino)

    def refuse_replaced(self) -> None:
        """StoreReplaced where another file is at the path now, or none."""
        try:
            found = os.stat(self.path)
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

    def stamps(self) -> tuple[Stamp | None, ...]:
        """The states of the file and of what SQLite keeps beside it; any write changes one."""
        return tuple(map(stamp, (str(self.path), *(f"{self.path}{each}" for each in JOURNALS))))

    def close(self) -> None:
        """Let the file go."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def stamp(path: str) -> Stamp | None:
    """The state of a file, None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    changed_ns = max(found.st_mtime_ns, found.st_ctime_ns)
    return Stamp(found.st_dev, found.st_ino, found.st_size, changed_ns)
