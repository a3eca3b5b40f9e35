"""Whether runs may be purged whose files lie below a storage root.

It must never let rows go for a root that may be the wrong one, or where files cannot be deleted.
"""

from __future__ import annotations

from dataclasses import dataclass

from gcd.model import KeepReason, Root
from gcd.planning.guard import FOLDERS_AT, place_uri
from gcd.planning.policy import Keep


@dataclass(frozen=True, slots=True)
class Gate:
    """When a root's purges stop."""

    max_backlog: int = 1000
    max_failures: int = 3
    collect_absent: bool = False
    """Whether a root without any evidence counts as one where nobody ever logged a file."""
    collect_absent_trees: bool = False
    """Whether a tree that is missing counts as deleted by a person, whatever the database says."""


def check_root(root: Root, gate: Gate) -> Keep | None:
    """Why nothing may be purged below the root now, None if it may."""
    return check_evidence(root, gate) or check_health(root, gate)


def check_evidence(root: Root, gate: Gate) -> Keep | None:
    """Is it the right root? An unmounted disk is an existing, empty folder."""
    uri, probe = place_uri(root.place), root.probe
    is_disk = root.place.scheme in FOLDERS_AT
    mend = "mount it" if is_disk else "create the bucket, or correct the endpoint"
    accept = f"`gcd doctor --accept-root {uri}` trusts it as it is"
    is_remembered = root.remembered_identity is not None
    if is_remembered and probe.is_there and probe.identity != root.remembered_identity:
        detail = f"{uri} is another {'disk or folder' if is_disk else 'store'} than before ({probe.identity}): {mend}; or {accept}"
        return Keep(KeepReason.UNREACHABLE, detail)
    if probe.is_named_found:  # behind the identity: a backup has the trees that the database names
        return None
    if is_remembered or root.is_accepted:
        if probe.is_there:
            return None
        return Keep(KeepReason.UNREACHABLE, probe.problem or f"{uri} is not there: {mend}")
    if gate.collect_absent:
        return None
    if not probe.is_there:
        detail = (
            f"{uri} is not there: {mend}; `--absent-roots collect` if nobody ever logged a file"
        )
        return Keep(KeepReason.UNREACHABLE, probe.problem or detail)
    ask = "is it mounted? If it is" if is_disk else "is it the right one? If it is"
    detail = f"no file that the database names is below {uri}: {ask}, {accept}"
    return Keep(KeepReason.UNREACHABLE, probe.problem or detail)


def check_health(root: Root, gate: Gate) -> Keep | None:
    """Can files be deleted there, as far as is known?"""
    uri = place_uri(root.place)
    if root.probe.problem is not None:
        return Keep(KeepReason.ROOT_UNHEALTHY, root.probe.problem)
    if root.failures >= failures_allowed(root, gate):
        last = f": {root.error}" if root.error else ""
        detail = f"the last {root.failures} deletions below {uri} failed{last}"
        return Keep(KeepReason.ROOT_UNHEALTHY, detail)
    if root.backlog > gate.max_backlog:
        detail = (
            f"{root.backlog:,} trees below {uri} wait to be deleted, more than gate.max_backlog"
        )
        return Keep(KeepReason.ROOT_UNHEALTHY, detail)
    return None


def failures_allowed(root: Root, gate: Gate) -> int:
    """How many sweeps in a row may fail: one, until the first tree was ever deleted there.

    The commonest mistake on day one is a collector that may purge rows but not delete files.
    """
    return gate.max_failures if root.is_proved else 1
