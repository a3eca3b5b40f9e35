"""What this user may delete, found without trying it.

It must never change anything; what the kernel alone can say is left to the deletion.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from itertools import islice

from gcd.artifacts import walk
from gcd.artifacts.walk import shown
from gcd.errors import PermanentArtifactError

PEEK = 64
"""Entries of a sticky folder looked at to see whose they are."""


def why_not_writable(fd: int, path: str) -> str | None:
    """Why nothing could be deleted from an open folder now, None if nothing speaks against it."""
    if _is_read_only(fd):
        return f"{shown(path)} is on a read-only file system"
    if not _may_write(fd):
        return f"{shown(path)} is not writable and searchable for uid {os.geteuid()}"
    return None


def _is_read_only(fd: int) -> bool:
    return bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY)


def _may_write(fd: int) -> bool:
    is_effective = os.access in os.supports_effective_ids
    return os.access(".", os.W_OK | os.X_OK, dir_fd=fd, effective_ids=is_effective)


def refuse_undeletable(folders: list[int], path: str) -> None:
    """Raise if the tree, its own folder or the one above may not be written by this user.

    A tree that is ours but not writable is no obstacle: `delete` mends that.
    """
    paths = [os.path.normpath(path + up) for up in ("../..", "..", ".")]
    tree = os.fstat(folders[-1])
    for fd, folder in zip(folders, paths, strict=True):
        problem = why_not_writable(fd, folder)
        if problem and not (fd == folders[-1] and _is_mendable(fd, tree)):
            hint = f"let uid {os.geteuid()} write and search {shown(folder)}"
            raise PermanentArtifactError(problem, hint=hint)
    _refuse_sticky(folders, paths)


def _is_mendable(fd: int, tree: os.stat_result) -> bool:
    return tree.st_uid == os.geteuid() and not _is_read_only(fd)


def _refuse_sticky(folders: list[int], paths: list[str]) -> None:
    """Raise if a sticky folder of somebody else holds something of somebody else's."""
    above, own, tree = (os.fstat(fd) for fd in folders)
    entries = [(above, [own], paths[0]), (own, [tree], paths[1])]
    if tree.st_mode & stat.S_ISVTX:
        entries.append((tree, _peek(folders[-1]), paths[2]))
    for folder, inside, path in entries:
        if not folder.st_mode & stat.S_ISVTX:
            continue
        if any(not _may_unlink_sticky(folder, entry) for entry in inside):
            raise PermanentArtifactError(
                f"{shown(path)} has the sticky bit and holds what uid {os.geteuid()} does not own",
                hint=f"chmod -t {shown(path)}, or run gcd as the owner",
            )


def _may_unlink_sticky(folder: os.stat_result, entry: os.stat_result) -> bool:
    return os.geteuid() in (0, folder.st_uid, entry.st_uid)


def _peek(folder: int) -> list[os.stat_result]:
    with suppress(OSError):
        fd = os.open(".", walk.FOLDER, dir_fd=folder)
        try:
            with os.scandir(fd) as entries:
                return [entry.stat(follow_symlinks=False) for entry in islice(entries, PEEK)]
        finally:
            os.close(fd)
    return []
