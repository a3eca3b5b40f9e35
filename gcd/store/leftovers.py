"""What a purge leaves to delete afterwards: a giant's children, and references that no index finds.

It must never touch a row of an entity whose own row is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.model import Kind
from gcd.store.eraser import SLICE, Eraser
from gcd.store.read import native
from gcd.store.references import ENTITY_TABLES, Action, Reference
from gcd.store.schema import Schema

REDACTED_RUN = "REDACTED-RUN-ID"
"""What MLflow itself writes when a model version is deleted."""

KEYS = {
    "assessments": ("assessment_id",),
    "trace_request_metadata": ("key", "request_id"),
    "model_versions": ("workspace", "name", "version"),
    "registered_model_tags": ("workspace", "key", "name"),
    "model_version_tags": ("workspace", "key", "name", "version"),
    "jobs": ("id",),
}
"""The primary keys of tables that are scanned."""


def delete_some_children(eraser: Eraser, kind: Kind, entity: str, limit: int) -> int:
    """Delete at most `limit` rows of a giant whose own row is gone; 0 when nothing is left."""
    table = ENTITY_TABLES[kind]
    [key] = native(kind, [entity])
    for reference in eraser.schema.references(table, scanned=False):
        if reference.action is Action.DELETE and reference.is_unbounded:
            gone = eraser.delete_some(reference, key, limit)
            if gone:
                return gone
    return eraser.delete_belongings(table, [key])


def scanned_rows(
    conn: Connection, schema: Schema, reference: Reference, ids: set[str]
) -> Iterator[dict[str, Any]]:
    """The rows that refer to one of the ids by a column that no index serves: their columns."""
    table = schema.table(reference.table)
    column = table.c[reference.column]
    query = sa.select(table).where(*(table.c[c].in_(values) for c, values in reference.where))
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


def settle_now(eraser: Eraser, kind: Kind, ids: set[str]) -> int:
    """Look for what refers to entities without an index within their purge; how many rows went."""
    gone = 0
    for reference in eraser.schema.references(ENTITY_TABLES[kind], scanned=True):
        for row in list(scanned_rows(eraser.conn, eraser.schema, reference, ids)):
            gone += settle_row(eraser, reference, row, ids).gone
    return gone


class Settled(NamedTuple):
    """What became of scanned rows."""

    gone: int
    changed: int


def settle_row(
    eraser: Eraser, reference: Reference, row: Mapping[str, Any], ids: set[str]
) -> Settled:
    """Do with one scanned row what its reference says, if it is still as it was read."""
    schema = eraser.schema
    table = schema.table(reference.table)
    keys = [name for name in KEYS[reference.table] if schema.has(reference.table, name)]
    same = [table.c[name] == row[name] for name in keys]
    same.append(table.c[reference.column] == row[reference.column])
    if reference.action in (Action.DELETE, Action.DELETE_IF_MEMBER):
        return Settled(delete_row(eraser, reference.table, row, same), 0)
    old = str(row[reference.column])
    new = REDACTED_RUN if reference.action is Action.REDACT else unlisted(old, ids)
    return Settled(0, eraser.update(reference.table, {reference.column: new}, *same))


def delete_row(
    eraser: Eraser, name: str, row: Mapping[str, Any], same: list[sa.ColumnElement[bool]]
) -> int:
    """Delete a scanned row with what hangs on it."""
    table = eraser.schema.table(name)
    if name == "assessments" and "overrides" in table.c:
        # The one that overrode it is on the same trace, which has an index; `overrides` has none.
        overriding = table.c.trace_id == row["trace_id"], table.c.overrides == row["assessment_id"]
        eraser.update(name, {"overrides": None}, *overriding)
    gone = eraser.delete_belongings("jobs", [row["id"]]) if name == "jobs" else 0
    return gone + eraser.delete(name, *same)


def unlisted(text: str, ids: set[str]) -> str:
    """A comma-separated list without the ids, framed by commas as it was."""
    kept = [part for part in text.split(",") if part.strip() and part.strip() not in ids]
    joined = ",".join(kept)
    return f",{joined}," if kept and text.startswith(",") else joined
