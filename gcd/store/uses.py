"""Every SELECT for who uses what: runs and the logged models and traces that they need.

A run made a model (`inputs`, `source_run_id`), took it (`inputs`) or measured it
(`logged_model_metrics`); a trace was made in it, linked to it or assessed by it.

Invariant: a use of any of these kinds that the schema has is found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.model import Kind, Measured
from gcd.store.eraser import SLICE
from gcd.store.exact import Exact
from gcd.store.references import ENTITY_TABLES, OWNERS
from gcd.store.schema import DELETED, Schema, is_deleted, is_live, workspace_of
from gcd.store.streaming import stream


class Use(NamedTuple):
    """A run that needs something in an experiment that is not its own."""

    run: str
    experiment: str
    part: str
    """One of what it needs: "logged model m-..." or "trace tr-..."."""


class Needed(NamedTuple):
    """An experiment or a logged model that some runs keep, with one of those runs."""

    kind: Kind
    id: str
    run: str


NOUNS = {Kind.LOGGED_MODEL: "logged model", Kind.TRACE: "trace"}


# -- the ways in which a run uses something --------------------------------------------------------


def measuring(schema: Schema) -> Iterator[sa.Select[*tuple[Any, ...]]]:
    """(run, part): runs that measured a logged model, once for each value."""
    if schema.has("logged_model_metrics", "model_id", "run_id"):
        metrics = schema.table("logged_model_metrics")
        yield sa.select(metrics.c.run_id.label("run"), metrics.c.model_id.label("part"))


def making(schema: Schema) -> Iterator[sa.Select[*tuple[Any, ...]]]:
    """(run, part): runs that made or took a logged model."""
    if not schema.has_kind(Kind.LOGGED_MODEL):
        return
    if schema.has("inputs", "source_id", "destination_id", "destination_type"):
        inputs = schema.table("inputs")
        yield sa.select(
            inputs.c.source_id.label("run"), inputs.c.destination_id.label("part")
        ).where(inputs.c.destination_type.in_(("MODEL_INPUT", "MODEL_OUTPUT")))
    if schema.has("logged_models", "source_run_id"):
        models = schema.table("logged_models")
        yield sa.select(models.c.source_run_id.label("run"), models.c.model_id.label("part")).where(
            models.c.source_run_id.is_not(None)
        )


def tracing(schema: Schema) -> Iterator[sa.Select[*tuple[Any, ...]]]:
    """(run, part): runs that a trace was made in, is linked to or was assessed by."""
    if not schema.has_kind(Kind.TRACE):
        return
    if schema.has("trace_request_metadata", "request_id", "key", "value"):
        metadata = schema.table("trace_request_metadata")
        yield sa.select(metadata.c.value.label("run"), metadata.c.request_id.label("part")).where(
            metadata.c.key == "mlflow.sourceRun"
        )
    if schema.has("assessments", "run_id", "trace_id"):
        assessments = schema.table("assessments")
        yield sa.select(
            assessments.c.run_id.label("run"), assessments.c.trace_id.label("part")
        ).where(assessments.c.run_id.is_not(None))
    if schema.has("entity_associations", "source_type", "destination_type"):
        links = schema.table("entity_associations").c
        for trace, run in (("source", "destination"), ("destination", "source")):
            yield sa.select(
                links[f"{run}_id"].label("run"), links[f"{trace}_id"].label("part")
            ).where(links[f"{trace}_type"] == "trace", links[f"{run}_type"] == "run")


def ways(schema: Schema) -> Iterator[tuple[Kind, sa.Subquery]]:
    """(kind of what is used, (run, part)) for each way."""
    for query in (*measuring(schema), *making(schema)):
        yield Kind.LOGGED_MODEL, query.subquery()
    for query in tracing(schema):
        yield Kind.TRACE, query.subquery()


# -- from runs to models ---------------------------------------------------------------------------


def measured_models(
    conn: Connection, schema: Schema, runs: Sequence[str]
) -> dict[str, tuple[Measured, ...]]:
    """Run to the logged models that its metrics belong to and whose rows are there."""
    found: dict[str, set[Measured]] = defaultdict(set)
    if not runs or not schema.has_kind(Kind.LOGGED_MODEL):
        return {}
    models, experiments = schema.table("logged_models"), schema.table("experiments")
    for query in measuring(schema):
        uses = query.subquery()
        rows = (
            sa.select(
                uses.c.run,
                models.c.model_id,
                models.c.experiment_id,
                models.c.lifecycle_stage,
                experiments.c.lifecycle_stage,
            )
            .select_from(
                uses.join(models, models.c.model_id == uses.c.part).outerjoin(
                    experiments, experiments.c.experiment_id == models.c.experiment_id
                )
            )
            .where(uses.c.run.in_(runs))
            .distinct()
        )
        for run, model, experiment, stage, around in conn.execute(rows):
            one = Measured(model, str(experiment), stage == DELETED, around == DELETED)
            found[run].add(one)
    return {run: tuple(sorted(each, key=lambda m: m.model)) for run, each in found.items()}


# -- from models and traces to runs ----------------------------------------------------------------


class User(NamedTuple):
    """A run that uses a logged model or a trace."""

    part: str
    run: str
    stage: str | None
    experiment: int
    """The run's."""


def users_of(conn: Connection, schema: Schema, kind: Kind, ids: Sequence[str]) -> Iterator[User]:
    """The runs that use logged models or traces, once for each way."""
    runs = schema.table("runs")
    for used, uses in ways(schema):
        if used is not kind or not ids:
            continue
        query = (
            sa.select(uses.c.part, runs.c.run_uuid, runs.c.lifecycle_stage, runs.c.experiment_id)
            .select_from(uses.join(runs, runs.c.run_uuid == uses.c.run))
            .where(uses.c.part.in_(ids))
            .distinct()
        )
        for row in conn.execute(query):
            yield User._make(row)


def users(
    conn: Connection, schema: Schema, kind: Kind, ids: Sequence[str]
) -> dict[str, dict[str, str | None]]:
    """Logged model or trace to the runs that use it, each with its stage."""
    found: dict[str, dict[str, str | None]] = defaultdict(dict)
    for user in users_of(conn, schema, kind, ids):
        found[user.part][user.run] = user.stage
    return found


def in_use(conn: Connection, schema: Schema, models: Sequence[str]) -> set[str]:
    """Those of the logged models that a run in stage active made, took or measured."""
    found: set[str] = set()
    runs = schema.table("runs")
    for used, uses in ways(schema):
        if used is not Kind.LOGGED_MODEL or not models:
            continue
        query = (
            sa.select(uses.c.part)
            .select_from(uses.join(runs, runs.c.run_uuid == uses.c.run))
            .where(uses.c.part.in_(models), is_live(runs))
            .distinct()
        )
        found.update(conn.execute(query).scalars())
    return found


# -- deleted experiments ---------------------------------------------------------------------------


def deleted_experiments(
    conn: Connection, schema: Schema, workspaces: Collection[str] | None
) -> set[str]:
    """The ids of all deleted experiments."""
    experiments = schema.table("experiments")
    query = sa.select(experiments.c.experiment_id).where(is_deleted(experiments))
    if workspaces is not None and schema.has("experiments", "workspace"):
        query = query.where(Exact(workspace_of(schema)).in_(workspaces))
    return {str(number) for number in conn.execute(query).scalars()}


def with_active_models(conn: Connection, schema: Schema, experiments: Sequence[int]) -> set[str]:
    """Those of the experiments that have logged models in stage active, which go with them."""
    if not schema.has_kind(Kind.LOGGED_MODEL):
        return set()
    models = schema.table("logged_models")
    query = sa.select(models.c.experiment_id).where(
        models.c.experiment_id.in_(experiments), is_live(models)
    )
    return {str(number) for number in conn.execute(query.distinct()).scalars()}


def uses_across(conn: Connection, schema: Schema, experiments: Sequence[int]) -> Iterator[Use]:
    """Each run that needs an active model or a trace of experiments, and is in another one."""
    for kind in (Kind.LOGGED_MODEL, Kind.TRACE):
        after = ""
        while page := parts(conn, schema, kind, experiments, after):
            found = users_of(conn, schema, kind, list(page))
            across = (user for user in found if user.experiment != page.get(user.part))
            yield from dict.fromkeys(
                Use(user.run, str(page[user.part]), f"{NOUNS[kind]} {user.part}")
                for user in across
                if user.part in page  # MySQL finds other cases too
            )
            after = list(page)[-1]  # in the order of the database


def parts(
    conn: Connection, schema: Schema, kind: Kind, experiments: Sequence[int], after: str
) -> dict[str, int]:
    """The next page of the active models, or of the traces, of experiments, by id, with those."""
    if not schema.has_kind(kind):
        return {}
    table, key = schema.table(ENTITY_TABLES[kind]), schema.key(kind)
    query = sa.select(key, table.c.experiment_id).where(
        table.c.experiment_id.in_(experiments), key > after
    )
    if kind is Kind.LOGGED_MODEL:
        query = query.where(is_live(table))
    return {part: home for part, home in conn.execute(query.order_by(key).limit(SLICE))}


def needed_by_measuring(
    conn: Connection, schema: Schema, kind: Kind, ids: Sequence[Any], *, with_models: bool
) -> Iterator[Needed]:
    """What the runs need that measured active models: those in experiments, or these models.

    That is their own experiments and those of the active models and traces that they use, where
    deleted; and `with_models`, the active models of live experiments. One statement for each way:
    most joins have no index by run.
    """
    models = schema.table("logged_models")
    within = models.c.experiment_id if kind is Kind.EXPERIMENT else models.c.model_id
    for measured in measuring(schema):
        metrics = measured.subquery()
        feeders = (
            sa.select(metrics.c.run)
            .select_from(metrics.join(models, models.c.model_id == metrics.c.part))
            .where(within.in_(ids), is_live(models))
            .distinct()
            .subquery()
        )
        yield from _homes(conn, schema, feeders)
        for used, uses in ways(schema):
            joined = _joined(schema, feeders, used, uses)
            yield from _around(conn, joined)
            if with_models and used is Kind.LOGGED_MODEL:
                yield from _alone(conn, joined)


def _homes(conn: Connection, schema: Schema, feeders: sa.Subquery) -> Iterator[Needed]:
    """The deleted experiments in which runs are."""
    runs, experiments = schema.table("runs"), schema.table("experiments")
    query = (
        sa.select(runs.c.experiment_id, sa.func.min(runs.c.run_uuid))
        .select_from(
            feeders.join(runs, runs.c.run_uuid == feeders.c.run).join(
                experiments, experiments.c.experiment_id == runs.c.experiment_id
            )
        )
        .where(is_deleted(experiments))
        .group_by(runs.c.experiment_id)
    )
    for number, run in conn.execute(query):
        yield Needed(Kind.EXPERIMENT, str(number), run)


def _joined(schema: Schema, feeders: sa.Subquery, used: Kind, uses: sa.Subquery) -> sa.Subquery:
    """(run, part, experiment, stages of both) of what runs use by one way."""
    owners, experiments = schema.table(ENTITY_TABLES[used]), schema.table("experiments")
    key = owners.c[OWNERS[ENTITY_TABLES[used]]]
    has_stage = "lifecycle_stage" in owners.c
    return (
        sa.select(
            feeders.c.run,
            key.label("part"),
            experiments.c.experiment_id,
            sa.case((is_deleted(experiments), 1), else_=0).label("in_deleted"),
        )
        .select_from(
            feeders.join(uses, uses.c.run == feeders.c.run)
            .join(owners, key == uses.c.part)
            .join(experiments, experiments.c.experiment_id == owners.c.experiment_id)
        )
        .where(is_live(owners) if has_stage else sa.true())
        .subquery()
    )


def _around(conn: Connection, joined: sa.Subquery) -> Iterator[Needed]:
    """The deleted experiments in which the used things are."""
    query = (
        sa.select(joined.c.experiment_id, sa.func.min(joined.c.run))
        .where(joined.c.in_deleted == 1)
        .group_by(joined.c.experiment_id)
    )
    for number, run in conn.execute(query):
        yield Needed(Kind.EXPERIMENT, str(number), run)


def _alone(conn: Connection, joined: sa.Subquery) -> Iterator[Needed]:
    """The used models of experiments that are not deleted."""
    query = sa.select(joined.c.part, sa.func.min(joined.c.run)).where(joined.c.in_deleted == 0)
    for model, run in stream(conn, query.group_by(joined.c.part)):
        yield Needed(Kind.LOGGED_MODEL, model, run)
