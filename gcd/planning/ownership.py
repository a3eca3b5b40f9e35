"""Whose a storage root is: the mark of the database that collects in it, and which mark counts.

It must never let a root pass whose mark cannot be read, nor one that another database marked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from gcd.model import Claim, KeepReason, Kind, Ownership, Place
from gcd.planning.guard import FOLDERS, contains, place_uri
from gcd.planning.policy import Keep

FORMAT = 1
PURPOSE = (
    "gcd deletes files below this folder for this database only; `gcd help guarantees` says more"
)
ID_LENGTH = 64
LOCAL = "file"


@dataclass(frozen=True, slots=True)
class Mark:
    """What a database leaves in a root that it collects in. It holds no secret."""

    database: str
    name: str
    since: str
    transferred_from: str | None = None
    """The id of the database that had the root before."""

    @property
    def who(self) -> str:
        """The database, for people."""
        return f"{self.name} (id {self.database[:8]}, since {self.since[:10]})"


def make_mark(database: str, name: str, now: datetime, before: str | None = None) -> bytes:
    """The content of a mark."""
    fields = {
        "format": FORMAT,
        "purpose": PURPOSE,
        "database": database,
        "name": name,
        "since": now.isoformat(timespec="seconds"),
        "transferred_from": before,
    }
    return (json.dumps(fields, indent=2) + "\n").encode()


def parse_mark(data: bytes) -> Mark:
    """The mark of a content. Raises ValueError for what is not one that this gcd can read."""
    fields = json.loads(data.decode())
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise ValueError("it is not a mark of a format that this gcd knows")
    database, name, since = (fields.get(key) for key in ("database", "name", "since"))
    before = fields.get("transferred_from")
    if not isinstance(database, str) or not 0 < len(database) <= ID_LENGTH:
        raise ValueError("it names no database")
    if not isinstance(name, str) or not isinstance(since, str):
        raise ValueError("it lacks a name or a date")
    return Mark(database, name, since, before if isinstance(before, str) else None)


# -- which marks count ---------------------------------------------------------------------------


def home_of(kind: Kind, place: Place, root: Place) -> Place:
    """The experiment's location that a tree lies in; the root where that would be above it."""
    if kind is Kind.EXPERIMENT:
        return place
    home = up(place, len(FOLDERS[kind]) + 2)
    return home if contains(root, home) else root


def claim_place(home: Place, root: Place, experiment_id: str) -> Place:
    """Where this database's mark belongs: the root, but of a whole bucket what MLflow uses of it.

    Several databases may share a bucket, each below a prefix of its own.
    """
    return root if root.path else layout_place(home, experiment_id)


def layout_place(home: Place, experiment_id: str) -> Place:
    """The artifact root that MLflow made an experiment's location in; else the location."""
    names = home.path.rstrip("/").rsplit("/")
    if names[-1] != experiment_id:
        return home
    above = up(home, 1)
    names = above.path.rstrip("/").split("/")
    return up(above, 2) if len(names) > 1 and names[-2] == "workspaces" else above


def ladder(home: Place, root: Place, experiment_id: str) -> Iterator[Place]:
    """The places whose marks count for a location, the nearest first: that wins.

    Where each look is a request, it begins where MLflow's layout has the artifact root: a mark in a
    numbered experiment's own folder is looked for on local disks alone.
    """
    here = home if home.scheme == LOCAL else layout_place(home, experiment_id)
    claim = claim_place(home, root, experiment_id)
    if contains(here, claim):
        here = claim
    yield here
    while here.path.strip("/"):
        here = up(here, 1)
        yield here


def up(place: Place, steps: int) -> Place:
    """The place so many folders above another one, at most the top of its store."""
    path = place.path
    for _ in range(steps):
        head, _, _ = path.rstrip("/").rpartition("/")
        path = head + "/" if head or path.startswith("/") else ""
    return Place(place.scheme, place.authority, path)


# -- what follows --------------------------------------------------------------------------------


def check_claim(claim: Claim) -> Keep | None:
    """Why nothing may be deleted at a place for its owner's sake, None if it may."""
    match claim.owner:
        case Ownership.FOREIGN:
            return Keep(KeepReason.FOREIGN_ROOT, claim.detail)
        case Ownership.UNREADABLE:
            return Keep(KeepReason.UNREACHABLE, claim.detail)
    return None


def accepting(place: Place) -> str:
    """The hint that gives a place to this database."""
    return f"`gcd doctor --accept-root {place_uri(place)}` gives it to this database"
