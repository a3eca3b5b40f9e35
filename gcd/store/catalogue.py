"""Asks the server's own catalogue what there is: tables, columns, foreign keys, triggers, revision.

It must never conclude anything from a revision number, and never look at rows of entities.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key, single columns only: MLflow's references to entities have no others."""

    schema: str | None
    """None where the table lies beside MLflow's."""
    table: str
    column: str
    to_table: str
    to_column: str


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The parts of a live database that deciding and deleting depend on."""

    dialect: str
    schema: str | None
    tables: Mapping[str, sa.TableClause]
    """Each table with the columns that it has here."""
    foreign_keys: tuple[ForeignKey, ...]
    delete_triggers: Mapping[str, str]
    """Table to the name of a trigger (or rule) that fires on DELETE."""
    revision: str | None

    def has(self, table: str, *columns: str) -> bool:
        """Whether the table is there with all of these columns."""
        return table in self.tables and all(name in self.tables[table].c for name in columns)


COLUMNS = {
    "sqlite": "SELECT m.name, p.name FROM sqlite_master m, pragma_table_info(m.name) p "
    "WHERE m.type = 'table'",
    "postgresql": "SELECT c.relname, a.attname FROM pg_class c "
    "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped "
    "WHERE c.relkind IN ('r', 'p') AND c.relnamespace = "
    "(SELECT relnamespace FROM pg_class WHERE oid = to_regclass('runs'))",
    "mysql": "SELECT table_name, column_name FROM information_schema.columns "
    "WHERE table_schema = DATABASE()",
    "mssql": "SELECT table_name, column_name FROM information_schema.columns "
    "WHERE table_schema = SCHEMA_NAME()",
}
FOREIGN_KEYS = {
    "sqlite": 'SELECT NULL, m.name, f."from", f."table", f."to" FROM sqlite_master m, '
    "pragma_foreign_key_list(m.name) f WHERE m.type = 'table'",
    "postgresql": "SELECT CASE WHEN n.oid = t.relnamespace THEN NULL ELSE n.nspname END, "
    "c.relname, a.attname, t.relname, b.attname FROM pg_constraint k "
    "JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
    "JOIN pg_class t ON t.oid = k.confrelid "
    "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (k.conkey) "
    "JOIN pg_attribute b ON b.attrelid = t.oid AND b.attnum = "
    "k.confkey[array_position(k.conkey, a.attnum)] "
    "WHERE k.contype = 'f' AND k.conparentid = 0 AND t.relnamespace = "
    "(SELECT relnamespace FROM pg_class WHERE oid = to_regclass('runs'))",
    "mysql": "SELECT CASE WHEN table_schema = DATABASE() THEN NULL ELSE table_schema END, "
    "table_name, column_name, referenced_table_name, referenced_column_name "
    "FROM information_schema.key_column_usage "
    "WHERE referenced_table_schema = DATABASE() AND referenced_table_name IS NOT NULL",
}
TRIGGERS = {
    "postgresql": "SELECT c.relname, g.tgname FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid "
    "WHERE NOT g.tgisinternal AND (g.tgtype & 8) <> 0 AND g.tgenabled <> 'D' AND c.relnamespace = "
    "(SELECT relnamespace FROM pg_class WHERE oid = to_regclass('runs')) "
    "UNION ALL SELECT c.relname, w.rulename FROM pg_rewrite w JOIN pg_class c ON c.oid = w.ev_class "
    "WHERE w.ev_type = '4' AND c.relnamespace = "
    "(SELECT relnamespace FROM pg_class WHERE oid = to_regclass('runs'))",
    "mysql": "SELECT event_object_table, trigger_name FROM information_schema.triggers "
    "WHERE event_object_schema = DATABASE() AND event_manipulation = 'DELETE'",
}
SQLITE_TRIGGERS = "SELECT tbl_name, name, sql FROM sqlite_master WHERE type = 'trigger'"


def read_catalogue(conn: Connection) -> Catalogue:
    """What the server says of its own schema, in a handful of queries.

    Foreign keys are those on MLflow's tables from any schema that the role can see.
    """
    dialect = family(conn.dialect.name)
    columns: dict[str, list[str]] = defaultdict(list)
    for table, column in conn.exec_driver_sql(COLUMNS[dialect]):
        columns[table].append(column)
    tables = {name: sa.table(name, *map(sa.column, found)) for name, found in columns.items()}
    return Catalogue(
        dialect=dialect,
        schema=schema_of(conn, dialect),
        tables=tables,
        foreign_keys=tuple(foreign_keys(conn, dialect)),
        delete_triggers=dict(delete_triggers(conn, dialect)),
        revision=revision_of(conn) if "alembic_version" in tables else None,
    )


def family(dialect: str) -> str:
    """MariaDB speaks MySQL's catalogue."""
    return "mysql" if dialect == "mariadb" else dialect


def schema_of(conn: Connection, dialect: str) -> str | None:
    """The schema that MLflow's tables are in, None where the dialect has only one."""
    if dialect != "postgresql":
        return None
    found = conn.exec_driver_sql(
        "SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass('runs')"
    ).scalar()
    return str(found) if found else None


def foreign_keys(conn: Connection, dialect: str) -> Iterable[ForeignKey]:
    """Every foreign key on a table of the store."""
    if dialect not in FOREIGN_KEYS:
        return
    for schema, table, column, to_table, to_column in conn.exec_driver_sql(FOREIGN_KEYS[dialect]):
        yield ForeignKey(schema, table, column, to_table, to_column or "")


def delete_triggers(conn: Connection, dialect: str) -> Iterable[tuple[str, str]]:
    """(table, trigger) of every trigger and rule that fires on DELETE."""
    if dialect == "sqlite":
        for table, name, text in conn.exec_driver_sql(SQLITE_TRIGGERS):
            if re.search(r"\bDELETE\s+ON\b", text or "", re.IGNORECASE):
                yield table, name
    elif dialect in TRIGGERS:
        for table, name in conn.exec_driver_sql(TRIGGERS[dialect]):
            yield table, name


def revision_of(conn: Connection) -> str | None:
    """MLflow's Alembic revision, None where the table is empty; several joined by a comma."""
    rows = conn.exec_driver_sql("SELECT version_num FROM alembic_version ORDER BY 1").scalars()
    return ", ".join(rows) or None
