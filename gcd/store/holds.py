"""Every SELECT for what keeps an entity or a tree: operators' holds and other trees.

It must never write, and never hold all of them in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.durations import from_millis
from gcd.model import Hold, KeepReason, Kind, Reach
from gcd.planning.guard import in_workspace
from gcd.store import tables
from gcd.store.schema import Schema, workspace_of
from gcd.store.streaming import stream
from gcd.store.tag_holds import entity_key, tag_holds


def all_holds(conn: Connection, schema: Schema, *, has_own_tables: bool) -> Iterator[Hold]:
    """Everything that may keep an entity or a tree, but for model versions, in one stream."""
    yield from tag_holds(conn, schema)
    if has_own_tables:
        yield from operator_holds(conn)
    yield from experiment_places(conn, schema)
    yield from odd_trees(conn, schema)


def operator_holds(conn: Connection, ids: Sequence[str] | None = None) -> Iterator[Hold]:
    """What operators hold by hand, in gcd's own table."""
    query = sa.select(tables.hold)
    if ids is not None:
        is_of_experiment = tables.hold.c.kind == Kind.EXPERIMENT.value
        query = query.where(sa.or_(is_of_experiment, tables.hold.c.entity_id.in_(ids)))
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
    query = sa.select(
        experiments.c.experiment_id, experiments.c.artifact_location, workspace_of(schema)
    ).where(experiments.c.artifact_location.is_not(None))
    for experiment, uri, workspace in stream(conn, query):
        because = f"experiment {experiment} logs there"
        for place in either(uri, workspace):
            yield Hold(KeepReason.SHARED, because, uri=place, reach=Reach.WITHIN)


def odd_trees(conn: Connection, schema: Schema) -> Iterator[Hold]:
    """Trees of runs, logged models and traces that are not at their canonical place.

    Whatever their stage: what is only soft-deleted can be restored. A tree at another place that
    still ends in its own id can only overlap a target if the target contains that place, or lies
    in the tree by an experiment's location, which is looked at per location; so those are told
    once per place instead of once per tree.
    """
    for what, query, names in tree_queries(schema):
        places: set[str] = set()
        found = stream(conn, query)
        for entity, uri in ((each, uri) for each, *rest in found for uri in either(*rest)):
            suffix = "/".join(("", *names, str(entity), "artifacts"))
            if not uri.rstrip("/").endswith(suffix):
                because = f"{what} {entity} has its files there"
                yield Hold(KeepReason.SHARED, because, uri=uri, owner=str(entity))
                continue
            place = uri.rstrip("/")[: -len(suffix)]
            if place not in places:
                places.add(place)
                because = f"{what}s have their files there"
                yield Hold(KeepReason.SHARED, because, uri=place or "/", reach=Reach.WITHIN)


def either(uri: str, workspace: str | None) -> Iterable[str]:
    """A recorded URI as it is, and as the tracking server takes it for a workspace: both are held."""
    return dict.fromkeys((uri, in_workspace(uri, workspace)))


def tree_queries(
    schema: Schema,
) -> Iterator[tuple[str, sa.Select[*tuple[Any, ...]], tuple[str, ...]]]:
    """(what, query of id, URI and workspace, folder names before the id) per table that records trees."""
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
            sa.select(entity, uri, workspace_of(schema))
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
