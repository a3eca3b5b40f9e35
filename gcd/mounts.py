"""The kernel's mount table: where other file systems begin, and what tells one from another.

It must never change anything; where there is no table (not Linux) it says less, never something else.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

TABLE = "/proc/self/mountinfo"

LASTING_FSID = frozenset({"ext2", "ext3", "ext4", "btrfs", "zfs", "bcachefs", "tmpfs", "overlay"})
"""File systems whose `f_fsid` is made of their UUID. NFS and FUSE have none, and that of XFS, F2FS
and FAT is the device number, which another order of discovery changes."""


class Mount(NamedTuple):
    """A row of the mount table."""

    id: int
    device: int
    root: str
    """What of the file system is mounted: more than "/" is left out by a bind mount."""
    point: str
    fstype: str
    source: str


class Whereabouts(NamedTuple):
    """Where an open file lies, in words that stay while it is the same file."""

    fs: str
    """The file system."""
    inode: str
    """Empty where inodes are made up."""
    path: str
    """The path within the file system, whatever it is mounted on; empty where none is known."""
    is_lasting: bool
    """Whether another host would not call another file system the same."""


class MountTable(NamedTuple):
    """What is mounted at one moment, as this process sees it."""

    rows: tuple[Mount, ...]

    def points_below(self, folder: str) -> list[str]:
        """The mount points strictly below a folder given by its true path.

        Bind mounts of the same file system are among them, which no `st_dev` shows.
        """
        prefix = folder.rstrip("/") + "/"
        return [row.point for row in self.rows if row.point.startswith(prefix)]

    def identity(self, fd: int) -> str:
        """A text that stays while an open folder is the same, over reboots and remounts too.

        ext4, btrfs, zfs:  the file system's UUID (as `f_fsid`) and the inode
        tmpfs, overlay:    the same; theirs is new with every mount, as is what is on them
        XFS, NFS, others:  what is mounted ("/dev/mapper/vg-data", "server:/export") and the inode
        FUSE:              what is mounted and the path on it; inodes there may be made up
        no mount table:    device and inode
        """
        info = os.fstat(fd)
        row = next((row for row in self.rows if row.device == info.st_dev), None)
        if row is None or row.fstype.startswith("fuse"):
            row = self._row_of(fd)
        if row is None:
            return f"{info.st_dev}:{info.st_ino}"
        if row.fstype.startswith("fuse"):
            below = (true_path(fd) or "").removeprefix(row.point).strip("/")
            path = f"{row.root}/{below}".strip("/")
            return f"{row.fstype}:{row.source}:/{path}"
        fsid = os.fstatvfs(fd).f_fsid if row.fstype in LASTING_FSID else 0
        return f"{row.fstype}:{f'{fsid:x}' if fsid else row.source}:{info.st_ino}"

    def whereabouts(self, fd: int) -> Whereabouts:
        """Where an open file lies; in a container and on its host alike."""
        info, path = os.fstat(fd), true_path(fd)
        row = self._row_of(fd) if path is not None else None
        if row is None or path is None:
            fs = f"device:{info.st_dev}"
            return Whereabouts(fs, str(info.st_ino), path or "", is_lasting=False)
        below = path.removeprefix(row.point.rstrip("/"))
        inside = f"{row.root.rstrip('/')}/{below.lstrip('/')}"
        fsid = os.fstatvfs(fd).f_fsid if row.fstype in LASTING_FSID else 0
        is_fuse = row.fstype.startswith("fuse")
        return Whereabouts(
            fs=f"{row.fstype}:{f'{fsid:x}' if fsid else row.source}",
            inode="" if is_fuse else str(info.st_ino),
            path=inside.rstrip("/"),
            is_lasting=bool(fsid) or ":" in row.source or row.source.startswith("//"),
        )

    def _row_of(self, fd: int) -> Mount | None:
        """The very mount an open folder was reached by; a device may be mounted several times."""
        with suppress(FileNotFoundError), open(f"/proc/self/fdinfo/{fd}", "rb") as info:
            ids = [int(line[7:]) for line in info if line.startswith(b"mnt_id:")]
            return next((row for row in self.rows if [row.id] == ids), None)
        return None


def read_mounts() -> MountTable:
    """The table now; empty where the system has none. It is never kept: that is for the kernel."""
    try:
        fd = os.open(TABLE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return MountTable(())
    try:
        return _parse(b"".join(iter(lambda: os.read(fd, 65_536), b"")))
    finally:
        os.close(fd)


def true_path(fd: int) -> str | None:
    """The path of an open folder as the kernel knows it, None where it does not say."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return None


@lru_cache(maxsize=4)
def _parse(table: bytes) -> MountTable:
    """Parse rows like `36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw`."""
    rows = []
    for line in table.splitlines():
        before, _, after = line.partition(b" - ")
        fields, (fstype, source) = before.split(b" "), after.split(b" ")[:2]
        device = os.makedev(*map(int, fields[2].split(b":")))
        root, point = _unescape(fields[3]), _unescape(fields[4])
        rows.append(Mount(int(fields[0]), device, root, point, fstype.decode(), _unescape(source)))
    return MountTable(tuple(rows))


def _unescape(field: bytes) -> str:
    for code in (b"\\040", b"\\011", b"\\012", b"\\043", b"\\134"):
        field = field.replace(code, bytes([int(code[1:], 8)]))
    return os.fsdecode(field)
