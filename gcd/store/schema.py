"""Whether gcd knows all of what hangs on what in the live database.

It must never guess: a table or a trigger on what would be purged that it does not know is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.errors import SchemaUnsupported, StoreRefused
from gcd.model import Kind
from gcd.store.catalogue import Catalogue, ForeignKey, read_catalogue
from gcd.store.references import ALL, ENTITY_TABLES, OWNERS, Action, Reference

REQUIRED: dict[str, tuple[str, ...]] = {
    "experiments": ("experiment_id", "artifact_location", "lifecycle_stage"),
    "runs": ("run_uuid", "experiment_id", "artifact_uri", "lifecycle_stage", "status"),
    "metrics": ("run_uuid",),
    "params": ("run_uuid",),
    "tags": ("run_uuid", "key", "value"),
}

DELETED = "deleted"
DELETING = frozenset({Action.DELETE, Action.DELETE_IF_MEMBER})
BETWEEN_PARTS = frozenset({("span_metrics", "spans"), ("guardrails", "scorer_versions")})
"""Foreign keys between tables of one owner, or of what is refused anyway: (from, to)."""
STAMPS: dict[Kind, str] = {
    Kind.RUN: "deleted_time",
    Kind.LOGGED_MODEL: "last_updated_timestamp_ms",
    Kind.EXPERIMENT: "last_update_time",
    Kind.TRACE: "timestamp_ms",
}
"""The column that tells when an entity was deleted, or last touched, as near as MLflow tells it."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The live catalogue with what gcd makes of it."""

    catalogue: Catalogue
    strangers: tuple[ForeignKey, ...]
    """Foreign keys on entities from tables that gcd does not know: what they name is kept."""

    def references(self, to: str, *, scanned: bool) -> Iterator[Reference]:
        """The references to rows of a table that exist here, in the order of deletion."""
        for reference in ALL:
            columns = (reference.column, *(column for column, _ in reference.where))
            if reference.to != to or reference.is_scanned != scanned:
                continue
            if self.catalogue.has(reference.table, *columns):
                yield reference

    def table(self, name: str) -> sa.TableClause:
        """The table with the columns that it has here."""
        return self.catalogue.tables[name]

    def has(self, table: str, *columns: str) -> bool:
        """Whether the table is there with all of these columns."""
        return self.catalogue.has(table, *columns)

    def key(self, kind: Kind) -> sa.ColumnClause[Any]:
        """The key column of a kind of entity."""
        name = ENTITY_TABLES[kind]
        return self.table(name).c[OWNERS[name]]

    def has_kind(self, kind: Kind) -> bool:
        """Whether this revision of MLflow knows such entities."""
        name = ENTITY_TABLES[kind]
        return self.has(name, OWNERS[name])

    def stamp(self, kind: Kind) -> sa.ColumnElement[Any]:
        """The column that tells when an entity was deleted, NULL where there is none."""
        table, column = ENTITY_TABLES[kind], STAMPS.get(kind, "")
        return self.table(table).c[column] if self.has(table, column) else sa.null()

    def deleted_tables(self) -> frozenset[str]:
        """The tables that a collection deletes rows from."""
        names = {ref.table for ref in ALL if ref.action in DELETING} | {*OWNERS}
        return frozenset(name for name in names if self.catalogue.has(name))

    def purged_tables(self) -> tuple[str, ...]:
        """The tables that a collection deletes from or changes."""
        changed = {ref.table for ref in ALL if ref.action is not Action.REFUSE}
        return tuple(sorted(self.deleted_tables() | {n for n in changed if self.catalogue.has(n)}))


def workspace_of(schema: Schema) -> sa.ColumnElement[Any]:
    """The workspace of an experiment, NULL before MLflow had them."""
    has_workspaces = schema.has("experiments", "workspace")
    return schema.table("experiments").c.workspace if has_workspaces else sa.null()


def is_live(table: sa.TableClause) -> sa.ColumnElement[bool]:
    """Not in the deleted stage; NULL is not deleted."""
    return sa.or_(table.c.lifecycle_stage.is_(None), table.c.lifecycle_stage != DELETED)


def read_schema(conn: Connection) -> Schema:
    """The live schema; StoreRefused where it is not MLflow's, SchemaUnsupported where unknown."""
    catalogue = read_catalogue(conn)
    check_mlflow(catalogue)
    schema = Schema(catalogue, tuple(unknown_keys(catalogue)))
    refuse_triggers(schema)
    refuse_keys(schema)
    return schema


def unknown_keys(catalogue: Catalogue) -> Iterator[ForeignKey]:
    """Foreign keys on the tables of entities that are in no row of the table of references."""
    known = {(ref.table, ref.column, ref.to) for ref in ALL}
    entities = frozenset(ENTITY_TABLES.values())
    for key in catalogue.foreign_keys:
        is_known = key.schema is None and (key.table, key.column, key.to_table) in known
        if key.to_table in entities and not is_known:
            yield key


def check_mlflow(catalogue: Catalogue) -> None:
    """Refuse an empty database and one that is not MLflow's tracking store."""
    if not any(not name.startswith(("alembic_", "sqlite_")) for name in catalogue.tables):
        raise StoreRefused(
            "the database is empty",
            hint="start the tracking server once, or check the URI: gcd never creates a store",
        )
    for table, columns in REQUIRED.items():
        missing = [name for name in columns if not catalogue.has(table, name)]
        if missing:
            raise StoreRefused(
                f"this is not MLflow's tracking store: there is no {table}.{missing[0]}",
                hint="give the database that the tracking server uses as its backend store",
            )


def refuse_triggers(schema: Schema) -> None:
    """SchemaUnsupported where something unknown would fire on a purge."""
    for table, trigger in schema.catalogue.delete_triggers.items():
        if table in schema.deleted_tables():
            raise SchemaUnsupported(
                f"the trigger {trigger} fires when rows of {table} are deleted; gcd does not know it",
                hint="drop the trigger, or keep collecting by hand",
            )


def refuse_keys(schema: Schema) -> None:
    """SchemaUnsupported where an unknown table hangs on a part of an entity."""
    known = {(ref.table, ref.to) for ref in ALL} | BETWEEN_PARTS
    parts = schema.deleted_tables() - frozenset(ENTITY_TABLES.values())
    for key in schema.catalogue.foreign_keys:
        is_known = key.schema is None and (key.table, key.to_table) in known
        if key.to_table in parts and not is_known:
            raise SchemaUnsupported(
                f"the table {'.'.join(filter(None, (key.schema, key.table)))} refers to "
                f"{key.to_table}, which gcd would delete from; gcd does not know it",
                hint="drop the foreign key, or keep collecting by hand",
            )
