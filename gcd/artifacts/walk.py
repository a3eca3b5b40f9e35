"""Walks a folder tree by descriptor: finds its way down, measures it, removes it.

It must never follow a symbolic link, enter a mount or another file system, or leave the tree it was
given.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from gcd.artifacts.base import Deleted
from gcd.artifacts.descent import open_below
from gcd.errors import (
    ArtifactError,
    PermanentArtifactError,
    TransientArtifactError,
    UnsafeTarget,
)
from gcd.model import Usage

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
STEP = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""A folder that is only passed through: search permission is enough."""

BATCH = 1_000
"""Subfolders remembered at a time, so that a wide tree costs no more memory than a narrow one."""
ROUNDS = 5
"""How often a folder is emptied anew because something appeared in it meanwhile."""
MAX_FAILURES = 1_000
"""Undeletable things after which the rest of a tree is left: it needs a person anyway."""

MAX_VANISHED = 10_000
"""Folders gone before they were entered after which a tree is left to whoever else deletes it."""

PERMISSION = frozenset({errno.EACCES, errno.EPERM})
CHANGED = frozenset({errno.ENOTDIR, errno.ELOOP})
OCCUPIED = frozenset({errno.ENOTEMPTY, errno.EEXIST})


def shown(path: str) -> str:
    """A path for people: control characters and stray bytes escaped, the middle cut if long."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path)
    return text if len(text) <= 240 else f"{text[:120]}...{text[-117:]}"


def artifact_error(error: OSError, path: str) -> ArtifactError:
    """The error of gcd that an error of the operating system means for `path`."""
    text = f"{shown(path)}: {os.strerror(error.errno or errno.EIO)}"
    if error.errno in PERMISSION:
        hint = (
            f"let uid {os.geteuid()} write and search the folder that holds it,"
            " or lift what protects it (sticky bit, chattr +i)"
        )
        return PermanentArtifactError(text, hint=hint)
    if error.errno == errno.EROFS:
        return PermanentArtifactError(text, hint="mount it writable")
    if error.errno == errno.ENAMETOOLONG:
        return PermanentArtifactError(text, hint="no file system here can hold such a name")
    return TransientArtifactError(text)


@contextmanager
def way(root: int, parts: Sequence[str]) -> Iterator[list[int]]:
    """Open the folders from `root` down along `parts`, as many as are there, the root first.

    Raises UnsafeTarget where one of them is a symbolic link, no folder, a mount or another file system.
    """
    device = os.fstat(root).st_dev
    folders = [root]
    try:
        for depth, name in enumerate(parts, start=1):
            folder = _step(folders[-1], name, "/".join(parts[:depth]))
            if folder is None:
                break
            folders.append(folder)
            if os.fstat(folder).st_dev != device:
                raise another_file_system("/".join(parts[:depth]))
        yield folders
    finally:
        for folder in folders[1:]:
            os.close(folder)


def another_file_system(path: str) -> UnsafeTarget:
    """The refusal to go on to what is mounted below a storage root."""
    return UnsafeTarget(
        f"{shown(path)} is on another file system than its storage root",
        hint="list its mount point in artifacts.roots",
    )


def _step(parent: int, name: str, path: str) -> int | None:
    try:
        return open_below(parent, name, STEP)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise another_file_system(path) from error
        if error.errno in CHANGED:
            raise _no_folder(parent, name, path) from error
        raise artifact_error(error, path) from error


def _no_folder(parent: int, name: str, path: str) -> UnsafeTarget:
    with suppress(OSError):
        if stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return UnsafeTarget(f"{shown(path)} is a symbolic link, which gcd never follows")
    return UnsafeTarget(f"{shown(path)} is not a folder")


@dataclass(slots=True)
class _Folder:
    """A folder on the way down from the tree's own folder to where a walk is."""

    name: str
    key: tuple[int, int]
    """Device and inode, to know it again on the way up."""
    changed_ns: int = 0
    subfolders: list[str] = field(default_factory=list)
    """Still to be visited."""
    is_listed: bool = False
    leftovers: set[str] = field(default_factory=set)
    """What is in it and cannot be deleted."""
    rounds: int = 0


class _Position:
    """Where a walk is: one open descriptor, however deep, and the folders above it.

    The first folder is the one that holds the tree. It belongs to the caller and is never listed.
    """

    def __init__(self, holder: int, label: str) -> None:
        info = os.fstat(holder)
        self.device = info.st_dev
        self.folders = [_Folder(label, (info.st_dev, info.st_ino))]
        self.fd = self._holder = holder

    def path(self, name: str = "") -> str:
        names = [folder.name for folder in self.folders]
        return "/".join([*names, name] if name else names)

    def enter(self, name: str, *, unlock: bool = False) -> _Folder | None:
        """Go down into a folder; None if it is a mount or another file system. Raises OSError."""
        try:
            fd = self._open(name, unlock)
        except OSError as error:
            if error.errno == errno.EXDEV:
                return None
            raise
        info = os.fstat(fd)
        if info.st_dev != self.device:
            os.close(fd)
            return None
        if unlock and _is_locked_by_mode(info):
            with suppress(OSError):  # what it forbids will be reported where it forbids it
                os.fchmod(fd, info.st_mode & 0o777 | 0o700)
        self._move(fd)
        folder = _Folder(name, (info.st_dev, info.st_ino), changed_ns=info.st_mtime_ns)
        self.folders.append(folder)
        return folder

    def leave(self) -> _Folder:
        """Go up to the folder it was entered from, and to no other, and return the one left."""
        above = self.folders[-2]
        if len(self.folders) == 2:
            self._move(self._holder)
        else:
            fd = os.open("..", FOLDER, dir_fd=self.fd)
            self._move(fd)
            info = os.fstat(fd)
            if (info.st_dev, info.st_ino) != above.key:
                raise TransientArtifactError(f"{shown(self.path())} was moved during the walk")
        return self.folders.pop()

    def close(self) -> None:
        self._move(self._holder)

    def _move(self, fd: int) -> None:
        if self.fd != self._holder:
            os.close(self.fd)
        self.fd = fd

    def _open(self, name: str, unlock: bool) -> int:
        try:
            return open_below(self.fd, name, FOLDER)
        except PermissionError:
            if not unlock or not self._unlock(name):
                raise
            return open_below(self.fd, name, FOLDER)

    def _unlock(self, name: str) -> bool:
        """Make an unreadable folder of ours readable, without following a link to another one."""
        fd = open_below(self.fd, name, STEP)
        try:
            info = os.fstat(fd)
            if info.st_dev != self.device or not _is_locked_by_mode(info):
                return False
            os.chmod(f"/proc/self/fd/{fd}", info.st_mode & 0o777 | 0o700)  # fchmod needs reading
            return True
        except FileNotFoundError:  # no /proc
            return False
        finally:
            os.close(fd)


def _is_locked_by_mode(info: os.stat_result) -> bool:
    return info.st_uid == os.geteuid() and info.st_mode & 0o700 != 0o700


def measure_tree(holder: int, name: str, label: str) -> Usage:
    """Objects and bytes of the tree `name` in the open folder `holder`, zero if it is not there.

    `label` is the path of `holder` for messages. What is mounted inside is not counted.
    """
    objects = size = 0
    with closing(_files_of(holder, name, label)) as files:
        for info in files:
            objects, size = objects + 1, size + info.st_size
    return Usage(objects, size)


def has_files(holder: int, name: str, label: str) -> bool:
    """Whether the tree `name` in the open folder `holder` has anything but folders in it."""
    with closing(_files_of(holder, name, label)) as files:
        return next(files, None) is not None


def is_empty(folder: int, path: str) -> bool:
    """Whether nothing at all is in a folder that was opened to be passed through."""
    try:
        fd = os.open(".", FOLDER, dir_fd=folder)
        try:
            with os.scandir(fd) as entries:
                return next(entries, None) is None
        finally:
            os.close(fd)
    except OSError as error:
        raise artifact_error(error, path) from error


def _files_of(holder: int, name: str, label: str) -> Generator[os.stat_result]:
    """Everything but folders in a tree; it must be closed, for it holds descriptors."""
    position = _Position(holder, label)
    position.folders[0].subfolders.append(name)
    try:
        while len(position.folders) > 1 or position.folders[0].subfolders:
            folder = position.folders[-1]
            if not folder.subfolders:
                position.leave()
                continue
            with suppress(FileNotFoundError, NotADirectoryError):
                if entered := position.enter(folder.subfolders.pop()):
                    yield from _files(position.fd, entered)
    except OSError as error:
        raise artifact_error(error, position.path()) from error
    finally:
        position.close()


def _files(fd: int, folder: _Folder) -> Iterator[os.stat_result]:
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folder.subfolders.append(entry.name)
            else:
                with suppress(FileNotFoundError):
                    yield entry.stat(follow_symlinks=False)


def remove_tree(holder: int, name: str, label: str) -> Deleted:
    """Remove the tree `name` from the open folder `holder`; that it is not there is success.

    `label` is the path of `holder` for messages. What cannot be deleted does not keep the rest:
    it is counted, and raised in the end with the path of the first.
    """
    removal = _Removal(_Position(holder, label))
    try:
        return removal.run(name)
    finally:
        removal.position.close()


class _Removal:
    """The removal of one tree, bottom up, and what it came to."""

    def __init__(self, position: _Position) -> None:
        self.position = position
        self.objects = self.bytes = self.changed_ns = 0
        self.failures = self.vanished = 0
        self.worst: ArtifactError | None = None

    def run(self, name: str) -> Deleted:
        holder = self.position.folders[0]
        self._enter(name)
        while (folder := self.position.folders[-1]) is not holder:
            if folder.subfolders:
                self._enter(folder.subfolders.pop())
            elif folder.is_listed:
                self._finish()
            else:
                self._empty(folder)
        if self.worst is not None:
            raise self._summary(self.worst)
        return Deleted(Usage(self.objects, self.bytes), _moment(self.changed_ns))

    def _enter(self, name: str, rounds: int = 0) -> None:
        try:
            folder = self.position.enter(name, unlock=True)
        except OSError as error:
            self._not_entered(name, error)
            return
        if folder is None:
            self._fail(name, mounted(self.position.path(name)))
        else:
            folder.rounds = rounds

    def _not_entered(self, name: str, error: OSError) -> None:
        """What is gone is fine; what is no folder now will be met when the one above is not empty."""
        path = self.position.path(name)
        if error.errno not in CHANGED and error.errno != errno.ENOENT:
            self._fail(name, artifact_error(error, path))
        elif error.errno in CHANGED and len(self.position.folders) == 1:
            raise _no_folder(self.position.fd, name, path) from error
        self.vanished += 1
        if self.vanished > MAX_VANISHED:
            raise TransientArtifactError(f"{shown(path)}: the tree changes while it is deleted")

    def _empty(self, folder: _Folder) -> None:
        """Unlink what is no folder; note the subfolders, a batch at a time."""
        try:
            with os.scandir(self.position.fd) as entries:
                for entry in entries:
                    if entry.name in folder.leftovers:
                        continue
                    if not entry.is_dir(follow_symlinks=False):
                        self._unlink(entry)
                    elif len(folder.subfolders) < BATCH:
                        folder.subfolders.append(entry.name)
                    else:
                        return
        except OSError as error:
            self._fail(".", artifact_error(error, self.position.path()))
        folder.is_listed = True

    def _unlink(self, entry: os.DirEntry[str]) -> None:
        try:
            info = entry.stat(follow_symlinks=False)
            os.unlink(entry.name, dir_fd=self.position.fd)
        except (FileNotFoundError, IsADirectoryError):
            return
        except OSError as error:
            self._fail(entry.name, artifact_error(error, self.position.path(entry.name)))
            return
        self.objects += 1
        self.bytes += info.st_size
        self.changed_ns = max(self.changed_ns, info.st_mtime_ns)

    def _finish(self) -> None:
        """Go up and remove the folder that was emptied; enter it again if it is not empty."""
        try:
            folder = self.position.leave()
        except OSError as error:
            raise artifact_error(error, self.position.path()) from error
        if folder.leftovers:
            self.position.folders[-1].leftovers.add(folder.name)
            return
        try:
            os.rmdir(folder.name, dir_fd=self.position.fd)
        except FileNotFoundError:
            return
        except OSError as error:
            self._not_removed(folder, error)
            return
        self.changed_ns = max(self.changed_ns, folder.changed_ns)

    def _not_removed(self, folder: _Folder, error: OSError) -> None:
        path = self.position.path(folder.name)
        if error.errno in OCCUPIED and folder.rounds < ROUNDS:
            self._enter(folder.name, folder.rounds + 1)
        elif error.errno in OCCUPIED:
            text = f"{shown(path)}: files keep appearing in it"
            self._fail(folder.name, TransientArtifactError(text, hint="is somebody uploading?"))
        elif error.errno in CHANGED and len(self.position.folders) > 1:
            return  # as in _not_entered
        else:
            self._fail(folder.name, artifact_error(error, path))

    def _fail(self, name: str, error: ArtifactError) -> None:
        """Count a failure; the first is told, but one that needs a person goes before others."""
        self.failures += 1
        self.position.folders[-1].leftovers.add(name)
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


def mounted(path: str) -> PermanentArtifactError:
    """The refusal to delete a tree that another file system is mounted in."""
    text = f"{shown(path)}: another file system is mounted there"
    return PermanentArtifactError(text, hint="unmount it, then `gcd retry`")


def _moment(ns: int) -> datetime | None:
    """Nanoseconds since 1970 as a time, None for none and for what no calendar holds."""
    with suppress(ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(ns / 1e9, UTC) if ns else None
    return None
