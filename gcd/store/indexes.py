"""The columns by which a collection finds rows, and those of them that no index serves here.

It must never make an index: it says which one, and what that would save.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd import clock
from gcd.store.references import ALL
from gcd.store.schema import BETWEEN_PARTS, Schema

FEW_EACH, FEW_A_BATCH = 10_000, 100_000
"""Tables with fewer rows are read through so fast that an index is not worth a word."""
SAMPLE = 100_000
"""Rows that are read to tell how long reading all of them takes."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """Rows of a table are looked for by a column, where other columns have fixed values."""

    table: str
    column: str
    of: str
    """What is deleted then."""
    fixed: tuple[str, ...] = ()
    is_each: bool = False
    """The server does it for each deleted row: a foreign key."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A lookup that reads all rows of its table."""

    lookup: Lookup
    rows: int
    """About how many there are."""
    seconds: float
    """About how long reading them all takes."""
    statement: str
    """What makes the index."""


def lookups(schema: Schema) -> Iterator[Lookup]:
    """Every way in which a collection, or the server on its behalf, looks for rows."""
    deleted = schema.deleted_tables()
    for reference in ALL:
        fixed = tuple(column for column, _ in reference.where)
        if schema.has(reference.table, reference.column, *fixed) and not (
            reference.is_scanned or reference.beside
        ):
            yield Lookup(reference.table, reference.column, reference.to, fixed)
    if schema.has("logged_model_metrics", "dataset_uuid"):
        yield Lookup("logged_model_metrics", "dataset_uuid", "experiments")
    for key in schema.catalogue.foreign_keys:
        is_whole = (key.table, key.to_table) not in BETWEEN_PARTS
        if key.schema is None and key.to_table in deleted and is_whole:
            yield Lookup(key.table, key.columns[0], key.to_table, is_each=True)


def unserved(conn: Connection, wanted: Collection[Lookup]) -> list[Lookup]:
    """Those of the lookups without an index; of one that is done in two ways, the dearer."""
    indexes = leading_columns(conn, {each.table for each in wanted}) if wanted else {}
    found: dict[tuple[str, str], Lookup] = {}
    for each in sorted(wanted, key=lambda lookup: lookup.is_each):
        if not any(is_served(each, columns) for columns in indexes[each.table]):
            found[each.table, each.column] = each
    return list(found.values())


def is_served(lookup: Lookup, columns: Sequence[str | None]) -> bool:
    """Whether an index on these columns finds the rows, or only few others with them."""
    return columns[0] == lookup.column or columns[0] in lookup.fixed


def leading_columns(
    conn: Connection, tables: Collection[str]
) -> Mapping[str, list[Sequence[str | None]]]:
    """Table to the columns of each index on all of its rows, keys included."""
    inspector, names = sa.inspect(conn), sorted(tables)
    broken = invalid_indexes(conn)
    found: dict[str, list[Sequence[str | None]]] = defaultdict(list)
    for (_, table), indexes in inspector.get_multi_indexes(filter_names=names).items():
        for index in indexes:
            if index["name"] not in broken and not is_partial(index.get("dialect_options", {})):
                found[table].append(index["column_names"])
    for (_, table), key in inspector.get_multi_pk_constraint(filter_names=names).items():
        if key and key["constrained_columns"]:
            found[table].append(key["constrained_columns"])
    for (_, table), keys in inspector.get_multi_unique_constraints(filter_names=names).items():
        found[table] += [key["column_names"] for key in keys]
    return found


def is_partial(options: Mapping[str, Any]) -> bool:
    """Whether an index leaves rows out."""
    return any(name.endswith("_where") for name in options)


def invalid_indexes(conn: Connection) -> frozenset[str]:
    """What a CREATE INDEX CONCURRENTLY that failed left on PostgreSQL: it serves nothing."""
    if conn.dialect.name != "postgresql":
        return frozenset()
    query = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
    return frozenset(conn.exec_driver_sql(query).scalars())


# -- what it costs -------------------------------------------------------------------------------


def missing(conn: Connection, schema: Schema, *, only_each: bool = False) -> Iterator[Missing]:
    """The indexes that would save something, dearest first, each once.

    Only those of which the lack costs time for each deleted row, if so asked.
    """
    wanted = [each for each in lookups(schema) if each.is_each or not only_each]
    rows = {table: believed_rows(conn, schema, table) for table in {each.table for each in wanted}}
    found = []
    for lookup in unserved(conn, [each for each in wanted if rows[each.table] >= few(each)]):
        count = about_rows(conn, schema, lookup.table, rows[lookup.table])
        if count >= few(lookup):
            seconds = count * seconds_a_row(conn, schema, lookup)
            found.append(Missing(lookup, count, seconds, statement(conn, schema, lookup)))
    yield from sorted(found, key=lambda each: (not each.lookup.is_each, -each.rows))


def few(lookup: Lookup) -> int:
    """The number of rows from which a lookup is worth an index."""
    return FEW_EACH if lookup.is_each else FEW_A_BATCH


def seconds_each(conn: Connection, schema: Schema) -> dict[str, float]:
    """Table to about how long the server looks for what refers to a row of it that is deleted."""
    seconds: dict[str, float] = defaultdict(float)
    for each in missing(conn, schema, only_each=True):
        seconds[each.lookup.of] += each.seconds
    return dict(seconds)


BELIEVED = {
    "postgresql": "SELECT reltuples FROM pg_class WHERE oid = to_regclass(:name)",
    "mysql": "SELECT table_rows FROM information_schema.tables"
    " WHERE table_schema = DATABASE() AND table_name = :name",
}


def believed_rows(conn: Connection, schema: Schema, name: str) -> int:
    """How many rows a table has as the server believes; many where it knows nothing."""
    if schema.catalogue.dialect == "sqlite":
        rowid: sa.ColumnClause[int] = sa.literal_column("rowid")
        found = conn.scalar(sa.select(sa.func.max(rowid)).select_from(schema.table(name)))
        return int(found or 0)
    query = BELIEVED.get(schema.catalogue.dialect)
    known = conn.scalar(sa.text(query), {"name": name}) if query else None
    return SAMPLE if known is None or known < 0 else int(known)


def about_rows(conn: Connection, schema: Schema, name: str, believed: int) -> int:
    """How many rows a table has: counted if they are few, else as the server believes."""
    some = sa.select(sa.literal(1)).select_from(schema.table(name)).limit(SAMPLE).subquery()
    counted = conn.scalar(sa.select(sa.func.count()).select_from(some)) or 0
    return counted if counted < SAMPLE else max(counted, believed)


def seconds_a_row(conn: Connection, schema: Schema, lookup: Lookup) -> float:
    """How long it takes to read a row and compare it, measured on some."""
    column = schema.table(lookup.table).c[lookup.column]
    some = sa.select(column.label("found")).limit(SAMPLE).subquery()
    query = sa.select(sa.func.count()).select_from(some).where(some.c.found.is_(None))
    began = clock.monotonic()
    conn.scalar(query)
    return (clock.monotonic() - began) / SAMPLE


def statement(conn: Connection, schema: Schema, lookup: Lookup) -> str:
    """What makes the index while MLflow goes on, where the database can do that."""
    quote = conn.dialect.identifier_preparer.quote
    name = quote(f"gcd_{lookup.table}_{lookup.column}")
    place = f"{quote(lookup.table)} ({quote(lookup.column)})"
    if conn.dialect.name == "postgresql":
        where = quote(schema.catalogue.schema or "public")
        return f"CREATE INDEX CONCURRENTLY {name} ON {where}.{place};"
    online = " ALGORITHM=INPLACE LOCK=NONE" if schema.catalogue.dialect == "mysql" else ""
    return f"CREATE INDEX {name} ON {place}{online};"


def told(found: Missing, *, at_once: bool) -> str:
    """What is missing and what it costs, in a sentence; `at_once` where gcd checks keys by batches."""
    lookup = found.lookup
    noun = "trace" if lookup.of == "trace_info" else lookup.of.removesuffix("s").replace("_", " ")
    is_each = lookup.is_each and not (at_once and lookup.of == "runs")
    when = f"each deleted {noun}" if is_each else f"each batch of deleted {noun}s"
    return (
        f"{lookup.table}.{lookup.column} has none: {when} reads all of its about {found.rows:,}"
        f" rows, in about {found.seconds:.1g} s; with one it reads only what goes"
    )
