"""What every server of files and folders has in common: a connection that looks, lists and removes by name.

It must never follow a link in what it removes, nor read a name as a pattern.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import NamedTuple

from gcd.errors import ArtifactError, PermanentArtifactError, TransientArtifactError


class Lost(TransientArtifactError):
    """The connection is gone, or was never had: nothing is known of what it was asked last."""


class Sort(Enum):
    """What stands behind a name."""

    FOLDER = auto()
    FILE = auto()
    """Everything that is no folder and no link: sockets and pipes too."""
    LINK = auto()


class Item(NamedTuple):
    """One entry of a folder."""

    name: str
    sort: Sort
    size: int = 0
    changed_at: float | None = None
    """Seconds since 1970, where the server tells."""


class Disk(NamedTuple):
    """What the server tells of the file system that a folder is on."""

    name: str | None
    """A text that stays while it is the same file system; None where there is none that lasts."""
    is_read_only: bool = False


class Files(ABC):
    """One connection. Paths are absolute, without "/" at the end, and literal.

    Only one thread uses it at a time. What fails is raised as gcd's error, `Lost` among them; what
    is not there is a FileNotFoundError, or what a method says.
    """

    where: str
    """The server, for messages; no password."""
    removes_only_empty: bool = True
    """Whether `remove_folder` can be relied on where something appears in the folder meanwhile."""
    is_real: bool = True
    """Whether `look` tells a link to a folder from a folder."""

    @abstractmethod
    def look(self, path: str) -> Item | None:
        """What stands at a path, a link not followed; None if nothing does."""

    @abstractmethod
    def pages(self, path: str) -> Iterator[list[Item]]:
        """What is in a folder, a part at a time: the caller may remove one before the next.

        Raises FileNotFoundError, and PermanentArtifactError for what cannot be listed exactly.
        """

    @abstractmethod
    def remove(self, paths: Sequence[str]) -> list[ArtifactError | None]:
        """Remove files and links; what was in the way for each, None also if it was not there."""

    @abstractmethod
    def remove_folder(self, path: str) -> bool:
        """Remove an empty folder; False if it is left, for it is not empty or the server does not say."""

    def read(self, path: str, most: int) -> bytes:  # noqa: ARG002
        """The first bytes of a file that was seen there. Raises FileNotFoundError."""
        raise PermanentArtifactError(f"{self.where}: this backend reads no files")

    def put(self, path: str, data: bytes, *, replaces: bool) -> bool:  # noqa: ARG002
        """Write a small file; False where there is one that it does not replace."""
        raise PermanentArtifactError(f"{self.where}: this backend writes no files")

    def true_path(self, path: str) -> str:
        """The path with every link on it followed, as far as the server says."""
        return path

    def disk(self, path: str) -> Disk:  # noqa: ARG002
        """The file system that an existing folder is on."""
        return Disk(None)

    @property
    def identity(self) -> str:
        """What tells this server from another one; it stays while that is the same."""
        return self.where

    @property
    def is_alive(self) -> bool:
        """Whether it may be used once more, as far as is known without asking."""
        return True

    def close(self) -> None:  # noqa: B027
        """End it; a second time does nothing."""
