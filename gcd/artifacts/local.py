"""Deletes artifact trees on file systems that this host has mounted.

It must never delete anything outside the tree it was given, by symbolic link, mount or "..", and
never take a disk that is not mounted for an empty one.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta

from gcd.artifacts import local_mark, permission, walk
from gcd.artifacts.base import Deleted, Order, WayEnd
from gcd.artifacts.other_names import OtherNames
from gcd.artifacts.walk import shown
from gcd.errors import (
    ArtifactError,
    TransientArtifactError,
    UnsafeTarget,
)
from gcd.model import Place, Probe, Root, Target, Usage
from gcd.mounts import MountTable, read_mounts, true_path

QUICK_HANDS = 2
PATIENCE = timedelta(milliseconds=10)
"""On a disk that answers at once more hands only take the interpreter from one another (eight were
half as fast as two); on one that does not, nobody waits longer than this for a turn."""
LAYOUT = ("models", "traces")
"""The folders that MLflow makes in an experiment's, besides those of its runs."""
NOT_SUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})


class LocalArtifactStore:
    """Scheme "file": paths are absolute, unquoted and end in "/". Holds nothing open."""

    def __init__(self) -> None:
        self._turn = threading.Semaphore(QUICK_HANDS)

    def resolve(self, place: Place) -> Place:
        """Follow the symbolic links in the part of the path that exists."""
        try:
            path = os.path.realpath(place.path)
        except ValueError as error:
            raise UnsafeTarget(f"{shown(place.path)} is not a path: {error}") from error
        return replace(place, path=path.rstrip("/") + "/")

    def other_names(self) -> OtherNames:
        """The paths of places in the file systems mounted now, and the inodes on their ways."""
        return OtherNames()

    def storage_root(self, location: Place, root: Place) -> Place:
        """The mount point nearest to `location` if one lies strictly below `root`, else `root`."""
        if not location.path.startswith(root.path) or not os.path.isdir(root.path):
            return root
        points = set(read_mounts().points_below(root.path))
        path, nearest = root.path.rstrip("/"), root
        for name in location.path.removeprefix(root.path).split("/")[:-1]:
            above, path = path, f"{path}/{name}"
            try:
                here, around = os.lstat(path), os.lstat(above or "/")
            except OSError:
                return root
            if not stat.S_ISDIR(here.st_mode):
                return root
            if path in points or here.st_dev != around.st_dev:
                nearest = replace(root, path=path + "/")
        return nearest

    def probe(self, root: Place, named: Iterable[Place]) -> Probe:
        """Look at the folder, at whose it is, and for one of the trees that should be in it."""
        try:
            with _opened(root) as fd:
                return Probe(
                    is_there=True,
                    identity=read_mounts().identity(fd),
                    is_named_found=any(_is_found(fd, root, place) for place in named),
                    problem=permission.why_not_writable(fd, root.path),
                )
        except FileNotFoundError:
            return Probe(is_there=False)
        except OSError as error:
            if os.path.islink(root.path.rstrip("/")):
                return Probe(is_there=False, problem=_root_is_link(root).message)
            return Probe(is_there=False, problem=walk.artifact_error(error, root.path).message)

    def examine(self, target: Target) -> None:
        """Raise what would stop `delete(target)`; a tree or a root that is not there stops nothing."""
        parts = _components(target)
        with suppress(FileNotFoundError), _entered(target.root) as root:
            _refuse_mounts(read_mounts(), root, parts)
            with walk.way(root, parts) as folders:
                if len(folders) > len(parts):
                    permission.refuse_undeletable(folders[-3:], target.place.path)

    def measure(self, target: Target) -> Usage:
        """Objects and bytes in the tree; a file with several names counts with each."""
        *holder, name = _components(target)
        with (
            suppress(FileNotFoundError),
            _entered(target.root) as root,
            walk.way(root, [*holder, name]) as folders,
        ):
            if len(folders) > len(holder) + 1:
                return walk.measure_tree(folders[-2], name, "/".join(holder))
        return Usage()

    def has_files(self, target: Target) -> bool:
        """Whether anything but folders is in the tree; the first that is met answers."""
        *holder, name = _components(target)
        with (
            suppress(FileNotFoundError),
            _entered(target.root) as root,
            walk.way(root, [*holder, name]) as folders,
        ):
            if len(folders) > len(holder) + 1:
                return walk.has_files(folders[-2], name, "/".join(holder))
        return False

    def way_end(self, place: Place, root: Place) -> WayEnd | None:
        """The deepest folder that is there on the way down from the root, the root itself apart."""
        if place == root:
            return None
        parts = _below(Target(place, root))
        with (
            suppress(FileNotFoundError),
            _entered(root) as top,
            walk.way(top, parts) as folders,
        ):
            if len(folders) > 1:
                path = "/".join(parts[: len(folders) - 1])
                end = replace(root, path=f"{root.path}{path}/")
                return WayEnd(end, walk.is_empty(folders[-1], path))
        return None

    def delete(self, target: Target, root: Root) -> Deleted:
        """Remove the tree, then the entity's own folder around it if that is empty.

        Everything is reached from one descriptor of the root, whose identity was checked: a disk
        that is unmounted or swapped meanwhile changes nothing about what is deleted.
        """
        return self.delete_order(Order(target, root, lambda: None))

    def delete_order(self, order: Order) -> Deleted:
        """Do as `delete`; ask the permit when the tree is reached."""
        target, root = order.target, order.root
        *holder, name = _components(target)
        if root.place != target.root:
            raise UnsafeTarget(f"{shown(target.place.path)} is not below {shown(root.place.path)}")
        is_my_turn = self._turn.acquire(timeout=PATIENCE.total_seconds())
        try:
            with _entered(target.root) as fd:
                mounts = read_mounts()
                _refuse_other_root(mounts, fd, root)
                _refuse_mounts(mounts, fd, (*holder, name))
                with walk.way(fd, holder) as folders:
                    order.permit()
                    return _remove(folders, holder, name)
        except FileNotFoundError as error:
            raise _absent(target.root) from error
        finally:
            if is_my_turn:
                self._turn.release()

    def prune(self, folder: Target) -> None:
        """Remove an experiment's folder with MLflow's own empty folders in it, by `rmdir` alone.

        A folder that is the storage root itself stays.
        """
        parts = () if folder.place == folder.root else _below(folder)
        with (
            suppress(FileNotFoundError),
            _entered(folder.root) as root,
            walk.way(root, parts) as folders,
        ):
            if len(folders) <= len(parts):
                return
            path = "/".join(parts)
            for inner in LAYOUT:
                _remove_empty(folders[-1], inner, f"{path}/{inner}")
            if parts:
                _remove_empty(folders[-2], parts[-1], path)

    def read_mark(self, root: Place) -> bytes | None:
        """The mark in the folder, reached without a link."""
        return local_mark.read_mark(root.path)

    def write_mark(self, root: Place, data: bytes, *, before: bytes | None) -> bool:
        """Write the mark, whole or not at all."""
        return local_mark.write_mark(root.path, data, before=before)

    def flush(self, targets: Iterable[Target]) -> None:
        """Write to disk the folders that removed trees and folders were entries of.

        A folder that is gone or unreadable is represented by the nearest one above it.
        """
        folders = set()
        for target in targets:
            *holder, _ = _below(target) if target.place != target.root else ("",)
            base = target.root.path
            folders.add((base, base + "/".join(holder[:-1])))
            if os.path.isdir(own := base + "/".join(holder)):
                folders.add((base, own))
        for base, folder in folders:
            _sync(base, folder)


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
    parts = tuple(place.path.removeprefix(root.path).split("/"))
    is_below = (
        (place.scheme, place.authority) == (root.scheme, root.authority)
        and root.path.startswith("/")
        and root.path.endswith("/")
        and place.path.startswith(root.path)
        and parts[-1] == ""
    )
    if not is_below or len(parts) < 2:
        raise UnsafeTarget(f"{shown(place.path)} is not a tree below {shown(root.path)}")
    names = [*root.path.split("/")[1:-1], *parts[:-1]] if root.path != "/" else parts[:-1]
    if not all(_is_name(name) for name in names):
        raise UnsafeTarget(f"{shown(place.path)} has an empty, '.' or '..' component")
    return parts[:-1]


def _is_name(name: str) -> bool:
    try:
        return name not in ("", ".", "..") and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


@contextmanager
def _opened(root: Place) -> Iterator[int]:
    fd = _open(root)
    try:
        yield fd
    finally:
        os.close(fd)


def _open(root: Place) -> int:
    return os.open(root.path.rstrip("/") or "/", walk.STEP)


@contextmanager
def _entered(root: Place) -> Iterator[int]:
    """Open a root to work below it. Raises FileNotFoundError if it is not there, else ours."""
    try:
        fd = _open(root)
    except FileNotFoundError:
        raise
    except OSError as error:
        if os.path.islink(root.path.rstrip("/")):
            raise _root_is_link(root) from error
        if error.errno == errno.ENOTDIR:
            raise _absent(root) from error
        raise walk.artifact_error(error, root.path) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _root_is_link(root: Place) -> UnsafeTarget:
    return UnsafeTarget(
        f"the storage root {shown(root.path)} is a symbolic link",
        hint="list the folder it leads to in artifacts.roots",
    )


def _absent(root: Place) -> TransientArtifactError:
    text = f"the storage root {shown(root.path)} is not there"
    return TransientArtifactError(text, hint="is the disk mounted?")


def _is_found(fd: int, root: Place, place: Place) -> bool:
    """Whether a tree is there on the root's own file system: one mounted below it proves nothing."""
    try:
        parts = _components(Target(place, root))
        _refuse_mounts(read_mounts(), fd, parts)
        with walk.way(fd, parts) as folders:
            return len(folders) > len(parts)
    except ArtifactError:
        return False


def _refuse_mounts(mounts: MountTable, root: int, parts: tuple[str, ...]) -> None:
    """Refuse what is mounted on the way to the tree or inside it, before anything is deleted.

    What is mounted later is met by the kernel when the walk opens it (`descent.open_below`).
    """
    path = true_path(root)
    if path is None:
        return
    tree = "/".join([path.rstrip("/"), *parts]) + "/"
    for point in mounts.points_below(path):
        if tree.startswith(point + "/"):
            raise walk.another_file_system(point)
        if point.startswith(tree):
            raise walk.mounted(point)


def _refuse_other_root(mounts: MountTable, fd: int, root: Root) -> None:
    expected = root.remembered_identity or root.probe.identity
    if expected is not None and expected != (found := mounts.identity(fd)):
        raise TransientArtifactError(
            f"the storage root {shown(root.place.path)} is another one ({found}) than before ({expected})",
            hint="is the disk mounted? If it was replaced on purpose: gcd doctor --accept-root",
        )


def _remove(folders: list[int], holder: list[str], name: str) -> Deleted:
    """Remove the tree from its own folder, if that is there, and that folder if it is empty now."""
    if len(folders) <= len(holder):
        return Deleted(Usage(), None)
    deleted = walk.remove_tree(folders[-1], name, "/".join(holder))
    try:
        os.rmdir(holder[-1], dir_fd=folders[-2])
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in walk.OCCUPIED:
            raise walk.artifact_error(error, "/".join(holder)) from error
    return deleted


def _remove_empty(holder: int, name: str, path: str) -> None:
    """Remove a folder if it is empty; a file, a link or a mount point of that name stays."""
    try:
        os.rmdir(name, dir_fd=holder)
    except OSError as error:
        if error.errno not in (*walk.OCCUPIED, *walk.CHANGED, errno.ENOENT, errno.EBUSY):
            raise walk.artifact_error(error, path) from error


def _sync(base: str, folder: str) -> None:
    """Write a folder to disk, or the nearest one above it down to `base` that can be opened."""
    while True:
        try:
            fd = os.open(folder, walk.FOLDER)
            break
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            if len(folder) <= len(base):
                raise TransientArtifactError(
                    f"{shown(base)} cannot be written to disk: {os.strerror(error.errno or 0)}"
                ) from error
            folder = os.path.dirname(folder.rstrip("/")).rstrip("/") + "/"
        except OSError as error:
            raise walk.artifact_error(error, folder) from error
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise walk.artifact_error(error, folder) from error
    finally:
        os.close(fd)
