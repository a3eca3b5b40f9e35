"""The nouns of gcd: frozen dataclasses that its layers hand to one another.

They have no behaviour and know no clock, no database and no store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class Kind(StrEnum):
    """What gcd can collect: what MLflow soft-deletes, and what goes only with its experiment."""

    RUN = "run"
    LOGGED_MODEL = "logged_model"
    EXPERIMENT = "experiment"
    TRACE = "trace"
    """MLflow deletes traces at once; gcd collects those of a collected experiment."""
    JOB = "job"
    """A finished one, only where asked for."""


class KeepReason(StrEnum):
    """Why a candidate stays (design: keep reasons)."""

    TOO_YOUNG = "too_young"
    HELD = "held"
    REGISTERED = "registered"
    SHARED = "shared"
    FEEDS_LIVE_MODEL = "feeds_live_model"
    UNDATED = "undated"
    FROM_THE_FUTURE = "from_the_future"
    STILL_RUNNING = "still_running"
    HAS_LIVE_CHILDREN = "has_live_children"
    IN_USE = "in_use"
    UNSAFE_TARGET = "unsafe_target"
    NO_BACKEND = "no_backend"
    FOREIGN_ROOT = "foreign_root"
    UNREACHABLE = "unreachable"
    ROOT_UNHEALTHY = "root_unhealthy"
    DEFAULT_EXPERIMENT = "default_experiment"
    EXCLUDED = "excluded"
    OVER_QUOTA = "over_quota"
    RESTORED = "restored"
    UNKNOWN_REFERENCE = "unknown_reference"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tree lies: below `authority` of `scheme`, at `path`, raw and ending in "/".

    A local path is absolute and unquoted. An object key is as the store has it: nothing collapsed,
    nothing decoded. Two places are the same tree exactly if they are equal, and one contains the
    other exactly if scheme and authority agree and its path is a prefix.
    """

    scheme: str
    authority: str
    path: str


@dataclass(frozen=True, slots=True)
class Way:
    """The folders from the root of the file system down to a tree, each by its device and inode."""

    nodes: tuple[tuple[int, int], ...]
    is_whole: bool
    """Whether the last is the tree itself: else no more of the way exists."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a deleted experiment, as far as it speaks against collecting it."""

    live_runs: int = 0
    live_model: str | None = None
    """A logged model in it that something live outside uses."""
    guarding: str | None = None
    """A scorer in it that guards a live gateway endpoint."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A logged model whose row is there and that some of a run's metrics belong to."""

    model: str
    experiment: str
    is_deleted: bool
    """Deleted by itself; else it stays, or goes with its experiment."""
    is_in_deleted: bool
    """Its experiment is deleted."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An entity that may be collected.

    `token` is its stage and stamp as the store saw them: a restore or a second deletion changes
    it. `deleted_at` is None where MLflow left no usable stamp; `first_seen_at` is when gcd first
    saw such a one. `uri` is the artifact tree as MLflow recorded it, `location` the artifact
    location of its experiment.
    """

    kind: Kind
    id: str
    experiment_id: str
    token: str
    deleted_at: datetime | None
    uri: str | None
    location: str | None
    first_seen_at: datetime | None = None
    is_running: bool = False
    last_active_at: datetime | None = None
    measures: tuple[Measured, ...] = ()
    """The logged models that this run's metrics belong to."""
    feeds: tuple[str, ...] = ()
    """Those of them that stay."""
    goes_with: tuple[str, ...] = ()
    """The experiments that go, and whose active models this run measured: it goes only with them."""
    is_in_use: bool = False
    """An active logged model that something live uses: no candidate after all."""
    is_in_deleted: bool = False
    """Its experiment is deleted."""
    archive_uri: str | None = None
    """A second tree, where MLflow put a trace's payload when it archived it."""
    experiment: str | None = None
    """The name of its experiment."""
    own_age: str | None = None
    """The tag `gcd.older_than` of its experiment, as it was written."""
    contents: Contents | None = None
    """Of an experiment."""


class Reach(StrEnum):
    """How far a hold on a tree reaches."""

    OVERLAP = "overlap"
    """It keeps every tree that it equals, contains or lies inside."""
    WITHIN = "within"
    """It keeps only trees that it equals or lies inside: the place where a live experiment logs."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Something that keeps an entity (by id), or a tree (by URI), from being collected."""

    reason: KeepReason
    because: str
    """For people: "version 3 of classifier", "tag gcd.hold on the run"."""
    entity_id: str | None = None
    """A run's or a logged model's id, or "experiment/<id>"."""
    uri: str | None = None
    reach: Reach = Reach.OVERLAP
    until: datetime | None = None
    owner: str | None = None
    """The id of the entity that the URI is recorded for: an id in its own URI is no hold on it."""


@dataclass(frozen=True, slots=True)
class Target:
    """One artifact tree to delete: it carries the id of the entity that it belongs to."""

    place: Place
    root: Place
    """The storage root it lies below: what is probed, remembered and never deleted."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a look at a storage root found, without changing it.

    `identity` tells this root from another one mounted in its stead (device and inode, bucket).
    `is_named_found` is True once a tree that the database names was seen there.
    `problem` says why nothing could be deleted there now, None if nothing speaks against it.
    `note` is what people should know of a deletion there: a bucket that keeps old versions.
    """

    is_there: bool
    identity: str | None = None
    is_named_found: bool = False
    problem: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Root:
    """What is known of a storage root: found now, remembered from before, and how sweeps went."""

    place: Place
    probe: Probe
    remembered_identity: str | None = None
    is_accepted: bool = False
    failures: int = 0
    """Sweeps that failed since the last one that succeeded."""
    error: str | None = None
    """Why the last sweep there failed, None once one succeeded."""
    is_proved: bool = False
    """Whether a tree was ever deleted there."""
    backlog: int = 0
    """Journal entries there that are due and not swept."""


class Ownership(StrEnum):
    """Whose a place is, by the mark that counts for it."""

    OURS = "ours"
    """It carries this database's mark, or a person gave it to this database."""
    FREE = "free"
    """It carries no mark: the first collection writes one."""
    UNMARKABLE = "unmarkable"
    """It cannot carry a mark: the database's own identity is all that there is."""
    FOREIGN = "foreign"
    """Another database collects there, or this one is a copy to which the place was not transferred."""
    UNREADABLE = "unreadable"
    """Whether it carries a mark, or whose, cannot be told now."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Whose the files of an experiment's location are, as far as marks and databases tell."""

    place: Place
    """Where this database's mark belongs."""
    owner: Ownership
    detail: str = ""
    """Why nothing may be deleted there, with a hint; why no mark can be written; or empty."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells a database from its copies."""

    id: str | None
    """Random, made by the first collection; None before that, and where it may be another's."""
    name: str
    """For people, in marks too: no user, no password, no host."""
    copied_from: str | None = None
    """The id of the database that this one is a copy of."""
    doubt: str | None = None
    """Why it cannot be told now whether this is a copy."""


class EntryState(StrEnum):
    """Where a journal entry stands."""

    PENDING = "pending"
    """Purged, to be swept; deferred, if it was tried before."""
    DONE = "done"
    STUCK = "stuck"
    PARKED = "parked"


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the journal: an entity whose rows are purged, and the tree to sweep for it."""

    id: int
    cycle: int
    kind: Kind
    entity_id: str
    experiment_id: str
    target: Target | None
    state: EntryState
    attempts: int
    purged_at: datetime
    due_at: datetime
    has_rows_left: bool = False
    is_second_look: bool = False
    error: str | None = None
    swept_at: datetime | None = None
    flaw: str | None = None
    """Why its row cannot be read: gcd did not write it. It has no target then."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tree holds, or what its deletion freed."""

    objects: int = 0
    bytes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.objects + other.objects, self.bytes + other.bytes)


class Result(StrEnum):
    """How the sweep of one entry went."""

    SWEPT = "swept"
    DEFERRED = "deferred"
    LOCKED = "locked"
    STUCK = "stuck"
    PARKED = "parked"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one sweep, for the journal to settle."""

    entry: Entry
    result: Result
    usage: Usage = Usage()
    error: str | None = None
    until: datetime | None = None
    changed_at: datetime | None = None
    """The newest change seen in the tree, where the store tells."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one cycle did."""

    cycle: int
    started_at: datetime
    ended_at: datetime
    state: str
    """done, partial, interrupted or failed."""
    candidates: int = 0
    purged: Mapping[Kind, int] = field(default_factory=dict)
    rows: int = 0
    results: Mapping[Result, int] = field(default_factory=dict)
    usage: Usage = Usage()
    kept: Mapping[KeepReason, int] = field(default_factory=dict)
    already_empty: int = 0
    """Entities that were purged whose files were gone although the database names some."""
    stuck: int = 0
    """Entries, of whatever cycle, that wait for a person."""
    error: str | None = None
    notes: tuple[str, ...] = ()
    """What people should know of the storage roots that it deleted from."""
