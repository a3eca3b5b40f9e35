"""Whether a tree that the journal names is one that gcd may delete, by its form and today's scope. Pure.

Others can write to the journal. Invariant: what a row says is only believed where facts outside the
journal agree: the tree carries its entity's id where MLflow puts it, and its place is known to be
this store's.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from gcd.errors import UnsafeTarget
from gcd.model import Entry, Kind, Place
from gcd.planning.guard import (
    FOLDERS,
    PROXIED,
    Scope,
    Site,
    checked,
    contains,
    entity_names,
    known_roots,
    place_uri,
)

ID_LENGTH = 16
"""Shorter names of folders are not taken for ids: some importers number their runs."""


def check_form(entry: Entry, scope: Scope) -> str | None:
    """What is wrong with an entry, wherever its tree lies; None if nothing is."""
    if entry.flaw is not None:
        return entry.flaw
    target = entry.target
    if target is None:
        return None
    try:
        if entry.kind is Kind.EXPERIMENT:
            return check_folder(entry, scope)
        suffix = "/" + "/".join(entity_names(entry.kind, entry.entity_id)) + "/"
        checked(target, scope)
    except UnsafeTarget as error:
        return str(error)
    if not ("/" + target.place.path).endswith(suffix):
        return f"{place_uri(target.place)} is not where MLflow puts the files of {entry.entity_id}"
    return None


def check_folder(entry: Entry, scope: Scope) -> str | None:
    """The same for the folder of an experiment: only removed where it is empty, and never a root."""
    if entry.target is None or not contains(entry.target.root, entry.target.place):
        return "its folder does not lie in its storage root"
    place = entry.target.place
    inside = [root for root in known_roots(scope) if root != place and contains(place, root)]
    if inside:
        return f"{place_uri(place)} holds the storage root {place_uri(inside[0])}"
    return None


def home_of(kind: Kind, place: Place) -> Place:
    """The experiment's location in which a tree of the right form lies; an experiment's own folder."""
    if kind not in FOLDERS:
        return place
    names = place.path.rstrip("/").split("/")
    home = names[: -len(FOLDERS[kind]) - 2]
    return Place(place.scheme, place.authority, "".join(name + "/" for name in home))


def is_configured(place: Place, scope: Scope) -> bool:
    """Whether the operator's configuration says that files of this store lie there."""
    proxy = scope.proxy
    if place.scheme == PROXIED and proxy is not None and place.authority == proxy.authority:
        return True
    return any(contains(root, place) for root in known_roots(scope))


def is_expected(home: Place, site: Site | None, scope: Scope) -> bool:
    """Whether a tree's experiment is there and logs where the tree lies, or the operator says so."""
    return is_configured(home, scope) or (site is not None and home == site.true)


def is_sibling(home: Place, root: Place, experiment_id: str) -> bool:
    """Whether a location is the one that MLflow gives an experiment in the artifact root `root`."""
    if not contains(root, home):
        return False
    names = home.path.removeprefix(root.path).rstrip("/").split("/")
    is_in_workspace = len(names) == 3 and names[0] == "workspaces"
    return names[-1] == experiment_id and (len(names) == 1 or is_in_workspace)


def ids_of(entry: Entry) -> Iterator[str]:
    """The entry's own id, and the names on the way to its tree that may be others'."""
    if entry.kind in FOLDERS:
        yield entry.entity_id
    names = entry.target.place.path.split("/") if entry.target else ()
    for name, following in pairwise(names):
        if following == "artifacts" or len(name) >= ID_LENGTH:
            yield name
