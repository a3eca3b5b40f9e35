"""The purge of one batch: lock, judge again, journal and delete, in one transaction.

It must never touch a row of an entity that is not locked, confirmed and journalled in the same
transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.errors import StoreRefused
from gcd.model import Candidate, KeepReason, Kind, Target
from gcd.planning.policy import Keep
from gcd.store import journal, leftovers
from gcd.store.eraser import Eraser, Id
from gcd.store.faults import StillReferenced
from gcd.store.handover import hand_over
from gcd.store.lease import Lease
from gcd.store.read import native, token
from gcd.store.references import ENTITY_TABLES, FINISHED_JOBS, Action
from gcd.store.schema import DELETED, Schema, confirm, is_deleted

Rejudge = Callable[[Connection, Sequence[str]], Mapping[str, Keep]]
"""Given the open transaction and the ids locked in it: those to keep after all, and why."""

STAGED = (Kind.RUN, Kind.EXPERIMENT)
"""What goes only in the deleted stage."""


class CameLate(Exception):
    """Something came to refer to what was deleted: roll back, and judge again."""

    def __init__(self, kept: Mapping[str, Keep]) -> None:
        super().__init__(f"{len(kept)} entities are referred to now")
        self.kept = kept


CHANGED = Keep(
    KeepReason.RESTORED, "restored, deleted again or purged by somebody else since it was judged"
)


@dataclass(frozen=True, slots=True)
class Item:
    """An entity to purge with its trees."""

    candidate: Candidate
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """Entities of one kind to purge in one transaction."""

    cycle: int
    kind: Kind
    items: tuple[Item, ...]
    within: Mapping[str, Candidate] = field(default_factory=dict)
    """Experiments by id that go as a whole: each is locked first, and must be as it was judged."""
    is_giant: bool = False
    """One entity whose own row goes first and whose children follow in chunks."""
    sweep_delay: timedelta = timedelta(0)
    """How long the trees stay after the rows."""


@dataclass(frozen=True, slots=True)
class Purged:
    """What one purge transaction did."""

    ids: tuple[str, ...] = ()
    rows: int = 0
    kept: Mapping[str, Keep] = field(default_factory=dict)


def row_counts(conn: Connection, schema: Schema, kind: Kind, ids: Sequence[str]) -> dict[str, int]:
    """How many rows hang on each entity in the tables that have no bound, for packing batches."""
    counts = dict.fromkeys(ids, 1)
    for reference in schema.references(ENTITY_TABLES[kind], scanned=False):
        is_bulk = kind is Kind.EXPERIMENT and reference.table in ("trace_info", "spans")
        if not ids or not (reference.is_unbounded or is_bulk):
            continue
        column = schema.table(reference.table).c[reference.column]
        query = sa.select(column, sa.func.count()).where(column.in_(native(kind, ids)))
        for entity, rows in conn.execute(query.group_by(column)):
            counts[str(entity)] = counts.get(str(entity), 0) + rows
    return counts


def purge(eraser: Eraser, lease: Lease, batch: Batch, rejudge: Rejudge, at_ms: int) -> Purged:
    """Lock, judge again, journal and delete one batch, inside the caller's write transaction.

    Whoever restored or deleted an entity again before the lock wins: it is dropped with its reason.
    """
    conn, schema = eraser.conn, eraser.schema
    wanted = {item.candidate.id: item for item in batch.items}
    parents = lock_parents(conn, schema, batch)
    locked = lock(conn, schema, batch.kind, list(wanted))
    lease.confirm(conn)
    confirm(conn, schema)
    kept = {
        entity: CHANGED
        for entity, item in wanted.items()
        if locked.get(entity) != item.candidate.token
        or not is_deletable(batch.kind, item.candidate.token)
        or not stands(item, batch, parents)
    }
    standing = [entity for entity in wanted if entity not in kept]
    kept.update(rejudge(conn, standing) if standing else {})
    doomed = [wanted[entity] for entity in standing if entity not in kept]
    if not doomed:
        return Purged(kept=kept)
    ids = [item.candidate.id for item in doomed]
    left = journal.CHILDREN_LEFT if batch.is_giant else journal.REFERENCES_LEFT
    left = 0 if batch.kind is Kind.EXPERIMENT else left
    entries = [(item.candidate, item.targets) for item in doomed]
    due_ms = at_ms + batch.sweep_delay // timedelta(milliseconds=1)
    journal.record(conn, batch.cycle, entries, rows_left=left, at_ms=at_ms, due_ms=due_ms)
    rows = delete(eraser, batch.kind, ids, is_giant=batch.is_giant)
    return Purged(tuple(ids), rows, kept)


def is_deletable(kind: Kind, found: str) -> bool:
    """Whether a token is one of the deleted stage, as Python compares; logged models go with others."""
    return kind not in STAGED or found.startswith(f"{DELETED}@")


def stands(item: Item, batch: Batch, parents: Mapping[str, str]) -> bool:
    """Whether the experiment that an entity goes with is still as it was judged."""
    parent = batch.within.get(item.candidate.experiment_id)
    return not batch.within or (parent is not None and parents.get(parent.id) == parent.token)


def shared_parents(batch: Batch) -> list[int]:
    """The experiments that stay, of which the batch takes parts."""
    if batch.within or batch.kind not in (Kind.RUN, Kind.LOGGED_MODEL):
        return []
    named = {item.candidate.experiment_id for item in batch.items}
    return sorted(int(each) for each in named if each.isdigit())


def lock_parents(conn: Connection, schema: Schema, batch: Batch) -> dict[str, str]:
    """Lock the experiments of a batch, so that a hold on one wins or waits; tokens of those that go.

    Those that stay are shared with whoever logs to them.
    """
    if batch.within:
        return lock(conn, schema, Kind.EXPERIMENT, list(batch.within))
    experiments = [str(number) for number in shared_parents(batch)]
    lock(conn, schema, Kind.EXPERIMENT, experiments, is_shared=True)
    return {}


def lock(
    conn: Connection, schema: Schema, kind: Kind, ids: Sequence[str], *, is_shared: bool = False
) -> dict[str, str]:
    """Lock entities in the order of their ids and return the token of each that is there."""
    if not ids:
        return {}
    table, key = schema.table(ENTITY_TABLES[kind]), schema.key(kind)
    query = (
        sa.select(key, stage(schema, kind), schema.stamp(kind))
        .select_from(table)
        .where(key.in_(native(kind, ids)))
        .order_by(key)
        .with_for_update(read=is_shared)
    )
    return {str(entity): token(found, at) for entity, found, at in conn.execute(query)}


def stage(schema: Schema, kind: Kind) -> sa.ColumnElement[Any]:
    """The column that tells an entity's state: its stage, or a job's status."""
    table = schema.table(ENTITY_TABLES[kind])
    if kind is Kind.JOB:
        return sa.cast(table.c.status, sa.String(16))
    has_stage = "lifecycle_stage" in table.c
    return table.c.lifecycle_stage if has_stage else sa.null()


def delete(eraser: Eraser, kind: Kind, ids: Sequence[str], *, is_giant: bool) -> int:
    """Delete the entities' rows: what belongs to them first, but for a giant; how many went."""
    table, keys = ENTITY_TABLES[kind], native(kind, ids)
    rows = 0
    if is_giant:
        eraser.export_belongings(table, keys)
        clear_pointers(eraser, table, keys)
    else:
        rows += eraser.delete_belongings(table, keys)
    if kind is Kind.EXPERIMENT:
        rows += hand_over(eraser, [int(each) for each in keys])
        rows += leftovers.settle_now(eraser, kind, set(ids))
    gone = eraser.delete(table, eraser.schema.key(kind).in_(keys), *guards(eraser.schema, kind))
    if gone != len(ids):
        raise StoreRefused(
            f"{gone} of {len(ids)} locked rows of {table} could be deleted; the batch was rolled back",
            hint=f"is there a trigger, a rule or a row policy on the table {table}?",
        )
    return rows + gone


def refuse_referenced(conn: Connection, schema: Schema, kind: Kind, ids: Sequence[str]) -> None:
    """StillReferenced where a row refers to what was deleted: as a foreign key, but all at once."""
    table = ENTITY_TABLES[kind]
    for key in schema.catalogue.foreign_keys:
        if key.to_table != table or not ids:
            continue
        column: sa.ColumnClause[Any] = sa.column(key.columns[0])
        query = sa.select(column).select_from(sa.table(key.table, column, schema=key.schema))
        found = conn.scalar(query.where(column.in_(native(kind, ids))).limit(1))
        if found is not None:
            raise StillReferenced(
                f"a row of {key.name} refers to {found}, which was to go",
                hint=f"how did that row of {key.name} come about? `gcd explain {found}`",
            )


def guards(schema: Schema, kind: Kind) -> list[sa.ColumnElement[bool]]:
    """What the DELETE itself demands once more, whatever its caller was told."""
    if kind is Kind.JOB:
        return [schema.table("jobs").c.status.in_(FINISHED_JOBS)]
    if kind in STAGED:
        return [is_deleted(schema.table(ENTITY_TABLES[kind]))]
    return []


def clear_pointers(eraser: Eraser, table: str, keys: Sequence[Id]) -> None:
    """Empty the pointers to a giant now; what belongs to it goes later."""
    for reference in eraser.schema.references(table, scanned=False):
        if reference.action is Action.CLEAR:
            eraser.clear(reference, keys)
