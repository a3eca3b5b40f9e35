"""Every SELECT for witnesses: rows that say that a tree has files, or had some.

Invariant: only what MLflow writes beside an upload is a witness. A run that merely exists is none:
most runs never log a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.model import Kind
from gcd.planning.emptiness import Witness
from gcd.planning.guard import in_workspace
from gcd.store.read import TRACE_PLACES, Wanted, conditions
from gcd.store.references import ENTITY_TABLES
from gcd.store.schema import Schema, is_deleted, workspace_of
from gcd.store.tables import journal

RUN_TAGS = ("mlflow.log-model.history", "mlflow.loggedArtifacts", "mlflow.loggedImages")
"""Tags that MLflow's client sets on a run when it logs a model (before 3.0), a table or an image."""
NOTHING = ("", "[]")
READY, UPLOAD_FAILED = 2, 3
"""`LoggedModelStatus`."""
SPANS_AT = "mlflow.trace.spansLocation"
IN_FILES = ("ARTIFACT_REPO", "ARCHIVE_REPO")
FINISHED = ("OK", "ERROR")
"""Before a trace is finished its client has uploaded nothing."""


def of_entities(
    conn: Connection, schema: Schema, kind: Kind, ids: Sequence[str]
) -> dict[str, Witness]:
    """Entities of which something says that they have files.

    Model versions are not asked: one that points into a tree keeps it anyway.
    """
    if not ids:
        return {}
    match kind:
        case Kind.RUN:
            return {run: Witness(f"its tag {tag}") for run, tag in tagged(conn, schema, ids)}
        case Kind.LOGGED_MODEL:
            return models(conn, schema, ids)
        case Kind.TRACE:
            return traces(conn, schema, ids)
    return {}


def tagged(conn: Connection, schema: Schema, ids: Sequence[str]) -> list[tuple[str, str]]:
    """Runs with the tags that say that they logged files."""
    if not schema.has("tags", "key", "value", "run_uuid"):
        return []
    tags = schema.table("tags")
    query = sa.select(tags.c.run_uuid, tags.c.key).where(tags.c.run_uuid.in_(ids), *says(tags))
    return [(run, tag) for run, tag in conn.execute(query)]


def says(tags: sa.TableClause) -> tuple[sa.ColumnElement[bool], ...]:
    """The conditions under which a run's tag is a witness."""
    return (tags.c.key.in_(RUN_TAGS), tags.c.value.not_in(NOTHING))


def models(conn: Connection, schema: Schema, ids: Sequence[str]) -> dict[str, Witness]:
    """Logged models whose upload did not fail; one that is pending may have files, its client died."""
    table = schema.table("logged_models")
    status = table.c.status if schema.has("logged_models", "status") else sa.null()
    query = sa.select(table.c.model_id, status).where(table.c.model_id.in_(ids), *uploaded(schema))
    return {
        model: Witness("it is a logged model", is_certain=found == READY)
        for model, found in conn.execute(query)
    }


def uploaded(schema: Schema) -> tuple[sa.ColumnElement[bool], ...]:
    """The condition under which a logged model is a witness of its own files."""
    if not schema.has("logged_models", "status"):
        return ()
    status = schema.table("logged_models").c.status
    return (sa.or_(status.is_(None), status != UPLOAD_FAILED),)


def traces(conn: Connection, schema: Schema, ids: Sequence[str]) -> dict[str, Witness]:
    """Traces whose spans are in a file: by their tag or, before MLflow set it, since no row has them."""
    if not schema.has("trace_tags", "request_id", "key", "value"):
        return {}
    tags = schema.table("trace_tags")
    query = sa.select(tags.c.request_id, tags.c.key, tags.c.value).where(
        tags.c.request_id.in_(ids), tags.c.key.in_((SPANS_AT, *TRACE_PLACES))
    )
    found: dict[str, dict[str, str]] = {}
    for trace, key, value in conn.execute(query):
        found.setdefault(trace, {})[key] = value
    old = [
        each for each, named in found.items() if SPANS_AT not in named and TRACE_PLACES[0] in named
    ]
    inside = spans_in_files(conn, schema, old)
    result = {each: Witness("its spans are in no row") for each in inside}
    for each, named in found.items():
        where = named.get(SPANS_AT)
        if where in IN_FILES:
            result[each] = Witness(f"its tag {SPANS_AT}", is_of_archive=where == "ARCHIVE_REPO")
    return result


def spans_in_files(conn: Connection, schema: Schema, ids: Sequence[str]) -> set[str]:
    """Finished traces without rows of spans."""
    if not ids or not schema.has("trace_info", "request_id", "status"):
        return set()
    info = schema.table("trace_info")
    done = sa.select(info.c.request_id).where(
        info.c.request_id.in_(ids), info.c.status.in_(FINISHED)
    )
    finished = set(conn.execute(done).scalars())
    if finished and schema.has("spans", "trace_id"):
        spans = schema.table("spans")
        rows = sa.select(spans.c.trace_id).where(spans.c.trace_id.in_(finished)).distinct()
        finished -= set(conn.execute(rows).scalars())
    return finished


# -- which are there ------------------------------------------------------------------------------


def first(conn: Connection, schema: Schema, kind: Kind, limit: int, wanted: Wanted) -> list[str]:
    """The first entities by id that have a witness: soft-deleted, or members of deleted experiments."""
    if not schema.has_kind(kind):
        return []
    key, table = schema.key(kind), schema.table(ENTITY_TABLES[kind])
    experiments = schema.table("experiments")
    rows = table.join(experiments, experiments.c.experiment_id == table.c.experiment_id)
    named, source = named_of(schema, kind)
    if source is not None:
        rows = rows.join(source[0], source[1])
    query = sa.select(key).select_from(rows).where(*named, *conditions(schema, kind, wanted))
    if wanted.is_member:
        query = query.where(is_deleted(experiments))
    if wanted.ids is not None:
        query = query.where(key.in_(wanted.ids))
    return [
        str(each) for each in conn.execute(query.distinct().order_by(key).limit(limit)).scalars()
    ]


def named_of(
    schema: Schema, kind: Kind
) -> tuple[
    tuple[sa.ColumnElement[bool], ...], tuple[sa.TableClause, sa.ColumnElement[bool]] | None
]:
    """The conditions for a witness of a kind, and the table of tags that they are on."""
    key = schema.key(kind)
    if kind is Kind.RUN and schema.has("tags", "key", "value", "run_uuid"):
        tags = schema.table("tags")
        return says(tags), (tags, tags.c.run_uuid == key)
    if kind is Kind.LOGGED_MODEL:
        return uploaded(schema), None
    if kind is Kind.TRACE and schema.has("trace_tags", "request_id", "key", "value"):
        tags = schema.table("trace_tags")
        in_files = sa.and_(tags.c.key == SPANS_AT, tags.c.value.in_(IN_FILES))
        return (sa.or_(in_files, is_old(schema, tags)),), (tags, tags.c.request_id == key)
    return (sa.false(),), None


def is_old(schema: Schema, tags: sa.TableClause) -> sa.ColumnElement[bool]:
    """A trace of which no row has spans, for it was before MLflow had any."""
    if not schema.has("spans", "trace_id"):
        return tags.c.key == TRACE_PLACES[0]
    spans = schema.table("spans")
    any_span = sa.exists().where(spans.c.trace_id == tags.c.request_id)
    return sa.and_(tags.c.key == TRACE_PLACES[0], ~any_span)


def newest_trees(conn: Connection, schema: Schema, experiment: str, limit: int) -> Iterator[str]:
    """The artifact URIs of an experiment's newest runs, logged models and traces, `limit` of each."""
    number = int(experiment)
    experiments = schema.table("experiments")
    workspace = conn.scalar(
        sa.select(workspace_of(schema))
        .select_from(experiments)
        .where(experiments.c.experiment_id == number)
    )
    for query in trees(schema, number):
        for uri in conn.execute(query.limit(limit)).scalars():
            if uri:
                yield in_workspace(uri, workspace)


def trees(schema: Schema, number: int) -> Iterator[sa.Select[*tuple[Any, ...]]]:
    """A query per table that names trees of an experiment."""
    runs = schema.table("runs").c
    yield (
        sa.select(runs.artifact_uri)
        .where(runs.experiment_id == number)
        .order_by(runs.start_time.desc())
    )
    if schema.has("logged_models", "artifact_location", "creation_timestamp_ms"):
        models = schema.table("logged_models").c
        mine = models.experiment_id == number
        yield (
            sa.select(models.artifact_location)
            .where(mine)
            .order_by(models.creation_timestamp_ms.desc())
        )
    if schema.has("trace_info", "timestamp_ms") and schema.has("trace_tags", "key", "value"):
        info, tags = schema.table("trace_info"), schema.table("trace_tags")
        yield (
            sa.select(tags.c.value)
            .select_from(info.join(tags, tags.c.request_id == info.c.request_id))
            .where(info.c.experiment_id == number, tags.c.key == TRACE_PLACES[0])
            .order_by(info.c.timestamp_ms.desc())
        )


def swept_with_files(
    conn: Connection, experiments: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    """Trees in which gcd deleted something, with experiment and root: one of each kind and root.

    The journal has no index for it: it is read once, however many experiments are asked for.
    """
    query = (
        sa.select(
            journal.c.experiment_id, sa.func.min(journal.c.target), sa.func.min(journal.c.root)
        )
        .where(journal.c.experiment_id.in_(experiments), journal.c.objects > 0)
        .group_by(journal.c.experiment_id, journal.c.kind, journal.c.root_id)
    )
    for experiment, target, root in conn.execute(query):
        if target and root:
            yield experiment, target, root
