"""Reads and writes the mark of a database in a local folder.

It must never follow a link, nor leave a mark that is not whole.
"""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gcd.artifacts import walk
from gcd.artifacts.base import MARK, MOST_OF_A_MARK
from gcd.artifacts.walk import shown
from gcd.errors import PermanentArtifactError, UnsafeTarget

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES})
LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
NAMELESS = getattr(os, "O_TMPFILE", os.O_CREAT | os.O_EXCL) | os.O_WRONLY | os.O_CLOEXEC
"""Without O_TMPFILE (not Linux) opening "." so fails, and a file with a name is used."""
READABLE = 0o644
"""Collectors of other databases run as other users, and must see whose the root is."""


def read_mark(folder: str) -> bytes | None:
    """The beginning of the folder's mark; None if there is none, or no folder."""
    try:
        with _opened(folder) as holder:
            return _read(holder, folder)
    except FileNotFoundError:
        return None


def write_mark(folder: str, data: bytes, *, before: bytes | None) -> bool:
    """Put the mark there if what is there is `before`; True once it is durable."""
    path = folder + MARK
    try:
        with _opened(folder) as holder:
            if _read(holder, folder) != before or not _put(holder, data, is_new=before is None):
                return False
            _sync(holder, folder)
            return True
    except OSError as error:
        if error.errno in FULL:
            text = f"{shown(path)}: {os.strerror(error.errno or 0)}"
            raise PermanentArtifactError(text, hint="free space there") from error
        raise walk.artifact_error(error, path) from error


@contextmanager
def _opened(folder: str) -> Iterator[int]:
    try:
        fd = os.open(folder.rstrip("/") or "/", walk.STEP)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in walk.CHANGED:
            raise UnsafeTarget(f"{shown(folder)} is a link, or no folder") from error
        raise walk.artifact_error(error, folder) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _read(holder: int, folder: str) -> bytes | None:
    path = folder + MARK
    try:
        fd = os.open(MARK, LOOK, dir_fd=holder)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in walk.CHANGED:
            raise UnsafeTarget(f"{shown(path)} is a symbolic link") from error
        if error.errno in walk.PERMISSION:
            hint = f"let uid {os.geteuid()} read it"
            raise UnsafeTarget(f"{shown(path)} cannot be read", hint=hint) from error
        raise walk.artifact_error(error, path) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UnsafeTarget(f"{shown(path)} is not a file")
        return os.read(fd, MOST_OF_A_MARK + 1)
    except OSError as error:
        raise walk.artifact_error(error, path) from error
    finally:
        os.close(fd)


def _put(holder: int, data: bytes, *, is_new: bool) -> bool:
    """Write beside the mark and move it there; False where somebody else was first."""
    if is_new and (is_first := _put_nameless(holder, data)) is not None:
        return is_first
    name = f"{MARK}.{uuid.uuid4().hex[:12]}"
    try:
        _write(holder, name, data)
        if not is_new:
            os.rename(name, MARK, src_dir_fd=holder, dst_dir_fd=holder)
            return True
        try:
            os.link(name, MARK, src_dir_fd=holder, dst_dir_fd=holder, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return _create(holder, data)
        return True
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=holder)


def _put_nameless(holder: int, data: bytes) -> bool | None:
    """The same with a file that has no name until it is whole: a crash leaves nothing behind.

    None where the system has no such files, or gives them no name: nothing was changed.
    """
    try:
        fd = os.open(".", NAMELESS, READABLE, dir_fd=holder)
    except OSError:
        return None
    try:
        _fill(fd, data)
        os.link(f"/proc/self/fd/{fd}", MARK, dst_dir_fd=holder, follow_symlinks=True)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in FULL:
            raise
        return None
    finally:
        os.close(fd)
    return True


def _create(holder: int, data: bytes) -> bool:
    """On a file system without hard links."""
    try:
        _write(holder, MARK, data)
    except FileExistsError:
        return False
    return True


def _write(holder: int, name: str, data: bytes) -> None:
    fd = os.open(name, MAKE, READABLE, dir_fd=holder)
    try:
        _fill(fd, data)
    finally:
        os.close(fd)


def _fill(fd: int, data: bytes) -> None:
    """Write a new file and make it durable, readable for all."""
    os.fchmod(fd, READABLE)
    if os.write(fd, data) != len(data):  # as a disk does that is nearly full
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(fd)


def _sync(holder: int, folder: str) -> None:
    """Make the new entry durable, as far as the folder can be opened for it."""
    try:
        fd = os.open(".", walk.FOLDER, dir_fd=holder)
    except PermissionError:
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise walk.artifact_error(error, folder) from error
    finally:
        os.close(fd)
