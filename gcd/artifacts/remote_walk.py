"""Walks a folder tree on a server by names: finds its way down, measures it, removes it.

It must never go through a link, nor believe that a tree is gone before the server removed its folder.
A protocol that knows names only cannot hold a folder open: between a look and a removal somebody may
put a link in a folder's place. That is looked for again before every page of names that is removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from gcd.artifacts.base import Deleted
from gcd.artifacts.pace import Pace
from gcd.artifacts.remote_files import Disk, Files, Item, Lost, Sort
from gcd.artifacts.walk import BATCH, MAX_FAILURES, ROUNDS, mounted, shown
from gcd.errors import ArtifactError, PermanentArtifactError, TransientArtifactError, UnsafeTarget
from gcd.model import Usage


def joined(path: str, name: str) -> str:
    """The path of an entry of a folder."""
    return f"{path.rstrip('/')}/{name}"


def way(files: Files, root: str, parts: Sequence[str]) -> int:
    """How many of the folders from below `root` along `parts` are there.

    Raises UnsafeTarget where one of them is a link or no folder.
    """
    path = root
    for depth, name in enumerate(parts):
        path = joined(path, name)
        if not is_folder(files, path):
            return depth
    return len(parts)


def is_folder(files: Files, path: str) -> bool:
    """Whether a folder is there. Raises UnsafeTarget if it is a link or no folder."""
    item = files.look(path)
    if item is None:
        return False
    if item.sort is Sort.LINK:
        raise UnsafeTarget(
            f"{files.where}: {shown(path)} is a symbolic link, which gcd never follows"
        )
    if item.sort is not Sort.FOLDER:
        raise UnsafeTarget(f"{files.where}: {shown(path)} is not a folder")
    return True


def refuse_listed_link(files: Files, path: str) -> None:
    """UnsafeTarget where only the listing of the folder above shows that the tree is a link."""
    if files.is_real:
        return
    above, _, name = path.rpartition("/")
    found = [item for page in files.pages(above or "/") for item in page if item.name == name]
    if not found:
        raise TransientArtifactError(
            f"{files.where}: {shown(path)} is not in the listing of its folder"
        )
    if any(item.sort is not Sort.FOLDER for item in found):
        raise UnsafeTarget(
            f"{files.where}: {shown(path)} is a symbolic link, which gcd never follows"
        )


def refuse_swapped(files: Files, path: str) -> None:
    """Raise FileNotFoundError if the folder is gone, UnsafeTarget if a link leads to it now."""
    if not is_folder(files, path):
        raise FileNotFoundError(path)
    if (true := files.true_path(path)) != path:
        text = f"{files.where}: {shown(path)} is now reached by a link, as {shown(true)}"
        raise UnsafeTarget(text, hint="somebody changed a folder into a link")


def measure_tree(files: Files, path: str) -> Usage:
    """Objects and bytes of a tree that is there; links count, and are not followed."""
    refuse_listed_link(files, path)
    objects, size, folders = 0, 0, [path]
    while folders:
        here = folders.pop()
        with suppress(FileNotFoundError):
            for page in files.pages(here):
                folders += [joined(here, e.name) for e in page if e.sort is Sort.FOLDER]
                found = [item for item in page if item.sort is not Sort.FOLDER]
                objects, size = objects + len(found), size + sum(item.size for item in found)
    return Usage(objects, size)


def has_files(files: Files, path: str) -> bool:
    """Whether anything but folders is in a tree that is there."""
    refuse_listed_link(files, path)
    folders = [path]
    while folders:
        here = folders.pop()
        with suppress(FileNotFoundError):
            for page in files.pages(here):
                if any(item.sort is not Sort.FOLDER for item in page):
                    return True
                folders += [joined(here, item.name) for item in page]
    return False


def remove_tree(files: Files, path: str, pace: Pace) -> Deleted:
    """Remove the tree at a path; that it is not there is success.

    What cannot be deleted does not keep the rest: it is counted, and raised in the end with the
    first. Raises UnsafeTarget at once where a folder became a link.
    """
    return _Removal(files, pace).run(path)


@dataclass(slots=True)
class _Folder:
    """A folder on the way down from the tree's top to where a walk is."""

    path: str
    rounds: int = 0
    subfolders: list[str] = field(default_factory=list)
    """Names still to be visited, a batch at a time."""
    is_listed: bool = False
    is_gone: bool = False
    leftovers: set[str] = field(default_factory=set)
    """Names of what is in it and cannot be deleted."""


class _Removal:
    """The removal of one tree, bottom up, and what it came to."""

    def __init__(self, files: Files, pace: Pace) -> None:
        self.files, self.pace = files, pace
        self.stack: list[_Folder] = []
        self.objects = self.bytes = self.failures = 0
        self.changed_at: float | None = None
        self.worst: ArtifactError | None = None
        self.disk: Disk | None = None

    def run(self, path: str) -> Deleted:
        if not is_folder(self.files, path):
            return Deleted(Usage(), None)
        refuse_listed_link(self.files, path)
        self.disk = self.files.disk(path.rpartition("/")[0] or "/")
        self.stack.append(_Folder(path))
        while self.stack:
            folder = self.stack[-1]
            if folder.subfolders:
                self.stack.append(_Folder(joined(folder.path, folder.subfolders.pop())))
            elif folder.is_listed:
                self._finish(self.stack.pop())
            else:
                self._empty(folder)
        if self.worst is not None:
            raise self._summary(self.worst)
        if self.files.look(path) is not None:  # "no such file" of a removal may be another trouble
            raise TransientArtifactError(f"{self.files.where}: {shown(path)} is there again")
        return Deleted(Usage(self.objects, self.bytes), _moment(self.changed_at))

    def _empty(self, folder: _Folder) -> None:
        """Remove what is no folder; note the subfolders, a batch at a time."""
        try:
            for page in self._pages(folder):
                self._remove(folder, [item for item in page if item.sort is not Sort.FOLDER])
                folder.subfolders += [item.name for item in page if item.sort is Sort.FOLDER]
                if len(folder.subfolders) >= BATCH:
                    return
        except FileNotFoundError:
            folder.is_gone = True
        except (Lost, UnsafeTarget):
            raise
        except ArtifactError as error:
            self._fail(folder, ".", error)
        folder.is_listed = True

    def _pages(self, folder: _Folder) -> Iterator[list[Item]]:
        """What is in a folder, which is looked at again before each page."""
        refuse_swapped(self.files, folder.path)
        if self.files.disk(folder.path) != self.disk:
            raise mounted(f"{self.files.where}: {folder.path}")
        for number, page in enumerate(self.files.pages(folder.path)):
            if number:
                refuse_swapped(self.files, folder.path)
            yield [item for item in page if item.name not in folder.leftovers]

    def _remove(self, folder: _Folder, items: Sequence[Item]) -> None:
        if not items:
            return
        self.pace.admit(len(items))
        replies = self.files.remove([joined(folder.path, item.name) for item in items])
        for item, error in zip(items, replies, strict=True):
            if error is not None:
                self._fail(folder, item.name, error)
                continue
            self.objects += 1
            self.bytes += item.size
            self.changed_at = max(filter(None, (self.changed_at, item.changed_at)), default=None)

    def _finish(self, folder: _Folder) -> None:
        """Remove the folder that was emptied; enter it again if it is not empty."""
        if folder.is_gone:
            return
        above = self.stack[-1] if self.stack else None
        name = folder.path.rpartition("/")[2]
        if folder.leftovers:
            if above is not None:
                above.leftovers.add(name)
            return
        try:
            if self.files.remove_folder(folder.path):
                return
        except FileNotFoundError:
            return
        except (Lost, UnsafeTarget):
            raise
        except ArtifactError as error:
            self._fail(above, name, error)
            return
        if folder.rounds < ROUNDS:
            self.stack.append(_Folder(folder.path, folder.rounds + 1))
            return
        self._fail(above, name, self._why_it_stays(folder.path))

    def _why_it_stays(self, path: str) -> ArtifactError:
        """Why a folder that was emptied again and again cannot be removed."""
        text = f"{self.files.where}: {shown(path)}"
        if self.files.disk(path).is_read_only:
            return read_only(text)
        if any(self.files.pages(path)):
            return TransientArtifactError(
                f"{text}: files keep appearing in it", hint="is somebody uploading?"
            )
        return TransientArtifactError(f"{text} is empty, and the server does not remove it")

    def _fail(self, folder: _Folder | None, name: str, error: ArtifactError) -> None:
        """Count a failure; the first is told, but one that needs a person goes before others."""
        self.failures += 1
        if folder is not None:
            folder.leftovers.add(name)
        is_passing = isinstance(self.worst, TransientArtifactError)
        if self.worst is None or (is_passing and not isinstance(error, TransientArtifactError)):
            self.worst = error
        if self.failures >= MAX_FAILURES:
            raise self._summary(self.worst)

    def _summary(self, worst: ArtifactError) -> ArtifactError:
        if self.failures == 1:
            return worst
        count = f"{self.failures} files or folders could not be deleted"
        return type(worst)(f"{count}, the first is {worst.message}", hint=worst.hint)


def read_only(what: str) -> PermanentArtifactError:
    """The error for what is on a file system that takes no change."""
    return PermanentArtifactError(
        f"{what}: the file system is read-only there", hint="mount it writable on the server"
    )


def _moment(seconds: float | None) -> datetime | None:
    """Seconds since 1970 as a time, None for none and for what no calendar holds."""
    with suppress(ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(seconds, UTC) if seconds else None
    return None
