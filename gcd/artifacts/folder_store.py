"""What the backends of all servers of files and folders do alike: find a tree, measure it, remove it.

It must never take a folder for a tree that a link leads to, nor a server that refuses for an empty one.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from threading import Lock
from typing import Self, TypeVar

from gcd.artifacts import remote_walk
from gcd.artifacts.base import MARK, MOST_OF_A_MARK, Deleted, Options, WayEnd
from gcd.artifacts.local import LAYOUT
from gcd.artifacts.logins import Logins
from gcd.artifacts.pace import Pace
from gcd.artifacts.remote_files import Files, Lost, Sort
from gcd.artifacts.remote_pool import Pool
from gcd.artifacts.remote_walk import is_folder, joined
from gcd.artifacts.walk import shown
from gcd.errors import ArtifactError, PermanentArtifactError, TransientArtifactError, UnsafeTarget
from gcd.model import Place, Probe, Root, Target, Usage

T = TypeVar("T")

LOOKED_FOR = 500
"""Trees that a probe looks for, each with some requests."""
DROPPED = re.compile(r"[\t\r\n]")
"""What MLflow's reading of a URI leaves out of it (tried: `urllib.parse` does)."""


class FolderArtifactStore(ABC):
    """Schemes whose paths name real folders on a server. `Place.path` has no "/" before it.

    A backend says how a connection is opened (`connect`).
    """

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self._logins: dict[str, Logins] = {}
        self._pools: dict[tuple[str, str], Pool] = {}
        self._lock = Lock()
        self._true_path = lru_cache(maxsize=10_000)(self._ask_true_path)
        self._unfollowed: dict[Place, Place | None] = {}
        """Places whose true name was not had when it was asked for, and the name, once it is had."""

    @classmethod
    def with_options(cls, options: Options) -> Self:
        """A store as the operator wants it."""
        return cls(options)

    @abstractmethod
    def connect(self, scheme: str, authority: str) -> Files:
        """A new connection. Raises an ArtifactError, UnsafeTarget where the authority is none."""

    def learn(self, uri: str) -> None:
        """Take the password of a URI, in memory alone: places have none."""
        self.logins(uri.partition(":")[0].lower()).learn(uri)

    def logins(self, scheme: str) -> Logins:
        """The passwords that were learned for a scheme."""
        with self._lock:
            if scheme not in self._logins:
                self._logins[scheme] = Logins(scheme, self.options.uris)
            return self._logins[scheme]

    def on(self, place: Place, work: Callable[[Files], T]) -> T:
        """What the work comes to on a connection to the place's server."""
        return self._pool(place).use(work)

    def _pool(self, place: Place) -> Pool:
        key = (place.scheme, place.authority)
        with self._lock:
            if key not in self._pools:
                pace = Pace(self.options.objects_per_second)
                connect = partial(self.connect, *key)
                self._pools[key] = Pool(connect, self.options.requests, pace)
            return self._pools[key]

    def close(self) -> None:
        """End the connections that nobody uses."""
        for pool in list(self._pools.values()):
            pool.close()

    # -- looking -----------------------------------------------------------------------------------

    def resolve(self, place: Place) -> Place:
        """The place without doubled slashes and, where the server tells, without links on its path.

        Where the server does not answer, its links are left: a deletion refuses what is behind one,
        and asks again for what may hold it. Raises UnsafeTarget for what MLflow would read as another path.
        """
        names = [name for name in DROPPED.sub("", place.path).split("/") if name]
        if not all(map(_is_name, names)):
            raise UnsafeTarget(f"{shown(place.path)} has a '.' or '..' component")
        tidy = replace(place, path="".join(name + "/" for name in names))
        try:
            true = self._true_path(tidy)
        except UnsafeTarget:
            raise
        except ArtifactError:
            with self._lock:
                self._unfollowed[tidy] = None
            return tidy
        with self._lock:
            self._unfollowed.pop(tidy, None)
        return true

    def _ask_true_path(self, place: Place) -> Place:
        return self.on(place, lambda files: _true(files, place))

    def _refuse_unfollowed(self, files: Files, target: Target) -> None:
        """TransientArtifactError where something lies over the tree that was not known to, for the server was away.

        Whoever asked for its true name then, to see what it holds, got the other one.
        """
        with self._lock:
            open_ones = [p for p in self._unfollowed if p.authority == target.place.authority]
        for place in open_ones:
            true = self._unfollowed.get(place) or _true(files, place)
            with self._lock:
                self._unfollowed[place] = true
            paths = (true.path, target.place.path)
            if true != place and (paths[0].startswith(paths[1]) or paths[1].startswith(paths[0])):
                raise TransientArtifactError(
                    f"{files.where}: {shown(_path(place))} leads to {shown(_path(true))},"
                    " which was not known when it was asked what holds the tree"
                )

    def storage_root(self, location: Place, root: Place) -> Place:
        """The folder nearest to `location` where another file system begins below `root`, else `root`."""
        if not location.path.startswith(root.path):
            return root
        try:
            return self.on(root, lambda files: _nearest_disk(files, location, root))
        except ArtifactError:
            return root

    def probe(self, root: Place, named: Iterable[Place]) -> Probe:
        """Look at the folder, at the disk it is on, and for one of the trees that should be in it."""
        try:
            return self.on(root, lambda files: _probed(files, root, named))
        except ArtifactError as error:
            text = f"{error.message}; {error.hint}" if error.hint else error.message
            return Probe(isinstance(error, PermanentArtifactError), problem=text)

    def examine(self, target: Target) -> None:
        """Raise what would stop `delete(target)`: a link on the way, a server that is not there."""
        parts = _components(target)

        def work(files: Files) -> None:
            if remote_walk.way(files, _path(target.root), parts) == len(parts):
                remote_walk.refuse_listed_link(files, _path(target.place))

        self.on(target.root, work)

    def measure(self, target: Target) -> Usage:
        """Objects and bytes in the tree; a link counts as one."""
        parts = _components(target)

        def work(files: Files) -> Usage:
            if remote_walk.way(files, _path(target.root), parts) < len(parts):
                return Usage()
            return remote_walk.measure_tree(files, _path(target.place))

        return self.on(target.root, work)

    def has_files(self, target: Target) -> bool:
        """Whether anything but folders is in the tree; the first that is listed answers."""
        parts = _components(target)

        def work(files: Files) -> bool:
            is_there = remote_walk.way(files, _path(target.root), parts) == len(parts)
            return is_there and remote_walk.has_files(files, _path(target.place))

        return self.on(target.root, work)

    def way_end(self, place: Place, root: Place) -> WayEnd | None:
        """The deepest folder that is there on the way down from the root, the root itself apart."""
        if place == root:
            return None
        parts = _below(Target(place, root))

        def work(files: Files) -> WayEnd | None:
            depth = remote_walk.way(files, _path(root), parts)
            if not depth:
                return None
            end = replace(root, path=root.path + "".join(name + "/" for name in parts[:depth]))
            return WayEnd(end, not any(files.pages(_path(end))))

        return self.on(root, work)

    # -- the mark ----------------------------------------------------------------------------------

    def read_mark(self, root: Place) -> bytes | None:
        """The file of the mark's name, where a file is what it is."""
        return self.on(root, lambda files: _read_mark(files, root))

    def write_mark(self, root: Place, data: bytes, *, before: bytes | None) -> bool:
        """Write the file, and see that it is there: not every server can be told not to replace one."""

        def work(files: Files) -> bool:
            if _read_mark(files, root) != before:
                return False
            path = joined(_path(root), MARK)
            try:
                is_written = files.put(path, data, replaces=before is not None)
            except Lost:
                raise
            except (TransientArtifactError, FileNotFoundError) as error:
                # Whatever else was asked was answered: a full disk, or a folder that is not ours.
                text = f"{files.where}: {shown(path)} cannot be written: {error}"
                raise PermanentArtifactError(text) from error
            return is_written and _read_mark(files, root) == data

        return self.on(root, work)

    # -- deleting ----------------------------------------------------------------------------------

    def delete(self, target: Target, root: Root) -> Deleted:
        """Remove the tree, then the entity's own folder around it if that is empty."""
        parts = _components(target)
        if root.place != target.root:
            raise UnsafeTarget(f"{shown(target.place.path)} is not below {shown(root.place.path)}")
        pool = self._pool(target.root)

        def work(files: Files) -> Deleted:
            _refuse_other_root(files, root)
            self._refuse_unfollowed(files, target)
            holder = parts[:-1]
            if remote_walk.way(files, _path(target.root), holder) < len(holder):
                return Deleted(Usage(), None)
            _refuse_other_disk(files, target)
            deleted = remote_walk.remove_tree(files, _path(target.place), pool.pace)
            _remove_empty(files, _path(target.place).rpartition("/")[0])
            return deleted

        return pool.use(work)

    def prune(self, folder: Target) -> None:
        """Remove an experiment's folder with MLflow's own empty folders in it.

        A folder that is the storage root itself stays. Where a server has no way of removing a
        folder only if it is empty, nothing is removed.
        """
        parts = () if folder.place == folder.root else _below(folder)

        def work(files: Files) -> None:
            path = _path(folder.place)
            if not files.removes_only_empty or not is_folder(files, _path(folder.root)):
                return
            if remote_walk.way(files, _path(folder.root), parts) < len(parts):
                return
            for inner in LAYOUT:
                _remove_empty(files, joined(path, inner))
            if parts:
                _remove_empty(files, path)

        self.on(folder.root, work)

    def flush(self, targets: Iterable[Target]) -> None:  # noqa: B027
        """Nothing: what the server answered is all that can be had."""


def _read_mark(files: Files, root: Place) -> bytes | None:
    path = joined(_path(root), MARK)
    item = files.look(path) if is_folder(files, _path(root)) else None
    if item is None:
        return None
    if item.sort is not Sort.FILE:
        raise UnsafeTarget(f"{files.where}: {shown(path)} is not a file")
    try:
        return files.read(path, MOST_OF_A_MARK + 1)
    except FileNotFoundError:
        return None


def _path(place: Place) -> str:
    return "/" + place.path.rstrip("/")


def _true(files: Files, place: Place) -> Place:
    true = files.true_path(_path(place)).strip("/")
    return replace(place, path=true + "/" if true else "")


def _is_name(name: str) -> bool:
    try:
        return name not in ("", ".", "..") and b"\0" not in name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def _components(target: Target) -> tuple[str, ...]:
    """The names from the root down to the tree: at least the entity's own folder and the tree."""
    parts = _below(target)
    if len(parts) < 2:
        raise UnsafeTarget(
            f"{shown(target.place.path)} is not in a folder of its own below {shown(target.root.path)}"
        )
    return parts


def _below(target: Target) -> tuple[str, ...]:
    """The names from the root down to the place, at least one."""
    place, root = target.place, target.root
    is_below = (
        (place.scheme, place.authority) == (root.scheme, root.authority)
        and (root.path == "" or root.path.endswith("/"))
        and place.path.startswith(root.path)
        and place.path.endswith("/")
    )
    parts = tuple(place.path.removeprefix(root.path).split("/")[:-1])
    if not is_below or not parts:
        raise UnsafeTarget(f"{shown(place.path)} is not a tree below {shown(root.path)}")
    if not all(map(_is_name, place.path.split("/")[:-1])):
        raise UnsafeTarget(f"{shown(place.path)} has an empty, '.' or '..' component")
    return parts


def _probed(files: Files, root: Place, named: Iterable[Place]) -> Probe:
    path = _path(root)
    if not is_folder(files, path):
        return Probe(is_there=False)
    disk = files.disk(path)
    is_found = any(_is_found(files, root, place) for place in islice(named, LOOKED_FOR))
    problem = remote_walk.read_only(f"{files.where}: {shown(path)}").message
    return Probe(
        is_there=True,
        identity=_identity(files, root),
        is_named_found=is_found,
        problem=problem if disk.is_read_only else None,
    )


def _identity(files: Files, root: Place) -> str:
    """The disk, or where none is told the server, and the path there."""
    return f"{files.disk(_path(root)).name or files.identity}:/{root.path}"


def _is_found(files: Files, root: Place, place: Place) -> bool:
    """Whether a tree is there; one on a file system of its own proves nothing of the root's."""
    try:
        target = Target(place, root)
        parts = _components(target)
        if remote_walk.way(files, _path(root), parts) < len(parts):
            return False
        return files.disk(_path(place)).name == files.disk(_path(root)).name
    except Lost:
        raise
    except ArtifactError:
        return False


def _nearest_disk(files: Files, location: Place, root: Place) -> Place:
    nearest, path, above = root, root.path, files.disk(_path(root)).name
    if above is None:
        return root
    for name in location.path.removeprefix(root.path).split("/")[:-1]:
        path += name + "/"
        here = replace(root, path=path)
        if not is_folder(files, _path(here)):
            return nearest
        if (disk := files.disk(_path(here)).name) != above:
            nearest, above = here, disk
    return nearest


def _refuse_other_root(files: Files, root: Root) -> None:
    """TransientArtifactError where the root is absent or another one than before."""
    path = _path(root.place)
    if not is_folder(files, path):
        text = f"{files.where}: the storage root {shown(path)} is not there"
        raise TransientArtifactError(text, hint="is its disk mounted on the server?")
    expected = root.remembered_identity or root.probe.identity
    if expected is not None and expected != (found := _identity(files, root.place)):
        raise TransientArtifactError(
            f"{files.where}: the storage root {shown(path)} is another one ({found}) than before ({expected})",
            hint="is its disk mounted on the server? If it was replaced on purpose: gcd doctor --accept-root",
        )


def _refuse_other_disk(files: Files, target: Target) -> None:
    """UnsafeTarget where the tree's own folder is on another file system than its root."""
    holder = _path(target.place).rpartition("/")[0]
    if files.disk(holder) != files.disk(_path(target.root)):
        raise UnsafeTarget(
            f"{files.where}: {shown(holder)} is on another file system than its storage root",
            hint="list its mount point in artifacts.roots",
        )


def _remove_empty(files: Files, path: str) -> None:
    """Remove a folder if it is empty; what is not there, or is no folder, stays as it is."""
    try:
        if is_folder(files, path) and (files.removes_only_empty or not any(files.pages(path))):
            files.remove_folder(path)
    except (FileNotFoundError, UnsafeTarget):
        return
