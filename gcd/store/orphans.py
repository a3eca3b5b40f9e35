"""Rows without an owner, which earlier `mlflow gc` runs left: found page by page, then deleted.

It must never delete a row whose owner is there, nor any entity itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.store.eraser import SLICE, Eraser, matching, slices
from gcd.store.lease import Lease
from gcd.store.references import ALL, ENTITY_TABLES, OWNERS, Action, Reference
from gcd.store.schema import Schema
from gcd.store.tracking import TrackingStore

PARTS = frozenset({"inputs"})
"""Owners that are no entities, and whose belongings have no foreign key."""
DELETED_VERSION = "Deleted_Internal"


def kinds(schema: Schema) -> Iterator[Reference]:
    """The ways to refer that no foreign key guards, as far as they exist here."""
    keyed = {(key.table, key.column) for key in schema.catalogue.foreign_keys}
    owners = {*ENTITY_TABLES.values(), *PARTS} - {"jobs"}
    for reference in ALL:
        columns = (reference.column, *(column for column, _ in reference.where))
        is_here = schema.has(reference.table, *columns) and schema.has(reference.to)
        is_link = reference.action is Action.DELETE and reference.to in owners
        if is_here and is_link and (reference.table, reference.column) not in keyed:
            yield reference


def sweep(
    store: TrackingStore, lease: Lease | None, goes_on: Callable[[], bool]
) -> Iterator[tuple[str, str, int]]:
    """(table, what it was, rows) for each way in which rows have lost their owner.

    Without a lease the rows are only counted.
    """
    for reference in kinds(store.schema):
        rows = 0
        for ids in ownerless(store, reference):
            rows += settle(store, lease, reference, ids)
            if not goes_on():
                break
        if rows:
            yield reference.table, f"{reference.meaning}, of {reference.to} that are gone", rows
    rows = version_tags(store, lease)
    if rows:
        yield "model_version_tags", "tags of deleted model versions", rows


def ownerless(store: TrackingStore, reference: Reference) -> Iterator[list[Any]]:
    """Values of the referring column that name no row of the owner's table, page by page."""
    schema = store.schema
    table = schema.table(reference.table)
    column = table.c[reference.column]
    fixed = [table.c[name].in_(values) for name, values in reference.where]
    after: Any = None
    while True:
        query = sa.select(column).where(*fixed, column.is_not(None)).distinct()
        if after is not None:
            query = query.where(column > after)
        with store.reading() as conn:
            page = conn.execute(query.order_by(column).limit(SLICE)).scalars().all()
            missing = without_owner(conn, schema, reference, page)
        if not page:
            return
        if missing:
            yield missing
        after = page[-1]


def without_owner(
    conn: Connection, schema: Schema, reference: Reference, values: Sequence[Any]
) -> list[Any]:
    """Those of the values that are no key of an owner; what can be no number names none."""
    key = schema.table(reference.to).c[OWNERS[reference.to]]
    wanted = [value for value in values if not reference.is_text or str(value).isdecimal()]
    native = [int(value) for value in wanted] if reference.is_text else wanted
    there = {str(each) for each in conn.execute(sa.select(key).where(key.in_(native))).scalars()}
    return [value for value in wanted if str(value) not in there]


def settle(
    store: TrackingStore, lease: Lease | None, reference: Reference, ids: Sequence[Any]
) -> int:
    """Count the rows that refer to these, or delete them after looking once more."""
    if lease is None:
        with store.reading() as conn:
            table = store.schema.table(reference.table)
            where = matching(store.schema, reference, ids)
            query = sa.select(sa.func.count()).select_from(table).where(*where)
            return conn.scalar(query) or 0
    holder = lease

    def transaction(conn: Connection) -> int:
        holder.confirm(conn)
        gone = without_owner(conn, store.schema, reference, ids)
        return store.eraser(conn).delete_referring(reference, gone) if gone else 0

    return store.retried(transaction, is_exported=True)


def version_tags(store: TrackingStore, lease: Lease | None) -> int:
    """Tags of model versions that MLflow deleted, which it leaves behind."""
    schema = store.schema
    if not schema.has("model_version_tags", "name", "version"):
        return 0
    versions, rows = schema.table("model_versions"), 0
    query = sa.select(versions.c.name, versions.c.version).where(
        versions.c.current_stage == DELETED_VERSION
    )
    if schema.has("model_versions", "workspace"):
        query = query.add_columns(versions.c.workspace)
    with store.reading() as conn:
        deleted = conn.execute(query).all()
    for part in slices(deleted):
        rows += settle_version_tags(store, lease, part)
    return rows


def settle_version_tags(
    store: TrackingStore, lease: Lease | None, part: Sequence[Sequence[Any]]
) -> int:
    """Count or delete the tags of some deleted model versions."""
    tags = store.schema.table("model_version_tags")
    columns = [tags.c.name, tags.c.version]
    if len(part[0]) > len(columns):
        columns.append(tags.c.workspace)

    def condition(row: Sequence[Any]) -> sa.ColumnElement[bool]:
        return sa.and_(*(c == value for c, value in zip(columns, row, strict=True)))

    rows = 0
    for few in slices(part, 100):
        where = sa.or_(*map(condition, few))
        if lease is None:
            with store.reading() as conn:
                query = sa.select(sa.func.count()).select_from(tags).where(where)
                rows += conn.scalar(query) or 0
            continue
        rows += store.retried(deleting(store.eraser, lease, where), is_exported=True)
    return rows


def deleting(
    eraser: Callable[[Connection], Eraser], lease: Lease, where: sa.ColumnElement[bool]
) -> Callable[[Connection], int]:
    """A transaction that deletes tags of model versions under the lease."""

    def transaction(conn: Connection) -> int:
        lease.confirm(conn)
        return eraser(conn).delete("model_version_tags", where)

    return transaction
