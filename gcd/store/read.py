"""Every SELECT on MLflow's tables: candidates page by page, holds in one stream, ids by batch.

It must never write, and never load an entity's children.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from gcd.durations import from_millis
from gcd.model import Candidate, Hold, KeepReason, Kind, Reach
from gcd.store import tables
from gcd.store.schema import Schema

FIRST_RELEASE = datetime(2018, 6, 1, tzinfo=UTC)
"""MLflow did not exist before: an older stamp is junk (0, or seconds instead of milliseconds)."""

DELETED = "deleted"
STREAM = 2000
HOLD_TAG, HOLD_UNTIL_TAG = "gcd.hold", "gcd.hold_until"
NOW = {
    "sqlite": "SELECT CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)",
    "postgresql": "SELECT CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS bigint)",
    "mysql": "SELECT CAST(unix_timestamp(sysdate(3)) * 1000 AS SIGNED)",
    "mssql": "SELECT DATEDIFF_BIG(ms, '1970-01-01', SYSUTCDATETIME())",
}


def now_ms(conn: Connection) -> int:
    """The database's time in milliseconds since 1970."""
    dialect = "mysql" if conn.dialect.name == "mariadb" else conn.dialect.name
    return int(conn.exec_driver_sql(NOW[dialect]).scalar_one())


# -- candidates ----------------------------------------------------------------------------------


def run_columns(schema: Schema) -> list[sa.ColumnElement[Any]]:
    """What a candidate is made of; a column that this revision lacks reads as NULL."""
    runs = schema.table("runs")
    stamp = runs.c.deleted_time if schema.has("runs", "deleted_time") else sa.null()
    return [
        runs.c.run_uuid,
        runs.c.experiment_id,
        runs.c.lifecycle_stage,
        stamp.label("stamp"),
        runs.c.artifact_uri,
        runs.c.status,
        runs.c.start_time,
    ]


def deleted_runs(
    conn: Connection,
    schema: Schema,
    *,
    after: str = "",
    limit: int = 1000,
    ids: Sequence[str] | None = None,
) -> list[Candidate]:
    """The next page of soft-deleted runs by id, or those of `ids`, with what judging needs."""
    runs, experiments = schema.table("runs"), schema.table("experiments")
    query = (
        sa.select(*run_columns(schema), experiments.c.artifact_location)
        .select_from(
            runs.outerjoin(experiments, experiments.c.experiment_id == runs.c.experiment_id)
        )
        .where(runs.c.lifecycle_stage == DELETED)
        .order_by(runs.c.run_uuid)
    )
    if ids is None:
        query = query.where(runs.c.run_uuid > after).limit(limit)
    else:
        query = query.where(runs.c.run_uuid.in_(ids))
    rows = conn.execute(query).all()
    found = [row.run_uuid for row in rows]
    running = [row.run_uuid for row in rows if row.status in ("RUNNING", "SCHEDULED")]
    activity = last_metrics(conn, schema, running)
    feeding = live_models_fed(conn, schema, found)
    return [candidate(row, activity, feeding) for row in rows]


def candidate(
    row: Row[*tuple[Any, ...]], activity: Mapping[str, int], feeding: Mapping[str, str]
) -> Candidate:
    """A row of `runs` as a candidate."""
    times = [t for t in (row.start_time, activity.get(row.run_uuid)) if t is not None]
    return Candidate(
        kind=Kind.RUN,
        id=row.run_uuid,
        experiment_id=str(row.experiment_id),
        token=token(row.lifecycle_stage, row.stamp),
        deleted_at=usable(row.stamp),
        uri=row.artifact_uri,
        location=row.artifact_location,
        is_running=row.status in ("RUNNING", "SCHEDULED"),
        last_active_at=from_millis(max(times)) if times else None,
        feeds=feeding.get(row.run_uuid),
    )


def token(stage: str | None, stamp: int | None) -> str:
    """Stage and stamp as one text: a restore or a second deletion changes it."""
    return f"{stage}@{stamp}"


def usable(stamp: int | None) -> datetime | None:
    """The time of a stamp, None where MLflow left none that can be true."""
    found = None if stamp is None else from_millis(int(stamp))
    return found if found is not None and found >= FIRST_RELEASE else None


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
    return {run: int(stamp) for run, stamp in conn.execute(query)}


def live_models_fed(conn: Connection, schema: Schema, ids: Sequence[str]) -> dict[str, str]:
    """Run to a live logged model that its metrics belong to (design: live).

    A model in stage active is live if its experiment is, or if a live run or a model version uses it.
    """
    if not ids or not schema.has("logged_model_metrics", "run_id", "model_id"):
        return {}
    metrics, models = schema.table("logged_model_metrics"), schema.table("logged_models")
    experiments = schema.table("experiments")
    query = (
        sa.select(metrics.c.run_id, models.c.model_id, experiments.c.lifecycle_stage)
        .select_from(
            metrics.join(models, models.c.model_id == metrics.c.model_id).outerjoin(
                experiments, experiments.c.experiment_id == models.c.experiment_id
            )
        )
        .where(metrics.c.run_id.in_(ids), is_live(models))
        .distinct()
    )
    rows = conn.execute(query).all()
    in_deleted = [model for _, model, stage in rows if stage == DELETED]
    used = models_in_use(conn, schema, in_deleted)
    return {run: model for run, model, stage in rows if stage != DELETED or model in used}


def is_live(table: sa.TableClause) -> sa.ColumnElement[bool]:
    """Not in the deleted stage; NULL is not deleted."""
    return sa.or_(table.c.lifecycle_stage.is_(None), table.c.lifecycle_stage != DELETED)


def models_in_use(conn: Connection, schema: Schema, ids: Sequence[str]) -> set[str]:
    """Those of the logged models that a live run takes or makes, or a model version names."""
    if not ids:
        return set()
    used: set[str] = set()
    if schema.has("inputs", "destination_id"):
        inputs, runs = schema.table("inputs"), schema.table("runs")
        query = (
            sa.select(inputs.c.destination_id)
            .join(runs, runs.c.run_uuid == inputs.c.source_id)
            .where(
                inputs.c.destination_type.in_(("MODEL_INPUT", "MODEL_OUTPUT")),
                inputs.c.destination_id.in_(ids),
                is_live(runs),
            )
        )
        used.update(conn.execute(query).scalars())
    wanted = set(ids)
    for hold in version_holds(conn, schema):
        used.update(wanted.intersection(re.split(r"[/:@]", hold.uri or "")))
    return used


def unknown_references(conn: Connection, schema: Schema, ids: Sequence[str]) -> dict[str, str]:
    """Run to the name of a table that gcd does not know and that refers to it."""
    found: dict[str, str] = {}
    for key in schema.strangers:
        stranger = sa.table(key.table, sa.column(key.column), schema=key.schema)
        column = stranger.c[key.column]
        for run in conn.execute(sa.select(column).where(column.in_(ids)).distinct()).scalars():
            found[run] = ".".join(filter(None, (key.schema, key.table)))
    return found


def run_stages(conn: Connection, schema: Schema, ids: Sequence[str]) -> dict[str, str | None]:
    """The stage of each of the runs that exist."""
    runs = schema.table("runs")
    query = sa.select(runs.c.run_uuid, runs.c.lifecycle_stage).where(runs.c.run_uuid.in_(ids))
    return {run: stage for run, stage in conn.execute(query)}


def first_seen(conn: Connection, ids: Sequence[str]) -> dict[str, datetime]:
    """When gcd first saw each of these runs without a stamp."""
    seen = tables.seen
    query = sa.select(seen.c.entity_id, seen.c.first_seen_ms).where(
        seen.c.kind == Kind.RUN.value, seen.c.entity_id.in_(ids)
    )
    found = {run: from_millis(ms) for run, ms in conn.execute(query)}
    return {run: at for run, at in found.items() if at is not None}


# -- holds ---------------------------------------------------------------------------------------


def all_holds(conn: Connection, schema: Schema, *, has_own_tables: bool) -> Iterator[Hold]:
    """Everything that may keep a run or a tree, in one stream."""
    yield from version_holds(conn, schema)
    yield from tag_holds(conn, schema)
    if has_own_tables:
        yield from operator_holds(conn)
    yield from experiment_places(conn, schema)
    yield from odd_trees(conn, schema)


def stream(conn: Connection, query: sa.Select[*tuple[Any, ...]]) -> Iterator[Row[*tuple[Any, ...]]]:
    """Rows as they come from the server, never all of them in memory."""
    options = {"yield_per": STREAM}
    with conn.execute(query, execution_options=options) as result:
        yield from result


def version_holds(conn: Connection, schema: Schema) -> Iterator[Hold]:
    """What the model versions of this database refer to; `Deleted_Internal` ones hold nothing."""
    if not schema.has("model_versions", "source", "run_id", "current_stage"):
        return
    versions = schema.table("model_versions")
    has_place = schema.has("model_versions", "storage_location")
    place = versions.c.storage_location if has_place else sa.null()
    query = sa.select(
        versions.c.name, versions.c.version, versions.c.run_id, versions.c.source, place
    ).where(
        sa.or_(versions.c.current_stage.is_(None), versions.c.current_stage != "Deleted_Internal")
    )
    for name, version, run, *uris in stream(conn, query):
        because = f"version {version} of {name}"
        if run:
            yield Hold(KeepReason.REGISTERED, because, entity_id=run)
        for uri in filter(None, uris):
            yield Hold(KeepReason.REGISTERED, because, uri=uri)


def tag_holds(conn: Connection, schema: Schema, ids: Sequence[str] | None = None) -> Iterator[Hold]:
    """Runs and experiments tagged `gcd.hold` (any value) or `gcd.hold_until` (a time).

    A value that is no time holds for good: in doubt the entity is kept.
    """
    sources = [("tags", "run_uuid", "run"), ("experiment_tags", "experiment_id", "experiment")]
    for name, column, what in sources:
        if not schema.has(name, column, "key", "value"):
            continue
        tags = schema.table(name)
        query = sa.select(tags.c[column], tags.c.key, tags.c.value).where(
            tags.c.key.in_((HOLD_TAG, HOLD_UNTIL_TAG))
        )
        if ids is not None and what == "run":
            query = query.where(tags.c[column].in_(ids))
        for entity, key, value in stream(conn, query):
            yield Hold(
                KeepReason.HELD,
                f"tag {key} on the {what}" + (f": {value}" if value else ""),
                entity_id=entity_key(what, entity),
                until=parse_until(value) if key == HOLD_UNTIL_TAG else None,
            )


def entity_key(kind: str, entity: object) -> str:
    """How a hold names an entity: a run by its id, an experiment by "experiment/<id>"."""
    return f"experiment/{entity}" if kind == "experiment" else str(entity)


def parse_until(text: str | None) -> datetime | None:
    """The time of a `gcd.hold_until` tag (ISO 8601, UTC where it names no zone), None if unreadable.

    A date alone holds to the end of that day.
    """
    try:
        found = datetime.fromisoformat((text or "").strip())
    except ValueError:
        return None
    if re.fullmatch(r"\s*[\d-]+\s*", text or ""):
        found += timedelta(days=1)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def operator_holds(conn: Connection, ids: Sequence[str] | None = None) -> Iterator[Hold]:
    """What operators hold by hand, in gcd's own table."""
    query = sa.select(tables.hold)
    if ids is not None:
        wanted = sa.and_(tables.hold.c.kind == "run", tables.hold.c.entity_id.in_(ids))
        query = query.where(sa.or_(tables.hold.c.kind != "run", wanted))
    for row in conn.execute(query):
        yield Hold(
            KeepReason.HELD,
            f"held by {row.placed_by or 'an operator'}" + (f": {row.reason}" if row.reason else ""),
            entity_id=entity_key(row.kind, row.entity_id),
            until=None if row.until_ms is None else from_millis(row.until_ms),
        )


def experiment_places(conn: Connection, schema: Schema) -> Iterator[Hold]:
    """Where each experiment logs: no target may equal or contain that place, deleted or not."""
    experiments = schema.table("experiments")
    query = sa.select(experiments.c.experiment_id, experiments.c.artifact_location).where(
        experiments.c.artifact_location.is_not(None)
    )
    for experiment, uri in stream(conn, query):
        because = f"experiment {experiment} logs there"
        yield Hold(KeepReason.SHARED, because, uri=uri, reach=Reach.WITHIN)


def odd_trees(conn: Connection, schema: Schema) -> Iterator[Hold]:
    """Trees of runs, logged models and traces that are not at their canonical place.

    Whatever their stage: what is only soft-deleted can be restored. A tree at another place that
    still ends in its own id can only overlap a target if the target contains that place, or lies
    in the tree by an experiment's location, which is looked at per location; so those are told
    once per place instead of once per tree.
    """
    for what, query, names in tree_queries(schema):
        places: set[str] = set()
        for entity, uri in stream(conn, query):
            suffix = "/".join(("", *names, str(entity), "artifacts"))
            if not uri.rstrip("/").endswith(suffix):
                yield Hold(KeepReason.SHARED, f"{what} {entity} has its files there", uri=uri)
                continue
            place = uri.rstrip("/")[: -len(suffix)]
            if place not in places:
                places.add(place)
                because = f"{what}s have their files there"
                yield Hold(KeepReason.SHARED, because, uri=place or "/", reach=Reach.WITHIN)


def tree_queries(
    schema: Schema,
) -> Iterator[tuple[str, sa.Select[*tuple[Any, ...]], tuple[str, ...]]]:
    """(what, query of id and URI, folder names before the id) per table that records trees."""
    experiments = schema.table("experiments")

    def odd(
        owner: sa.FromClause,
        experiment: sa.ColumnElement[Any],
        entity: sa.ColumnElement[Any],
        uri: sa.ColumnElement[Any],
        folder: str,
    ) -> sa.Select[*tuple[Any, ...]]:
        home = experiments.c.artifact_location
        place = home + sa.literal(f"/{folder}") + entity + sa.literal("/artifacts")
        return (
            sa.select(entity, uri)
            .select_from(owner.outerjoin(experiments, experiments.c.experiment_id == experiment))
            .where(uri.is_not(None), sa.or_(home.is_(None), uri != place))
        )

    runs = schema.table("runs")
    yield "run", odd(runs, runs.c.experiment_id, runs.c.run_uuid, runs.c.artifact_uri, ""), ()
    if schema.has("logged_models", "artifact_location"):
        models = schema.table("logged_models")
        columns = (models.c.experiment_id, models.c.model_id, models.c.artifact_location)
        yield "logged model", odd(models, *columns, "models/"), ("models",)
    if schema.has("trace_tags", "request_id", "value") and schema.has(
        "trace_info", "experiment_id"
    ):
        traces, tags = schema.table("trace_info"), schema.table("trace_tags")
        joined = tags.join(traces, traces.c.request_id == tags.c.request_id)
        columns = (traces.c.experiment_id, tags.c.request_id, tags.c.value)
        keys = ("mlflow.artifactLocation", "mlflow.trace.archiveLocation")
        query = odd(joined, *columns, "traces/").where(tags.c.key.in_(keys))
        yield "trace", query, ("traces",)


def entities_inside(conn: Connection, schema: Schema, segments: Iterable[str]) -> dict[str, str]:
    """Those of the path segments that are ids of runs, logged models or traces: id to what it is."""
    wanted = sorted(set(segments))
    found: dict[str, str] = {}
    for what, name, column in (
        ("run", "runs", "run_uuid"),
        ("logged model", "logged_models", "model_id"),
        ("trace", "trace_info", "request_id"),
    ):
        if wanted and schema.has(name, column):
            key = schema.table(name).c[column]
            for entity in conn.execute(sa.select(key).where(key.in_(wanted))).scalars():
                found[entity] = what
    return found


# -- evidence ------------------------------------------------------------------------------------


def some_trees(conn: Connection, schema: Schema, prefix: str, limit: int) -> list[str]:
    """Artifact URIs of runs below a URI, as many as are worth looking for."""
    runs = schema.table("runs")
    escaped = prefix.replace("!", "!!").replace("%", "!%").replace("_", "!_")
    below = runs.c.artifact_uri.like(escaped + "/%", escape="!")
    return list(conn.execute(sa.select(runs.c.artifact_uri).where(below).limit(limit)).scalars())
