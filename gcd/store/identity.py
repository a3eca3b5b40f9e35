"""The identity of a database: a random id in gcd's own table, and what the server knows of it.

It must never be written by a command that only looks, nor handed on to a copy.
"""

from __future__ import annotations

import hashlib
import os
import socket
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.errors import StoreUnreachable
from gcd.model import Identity
from gcd.mounts import read_mounts
from gcd.planning.lineage import Facts, Lineage, compare
from gcd.store.connection import sqlite_path
from gcd.store.read import now_ms
from gcd.store.tables import lease, meta, root

ID, COPIED_FROM, COPIED_AT = "store_id", "copied_from", "copied_at_ms"
SERVER = "server_"
"""What the names of the facts begin with, as gcd's table has them."""
LONGEST = 255
MACHINE_ID = "/etc/machine-id"
PATH_ONLY = getattr(os, "O_PATH", None)
"""Closing a file that was opened otherwise would release the locks that SQLite has on it here."""
NO_CLUSTER = frozenset({"", "00000000-0000-0000-0000-000000000000"})


# -- what the server knows -----------------------------------------------------------------------


def facts_of(conn: Connection) -> dict[str, str]:
    """What this server, or the file system, says of the database."""
    ask: Mapping[str, Callable[[Connection], dict[str, str]]] = {
        "sqlite": sqlite_facts,
        "postgresql": postgresql_facts,
        "mysql": mysql_facts,
        "mariadb": mysql_facts,
    }
    kind = "mysql" if conn.dialect.name == "mariadb" else conn.dialect.name
    named = ask.get(kind, other_facts)(conn)
    return {"kind": kind, **{key: short(value) for key, value in named.items()}}


def short(value: str) -> str:
    """A value that fits into gcd's table."""
    if len(value) <= LONGEST:
        return value
    return "sha256:" + hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()


def sqlite_facts(conn: Connection) -> dict[str, str]:
    """Where the file lies. A host is named where two may call different file systems alike."""
    at = os.path.realpath(sqlite_path(conn.engine.url))
    if PATH_ONLY is None:
        info = os.stat(at)
        found = {"fs": f"device:{info.st_dev}", "inode": str(info.st_ino), "path": at}
        return {**found, "at": at, "host": host()}
    try:
        fd = os.open(at, PATH_ONLY | os.O_CLOEXEC)
    except OSError as error:
        hint = "it was moved, or its folder may not be searched"
        raise StoreUnreachable(f"{at}: {os.strerror(error.errno or 0)}", hint=hint) from error
    try:
        where = read_mounts().whereabouts(fd)
    finally:
        os.close(fd)
    known = {"fs": where.fs, "inode": where.inode, "path": where.path or at, "at": at}
    return known if where.is_lasting else {**known, "host": host()}


def host() -> str:
    """This machine, over reboots."""
    with suppress(OSError):
        if found := Path(MACHINE_ID).read_text().strip():
            return found
    return socket.gethostname()


def postgresql_facts(conn: Connection) -> dict[str, str]:
    """The cluster's system identifier, which a standby shares, where this role may read it."""
    query = "SELECT oid, datname FROM pg_database WHERE datname = current_database()"
    oid, name = conn.exec_driver_sql(query).one()
    known = {"oid": str(oid), "name": str(name)}
    may = "SELECT has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')"
    if conn.exec_driver_sql(may).scalar():
        query = "SELECT system_identifier FROM pg_catalog.pg_control_system()"
        known["server"] = str(conn.exec_driver_sql(query).scalar_one())
    return known


def mysql_facts(conn: Connection) -> dict[str, str]:
    """The cluster, if it is one, else the server; MariaDB before 10.5.26 names none but its host."""
    name = str(conn.exec_driver_sql("SELECT DATABASE()").scalar())
    wanted = ("group_replication_group_name", "server_uuid", "server_uid", "hostname", "port")
    words = ", ".join(f"'{each}'" for each in wanted)
    query = f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({words})"
    found = {str(key): str(value) for key, value in conn.exec_driver_sql(query)}
    status = conn.exec_driver_sql("SHOW GLOBAL STATUS LIKE 'wsrep_cluster_state_uuid'").first()
    cluster = str(status[1]) if status else ""
    if cluster not in NO_CLUSTER:
        return {"name": name, "server": f"galera {cluster}"}
    own = next((found[each] for each in wanted[:3] if found.get(each)), None)
    return {"name": name, "server": own or f"{found.get('hostname')}:{found.get('port')}"}


def other_facts(conn: Connection) -> dict[str, str]:
    """SQL Server: the name alone."""
    return {"name": str(conn.exec_driver_sql("SELECT DB_NAME()").scalar())}


def name_of(conn: Connection) -> str:
    """The database for people, without user, password and host."""
    url = conn.engine.url
    if conn.dialect.name != "sqlite":
        return f"the {conn.dialect.name} database {url.database}"
    path = sqlite_path(url)
    return f"the SQLite database {path.parent.name}/{path.name}"


# -- what gcd's table has ------------------------------------------------------------------------


def identity_of(conn: Connection, *, has_own_tables: bool) -> Identity:
    """Who this database is, as far as it can be told without writing."""
    known, name = (read_meta(conn) if has_own_tables else {}), name_of(conn)
    if ID not in known:
        return Identity(None, name)
    match lineage(known, facts_of(conn), conn):
        case Lineage.COPY:
            return Identity(None, name, copied_from=known[ID])
        case Lineage.DOUBT:
            return Identity(None, name, doubt=doubt(conn))
    return Identity(known[ID], name, copied_from=known.get(COPIED_FROM))


def is_up_to_date(conn: Connection) -> bool:
    """Whether the id and the facts are written down as they are."""
    known = read_meta(conn)
    return ID in known and facts_in(known) == facts_of(conn)


def ensure(conn: Connection) -> None:
    """Give the database an id if it has none, and a copy a new one, in a write transaction.

    A copy keeps in mind of which database it is one, and trusts no root that the other trusted.
    """
    conn.execute(sa.select(lease.c.name).with_for_update()).all()  # one collector at a time
    known, now = read_meta(conn), facts_of(conn)
    found = lineage(known, now, conn) if ID in known else Lineage.SAME
    if found is Lineage.DOUBT:
        return
    if found is Lineage.COPY:
        put(conn, {ID: fresh(), COPIED_FROM: known[ID], COPIED_AT: str(now_ms(conn))})
        conn.execute(root.update().values(is_accepted=0))
    elif ID not in known:
        put(conn, {ID: fresh()})
    old = [SERVER + name for name in facts_in(known)]
    conn.execute(meta.delete().where(meta.c.name.in_(old)))
    put(conn, {SERVER + name: value for name, value in now.items()})


def fresh() -> str:
    """An id that no other database has."""
    return uuid.uuid4().hex


def read_meta(conn: Connection) -> dict[str, str]:
    """All that gcd's table says of the database."""
    rows = conn.execute(sa.select(meta.c.name, meta.c.value))
    return {str(name): str(value or "") for name, value in rows}


def put(conn: Connection, values: Mapping[str, str]) -> None:
    """Write rows of gcd's table, over what is there."""
    conn.execute(meta.delete().where(meta.c.name.in_(list(values))))
    conn.execute(meta.insert(), [{"name": name, "value": value} for name, value in values.items()])


def lineage(known: Mapping[str, str], now: Facts, conn: Connection) -> Lineage:
    """What the database here is to the one that wrote its id down."""
    before = facts_in(known)
    if not before:
        return Lineage.COPY
    return compare(before, now, is_old_there=is_old_there(conn, before, now))


def facts_in(known: Mapping[str, str]) -> dict[str, str]:
    """The facts that were written down."""
    return {name.removeprefix(SERVER): v for name, v in known.items() if name.startswith(SERVER)}


def is_old_there(conn: Connection, before: Facts, now: Facts) -> bool:
    """Whether another database stands where the old facts place it."""
    if before.get("kind") == "postgresql" and conn.dialect.name == "postgresql":
        query = sa.text("SELECT count(*) FROM pg_database WHERE oid = CAST(:oid AS oid)")
        return bool(conn.execute(query, {"oid": before["oid"]}).scalar())
    at, here = before.get("at", ""), now.get("at", "")
    if not at.startswith("/"):
        return True
    return os.path.lexists(at) and not (os.path.exists(at) and os.path.samefile(at, here))


def doubt(conn: Connection) -> str:
    """Why it cannot be told whether this is a copy, and what helps."""
    role = conn.exec_driver_sql("SELECT current_user").scalar()
    return (
        "the server's identity, which this database was known by, cannot be read now: "
        f"GRANT EXECUTE ON FUNCTION pg_control_system() TO {role}"
    )
