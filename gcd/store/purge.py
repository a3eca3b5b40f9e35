"""Every DELETE and UPDATE on MLflow's tables: children first, bounded, judged again under the lock.

It must never touch a row of an entity that is not locked, confirmed and journalled in the same
transaction, and never rely on the database's own cascades.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.errors import StoreRefused
from gcd.model import Candidate, KeepReason, Target
from gcd.planning.policy import Keep
from gcd.store import journal
from gcd.store.lease import Lease
from gcd.store.read import DELETED, token
from gcd.store.schema import INPUT_ROLES, UNBOUNDED, Action, Reference, Schema

REDACTED_RUN = "REDACTED-RUN-ID"
"""What MLflow itself writes when a model version is deleted."""

SLICE = 1000
"""Ids in one IN list: below every database's limit on parameters."""

Rejudge = Callable[[Connection, Sequence[str]], Mapping[str, Keep]]
"""Given the open transaction and the ids locked in it: those to keep after all, and why."""


@dataclass(frozen=True, slots=True)
class Purged:
    """What one purge transaction did."""

    ids: tuple[str, ...] = ()
    rows: int = 0
    kept: Mapping[str, Keep] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """Runs to purge in one transaction, each with its tree."""

    cycle: int
    runs: tuple[tuple[Candidate, Target | None], ...]
    is_giant: bool = False
    """One run whose own row goes first and whose children follow in chunks."""


def row_counts(conn: Connection, schema: Schema, ids: Sequence[str]) -> dict[str, int]:
    """How many rows hang on each run in the tables that have no bound, for packing batches."""
    counts = dict.fromkeys(ids, 1)
    for reference in schema.references(scanned=False):
        if reference.table not in UNBOUNDED:
            continue
        column = schema.table(reference.table).c[reference.column]
        query = sa.select(column, sa.func.count()).where(column.in_(ids)).group_by(column)
        for run, rows in conn.execute(query):
            counts[run] = counts.get(run, 0) + rows
    return counts


def purge(
    conn: Connection, schema: Schema, lease: Lease, batch: Batch, rejudge: Rejudge, at_ms: int
) -> Purged:
    """Lock, judge again, journal and delete one batch, inside the caller's write transaction.

    Whoever restored or deleted a run again before the lock wins: it is dropped with its reason.
    """
    wanted = {candidate.id: (candidate, target) for candidate, target in batch.runs}
    locked = lock_runs(conn, schema, list(wanted))
    lease.confirm(conn)
    kept = changed(wanted, locked)
    standing = [run for run in wanted if run not in kept]
    kept.update(rejudge(conn, standing) if standing else {})
    doomed = [wanted[run] for run in standing if run not in kept]
    if not doomed:
        return Purged(kept=kept)
    ids = tuple(candidate.id for candidate, _ in doomed)
    left = journal.CHILDREN_LEFT if batch.is_giant else journal.REFERENCES_LEFT
    journal.record(conn, batch.cycle, doomed, rows_left=left, at_ms=at_ms)
    rows = 0 if batch.is_giant else delete_children(conn, schema, ids)
    clear_pointers(conn, schema, ids)
    return Purged(ids, rows + delete_runs(conn, schema, ids), kept)


def lock_runs(conn: Connection, schema: Schema, ids: Sequence[str]) -> dict[str, str]:
    """Lock the runs in id order and return the token of each that is there and deleted."""
    runs = schema.table("runs")
    stamp = runs.c.deleted_time if schema.has("runs", "deleted_time") else sa.null()
    query = (
        sa.select(runs.c.run_uuid, runs.c.lifecycle_stage, stamp)
        .where(runs.c.run_uuid.in_(ids))
        .order_by(runs.c.run_uuid)
        .with_for_update()
    )
    rows = conn.execute(query).all()
    return {run: token(stage, at) for run, stage, at in rows if stage == DELETED}


def changed(
    wanted: Mapping[str, tuple[Candidate, Target | None]], locked: Mapping[str, str]
) -> dict[str, Keep]:
    """The runs that are not as they were when they were judged."""
    detail = "restored, deleted again or purged by somebody else since it was judged"
    return {
        run: Keep(KeepReason.RESTORED, detail)
        for run, (candidate, _) in wanted.items()
        if locked.get(run) != candidate.token
    }


def delete_children(conn: Connection, schema: Schema, ids: Sequence[str]) -> int:
    """Delete every row that exists only for these runs and that an index finds."""
    rows = delete_inputs(conn, schema, ids)
    for reference in schema.references(scanned=False):
        if reference.action is Action.DELETE:
            rows += conn.execute(
                schema.table(reference.table).delete().where(*matching(schema, reference, ids))
            ).rowcount
    return rows


def matching(
    schema: Schema, reference: Reference, ids: Sequence[str]
) -> list[sa.ColumnElement[bool]]:
    """The condition that finds the rows which refer to the runs in this way."""
    table = schema.table(reference.table)
    fixed = [table.c[column] == value for column, value in reference.where]
    return [*fixed, table.c[reference.column].in_(ids)]


def delete_inputs(conn: Connection, schema: Schema, ids: Sequence[str]) -> int:
    """Delete inputs and outputs of the runs; their tags first, which are found through them."""
    if not schema.has("inputs", "destination_id", "source_id"):
        return 0
    inputs, rows = schema.table("inputs"), 0
    for role, column, values in INPUT_ROLES:
        mine = sa.and_(inputs.c[role].in_(values), inputs.c[column].in_(ids))
        if schema.has("input_tags", "input_uuid"):
            tags = schema.table("input_tags")
            found = conn.execute(sa.select(inputs.c.input_uuid).where(mine)).scalars().all()
            for part in slices(found):
                rows += conn.execute(tags.delete().where(tags.c.input_uuid.in_(part))).rowcount
        rows += conn.execute(inputs.delete().where(mine)).rowcount
    return rows


def clear_pointers(conn: Connection, schema: Schema, ids: Sequence[str]) -> None:
    """Empty the pointers to the runs in rows that belong to something else."""
    for reference in schema.references(scanned=False):
        if reference.action is Action.CLEAR:
            table = schema.table(reference.table)
            conn.execute(
                table.update()
                .where(*matching(schema, reference, ids))
                .values({reference.column: None})
            )


def delete_runs(conn: Connection, schema: Schema, ids: Sequence[str]) -> int:
    """Delete the rows of the runs themselves, all of them or none."""
    runs = schema.table("runs")
    gone = conn.execute(
        runs.delete().where(runs.c.run_uuid.in_(ids), runs.c.lifecycle_stage == DELETED)
    ).rowcount
    if gone != len(ids):
        raise StoreRefused(
            f"{gone} of {len(ids)} locked runs could be deleted; the batch was rolled back",
            hint="is there a trigger, a rule or a row policy on the table runs?",
        )
    return gone


# -- rows still to delete ------------------------------------------------------------------------


def delete_some_children(conn: Connection, schema: Schema, run: str, limit: int) -> int:
    """Delete at most `limit` rows of a giant run whose own row is gone; 0 when nothing is left.

    Raises nothing if the run is back: the caller has to look first.
    """
    for reference in schema.references(scanned=False):
        if reference.action is Action.DELETE and reference.table in UNBOUNDED:
            gone = delete_slice(conn, schema, reference, run, limit)
            if gone:
                return gone
    return delete_children(conn, schema, [run])


def delete_slice(
    conn: Connection, schema: Schema, reference: Reference, run: str, limit: int
) -> int:
    """Delete at most `limit` rows of one table that refer to the run."""
    table = schema.table(reference.table)
    mine = table.c[reference.column] == run
    if conn.dialect.name in ("mysql", "mariadb"):
        return conn.execute(
            sa.text(f"DELETE FROM {table.name} WHERE {reference.column} = :run LIMIT {int(limit)}"),
            {"run": run},
        ).rowcount
    row: sa.ColumnClause[Any] = sa.literal_column(
        "ctid" if conn.dialect.name == "postgresql" else "rowid"
    )
    part = sa.select(row).select_from(table).where(mine).limit(limit)
    return conn.execute(table.delete().where(row.in_(part))).rowcount


def scanned_rows(
    conn: Connection, schema: Schema, reference: Reference, ids: set[str]
) -> Iterator[dict[str, Any]]:
    """The rows that refer to one of the runs by a column that no index serves: their columns."""
    table = schema.table(reference.table)
    column = table.c[reference.column]
    query = sa.select(table).where(*(table.c[c] == value for c, value in reference.where))
    if reference.member:
        query = query.where(column.like(f"%{reference.member}%"))
    options = {"yield_per": SLICE}
    with conn.execute(query, execution_options=options) as rows:
        for row in rows.mappings():
            if ids.intersection(named(row[reference.column], reference)):
                yield dict(row)


def named(value: Any, reference: Reference) -> list[str]:
    """The ids in the column of a row that refers in this way."""
    if value is None:
        return []
    if reference.action is Action.UNLIST:
        return [part.strip() for part in str(value).split(",")]
    if not reference.member:
        return [str(value)]
    try:
        found = (value if isinstance(value, dict) else json.loads(value)).get(reference.member)
    except (ValueError, AttributeError):
        return []
    return [] if found is None else [str(found)]


KEYS = {
    "assessments": ("assessment_id",),
    "trace_request_metadata": ("key", "request_id"),
    "model_versions": ("workspace", "name", "version"),
    "registered_model_tags": ("workspace", "key", "name"),
    "model_version_tags": ("workspace", "key", "name", "version"),
}


def settle_row(
    conn: Connection, schema: Schema, reference: Reference, row: Mapping[str, Any], ids: set[str]
) -> int:
    """Do with one scanned row what its reference says, if it is still as it was read."""
    table = schema.table(reference.table)
    keys = [name for name in KEYS[reference.table] if schema.has(reference.table, name)]
    same = [table.c[name] == row[name] for name in keys]
    same.append(table.c[reference.column] == row[reference.column])
    if reference.action in (Action.DELETE, Action.DELETE_IF_MEMBER):
        return conn.execute(table.delete().where(*same)).rowcount
    old = str(row[reference.column])
    new = REDACTED_RUN if reference.action is Action.REDACT else unlisted(old, ids)
    return conn.execute(table.update().where(*same).values({reference.column: new})).rowcount


def unlisted(text: str, ids: set[str]) -> str:
    """A comma-separated list without the ids, framed by commas as it was."""
    kept = [part for part in text.split(",") if part.strip() and part.strip() not in ids]
    joined = ",".join(kept)
    return f",{joined}," if kept and text.startswith(",") else joined


def slices(values: Sequence[str]) -> Iterable[Sequence[str]]:
    """The values in parts that fit an IN list."""
    iterator = iter(values)
    while part := list(islice(iterator, SLICE)):
        yield part
