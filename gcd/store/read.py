"""Every SELECT for candidates: soft-deleted entities page by page, with what judging them needs.

It must never write, and never load an entity's children.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from gcd.durations import from_millis
from gcd.model import Candidate, Kind
from gcd.planning.guard import in_workspace
from gcd.store import tables, uses
from gcd.store.catalogue import ForeignKey
from gcd.store.exact import Exact
from gcd.store.references import ENTITY_TABLES, FINISHED_JOBS, OWNERS
from gcd.store.schema import DELETED, Schema, is_deleted, is_live, workspace_of
from gcd.store.tag_holds import AGE_TAG

FIRST_RELEASE = datetime(2018, 6, 1, tzinfo=UTC)
"""MLflow did not exist before: an older stamp is junk (0, or seconds instead of milliseconds)."""

NOW = {
    "sqlite": "SELECT CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)",
    "postgresql": "SELECT CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS bigint)",
    "mysql": "SELECT CAST(unix_timestamp(sysdate(3)) * 1000 AS SIGNED)",
    "mssql": "SELECT DATEDIFF_BIG(ms, '1970-01-01', SYSUTCDATETIME())",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which candidates of a kind: all, or those that fulfil every condition that is given."""

    ids: tuple[str, ...] | None = None
    workspaces: tuple[str, ...] | None = None
    experiments: tuple[str, ...] | None = None
    """Only what is in these experiments."""
    in_live_experiments: bool = False
    """Only what is in no deleted experiment: the rest goes together with that."""
    is_member: bool = False
    """Everything in the experiments, whatever its stage: it goes with them."""
    with_source_run: bool = False
    """Active logged models made by a deleted run too."""


def now_ms(conn: Connection) -> int:
    """The database's time in milliseconds since 1970."""
    dialect = "mysql" if conn.dialect.name == "mariadb" else conn.dialect.name
    return int(conn.exec_driver_sql(NOW[dialect]).scalar_one())


def native(kind: Kind, ids: Sequence[str]) -> list[Any]:
    """Ids as the key column holds them: an experiment's is a number."""
    return [int(each) for each in ids] if kind is Kind.EXPERIMENT else list(ids)


def token(stage: str | None, stamp: int | None) -> str:
    """Stage and stamp as one text: a restore or a second deletion changes it."""
    return f"{stage}@{stamp}"


def usable(stamp: int | str | bytes | None) -> datetime | None:
    """The time of a stamp, None where MLflow left none that can be true.

    SQLite keeps any text in a column of numbers, if an import put it there.
    """
    found = None if stamp is None or isinstance(stamp, str | bytes) else from_millis(int(stamp))
    return found if found is not None and found >= FIRST_RELEASE else None


# -- pages ---------------------------------------------------------------------------------------


def page(
    conn: Connection,
    schema: Schema,
    kind: Kind,
    wanted: Wanted,
    *,
    after: str | None = None,
    limit: int = 1000,
) -> list[Candidate]:
    """The next page of candidates of a kind by id, with what judging them needs."""
    if not schema.has_kind(kind):
        return []
    query = sa.select(*columns(schema, kind)).select_from(joined(schema, kind))
    key = schema.key(kind)
    query = query.where(*conditions(schema, kind, wanted)).order_by(key)
    if wanted.ids is not None:
        query = query.where(key.in_(native(kind, wanted.ids)))
    if after is not None:
        query = query.where(key > native(kind, [after])[0])
    rows = conn.execute(query.limit(limit)).all()
    candidates = [candidate(kind, row, is_member=wanted.is_member) for row in rows]
    found = with_own_age(conn, schema, candidates)
    if kind is Kind.RUN:
        return with_activity(conn, schema, found, rows)
    if kind is Kind.LOGGED_MODEL and not wanted.is_member:
        return with_use(conn, schema, found)
    return with_archive(conn, schema, found, rows) if kind is Kind.TRACE else found


def with_use(conn: Connection, schema: Schema, found: Sequence[Candidate]) -> list[Candidate]:
    """Logged models with whether they are active and something live uses them."""
    active = [each.id for each in found if not each.token.startswith(f"{DELETED}@")]
    used = uses.in_use(conn, schema, active)
    return [replace(each, is_in_use=each.id in used) for each in found]


def columns(schema: Schema, kind: Kind) -> list[sa.ColumnElement[Any]]:
    """What a candidate is made of; a column that this revision lacks reads as NULL."""
    table, experiments = schema.table(ENTITY_TABLES[kind]), schema.table("experiments")
    uri = {
        Kind.RUN: "artifact_uri",
        Kind.LOGGED_MODEL: "artifact_location",
    }.get(kind, "")
    has_stage = "lifecycle_stage" in table.c
    run = schema.table("runs") if kind is Kind.RUN else None
    return [
        schema.key(kind).label("id"),
        table.c.experiment_id.label("experiment_id"),
        (table.c.lifecycle_stage if has_stage else sa.null()).label("stage"),
        schema.stamp(kind).label("stamp"),
        (table.c[uri] if uri else sa.null()).label("uri"),
        (run.c.status if run is not None else sa.null()).label("status"),
        (run.c.start_time if run is not None else sa.null()).label("start_time"),
        made_by(schema, kind).label("source_deleted_ms"),
        experiments.c.artifact_location.label("location"),
        experiments.c.name.label("experiment"),
        experiments.c.lifecycle_stage.label("around"),
        workspace_of(schema).label("workspace"),
    ]


def made_by(schema: Schema, kind: Kind) -> sa.ColumnElement[Any]:
    """When the run that made a logged model was deleted."""
    if kind is not Kind.LOGGED_MODEL or not schema.has("logged_models", "source_run_id"):
        return sa.null()
    runs, models = schema.table("runs"), schema.table("logged_models")
    return (
        sa.select(schema.stamp(Kind.RUN))
        .select_from(runs)
        .where(runs.c.run_uuid == models.c.source_run_id, is_deleted(runs))
        .scalar_subquery()
    )


def joined(schema: Schema, kind: Kind) -> sa.FromClause:
    """The kind's table with its experiment."""
    experiments = schema.table("experiments")
    if kind is Kind.EXPERIMENT:
        return experiments
    table = schema.table(ENTITY_TABLES[kind])
    return table.outerjoin(experiments, experiments.c.experiment_id == table.c.experiment_id)


def conditions(schema: Schema, kind: Kind, wanted: Wanted) -> list[sa.ColumnElement[bool]]:
    """What makes a row a candidate."""
    table, experiments = schema.table(ENTITY_TABLES[kind]), schema.table("experiments")
    found: list[sa.ColumnElement[bool]] = []
    if not wanted.is_member:
        found.append(is_going(schema, kind, wanted))
    if wanted.workspaces is not None and schema.has("experiments", "workspace"):
        found.append(Exact(experiments.c.workspace).in_(wanted.workspaces))
    if wanted.experiments is not None:
        numbers = native(Kind.EXPERIMENT, wanted.experiments)
        found.append(table.c.experiment_id.in_(numbers))
    if wanted.in_live_experiments:
        found.append(is_live(experiments))
    return found


def is_going(schema: Schema, kind: Kind, wanted: Wanted) -> sa.ColumnElement[bool]:
    """In the deleted stage; with `with_source_run`, or made by a run that is."""
    table = schema.table(ENTITY_TABLES[kind])
    if kind is not Kind.LOGGED_MODEL or not wanted.with_source_run:
        return is_deleted(table)
    return sa.or_(is_deleted(table), made_by(schema, kind).is_not(None))


def candidate(kind: Kind, row: Row[*tuple[Any, ...]], *, is_member: bool) -> Candidate:
    """A row as a candidate; an active logged model ages with the run that made it."""
    stamp = row.stamp if is_member or row.stage == DELETED else row.source_deleted_ms
    return Candidate(
        kind=kind,
        id=str(row.id),
        experiment_id=str(row.experiment_id),
        token=token(row.stage, row.stamp),
        deleted_at=usable(stamp),
        uri=row.uri and in_workspace(row.uri, row.workspace),
        location=row.location and in_workspace(row.location, row.workspace),
        experiment=row.experiment,
        is_running=row.status in ("RUNNING", "SCHEDULED"),
        is_in_deleted=row.around == DELETED,
    )


# -- what judging needs --------------------------------------------------------------------------


def with_own_age(conn: Connection, schema: Schema, found: Sequence[Candidate]) -> list[Candidate]:
    """Candidates with what their experiments' tags say of their age."""
    if not found or not schema.has("experiment_tags", "key", "value"):
        return list(found)
    tags = schema.table("experiment_tags")
    numbers = {int(each.experiment_id) for each in found if each.experiment_id.isdigit()}
    query = sa.select(tags.c.experiment_id, tags.c.key, tags.c.value).where(
        tags.c.key == AGE_TAG, tags.c.experiment_id.in_(numbers)
    )
    rows = conn.execute(query)  # MariaDB finds other cases of the key too
    ages = {str(experiment): value or "" for experiment, key, value in rows if key == AGE_TAG}
    if not ages:
        return list(found)
    return [replace(each, own_age=ages.get(each.experiment_id)) for each in found]


def with_activity(
    conn: Connection,
    schema: Schema,
    found: Sequence[Candidate],
    rows: Sequence[Row[*tuple[Any, ...]]],
) -> list[Candidate]:
    """Runs with when they were last active, and the logged models that they measured."""
    running = [each.id for each in found if each.is_running]
    activity = last_metrics(conn, schema, running)
    measured = uses.measured_models(conn, schema, [each.id for each in found])
    result = []
    for each, row in zip(found, rows, strict=True):
        times = [t for t in (row.start_time, activity.get(each.id)) if isinstance(t, int)]
        active_at = from_millis(max(times)) if times else None
        measures = measured.get(each.id, ())
        result.append(replace(each, last_active_at=active_at, measures=measures))
    return result


def last_metrics(conn: Connection, schema: Schema, ids: Sequence[str]) -> dict[str, int]:
    """The newest time stamp among the latest metrics of each run that has some."""
    if not ids or not schema.has("latest_metrics", "timestamp"):
        return {}
    latest = schema.table("latest_metrics")
    query = (
        sa.select(latest.c.run_uuid, sa.func.max(latest.c.timestamp))
        .where(latest.c.run_uuid.in_(ids), latest.c.timestamp.is_not(None))
        .group_by(latest.c.run_uuid)
    )
    return {run: int(stamp) for run, stamp in conn.execute(query) if not isinstance(stamp, str)}


def with_archive(
    conn: Connection,
    schema: Schema,
    found: Sequence[Candidate],
    rows: Sequence[Row[*tuple[Any, ...]]],
) -> list[Candidate]:
    """Traces with the places of their files, which are in their tags."""
    if not found or not schema.has("trace_tags", "request_id", "key", "value"):
        return list(found)
    tags = schema.table("trace_tags")
    query = sa.select(tags.c.request_id, tags.c.key, tags.c.value).where(
        tags.c.request_id.in_([each.id for each in found]), tags.c.key.in_(TRACE_PLACES)
    )
    workspaces = {str(row.id): row.workspace for row in rows}
    places = {(trace, key): value for trace, key, value in conn.execute(query)}
    found_at: list[Candidate] = []
    for each in found:
        uri = places.get((each.id, TRACE_PLACES[0]))
        uri = uri and in_workspace(uri, workspaces.get(each.id))
        # An archive is written by the server itself, which asks nobody for a workspace.
        found_at.append(replace(each, uri=uri, archive_uri=places.get((each.id, TRACE_PLACES[1]))))
    return found_at


TRACE_PLACES = ("mlflow.artifactLocation", "mlflow.trace.archiveLocation")


# -- single facts --------------------------------------------------------------------------------


def unknown_references(
    conn: Connection,
    schema: Schema,
    kind: Kind,
    ids: Sequence[str],
    *,
    also: Sequence[ForeignKey] = (),
) -> dict[str, str]:
    """Entity to the name of a table that refers to it: one that gcd does not know, or of `also`."""
    found: dict[str, str] = {}
    table = ENTITY_TABLES[kind]
    for key in (*schema.strangers, *also):
        if key.to_table == table and ids:
            rows = conn.execute(naming(key, OWNERS[table], native(kind, ids)))
            found.update({str(entity): key.name for entity in rows.scalars()})
    return found


def naming(key: ForeignKey, column: str, ids: Sequence[Any]) -> sa.Select[*tuple[Any]]:
    """The ids of those that a foreign key's rows refer to, by whichever columns."""
    rows = sa.table(key.table, *map(sa.column, key.columns), schema=key.schema).alias()
    owners = sa.table(key.to_table, *map(sa.column, {column, *key.to_columns})).alias()
    pairs = zip(key.columns, key.to_columns, strict=True)
    refers = sa.and_(*(rows.c[mine] == owners.c[theirs] for mine, theirs in pairs))
    ident = owners.c[column]
    return sa.select(ident).join(rows, refers).where(ident.in_(ids)).distinct()


def stages(
    conn: Connection, schema: Schema, kind: Kind, ids: Sequence[str]
) -> dict[str, str | None]:
    """The stage of each of the entities that exist; None where they have none."""
    if not ids or not schema.has_kind(kind):
        return {}
    table = schema.table(ENTITY_TABLES[kind])
    stage = table.c.lifecycle_stage if "lifecycle_stage" in table.c else sa.null()
    query = sa.select(schema.key(kind), stage).where(schema.key(kind).in_(native(kind, ids)))
    return {str(entity): found for entity, found in conn.execute(query)}


def first_seen(conn: Connection, kind: Kind, ids: Sequence[str]) -> dict[str, datetime]:
    """When gcd first saw each of these entities without a stamp."""
    seen = tables.seen
    query = sa.select(seen.c.entity_id, seen.c.first_seen_ms).where(
        seen.c.kind == kind.value, seen.c.entity_id.in_(ids)
    )
    found = {entity: from_millis(ms) for entity, ms in conn.execute(query)}
    return {entity: at for entity, at in found.items() if at is not None}


def finished_jobs(
    conn: Connection,
    schema: Schema,
    *,
    ids: Sequence[str] | None,
    workspaces: Sequence[str] | None,
    before_ms: int,
    after: str = "",
    limit: int = 1000,
) -> list[Candidate]:
    """The next page of finished jobs made before a time, as `mlflow gc --jobs` has them."""
    if not schema.has("jobs", "id", "status", "creation_time"):
        return []
    jobs = schema.table("jobs")
    query = sa.select(jobs.c.id, jobs.c.status, jobs.c.creation_time).where(
        jobs.c.status.in_(FINISHED_JOBS), jobs.c.creation_time <= before_ms, jobs.c.id > after
    )
    if ids is not None:
        query = query.where(jobs.c.id.in_(ids), Exact(jobs.c.id).in_(ids))
    if workspaces is not None and schema.has("jobs", "workspace"):
        query = query.where(Exact(jobs.c.workspace).in_(workspaces))
    rows = conn.execute(query.order_by(jobs.c.id).limit(limit))
    return [
        Candidate(Kind.JOB, job, "", token(str(status), None), usable(made), None, None)
        for job, status, made in rows
    ]


def some_trees(schema: Schema, prefix: str, limit: int) -> Iterator[sa.Select[*tuple[Any, ...]]]:
    """A query per table that names artifact URIs below a URI, for as many as are worth looking for."""
    escaped = prefix.replace("!", "!!").replace("%", "!%").replace("_", "!_")

    def below(
        uri: sa.ColumnElement[Any], *where: sa.ColumnElement[bool]
    ) -> sa.Select[*tuple[Any, ...]]:
        named = uri.like(escaped + "/%", escape="!")
        return sa.select(uri).where(named, *where).limit(limit)

    yield below(schema.table("runs").c.artifact_uri)
    if schema.has("logged_models", "artifact_location"):
        yield below(schema.table("logged_models").c.artifact_location)
    if schema.has("trace_tags", "key", "value"):
        tags = schema.table("trace_tags").c
        yield below(tags.value, tags.key.in_(TRACE_PLACES))
