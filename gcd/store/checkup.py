"""Looks a database over for `gcd doctor`: privileges, durability, indexes, the server's clock.

It must never change anything, and reports a look that the server refuses as a finding of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from gcd import clock
from gcd.errors import GcdError
from gcd.store import indexes, read, tables, visibility
from gcd.store.connection import reading, sqlite_path
from gcd.store.schema import Schema, mend

SKEW = timedelta(minutes=5)


class Grade(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what was seen and, where it is not well, the mend."""

    grade: Grade
    subject: str
    seen: str
    mend: str | None = None


def examine(engine: Engine, schema: Schema) -> Iterator[Finding]:
    """Every finding about the database, in the order a person would ask."""
    looks: tuple[Callable[[Connection, Schema], Iterator[Finding]], ...] = (
        server,
        revision,
        clock_skew,
        privileges,
        blind_spots,
        own_tables,
        strangers,
        lacking,
        durability,
    )
    for look in looks:
        try:
            with reading(engine) as conn:
                yield from list(look(conn, schema))
        except GcdError as error:
            subject = look.__name__.replace("_", " ")
            yield Finding(Grade.WARNING, subject, f"could not be looked at: {error}")


def server(conn: Connection, schema: Schema) -> Iterator[Finding]:
    """Which server answers, through which driver."""
    version = ".".join(str(part) for part in conn.dialect.server_version_info or ())
    driver = f"{conn.dialect.name} {version} through {conn.dialect.driver}"
    yield Finding(Grade.OK, "database", driver)
    if schema.catalogue.dialect == "mssql":
        yield Finding(Grade.FAILURE, "database", "deleting on SQL Server is refused: untested")


def revision(conn: Connection, schema: Schema) -> Iterator[Finding]:
    """MLflow's schema revision and how much is in it."""
    del conn
    found = schema.catalogue.revision
    count = sum(not name.startswith("alembic_") for name in schema.catalogue.tables)
    seen = f"revision {found or 'unknown'}, {count} tables"
    yield Finding(Grade.OK if found else Grade.NOTE, "MLflow's schema", seen)
    for note in schema.notes():
        yield Finding(Grade.NOTE, "MLflow's schema", note)


def clock_skew(conn: Connection, schema: Schema) -> Iterator[Finding]:
    """How far the host's clock is from the database's; gcd ages by the database's."""
    del schema
    ours = clock.utc_now().timestamp()
    skew = timedelta(seconds=abs(read.now_ms(conn) / 1000 - ours))
    seen = f"{skew.total_seconds():.1f} s between this host and the database"
    if skew <= SKEW:
        yield Finding(Grade.OK, "clocks", seen)
    else:
        mend = "set both clocks by NTP: runs are aged by the database's clock"
        yield Finding(Grade.WARNING, "clocks", seen, mend)


def privileges(conn: Connection, schema: Schema) -> Iterator[Finding]:
    """Whether this role may do on each table what a collection does."""
    dialect = schema.catalogue.dialect
    if dialect == "sqlite":
        yield from file_privileges(conn)
        return
    missing = list(missing_privileges(conn, schema))
    if not missing:
        yield Finding(Grade.OK, "privileges", "this role may do all that a collection needs")
    for what, grant in missing:
        yield Finding(Grade.FAILURE, "privileges", f"this role may not {what}", grant)


def file_privileges(conn: Connection) -> Iterator[Finding]:
    """SQLite needs the file and, for its journal, the folder to be writable."""
    path = sqlite_path(conn.engine.url)
    for each, what in ((path, "file"), (path.parent, "folder")):
        if not os.access(each, os.W_OK):
            mend = f"give the user that runs gcd the right to write {each}"
            yield Finding(Grade.FAILURE, "privileges", f"the {what} {each} is not writable", mend)
            return
    yield Finding(Grade.OK, "privileges", f"{path} and its folder are writable")


def missing_privileges(conn: Connection, schema: Schema) -> Iterator[tuple[str, str]]:
    """(what is not allowed, the GRANT that allows it)."""
    if schema.catalogue.dialect == "postgresql":
        yield from missing_postgresql(conn, schema)
    elif schema.catalogue.dialect == "mysql":
        yield from missing_mysql(conn, schema)


def missing_postgresql(conn: Connection, schema: Schema) -> Iterator[tuple[str, str]]:
    """By the server's own functions."""
    role = conn.exec_driver_sql("SELECT quote_ident(current_user)").scalar_one()
    place = conn.dialect.identifier_preparer.quote(schema.catalogue.schema or "public")
    for table in schema.purged_tables():
        for privilege in ("SELECT", "UPDATE", "DELETE"):
            query = sa.text("SELECT has_table_privilege(:table, :privilege)")
            values = {"table": f"{place}.{table}", "privilege": privilege}
            if not conn.execute(query, values).scalar_one():
                yield f"{privilege} {table}", f"GRANT {privilege} ON {place}.{table} TO {role};"
    if tables.version_of(conn) is None:
        # By its name as it is, which the other function wants quoted.
        query = sa.text("SELECT has_schema_privilege(CAST(:place AS regnamespace), 'CREATE')")
        if not conn.execute(query, {"place": place}).scalar_one():
            yield "CREATE tables", f"GRANT CREATE ON SCHEMA {place} TO {role}; or: gcd init --sql"


def missing_mysql(conn: Connection, schema: Schema) -> Iterator[tuple[str, str]]:
    """By the grants on everything, on the database and on single tables."""
    me, wide, by_table = mysql_grants(conn)
    base = conn.engine.url.database
    for table in schema.purged_tables():
        for privilege in ("SELECT", "UPDATE", "DELETE"):
            if privilege not in wide | by_table.get(table, set()):
                yield f"{privilege} {table}", f"GRANT {privilege} ON `{base}`.{table} TO {me};"
    if tables.version_of(conn) is None and "CREATE" not in wide:
        yield "CREATE tables", f"GRANT CREATE ON `{base}`.* TO {me}; or: gcd init --sql"


def mysql_grants(conn: Connection) -> tuple[str, set[str], dict[str, set[str]]]:
    """The user as a GRANT names it, what it may do on the whole database, and on single tables."""
    wide: set[str] = set()
    by_table: dict[str, set[str]] = {}
    me = visibility.quoted_user(str(conn.exec_driver_sql("SELECT CURRENT_USER()").scalar_one()))
    grantee = {"grantee": me}
    for source in (
        "SELECT privilege_type FROM information_schema.user_privileges WHERE grantee = :grantee",
        "SELECT privilege_type FROM information_schema.schema_privileges "
        "WHERE grantee = :grantee AND DATABASE() LIKE table_schema",
    ):
        wide |= set(conn.execute(sa.text(source), grantee).scalars())
    single = (
        "SELECT table_name, privilege_type FROM information_schema.table_privileges "
        "WHERE grantee = :grantee AND table_schema = DATABASE()"
    )
    for table, privilege in conn.execute(sa.text(single), grantee):
        by_table.setdefault(table, set()).add(privilege)
    return me, wide, by_table


def blind_spots(conn: Connection, schema: Schema) -> Iterator[Finding]:
    """What may be there and is hidden from this user: tables of other databases, and triggers."""
    if schema.catalogue.dialect != "mysql":
        return
    me, wide, _ = mysql_grants(conn)
    if not visibility.sees_other_databases(conn):
        seen = (
            "a table in other databases that this user may not see could refer to MLflow's with "
            "ON DELETE CASCADE: its rows would go unseen"
        )
        yield Finding(Grade.WARNING, "visibility", seen, f"GRANT REFERENCES ON *.* TO {me};")
    if "TRIGGER" not in wide:
        seen = "this user may not see triggers: one that fires on DELETE would fire unseen"
        grant = f"GRANT TRIGGER ON `{conn.engine.url.database}`.* TO {me};"
        yield Finding(Grade.WARNING, "visibility", seen, grant)


def own_tables(conn: Connection, schema: Schema) -> Iterator[Finding]:
    """Whether gcd's tables are there."""
    del schema
    version = tables.version_of(conn)
    if version is None:
        yield Finding(Grade.NOTE, "gcd's tables", "not made yet; the first `gcd gc` makes them")
    else:
        yield Finding(Grade.OK, "gcd's tables", f"version {version}")


def strangers(conn: Connection, schema: Schema) -> Iterator[Finding]:
    """Tables that gcd does not know and that refer to entities."""
    del conn
    for key in schema.strangers:
        seen = (
            f"{key.name}.{', '.join(key.columns)} refers to {key.to_table}; what it names is kept"
        )
        yield Finding(Grade.WARNING, "unknown references", seen, mend(key))
    for key in schema.harmless:
        seen = f"{key.name} refers to {key.to_table} and is listed as harmless"
        yield Finding(Grade.NOTE, "unknown references", f"{seen}: ON DELETE {key.on_delete}")


def lacking(conn: Connection, schema: Schema) -> Iterator[Finding]:
    """Columns that deleting looks up by and that have no index here, where it matters."""
    found = list(indexes.missing(conn, schema))
    if not found:
        yield Finding(Grade.OK, "indexes", "every look for rows is served, or its table is small")
    at_once = schema.catalogue.dialect == "sqlite"
    for each in found:
        seen = indexes.told(each, at_once=at_once)
        yield Finding(Grade.WARNING, "indexes", seen, each.statement)


def durability(conn: Connection, schema: Schema) -> Iterator[Finding]:
    """Settings with which a crash could bring purged rows back after their files are gone."""
    looks = {"postgresql": postgresql_settings, "mysql": mysql_settings}
    found = list(looks[schema.catalogue.dialect](conn)) if schema.catalogue.dialect in looks else []
    yield from found
    if not found:
        yield Finding(Grade.OK, "durability", "a committed purge survives a crash of the server")


def postgresql_settings(conn: Connection) -> Iterator[Finding]:
    """fsync and asynchronous standbys; gcd itself commits with synchronous_commit on."""
    for name in ("fsync", "full_page_writes"):
        if conn.exec_driver_sql(f"SHOW {name}").scalar_one() != "on":
            mend = f"set {name} = on: a crash can bring purged rows back"
            yield Finding(Grade.WARNING, "durability", f"{name} is off", mend)
    query = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'async'"
    standbys = conn.exec_driver_sql(query).scalar_one()
    if standbys:
        mend = "a failover can bring purged rows back whose files are gone"
        yield Finding(Grade.WARNING, "durability", f"{standbys} asynchronous standby(s)", mend)


def mysql_settings(conn: Connection) -> Iterator[Finding]:
    """InnoDB's log and the binary log, flushed at each commit."""
    flush = int(conn.exec_driver_sql("SELECT @@innodb_flush_log_at_trx_commit").scalar_one())
    if flush != 1:
        mend = "SET GLOBAL innodb_flush_log_at_trx_commit = 1"
        yield Finding(
            Grade.WARNING, "durability", f"innodb_flush_log_at_trx_commit is {flush}", mend
        )
    logs, sync = conn.exec_driver_sql("SELECT @@log_bin, @@sync_binlog").one()
    if logs and int(sync) != 1:
        mend = "SET GLOBAL sync_binlog = 1: a failover can bring purged rows back"
        yield Finding(Grade.WARNING, "durability", f"sync_binlog is {sync}", mend)
