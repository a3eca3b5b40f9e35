"""Whether a database is the one that it was: the same, moved, or a copy of another.

It must never take a copy for the original where the facts leave a doubt: then it says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

Facts = Mapping[str, str]
"""What a server or a file system says of a database, by name; what it does not say is left out."""


class Lineage(StrEnum):
    """What a database is to the one that wrote its facts down."""

    SAME = "same"
    """The same one; perhaps renamed, moved, or restored in its own place."""
    COPY = "copy"
    DOUBT = "doubt"
    """A fact that would tell cannot be read now."""


def compare(before: Facts, now: Facts, *, is_old_there: bool) -> Lineage:
    """What the database of `now` is to that of `before`.

    `is_old_there` says whether a database still stands where the old facts place it.
    """
    if before.get("kind") != now.get("kind"):
        return Lineage.COPY
    match now.get("kind"):
        case "sqlite":
            return compare_files(before, now, is_old_there=is_old_there)
        case "postgresql":
            return compare_servers(before, now) or compare_oids(before, now, is_old_there)
    # MySQL has no id of a database, and no way to rename one.
    return compare_servers(before, now) or is_same(before["name"] == now["name"])


def is_same(answer: bool) -> Lineage:
    """The same, or a copy."""
    return Lineage.SAME if answer else Lineage.COPY


def compare_servers(before: Facts, now: Facts) -> Lineage | None:
    """What the identity of the server tells; None where it is the same, or was never known."""
    if "server" not in before:
        return None
    if "server" not in now:
        return Lineage.DOUBT
    return None if before["server"] == now["server"] else Lineage.COPY


def compare_oids(before: Facts, now: Facts, is_old_there: bool) -> Lineage:
    """PostgreSQL: an OID lasts as long as its database, through renames and failovers.

    A dump that was restored under the old name, the old database being gone, is that database.
    """
    if before["oid"] == now["oid"]:
        return Lineage.SAME
    return is_same(before["name"] == now["name"] and not is_old_there)


def compare_files(before: Facts, now: Facts, *, is_old_there: bool) -> Lineage:
    """SQLite: a file that moved keeps its inode; one that replaced another has its path.

    Neither says anything on another file system, nor on another host where two hosts may call
    different file systems alike.
    """
    if before["fs"] != now["fs"]:
        return Lineage.COPY
    has_inode = bool(now["inode"]) and before["inode"] == now["inode"]
    has_path = before["path"] == now["path"]
    if has_inode and has_path:
        return Lineage.SAME
    if before.get("host") != now.get("host"):
        return Lineage.COPY
    # An inode is given to another file once it is free: the old path must be empty too.
    return is_same(has_path or (has_inode and not is_old_there))
