"""Whether this role sees all of what holds, references or belongs: what it may not see is not absent.

Invariant: a store in which a table or its rows may be hidden from this role is refused, never read
as if what is hidden did not exist.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.errors import PrivilegeMissing, SchemaUnsupported
from gcd.store.catalogue import Catalogue
from gcd.store.faults import error_number
from gcd.store.known_tables import BASE, BORN, COLUMNS
from gcd.store.references import ALL
from gcd.store.revisions import ORDER

DENIED = (1142, 1143)
"""MySQL's numbers for a table, or a column of it, that the user may not read, there or not."""
NO_TABLE = "alembic_gcd_there_is_no_such_table"
HOLDING: dict[str, tuple[str, ...]] = {
    "model_versions": ("name", "version", "run_id", "source", "current_stage"),
}
"""Columns by which a table keeps entities from being collected; all of them are needed."""
POLICIES = (
    "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c "
    "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
    "WHERE c.relrowsecurity AND row_security_active(c.oid) AND ("
    "(n.nspname = :schema AND (c.relname IN :names OR c.relname LIKE 'alembic\\_gcd\\_%')) "
    "OR c.oid IN (SELECT k.conrelid FROM pg_catalog.pg_constraint k "
    "JOIN pg_catalog.pg_class t ON t.oid = k.confrelid "
    "JOIN pg_catalog.pg_namespace m ON m.oid = t.relnamespace "
    "WHERE k.contype = 'f' AND m.nspname = :schema AND t.relname IN :names)) ORDER BY 1, 2"
)
INNODB_KEYS = (
    "SELECT for_name, ref_name FROM information_schema.innodb_sys_foreign",  # MariaDB
    "SELECT for_name, ref_name FROM information_schema.innodb_foreign",  # MySQL 8
)
"""InnoDB's own list of foreign keys, for who has the privilege PROCESS: schema/table, encoded."""
VIEWS = {
    "sqlite": "SELECT lower(name) FROM sqlite_master WHERE type = 'view'",
    "postgresql": "SELECT c.relname FROM pg_catalog.pg_class c "
    "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
    "WHERE c.relkind NOT IN ('r', 'p', 'i', 'I', 'S', 't', 'c') AND n.nspname = :schema",
    "mysql": "SELECT table_name FROM information_schema.views WHERE table_schema = DATABASE()",
}


def confirm(conn: Connection, catalogue: Catalogue) -> None:
    """Refuse a database of which this role may not see everything.

    Raises PrivilegeMissing and SchemaUnsupported.
    """
    confirm_registry(conn, catalogue)
    refuse_absent(catalogue)
    refuse_hidden_keys(conn, catalogue)


def confirm_registry(conn: Connection, catalogue: Catalogue) -> None:
    """The same for a database of which only the model registry is read."""
    refuse_policies(conn, catalogue)
    refuse_single_tables(conn, catalogue)
    refuse_views(conn, catalogue)
    for table, columns in HOLDING.items():
        if catalogue.has(table):
            refuse_lacking(catalogue, table, columns)


def refuse_policies(conn: Connection, catalogue: Catalogue) -> None:
    """PrivilegeMissing where row-level security may hide rows from this role."""
    if catalogue.dialect != "postgresql":
        return
    query = sa.text(POLICIES).bindparams(sa.bindparam("names", expanding=True))
    values = {"schema": catalogue.schema, "names": list(COLUMNS)}
    for schema, table in conn.execute(query, values):
        quote = conn.dialect.identifier_preparer.quote
        role = quote(str(conn.exec_driver_sql("SELECT current_user").scalar_one()))
        raise PrivilegeMissing(
            f"row-level security may hide rows of {schema}.{table} from this role; what gcd does "
            "not see it would take for absent",
            hint=f"ALTER ROLE {role} BYPASSRLS; or collect as a role to which no policy applies",
        )


def refuse_single_tables(conn: Connection, catalogue: Catalogue) -> None:
    """PrivilegeMissing where a MySQL user was granted single tables: it sees no others."""
    if catalogue.dialect != "mysql" or not is_denied(conn, NO_TABLE):
        return
    base = conn.engine.url.database
    user = conn.exec_driver_sql("SELECT CURRENT_USER()").scalar_one()
    raise PrivilegeMissing(
        f"this user may read only some tables of the database {base}; one that it does not see may "
        "hold or refer to what gcd would delete",
        hint=f"GRANT SELECT ON `{base}`.* TO {quoted_user(str(user))};",
    )


def is_denied(conn: Connection, table: str) -> bool:
    """Whether the server refuses to say anything of a table, be it there or not."""
    try:
        conn.exec_driver_sql(f"SELECT 1 FROM `{table}` LIMIT 0")
    except sa.exc.DBAPIError as error:
        return error_number(error) in DENIED
    return False


def quoted_user(user: str) -> str:
    """A MySQL account as a GRANT wants it."""
    name, _, host = user.rpartition("@")
    return f"'{name}'@'{host}'"


def refuse_views(conn: Connection, catalogue: Catalogue) -> None:
    """SchemaUnsupported where a view or a foreign table has the name of a table of MLflow's."""
    if catalogue.dialect not in VIEWS:
        return
    query = sa.text(VIEWS[catalogue.dialect])
    values = {"schema": catalogue.schema} if catalogue.dialect == "postgresql" else {}
    found = {str(name) for name in conn.execute(query, values).scalars()}
    for name in sorted(found & COLUMNS.keys()):
        raise SchemaUnsupported(
            f"{name} is a view or a foreign table here, and a table in MLflow; gcd cannot know "
            "which rows it leaves out",
            hint="give the database and the schema in which MLflow's own tables are",
        )


def refuse_absent(catalogue: Catalogue) -> None:
    """SchemaUnsupported where a table is not there that MLflow's revision brought."""
    revision = catalogue.revision if catalogue.revision in ORDER else None
    behind = ORDER[: ORDER.index(revision) + 1] if revision else ()
    names = {reference.table for reference in ALL} | {reference.to for reference in ALL}
    for table in sorted(names | HOLDING.keys()):
        if BORN[table] in (BASE, *behind):
            refuse_lacking(catalogue, table)


def refuse_lacking(catalogue: Catalogue, table: str, columns: Sequence[str] = ()) -> None:
    """SchemaUnsupported where a table, or one of these columns of it, is not there."""
    missing = next((name for name in columns if not catalogue.has(table, name)), None)
    if catalogue.has(table) and missing is None:
        return
    what = f"column {table}.{missing}" if catalogue.has(table) else f"table {table}"
    raise SchemaUnsupported(
        f"MLflow has a {what} at this revision, and it is not here; gcd does not take it for empty",
        hint="is it in another schema or database, or was it dropped? `mlflow db upgrade` makes a "
        "whole schema",
    )


def refuse_hidden_keys(conn: Connection, catalogue: Catalogue) -> None:
    """PrivilegeMissing where InnoDB knows of a key on MLflow's tables that this user may not see."""
    if catalogue.dialect != "mysql":
        return
    base = encoded(str(conn.engine.url.database))
    seen = {
        f"{encoded(key.schema) if key.schema else base}/{encoded(key.table)}".lower()
        for key in catalogue.foreign_keys
    }
    for referring, referred in innodb_keys(conn) or ():
        schema, _, table = referred.lower().partition("/")
        if schema == base.lower() and table in COLUMNS and referring.lower() not in seen:
            name = referring.replace("/", ".")
            raise PrivilegeMissing(
                f"the table {name}, which this user may not read, refers to {table}, which gcd "
                "would delete from",
                hint="GRANT REFERENCES ON *.* to this user shows gcd such tables; GRANT SELECT on "
                f"{name} lets it look whom it names",
            )


def innodb_keys(conn: Connection) -> list[tuple[str, str]] | None:
    """(referring table, referred table) of every key on the server; None where it does not tell."""
    for query in INNODB_KEYS:
        try:
            return [(str(here), str(there)) for here, there in conn.exec_driver_sql(query)]
        except sa.exc.DBAPIError:
            continue
    return None


def encoded(name: str) -> str:
    """A name as InnoDB writes it in a path."""
    return re.sub(r"[^A-Za-z0-9_]", lambda found: f"@{ord(found.group()):04x}", name)


def sees_other_databases(conn: Connection) -> bool:
    """Whether a MySQL user is shown the foreign keys of tables in databases that are not its own."""
    if not is_denied(conn, f"{NO_TABLE}`.`{NO_TABLE}") or innodb_keys(conn) is not None:
        return True
    return "REFERENCES" in everywhere(conn)


def everywhere(conn: Connection) -> set[str]:
    """The privileges that a MySQL user has on the whole server."""
    query = "SELECT privilege_type FROM information_schema.user_privileges"
    return {str(each) for each in conn.exec_driver_sql(query).scalars()}
