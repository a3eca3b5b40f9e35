"""Tells a local folder by what it is, not by its path: one tree may be mounted at several.

Invariant: nothing is opened or changed. Where the system says too little to tell two folders apart, they
get a name in common.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

from gcd.model import Place, Way
from gcd.mounts import Mount, read_mounts

ON_DISK = "disk"
"""The scheme of a path in a file system, whatever it is mounted at."""
NETWORKS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "gpfs", "beegfs", "afs", "virtiofs"}
)
"""File systems of servers: mounted twice, they may have two device numbers, but the server's inodes."""
FUSE = "fuse"

Node = tuple[int, int]
"""A folder's device and inode."""


KNOWN = 10_000
"""Folders on the way whose inodes are remembered."""


class OtherNames:
    """What else folders are called, as things are mounted at one moment. Threads may share it."""

    def __init__(self) -> None:
        rows = read_mounts().rows
        counts = Counter(row.device for row in rows)
        self._shared = {device for device, count in counts.items() if count > 1}
        self._networks = {row.device for row in rows if row.fstype in NETWORKS}
        self._points: dict[str, list[Mount]] = {}
        """What may be mounted elsewhere too, by the points where it is mounted."""
        for row in rows:
            if row.device in self._shared | self._networks or row.fstype.startswith(FUSE):
                self._points.setdefault(row.point, []).append(row)
        self._known: dict[str, Node | None] = {}

    def __call__(self, place: Place) -> tuple[Place | Way, ...]:
        """The paths of a tree in the file systems mounted there, and the inodes on its way."""
        names = place.path.strip("/").split("/")
        return (*self._on_disk(names), self._way(names))

    def _on_disk(self, names: list[str]) -> Iterator[Place]:
        for depth in range(len(names) + 1) if self._points else ():
            for row in self._points.get("/" + "/".join(names[:depth]), ()):
                yield from self._as_mounted(row, "".join(f"{name}/" for name in names[depth:]))

    def _as_mounted(self, row: Mount, rest: str) -> Iterator[Place]:
        """A path below a mount point as one in the file system, if that may be mounted twice."""
        inside = f"{row.root.strip('/')}/{rest}".lstrip("/")
        if row.device in self._shared:
            yield Place(ON_DISK, str(row.device), inside)
        if row.fstype.startswith(FUSE):  # two programs may show one bucket
            yield Place(ON_DISK, FUSE, inside)
        elif row.fstype in NETWORKS:  # "server:/export", "//server/share"
            export = row.source.rpartition(":")[2].strip("/")
            yield Place(ON_DISK, "network", f"{export}/{inside}".lstrip("/"))

    def _way(self, names: list[str]) -> Way:
        """The folders on the way to a tree, as far as they exist and may be looked at."""
        nodes: list[Node] = []
        path = ""
        for depth, name in enumerate(["", *names]):
            path = f"{path.rstrip('/')}/{name}"
            node = self._node(path) if depth == len(names) else self._known_node(path)
            if node is None:
                break
            nodes.append(node)
        return Way(tuple(nodes), is_whole=len(nodes) == len(names) + 1)

    def _known_node(self, path: str) -> Node | None:
        if path not in self._known:
            if len(self._known) >= KNOWN:
                self._known = {}
            self._known[path] = self._node(path)
        return self._known.get(path)

    def _node(self, path: str) -> Node | None:
        try:
            info = os.stat(path)
        except OSError:
            return None
        return (0 if info.st_dev in self._networks else info.st_dev, info.st_ino)
