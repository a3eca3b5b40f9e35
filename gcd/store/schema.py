"""Whether gcd knows all of what hangs on what in the live database.

It must never guess: a table or a trigger on what would be purged that it does not know is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.errors import SchemaUnsupported, StoreRefused
from gcd.model import Kind
from gcd.store.catalogue import UNKNOWN, VERSIONS, Catalogue, ForeignKey, read_catalogue, revisions
from gcd.store.exact import Exact
from gcd.store.faults import steadily
from gcd.store.references import ALL, ENTITY_TABLES, OWNERS, Action, Reference
from gcd.store.revisions import KNOWN

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
UNFINISHED = "_alembic_tmp_"
"""What Alembic calls the copy of a table that it changes on SQLite, until it takes its place."""
ACTING = frozenset({"CASCADE", "SET NULL", "SET DEFAULT"})
"""Delete rules by which the database itself lets a row go; by all others it refuses."""
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
    harmless: tuple[ForeignKey, ...] = ()
    """Those from tables that an operator knows to be harmless: the database does as they say."""
    novel: Mapping[Kind, str] = field(default_factory=dict)
    """The kinds that a revision which gcd does not know may refer to, with why: they stay."""

    def references(self, to: str, *, scanned: bool) -> Iterator[Reference]:
        """The references to rows of a table that exist here, in the order of deletion."""
        for reference in ALL:
            columns = (reference.column, *(column for column, _ in reference.where))
            if reference.to != to or reference.is_scanned != scanned:
                continue
            if self.catalogue.has(reference.table, *columns):
                yield reference

    def qualified(self) -> Schema:
        """The same with its schema before each name: for connections without gcd's search path."""
        place = self.catalogue.schema
        tables = {
            name: sa.table(name, *(sa.column(each.name) for each in table.c), schema=place)
            for name, table in self.catalogue.tables.items()
        }
        return replace(self, catalogue=replace(self.catalogue, tables=tables))

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

    @property
    def shape(self) -> tuple[object, ...]:
        """All that a purge relies on, to be compared: it changes when MLflow migrates."""
        names = sorted({*self.purged_tables(), *REQUIRED})
        columns = tuple((name, tuple(sorted(self.table(name).c.keys()))) for name in names)
        keys = sorted(map(repr, (*self.strangers, *self.harmless)))
        return self.catalogue.revisions, columns, tuple(keys)

    def notes(self) -> tuple[str, ...]:
        """What people should know of this schema."""
        revision = self.catalogue.revision
        if revision is None or revision in KNOWN:
            return ()
        told = f"MLflow's schema revision {revision} is one that this gcd has not seen; "
        if not self.novel:
            return (told + "nothing new in it may refer to what it deletes",)
        kept = (f"each {kind.replace('_', ' ')} stays: {why}" for kind, why in self.novel.items())
        return (told + "; ".join(kept),)

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


def is_deleted(table: sa.TableClause) -> sa.ColumnElement[bool]:
    """In the deleted stage, spelt as MLflow spells it: other cases and spaces are not deleted."""
    return Exact(table.c.lifecycle_stage) == DELETED


def is_live(table: sa.TableClause) -> sa.ColumnElement[bool]:
    """Not in the deleted stage; NULL is not deleted."""
    stage = table.c.lifecycle_stage
    return sa.or_(stage.is_(None), Exact(stage) != DELETED)


def read_schema(conn: Connection, harmless: Collection[str] = ()) -> Schema:
    """The live schema; StoreRefused where it is not MLflow's, SchemaUnsupported where unknown.

    `harmless` names tables and triggers that gcd does not know and an operator does.
    """
    catalogue = steadily(lambda: read_catalogue(conn))
    check_mlflow(catalogue)
    refuse_unfinished(catalogue)
    keys = list(unknown_keys(catalogue))
    listed = [key for key in keys if is_harmless(key, harmless)]
    strangers = [key for key in keys if key not in listed]
    schema = Schema(catalogue, tuple(strangers), tuple(listed))
    refuse_triggers(schema, harmless)
    refuse_keys(schema, harmless)
    return schema


def unknown_keys(catalogue: Catalogue) -> Iterator[ForeignKey]:
    """Foreign keys on the tables of entities that are in no row of the table of references."""
    known = {(ref.table, (ref.column,), ref.to) for ref in ALL}
    entities = frozenset(ENTITY_TABLES.values())
    for key in catalogue.foreign_keys:
        is_known = key.schema is None and (key.table, key.columns, key.to_table) in known
        if key.to_table in entities and not is_known:
            yield key


def is_harmless(key: ForeignKey, harmless: Collection[str]) -> bool:
    """Whether an operator lists the table, and the database itself lets its rows go."""
    return key.name in harmless and key.on_delete in ACTING


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


def refuse_unfinished(catalogue: Catalogue) -> None:
    """SchemaUnsupported where a migration of MLflow's is under way, or stopped half-way."""
    hint = "let `mlflow db upgrade` end, or restore the backup from before it, then try again"
    left = sorted(name for name in catalogue.tables if name.startswith(UNFINISHED))
    if left:
        sentence = f"a migration of MLflow's is not finished: the table {left[0]} is still there"
        raise SchemaUnsupported(sentence, hint=hint)
    found = catalogue.revisions
    if found is not None and len(found) != 1:
        rows = "no row" if not found else f"{len(found)} rows ({catalogue.revision})"
        sentence = f"a migration of MLflow's is not finished: {VERSIONS} has {rows} instead of one"
        raise SchemaUnsupported(sentence, hint=hint)


def confirm(conn: Connection, schema: Schema) -> None:
    """SchemaUnsupported where MLflow has migrated the database since; for a write transaction."""
    if schema.catalogue.revisions is not None:
        refuse_migrated(schema.catalogue.revisions, revisions(conn))


def refuse_migrated(before: tuple[str, ...] | None, now: tuple[str, ...] | None) -> None:
    """SchemaUnsupported where a revision is no longer what it was."""
    if now != before:
        was, is_now = (", ".join(each or ("none",)) for each in (before, now))
        raise SchemaUnsupported(
            f"MLflow migrated the database from revision {was} to {is_now} meanwhile; gcd stops",
            hint="run gcd again when the migration is done",
        )


def refuse_triggers(schema: Schema, harmless: Collection[str]) -> None:
    """SchemaUnsupported where something unknown would fire on a purge."""
    for table, trigger in schema.catalogue.delete_triggers:
        if table in schema.deleted_tables() and trigger not in harmless:
            raise SchemaUnsupported(
                f"the trigger {trigger} fires when rows of {table} are deleted; gcd does not know it",
                hint="drop the trigger, or list it in purge.harmless if it may fire",
            )


def refuse_keys(schema: Schema, harmless: Collection[str]) -> None:
    """SchemaUnsupported where an unknown table hangs on a part of an entity."""
    known = {(ref.table, ref.to) for ref in ALL} | BETWEEN_PARTS
    parts = schema.deleted_tables() - frozenset(ENTITY_TABLES.values())
    for key in schema.catalogue.foreign_keys:
        is_known = key.schema is None and (key.table, key.to_table) in known
        if key.to_table in parts and not is_known and not is_harmless(key, harmless):
            raise SchemaUnsupported(
                f"the table {key.name} refers to {key.to_table}, which gcd would delete from; gcd "
                "does not know it",
                hint=f"drop the foreign key, or {mend(key)}",
            )


def mend(key: ForeignKey) -> str:
    """What lets gcd collect what an unknown table refers to."""
    listed = f'list it in purge.harmless = ["{key.name}"]'
    if key.on_delete == UNKNOWN:
        return f"let this user see its ON DELETE rule: GRANT REFERENCES ON {key.name} TO it"
    if key.on_delete in ACTING:
        return f"{listed}: its rows go, or lose the pointer, by its own ON DELETE {key.on_delete}"
    return f"give it ON DELETE CASCADE or SET NULL, and {listed}"
