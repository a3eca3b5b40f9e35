"""The sections of the configuration: every key with its type, default and meaning.

It must never read anything: what is here is compared with what others have read.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from datetime import timedelta
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from gcd.config.values import (
    Ages,
    Duration,
    Hosts,
    Listen,
    Mode,
    Patterns,
    Schedule,
    Server,
    States,
    StoreName,
    Uri,
    Uris,
    Url,
    Variables,
    Windows,
    Words,
    Zone,
    problem,
)
from gcd.timetable import EXAMPLE as EXAMPLE_SCHEDULE

STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class Store(BaseModel):
    """An MLflow store: its database, and where its server keeps the artifacts that it proxies."""

    model_config = STRICT

    backend_store_uri: Uri | None = Field(
        default=None,
        repr=False,
        description="Database of the MLflow tracking server, as the server was given it.",
    )
    artifacts_destination: Uri | None = Field(
        default=None,
        repr=False,
        description="Where the tracking server keeps what it proxies: `mlflow-artifacts:` is mapped "
        "onto it. Leave it out for a server that proxies nothing.",
    )
    artifacts_proxy: Server | None = Field(
        default=None,
        description="The tracking server itself, where nothing else reaches what it keeps: it is asked "
        "over HTTP to delete, a last resort, and only where artifacts_destination is not set.",
    )
    registry_store_uri: Uri | None = Field(
        default=None,
        repr=False,
        description="Database of the model registry, where the server has one of its own: what its "
        "versions refer to is kept.",
    )
    environment: Variables | None = Field(
        default=None,
        repr=False,
        description="Variables that the storage of this store's artifacts needs, where those of the "
        'process are not meant for it: texts like "AWS_ACCESS_KEY_ID=${KEY}".',
    )
    mode: Mode | None = Field(default=None, description="As daemon.mode, for this store.")
    schedule: Schedule | None = Field(
        default=None, description="As daemon.schedule, for this store."
    )
    timezone: Zone | None = Field(default=None, description="As daemon.timezone, for this store.")
    jitter: Duration | None = Field(default=None, description="As daemon.jitter, for this store.")
    windows: Windows | None = Field(default=None, description="As daemon.windows, for this store.")
    run_at_start: bool | None = Field(
        default=None, description="As daemon.run_at_start, for this store."
    )

    def over(self, daemon: Daemon) -> Daemon:
        """What the daemon does for this store: its own keys win."""
        own = {name: getattr(self, name) for name in TIMING if getattr(self, name) is not None}
        return daemon.model_copy(update=own)


TIMING = ("mode", "schedule", "timezone", "jitter", "windows", "run_at_start")
"""Keys of [daemon] that a store may have for itself."""


class Retention(BaseModel):
    """What is old enough, and what else may go."""

    model_config = STRICT

    older_than: Duration = Field(
        default=timedelta(days=30),
        description="Collect what was deleted at least this long ago. 0s collects at once, as "
        "`mlflow gc` does by default.",
    )
    runs_of_live_models: Literal["keep", "collect_run", "collect_both"] = Field(
        default="keep",
        description="A deleted run whose metrics belong to a live logged model: keep it; collect it, "
        "and those metrics with it; or collect both, where the run made the model and nothing else "
        "that is live uses it.",
    )
    ages: Ages = Field(
        default=(),
        description='Longer ages for what is in some experiments, each a text like "prod-*: 180d", a '
        "pattern of their names, in any case, and an age. The tag gcd.older_than on an experiment does the same.",
    )
    shortest: Duration | None = Field(
        default=None,
        description="Down to this, an age in ages or in a tag may also be shorter than older_than. Not "
        "set: it never is.",
    )
    exclude: Patterns = Field(
        default=(),
        description="Patterns of the names of experiments, in any case, of which nothing is collected, "
        'as in ["prod-*"].',
    )


class Artifacts(BaseModel):
    """Which artifact trees gcd may delete, and how many at a time."""

    model_config = STRICT

    roots: Uris = Field(
        default=(),
        description="More places below which gcd may delete trees that carry a deleted entity's id, "
        "besides the artifact location of the entity's own experiment.",
    )
    hosts: Hosts = Field(
        default=(),
        description="Hosts of mlflow-artifacts://HOST/ URIs that artifacts_destination, or "
        "artifacts_proxy, serves. URIs without a host always are.",
    )
    ignored_sources: Patterns = Field(
        default=(),
        description="Relative paths, as they are recorded as sources of model versions, that lie in "
        "no artifact tree. Without this such a version keeps every local tree, for the path may "
        "lie in any.",
    )
    absent_roots: Literal["keep", "collect"] = Field(
        default="keep",
        description="Where no file that the database names is found under a storage root: keep the "
        "runs, for it may be an unmounted disk, or collect them, for stores where nobody ever "
        "logged a file.",
    )
    absent_trees: Literal["keep", "collect"] = Field(
        default="keep",
        description="Where the database names files in a tree and none are there: keep the rows "
        "unless other files of the same experiment are in place, for its disk may be unmounted or the "
        "destination wrong, or collect them, for files that you deleted yourself.",
    )
    hands: int = Field(
        default=8, ge=1, le=64, description="How many artifact trees are deleted at a time."
    )
    versions: Literal["current", "all"] = Field(
        default="current",
        description="In buckets that keep old versions: delete the current ones, as MLflow does, and "
        "leave the others to the bucket's own rules, or delete all of them.",
    )
    requests: int = Field(
        default=8,
        ge=1,
        le=64,
        description="How many requests an object store is sent at a time.",
    )
    objects_per_second: int = Field(
        default=0,
        ge=0,
        description="The most objects deleted in a second in one bucket; 0 is no ceiling. Where the "
        "store asks for patience, gcd slows down by itself.",
    )


class Purge(BaseModel):
    """How much one transaction deletes."""

    model_config = STRICT

    batch_runs: int = Field(
        default=500,
        ge=1,
        le=5000,
        description="The most runs, logged models or traces that one batch purges.",
    )
    batch_rows: int = Field(
        default=50_000,
        ge=1000,
        le=1_000_000,
        description="The most rows that one transaction deletes; a run with more is a giant, and is "
        "purged in a way of its own.",
    )
    harmless: Words = Field(
        default=(),
        description="Tables and DELETE triggers that gcd does not know and that are no reason to keep "
        'an entity or to refuse a cycle, as in ["reports.notes", "audit_runs"]. A table must have '
        "ON DELETE CASCADE or SET NULL: the database then deletes its rows, or empties their "
        "pointers. What a newer MLflow brought may be listed too, also as table.column.",
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.batch_runs > self.batch_rows:
            sentence = f"is more than batch_rows = {self.batch_rows}, and each run is a row or more"
            raise problem(sentence, "purge.batch_runs")
        return self


class Quota(BaseModel):
    """How much one cycle collects at most: what was deleted first goes first."""

    model_config = STRICT

    max_entities: int = Field(
        default=0, ge=0, description="Runs, logged models and experiments; 0 is no limit."
    )
    max_bytes: int = Field(
        default=0,
        ge=0,
        description="Bytes of files, measured before the first purge; 0 is no limit.",
    )
    max_duration: Duration = Field(
        default=timedelta(0),
        description="How long a cycle purges; the trees of what it purged are still deleted. 0s is "
        "no limit.",
    )


class Fuse(BaseModel):
    """What is too much to be meant."""

    model_config = STRICT

    max_share: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Refuse a cycle that would collect a larger share of the store's runs, logged "
        "models and experiments than this, exit code 13. 1.0 is no fuse.",
    )


class Gate(BaseModel):
    """When purging stops for a storage root whose files do not go."""

    model_config = STRICT

    max_backlog: int = Field(
        default=1000,
        ge=1,
        description="Purge no more from a storage root where this many trees wait to be deleted.",
    )
    max_failures: int = Field(
        default=3,
        ge=1,
        le=100,
        description="Purge no more from a storage root where this many deletions in a row failed.",
    )


class Journal(BaseModel):
    """What gcd remembers."""

    model_config = STRICT

    keep_history: Duration = Field(
        default=timedelta(days=90),
        description="How long finished journal entries and cycles are kept, for `gcd explain`.",
    )
    export_to: str = Field(
        default="",
        description="A folder that every purged row is written to before it is gone, as compressed "
        "JSON lines, one file a cycle, for its owner alone. Empty: no export.",
    )
    keep_exports: Duration = Field(
        default=timedelta(days=365), description="How long those files are kept."
    )


class Daemon(BaseModel):
    """When `gcd daemon` collects, and how it is watched."""

    model_config = STRICT

    mode: Mode = Field(
        default="observe",
        description='What a cycle does: "observe" plans and reports, "collect" deletes. Read a plan '
        "before you set it.",
    )
    schedule: Schedule = Field(
        default="@daily",
        description=f"When cycles are due: {EXAMPLE_SCHEDULE}. @hourly, @weekly and @monthly are "
        "known too.",
    )
    timezone: Zone = Field(
        default="UTC", description='The zone of schedule and windows, as in "Europe/Berlin".'
    )
    jitter: Duration = Field(
        default=timedelta(minutes=10),
        description="Each cycle starts up to this much later, so that not all stores are collected "
        "at the same moment.",
    )
    windows: Windows = Field(
        default=(),
        description='The only hours in which cycles run, as in ["22:00-06:00"]. One that still runs '
        "when its window closes stops after the batch in hand; what is due outside waits for the next "
        "window.",
    )
    run_at_start: bool = Field(
        default=False, description="Whether a cycle is due whenever the daemon starts."
    )
    jobs: bool = Field(
        default=False, description="Whether finished jobs are collected too, as by `gcd gc --jobs`."
    )
    sweep_delay: Duration = Field(
        default=timedelta(minutes=15),
        description="How long after their rows the files of what was purged go: a database that loses "
        "its last commits in a crash, or is restored from a backup, has them still. Where nothing was "
        "ever deleted below a storage root, 100 entities at most go first, and the others after them.",
    )
    max_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="The daemon's fuse: as fuse.max_share, and the smaller of both holds.",
    )
    shutdown_timeout: Duration = Field(
        default=timedelta(seconds=90),
        description="How long a stop waits for the batches in hand; the journal has the rest.",
    )
    hung_after: Duration = Field(
        default=timedelta(minutes=30),
        description="A cycle that has not moved for this long is hung: the watchdog is fed no more, "
        "and /healthz fails.",
    )
    listen: Listen = Field(
        default="127.0.0.1:9469",
        description='Where /metrics, /healthz and /readyz are served; "" for nowhere.',
    )


class Hooks(BaseModel):
    """Who is told how the daemon's cycles end."""

    model_config = STRICT

    command: Words = Field(
        default=(),
        description='The words of a command to run, as in ["/usr/local/bin/tell", "--team", "ml"]: the '
        "report is on its standard input as JSON, GCD_HOOK_STORE, GCD_HOOK_STATE and GCD_HOOK_CYCLE in "
        "its environment.",
    )
    states: States = Field(
        default=("partial", "failed"),
        description='When the command runs: after cycles that ended "ok", "partial" or "failed".',
    )
    ping_url: Url = Field(
        default="",
        repr=False,
        description="A monitor in the manner of healthchecks: the report is posted there after each "
        "cycle, to /fail below it after one that failed.",
    )
    timeout: Duration = Field(
        default=timedelta(seconds=10), description="How long a hook may take; cycles never wait."
    )


class Log(BaseModel):
    """What is told on stderr, and how."""

    model_config = STRICT

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least important records that are written."
    )
    format: Literal["auto", "text", "json"] = Field(
        default="auto",
        description="Text for people, or one JSON object a line; auto writes text on a terminal and "
        "JSON elsewhere.",
    )


def _distinct(stores: Mapping[str, Store]) -> Mapping[str, Store]:
    seen: dict[str, str] = {}
    for name, store in stores.items():
        uri = store.backend_store_uri
        if uri is not None and seen.setdefault(uri, name) != name:
            sentence = f"is the same database as stores.{seen[uri]}.backend_store_uri"
            raise problem(sentence, f"stores.{name}.backend_store_uri")
    return stores


class Sections(BaseModel):
    """The whole configuration."""

    model_config = STRICT

    stores: Annotated[Mapping[StoreName, Store], AfterValidator(_distinct)] = Field(
        default={}, description="The MLflow stores, each by a name of your choice."
    )
    retention: Retention = Retention()
    artifacts: Artifacts = Artifacts()
    purge: Purge = Purge()
    quota: Quota = Quota()
    fuse: Fuse = Fuse()
    gate: Gate = Gate()
    journal: Journal = Journal()
    daemon: Daemon = Daemon()
    hooks: Hooks = Hooks()
    log: Log = Log()


MODELS: Mapping[str, type[BaseModel]] = {
    "stores": Store,
    "retention": Retention,
    "artifacts": Artifacts,
    "purge": Purge,
    "quota": Quota,
    "fuse": Fuse,
    "gate": Gate,
    "journal": Journal,
    "daemon": Daemon,
    "hooks": Hooks,
    "log": Log,
}
"""The model of each section; that of one store for "stores"."""


def fields_of(section: str) -> Mapping[str, FieldInfo]:
    """The keys of a section, none for what is no section."""
    model = MODELS.get(section)
    return model.model_fields if model else {}


def plain_type(field: FieldInfo) -> Any:
    """What a key takes, without None for "not set" and without what checks it."""
    annotation: Any = field.annotation
    if typing.get_origin(annotation) in (typing.Union, UnionType):
        [annotation] = (each for each in typing.get_args(annotation) if each is not NoneType)
    while typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation
