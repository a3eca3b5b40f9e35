"""Every SELECT on what is in deleted experiments: when it was last touched, and what of it is live.

It must never count an experiment as empty because a table of it could not be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.model import Candidate, Contents, Kind
from gcd.store.read import native, usable
from gcd.store.schema import Schema, is_live
from gcd.store.streaming import stream


def with_contents(
    conn: Connection,
    schema: Schema,
    found: Sequence[Candidate],
    is_held: Callable[[str], bool],
) -> list[Candidate]:
    """Experiments with what is in them.

    `is_held` tells whether something holds an id, model versions for the most part: a logged model
    that is held keeps its experiment. An experiment's age is that of its newest part: MLflow accepts traces
    into a deleted one.
    """
    numbers = native(Kind.EXPERIMENT, [each.id for each in found])
    if not numbers:
        return []
    newest = newest_parts(conn, schema, numbers)
    live = live_runs(conn, schema, numbers)
    models = live_models(conn, schema, numbers, is_held)
    guards = guarding_scorers(conn, schema, numbers)
    result = []
    for each, number in zip(found, numbers, strict=True):
        contents = Contents(live.get(number, 0), models.get(number), guards.get(number))
        deleted_at = each.deleted_at
        part_at = newest.get(number)
        if deleted_at is not None and part_at is not None:
            deleted_at = max(deleted_at, part_at)
        result.append(replace(each, contents=contents, deleted_at=deleted_at))
    return result


def newest_parts(conn: Connection, schema: Schema, numbers: Sequence[int]) -> dict[int, datetime]:
    """Experiment to the newest usable stamp among its runs, logged models and traces."""
    newest: dict[int, datetime] = {}
    for table, column in (
        ("runs", "deleted_time"),
        ("logged_models", "last_updated_timestamp_ms"),
        ("trace_info", "timestamp_ms"),
    ):
        if not schema.has(table, column, "experiment_id"):
            continue
        parts = schema.table(table)
        query = (
            sa.select(parts.c.experiment_id, sa.func.max(parts.c[column]))
            .where(parts.c.experiment_id.in_(numbers))
            .group_by(parts.c.experiment_id)
        )
        for number, stamp in conn.execute(query):
            at = usable(stamp)
            if at is not None:
                newest[number] = max(at, newest.get(number, at))
    return newest


def live_runs(conn: Connection, schema: Schema, numbers: Sequence[int]) -> dict[int, int]:
    """Experiment to how many runs in it are not deleted: MLflow lets them be restored alone."""
    runs = schema.table("runs")
    query = (
        sa.select(runs.c.experiment_id, sa.func.count())
        .where(runs.c.experiment_id.in_(numbers), is_live(runs))
        .group_by(runs.c.experiment_id)
    )
    return {number: count for number, count in conn.execute(query)}


def live_models(
    conn: Connection, schema: Schema, numbers: Sequence[int], is_held: Callable[[str], bool]
) -> dict[int, str]:
    """Experiment to a logged model in it that a live run elsewhere uses, or that is held."""
    if not schema.has("logged_models", "experiment_id", "lifecycle_stage"):
        return {}
    models = schema.table("logged_models")
    mine = sa.select(models.c.experiment_id, models.c.model_id).where(
        models.c.experiment_id.in_(numbers)
    )
    found: dict[int, str] = {}
    for query in used_models(schema, mine):
        found.update({number: model for number, model in conn.execute(query)})
    found.update({number: model for number, model in stream(conn, mine) if is_held(model)})
    return found


def used_models(
    schema: Schema, mine: sa.Select[*tuple[Any, ...]]
) -> Iterator[sa.Select[*tuple[Any, ...]]]:
    """Active models that a live run takes or made, or measured."""
    models, runs = schema.table("logged_models"), schema.table("runs")
    active = mine.where(is_live(models))
    if schema.has("inputs", "destination_id", "source_id"):
        inputs = schema.table("inputs")
        links = sa.and_(
            inputs.c.destination_id == models.c.model_id,
            inputs.c.destination_type.in_(("MODEL_INPUT", "MODEL_OUTPUT")),
        )
        yield (
            active.select_from(
                models.join(inputs, links).join(runs, runs.c.run_uuid == inputs.c.source_id)
            )
            .where(is_live(runs))
            .distinct()
        )
    if schema.has("logged_model_metrics", "model_id", "run_id"):
        metrics = schema.table("logged_model_metrics")
        yield (
            active.select_from(
                models.join(metrics, metrics.c.model_id == models.c.model_id).join(
                    runs, runs.c.run_uuid == metrics.c.run_id
                )
            )
            .where(is_live(runs))
            .distinct()
        )


def guarding_scorers(conn: Connection, schema: Schema, numbers: Sequence[int]) -> dict[int, str]:
    """Experiment to a scorer in it that a gateway guardrail needs."""
    if not schema.has("guardrails", "scorer_id") or not schema.has("scorers", "experiment_id"):
        return {}
    guardrails, scorers = schema.table("guardrails"), schema.table("scorers")
    query = (
        sa.select(scorers.c.experiment_id, sa.func.min(scorers.c.scorer_id))
        .join(guardrails, guardrails.c.scorer_id == scorers.c.scorer_id)
        .where(scorers.c.experiment_id.in_(numbers))
        .group_by(scorers.c.experiment_id)
    )
    return {number: scorer for number, scorer in conn.execute(query)}


def parts_left(conn: Connection, schema: Schema, ids: Sequence[str]) -> dict[str, str]:
    """Experiment to what of its own entities is still there: it cannot go yet."""
    numbers = native(Kind.EXPERIMENT, ids)
    found: dict[str, str] = {}
    for noun, table in (
        ("run", "runs"),
        ("logged model", "logged_models"),
        ("trace", "trace_info"),
    ):
        if schema.has(table, "experiment_id"):
            parts = schema.table(table)
            query = (
                sa.select(parts.c.experiment_id)
                .where(parts.c.experiment_id.in_(numbers))
                .distinct()
            )
            found.update({str(number): noun for number in conn.execute(query).scalars()})
    return found


def counts(conn: Connection, schema: Schema) -> Mapping[Kind, int]:
    """How many entities of each kind the store has, for the fuse."""
    found = {}
    for kind, table in (
        (Kind.RUN, "runs"),
        (Kind.LOGGED_MODEL, "logged_models"),
        (Kind.EXPERIMENT, "experiments"),
    ):
        if schema.has(table):
            query = sa.select(sa.func.count()).select_from(schema.table(table))
            found[kind] = conn.scalar(query) or 0
    return found
