"""Rows without an owner, which earlier `mlflow gc` runs left: counted by table, or deleted page by page.

Invariant: what goes has named, by proof, something that was in this database and is gone. A row is
proved by how MLflow writes it (`WRITTEN_WITH`: together with its owner, or after it has looked it up
here), else by another row that is proved so (`evidence`: inputs of a run, gcd's journal). All others
may name something that lives elsewhere, or is yet to come, and stay: a trace made with a model or
in a run of another server, a model of another server that a run took, a link to a trace that was
sent somewhere else. A row whose owner is there never goes, nor does any entity itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.model import Kind
from gcd.store import tables
from gcd.store.eraser import SLICE, Eraser, slices
from gcd.store.exact import Exact
from gcd.store.lease import Lease
from gcd.store.read import NOW
from gcd.store.references import ALL, ENTITY_TABLES, OF_RUNS, OWNERS, Action, Reference
from gcd.store.schema import Schema
from gcd.store.tracking import TrackingStore

PARTS = frozenset({"inputs", "scorers", "datasets", "label_schemas", "issues"})
"""Owners that are no entities, and whose belongings have no foreign key."""
SWEPT = (frozenset(ENTITY_TABLES.values()) | PARTS) - {"jobs"}
DELETED_VERSION = "Deleted_Internal"
VERSION_TAGS = "model_version_tags"
WRITTEN_WITH = frozenset(
    {
        # log_inputs and log_outputs look up the run, and write a dataset with its first use.
        ("inputs", "destination_id", "runs"),
        ("inputs", "source_id", "runs"),
        ("inputs", "source_id", "datasets"),
        ("input_tags", "input_uuid", "inputs"),
        # The number of an experiment means nothing outside the database that gave it.
        ("entity_associations", "source_id", "experiments"),
        ("entity_associations", "destination_id", "experiments"),
        ("sql_trace_metric_daily_rollups", "experiment_id", "experiments"),
        ("sql_span_cost_daily_rollups", "experiment_id", "experiments"),
        ("sql_assessment_daily_rollups", "experiment_id", "experiments"),
        ("sql_trace_rollup_rebuild_queue", "experiment_id", "experiments"),
        # Configuration of one server, which looks both sides up.
        ("review_queue_label_schemas", "schema_id", "label_schemas"),
        ("endpoint_bindings", "resource_id", "scorers"),
    }
)
"""(table, column, owner's table) where MLflow cannot have written a row without its owner here."""
FEW = 100
"""Model versions in one condition."""
YOUNG = timedelta(days=1)
"""A link younger than this may name a trace that its client has yet to send."""
NUMBER = "^[0-9]{1,18}$"


def unguarded(schema: Schema) -> Iterator[Reference]:
    """The ways to belong to somebody that no foreign key guards, as far as they exist here."""
    keyed = {(key.table, *key.columns) for key in schema.catalogue.foreign_keys}
    for reference in belonging(schema):
        if reference.to in SWEPT and (reference.table, reference.column) not in keyed:
            yield reference


def belonging(schema: Schema) -> Iterator[Reference]:
    """Every way to belong to somebody that exists here."""
    for reference in ALL:
        columns = (reference.column, *(column for column, _ in reference.where))
        is_here = schema.has(reference.table, *columns) and schema.has(reference.to)
        if is_here and reference.action is Action.DELETE:
            yield reference


# -- conditions ------------------------------------------------------------------------------------


def naming(reference: Reference, rows: sa.FromClause, owner: sa.FromClause) -> sa.Exists:
    """That the owner which a row names is among those of `owner`, as the database compares them."""
    named = value(reference, rows)
    return sa.exists().where(owner.c[OWNERS[reference.to]] == named)


def value(reference: Reference, rows: sa.FromClause) -> sa.ColumnElement[Any]:
    """What a row names; NULL where a number is needed and it is none."""
    column = rows.c[reference.column]
    if not reference.is_text:
        return column
    return sa.case((column.regexp_match(NUMBER), sa.cast(column, sa.BigInteger)))


def says(reference: Reference, rows: sa.FromClause) -> list[sa.ColumnElement[bool]]:
    """That a row refers in this way at all."""
    fixed = [rows.c[column].in_(values) for column, values in reference.where]
    return [*fixed, value(reference, rows).is_not(None)]


def is_ownerless(
    schema: Schema, reference: Reference, rows: sa.FromClause
) -> sa.ColumnElement[bool]:
    """That a row refers in this way to what is not there."""
    owner = schema.table(reference.to).alias()
    missing_owner = ~naming(reference, rows, owner)
    proof = [] if is_written_with(reference) else [sa.or_(*evidence(schema, reference, rows))]
    return sa.and_(*says(reference, rows), missing_owner, *is_settled(schema, rows), *proof)


def is_written_with(reference: Reference) -> bool:
    """Whether a row that refers in this way is itself the proof that its owner was here."""
    return (reference.table, reference.column, reference.to) in WRITTEN_WITH


def evidence(
    schema: Schema, reference: Reference, rows: sa.FromClause
) -> Iterator[sa.ColumnElement[bool]]:
    """Other rows that prove that the owner which a row names was in this database; false where none can."""
    named = rows.c[reference.column]
    kind = next((kind for kind, table in ENTITY_TABLES.items() if table == reference.to), None)
    if kind is not None and schema.has(tables.journal.name):
        journal = tables.journal.alias()
        yield sa.exists().where(journal.c.entity_id == named, journal.c.kind == kind.value)
    if kind is Kind.RUN:
        for each in OF_RUNS:
            if each.table == "inputs" and schema.has("inputs", each.column):
                inputs = schema.table("inputs").alias()
                fixed = [inputs.c[column].in_(values) for column, values in each.where]
                yield sa.exists().where(inputs.c[each.column] == named, *fixed)
    yield sa.false()


def is_settled(schema: Schema, rows: sa.FromClause) -> list[sa.ColumnElement[bool]]:
    """That a row is not so young that its owner may be on its way: MLflow links traces unseen."""
    young = is_young(schema, rows)
    return [] if young is None else [~young]


def is_young(schema: Schema, rows: sa.FromClause) -> sa.ColumnElement[bool] | None:
    """That a row was written lately; None where it does not say when."""
    if "created_time" not in rows.c:
        return None
    now: sa.ColumnElement[int] = sa.literal_column(f"({NOW[schema.catalogue.dialect]})")
    return rows.c.created_time >= now - YOUNG // timedelta(milliseconds=1)


def goes(schema: Schema, table: str, rows: sa.FromClause) -> list[sa.ColumnElement[bool]]:
    """Why a row would be deleted: it has lost an owner, or belongs to a row that has."""
    found = [
        is_ownerless(schema, reference, rows)
        for reference in unguarded(schema)
        if reference.table == table
    ]
    for reference in belonging(schema):
        if reference.table == table and reference.to not in ENTITY_TABLES.values():
            owner = schema.table(reference.to).alias()
            with_it = goes(schema, reference.to, owner)
            if with_it:
                named = naming(reference, rows, owner).where(sa.or_(*with_it))
                found.append(sa.and_(*says(reference, rows), named))
    if table == VERSION_TAGS and schema.has(table, "name", "version"):
        versions = schema.table("model_versions").alias()
        same = [versions.c[name] == rows.c[name] for name in version_key(schema)]
        found.append(sa.exists().where(Exact(versions.c.current_stage) == DELETED_VERSION, *same))
    return found


def version_key(schema: Schema) -> tuple[str, ...]:
    """The columns that name a model version."""
    is_shared = schema.has("model_versions", "workspace") and schema.has(VERSION_TAGS, "workspace")
    return ("name", "version", "workspace") if is_shared else ("name", "version")


# -- counting and deleting -------------------------------------------------------------------------


def count(store: TrackingStore) -> Counter[str]:
    """How many rows of each table `sweep` would delete, each counted once."""
    found: Counter[str] = Counter()
    for table in sorted({reference.table for reference in ALL}):
        if not store.schema.has(table):
            continue
        rows = store.schema.table(table)
        reasons = goes(store.schema, table, rows)
        if reasons:
            query = sa.select(sa.func.count()).select_from(rows).where(sa.or_(*reasons))
            with store.reading() as conn:
                found[table] = conn.scalar(query) or 0
    return +found


def sweep(store: TrackingStore, lease: Lease, goes_on: Callable[[], bool]) -> Counter[str]:
    """Delete the rows that have lost their owner; how many of each table went."""
    gone: Counter[str] = Counter()
    for delete in deletions(store):
        if not goes_on():
            break

        def transaction(conn: Connection, delete: Deletion = delete) -> Counter[str]:
            lease.confirm(conn)
            eraser = store.eraser(conn)
            delete(eraser)
            return eraser.gone

        gone += store.retried(transaction, is_exported=True)
    return gone


Deletion = Callable[[Eraser], object]


def deletions(store: TrackingStore) -> Iterator[Deletion]:
    """What is to be deleted, one transaction each; it is looked for once more in there.

    What needs evidence goes first: the evidence goes too.
    """
    for reference in sorted(unguarded(store.schema), key=is_written_with):
        for values in ownerless(store, reference):
            yield deletion(reference, values)
    with store.reading() as conn:
        versions = conn.execute(deleted_versions(store.schema)).all()
    for part in slices(versions, FEW):
        yield deletion_of_tags(part)


def ownerless(store: TrackingStore, reference: Reference) -> Iterator[list[Any]]:
    """What is named in this way and not there, page by page."""
    column = store.schema.table(reference.table).c[reference.column]
    after: Any = None
    while True:
        query = missing(store.schema, reference)
        if after is not None:
            query = query.where(column > after)
        with store.reading() as conn:
            page = list(conn.execute(query.order_by(column).limit(SLICE)).scalars())
        if not page:
            return
        yield page
        after = page[-1]


def missing(schema: Schema, reference: Reference) -> sa.Select[*tuple[Any, ...]]:
    """The values of the referring column that name what is not there."""
    rows = schema.table(reference.table)
    found = sa.select(rows.c[reference.column]).where(is_ownerless(schema, reference, rows))
    return found.distinct()


def deletion(reference: Reference, values: Sequence[Any]) -> Deletion:
    """The rows that name these in this way, with what belongs to them."""

    def delete(eraser: Eraser) -> None:
        table = eraser.schema.table(reference.table)
        column = table.c[reference.column]
        still = missing(eraser.schema, reference).where(column.in_(values))
        # All rows that name a value go: none of them may be young.
        young = is_young(eraser.schema, others := table.alias())
        if young is not None:
            still = still.where(column.not_in(sa.select(others.c[reference.column]).where(young)))
        gone = eraser.conn.execute(still).scalars().all()
        if gone:
            eraser.delete_referring(reference, gone)

    return delete


def deleted_versions(schema: Schema) -> sa.Select[*tuple[Any, ...]]:
    """The keys of the model versions that MLflow deleted, whose tags it leaves behind."""
    if not (schema.has(VERSION_TAGS, "name", "version") and schema.has("model_versions", "name")):
        return sa.select(sa.null()).where(sa.false())
    versions = schema.table("model_versions")
    key = [versions.c[name] for name in version_key(schema)]
    return sa.select(*key).where(Exact(versions.c.current_stage) == DELETED_VERSION)


def deletion_of_tags(part: Sequence[Sequence[Any]]) -> Deletion:
    """The tags of some model versions that are deleted."""

    def delete(eraser: Eraser) -> None:
        schema = eraser.schema
        versions, tags = schema.table("model_versions"), schema.table(VERSION_TAGS)
        still = deleted_versions(schema).where(any_of(schema, versions, part))
        gone = eraser.conn.execute(still).all()
        if gone:
            eraser.delete(VERSION_TAGS, any_of(schema, tags, gone))

    return delete


def any_of(
    schema: Schema, table: sa.TableClause, keys: Sequence[Sequence[Any]]
) -> sa.ColumnElement[bool]:
    """That a row is of one of these model versions."""
    names = version_key(schema)
    return sa.or_(
        *(
            sa.and_(*(table.c[name] == part for name, part in zip(names, key, strict=True)))
            for key in keys
        )
    )
