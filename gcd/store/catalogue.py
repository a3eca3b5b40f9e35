"""Asks the server's own catalogue what there is: tables, columns, foreign keys, triggers, revision.

It must never conclude anything from a revision number, and never look at rows of entities.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import sqlalchemy as sa
from sqlalchemy.engine import Connection


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key, whatever its columns: an unknown one may have several, or name no key."""

    schema: str | None
    """None where the table lies beside MLflow's."""
    table: str
    columns: tuple[str, ...]
    to_table: str
    to_columns: tuple[str, ...]
    on_delete: str
    """What the database does with the row: NO ACTION, RESTRICT, CASCADE, SET NULL, SET DEFAULT.

    UNKNOWN where the server does not show it to this user.
    """

    @property
    def name(self) -> str:
        """The table, with its schema where that is another one."""
        return ".".join(filter(None, (self.schema, self.table)))


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The parts of a live database that deciding and deleting depend on."""

    dialect: str
    schema: str | None
    tables: Mapping[str, sa.TableClause]
    """Each table with the columns that it has here; in lower case where case makes no difference."""
    foreign_keys: tuple[ForeignKey, ...]
    delete_triggers: tuple[tuple[str, str], ...]
    """(table, trigger or rule) for each that fires on DELETE."""
    revisions: tuple[str, ...] | None
    """What MLflow's migrations noted, one row as a rule; None where there is no table for it."""

    @property
    def revision(self) -> str | None:
        """MLflow's Alembic revision, None where it is unknown; several joined by a comma."""
        return ", ".join(self.revisions or ()) or None

    def has(self, table: str, *columns: str) -> bool:
        """Whether the table is there with all of these columns."""
        return table in self.tables and all(name in self.tables[table].c for name in columns)


VERSIONS = "alembic_version"


def _mysql_name(column: str) -> str:
    """A table's name as the server compares it: in any case, where it is set up that way."""
    return f"IF(@@lower_case_table_names = 0, {column}, LOWER({column}))"


COLUMNS = {
    "sqlite": "SELECT lower(m.name), lower(p.name) "
    "FROM sqlite_master m, pragma_table_info(m.name) p WHERE m.type = 'table'",
    "postgresql": "SELECT c.relname, a.attname FROM pg_class c "
    "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped "
    "WHERE c.relkind IN ('r', 'p') AND c.relnamespace = "
    "(SELECT relnamespace FROM pg_class WHERE oid = to_regclass('runs'))",
    "mysql": f"SELECT {_mysql_name('table_name')}, LOWER(column_name) "
    "FROM information_schema.columns WHERE table_schema = DATABASE()",
    "mssql": "SELECT table_name, column_name FROM information_schema.columns "
    "WHERE table_schema = SCHEMA_NAME()",
}
FOREIGN_KEYS = {
    "sqlite": "SELECT m.name || '/' || f.id, NULL, lower(m.name), lower(f.\"from\"), "
    'lower(f."table"), lower(f."to"), '
    "f.on_delete FROM sqlite_master m, pragma_foreign_key_list(m.name) f "
    "WHERE m.type = 'table' ORDER BY 1, f.seq",
    "postgresql": "SELECT k.oid, CASE WHEN n.oid = t.relnamespace THEN NULL ELSE n.nspname END, "
    "c.relname, a.attname, t.relname, b.attname, k.confdeltype FROM pg_constraint k "
    "JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
    "JOIN pg_class t ON t.oid = k.confrelid "
    "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (k.conkey) "
    "JOIN pg_attribute b ON b.attrelid = t.oid AND b.attnum = "
    "k.confkey[array_position(k.conkey, a.attnum)] "
    "WHERE k.contype = 'f' AND k.conparentid = 0 AND t.relnamespace = "
    "(SELECT relnamespace FROM pg_class WHERE oid = to_regclass('runs')) "
    "ORDER BY k.oid, array_position(k.conkey, a.attnum)",
    "mysql": "SELECT CONCAT(u.constraint_schema, '/', u.table_name, '/', u.constraint_name), "
    "CASE WHEN u.table_schema = DATABASE() THEN NULL ELSE u.table_schema END, "
    f"{_mysql_name('u.table_name')}, LOWER(u.column_name), "
    f"{_mysql_name('u.referenced_table_name')}, LOWER(u.referenced_column_name), r.delete_rule "
    "FROM information_schema.key_column_usage u "
    # It shows only tables on which this user has more than SELECT; the other shows them all.
    "LEFT JOIN information_schema.referential_constraints r "
    "ON r.constraint_schema = u.constraint_schema AND r.constraint_name = u.constraint_name "
    "AND r.table_name = u.table_name "
    "WHERE u.referenced_table_schema = DATABASE() AND u.referenced_table_name IS NOT NULL "
    "ORDER BY 1, u.ordinal_position",
}
"""Per column: a key's own id, its schema, table and column, what it refers to, its delete rule."""
RULES = {"a": "NO ACTION", "r": "RESTRICT", "c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}
"""PostgreSQL's letters."""
UNKNOWN = "UNKNOWN"
SQLITE_KEYS = (
    "SELECT lower(m.name), lower(p.name) FROM sqlite_master m, pragma_table_info(m.name) p "
    "WHERE m.type = 'table' AND p.pk > 0 ORDER BY m.name, p.pk"
)
TRIGGERS = {
    "postgresql": "SELECT c.relname, g.tgname FROM pg_trigger g "
    "JOIN pg_class c ON c.oid = coalesce(pg_partition_root(g.tgrelid), g.tgrelid) "
    "WHERE NOT g.tgisinternal AND (g.tgtype & 8) <> 0 AND g.tgenabled <> 'D' AND c.relnamespace = "
    "(SELECT relnamespace FROM pg_class WHERE oid = to_regclass('runs')) "
    "UNION ALL SELECT c.relname, w.rulename FROM pg_rewrite w JOIN pg_class c ON c.oid = w.ev_class "
    "WHERE w.ev_type = '4' AND c.relnamespace = "
    "(SELECT relnamespace FROM pg_class WHERE oid = to_regclass('runs'))",
    "mysql": f"SELECT {_mysql_name('event_object_table')}, trigger_name FROM information_schema.triggers "
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
        delete_triggers=tuple(delete_triggers(conn, dialect)),
        revisions=revisions(conn) if VERSIONS in tables else None,
    )


def family(dialect: str) -> str:
    """MariaDB speaks MySQL's catalogue."""
    return "mysql" if dialect == "mariadb" else dialect


def schema_of(conn: Connection, dialect: str) -> str | None:
    """The schema that MLflow's tables are in, None where the dialect has only one."""
    if dialect != "postgresql":
        return None
    found = conn.exec_driver_sql(
        "SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.oid = to_regclass('runs')"
    ).scalar()
    return str(found) if found else None


def foreign_keys(conn: Connection, dialect: str) -> Iterator[ForeignKey]:
    """Every foreign key on a table of the store."""
    if dialect not in FOREIGN_KEYS:
        return
    named = sqlite_keys(conn) if dialect == "sqlite" else {}
    rows = conn.exec_driver_sql(FOREIGN_KEYS[dialect])
    for _, parts in groupby(rows, key=lambda row: row[0]):
        columns = list(parts)
        _, schema, table, _, to_table, to_column, rule = columns[0]
        # SQLite says nothing of a key that is not named.
        key = named.get(to_table, ())
        yield ForeignKey(
            schema,
            table,
            tuple(part[3] for part in columns),
            to_table,
            key if to_column is None else tuple(part[5] for part in columns),
            RULES.get(rule, rule or UNKNOWN),
        )


def sqlite_keys(conn: Connection) -> dict[str, tuple[str, ...]]:
    """Each table's primary key."""
    keys: dict[str, tuple[str, ...]] = defaultdict(tuple)
    for table, column in conn.exec_driver_sql(SQLITE_KEYS):
        keys[table] += (column,)
    return keys


def delete_triggers(conn: Connection, dialect: str) -> Iterable[tuple[str, str]]:
    """(table, trigger) of every trigger and rule that fires on DELETE."""
    if dialect == "sqlite":
        for table, name, text in conn.exec_driver_sql(SQLITE_TRIGGERS):
            if fires_on_delete(text or ""):
                yield table.lower(), name
    elif dialect in TRIGGERS:
        for table, name in conn.exec_driver_sql(TRIGGERS[dialect]):
            yield table, name


def fires_on_delete(text: str) -> bool:
    """Whether the text of a SQLite trigger says DELETE ON; a comment may stand between."""
    bare = re.sub(r"/\*.*?\*/|--[^\n]*", " ", text, flags=re.DOTALL)
    return any(re.search(r"\bDELETE\s+ON\b", each, re.IGNORECASE) for each in (text, bare))


def revisions(conn: Connection) -> tuple[str, ...]:
    """MLflow's Alembic revisions: one, but while or after a migration that did not end."""
    rows = conn.exec_driver_sql(f"SELECT version_num FROM {VERSIONS} ORDER BY 1").scalars()
    return tuple(rows)
