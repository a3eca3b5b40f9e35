"""Whether a tree that is missing, or holds nothing, may be taken for one whose files are gone.

Absent is not empty: a disk that is not mounted, and a destination that is the wrong one, look like
trees without files. Rows that say that a tree had files (witnesses) tell them apart.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from gcd.errors import FuseBlown
from gcd.model import KeepReason, Place, Target
from gcd.planning.guard import FOLDERS_AT, place_uri
from gcd.planning.plan import Decision
from gcd.planning.policy import Keep

FEWEST = 10
"""Trees with a witness below which their emptiness says nothing of the destination."""
SAMPLES = 3
DELETED_THEM = "if you deleted the files yourself, --absent-trees collect"


class Witness(NamedTuple):
    """What says in the database that an entity has files."""

    says: str
    is_of_archive: bool = False
    """Whether they are in its archive instead of in its own tree."""
    is_certain: bool = True
    """False: they may have been uploaded, and may not."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was found of one tree."""

    target: Target
    home: Place
    """What has to be proved: the location of the tree's experiment, else its storage root."""
    witness: str | None = None
    """What says in the database that there were files in it."""
    has_files: bool | None = None
    """None: it was not looked for any, since no witness says that there are some."""
    is_home_proved: bool = False
    """Whether another tree that the database names is below the home, with files in it."""
    hollow: Place | None = None
    """An empty folder, in which gcd never saw anything, where the way to the tree ends."""
    elsewhere: Place | None = None
    """Another place that MLflow may have used for the tree, with files in it."""

    @property
    def is_missed(self) -> bool:
        """Whether the database names files in it and there are none."""
        return self.witness is not None and self.has_files is False


def judge_look(look: Look, *, collect_absent: bool) -> Keep | None:
    """Why the rows stay that name the tree, None where they may go."""
    if collect_absent or look.has_files:
        return None
    uri = place_uri(look.target.place)
    if look.elsewhere is not None:
        detail = f"its files are in {place_uri(look.elsewhere)}, not in {uri} where the database has them"
        return Keep(KeepReason.UNREACHABLE, f"{detail}: move them there; or {DELETED_THEM}")
    if look.hollow is not None:
        return Keep(KeepReason.UNREACHABLE, about_hollow(place_uri(look.hollow)))
    if look.is_missed and not look.is_home_proved:
        return Keep(KeepReason.UNREACHABLE, about_missed(look, uri))
    return None


def about_hollow(folder: str) -> str:
    """What to do about an empty folder that may be a mount point."""
    return (
        f"{folder} is an empty folder, and MLflow makes none: mount its disk; or remove the folder "
        f"if no disk belongs there; or `gcd doctor --accept-root {folder}` trusts it; or {DELETED_THEM}"
    )


def about_missed(look: Look, uri: str) -> str:
    """What to do about a missing tree at a location where nothing else is."""
    home = place_uri(look.home)
    mend = "mount its disk" if look.home.scheme in FOLDERS_AT else "correct the destination"
    return (
        f"the database names files in {uri} ({look.witness}); none are there, nor in any other tree "
        f"below {home}: {mend}; or `gcd doctor --accept-root {home}` trusts it; or {DELETED_THEM}"
    )


@dataclass(slots=True)
class Share:
    """How many of the trees that have a witness are empty, by storage root."""

    _all: Counter[Place] = field(default_factory=Counter)
    _empty: dict[Place, list[Target]] = field(default_factory=lambda: defaultdict(list))

    def add(self, decision: Decision) -> None:
        """Count an entity that would be collected."""
        if decision.witness is not None and decision.targets:
            root = decision.targets[0].root
            self._all[root] += 1
            self._empty[root] += decision.empty[:1]

    def check(self) -> None:
        """Raise FuseBlown where more than half of enough such trees are empty: below a root, or in all."""
        for root, empty in self._empty.items():
            refuse_most({root: empty}, self._all[root])
        refuse_most(self._empty, self._all.total())


def refuse_most(empty: Mapping[Place, list[Target]], of: int) -> None:
    """Raise FuseBlown where more than half of the trees are empty; below FEWEST trees say nothing."""
    found = [target for each in empty.values() for target in each]
    if of < FEWEST or len(found) * 2 <= of:
        return
    roots = ", ".join(place_uri(root) for root, each in empty.items() if each)
    samples = ", ".join(place_uri(target.place) for target in found[:SAMPLES])
    raise FuseBlown(
        f"{len(found):,} of {of:,} trees in which the database names files are empty or missing below {roots}: "
        f"this is probably the wrong destination or disk (for example {samples})",
        hint=f"correct the destination, or mount the right disk; {DELETED_THEM}",
    )
