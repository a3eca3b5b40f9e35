"""Opens a database by the URI that its users gave MLflow, with whichever driver is installed.

It must never create a database, and must never put a password into a message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.pool import ConnectionPoolEntry

from gcd.errors import StoreRefused, StoreUnreachable
from gcd.store.faults import translated
from gcd.store.pinned import PinnedFile

CONNECT_TIMEOUT = timedelta(seconds=10)
BUSY_TIMEOUT = timedelta(seconds=30)
LOCK_TIMEOUT = timedelta(seconds=20)
IDLE_IN_TRANSACTION = timedelta(seconds=30)
"""Below the lease's time: a stalled holder loses its transaction before a successor can be harmed."""

DRIVERS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "postgresql": (("psycopg", "psycopg"), ("psycopg2", "psycopg2")),
    "mysql": (("pymysql", "pymysql"), ("mysqldb", "MySQLdb"), ("mysqlconnector", "mysql")),
    "mariadb": (("pymysql", "pymysql"), ("mysqldb", "MySQLdb"), ("mysqlconnector", "mysql")),
    "mssql": (("pyodbc", "pyodbc"), ("pymssql", "pymssql")),
}
EXTRAS = {"postgresql": "postgres", "mysql": "mysql", "mariadb": "mysql"}
FORMS = "sqlite:////absolute/path.db, postgresql://…, mysql://…"


def parse_uri(uri: str) -> URL:
    """The SQLAlchemy URL for an MLflow backend store URI, with a driver that is installed.

    Raises StoreRefused for what is no database URI, or where no driver is installed.
    """
    if "://" not in uri:
        if uri.startswith("databricks"):
            raise StoreRefused(
                "a Databricks workspace is not a database that gcd can open",
                hint=f"gcd works on a tracking server's own database: {FORMS}",
            )
        raise StoreRefused(
            f"{uri!r} is a folder, not a database: gcd does not work on MLflow's file store",
            hint=f"give the database of the tracking server: {FORMS}",
        )
    scheme = uri.split(":", 1)[0].lower()
    if scheme in ("http", "https"):
        raise StoreRefused(
            "the backend store URI names a tracking server, not its database",
            hint=f"give the URI that the server was started with as --backend-store-uri: {FORMS}",
        )
    if scheme == "file":
        raise StoreRefused(
            "this is MLflow's file store: gcd works on databases only",
            hint="`mlflow gc` can still collect a file store; new stores should be databases",
        )
    try:
        url = make_url(uri)
    except (sa.exc.ArgumentError, ValueError):
        raise StoreRefused(
            "the backend store URI cannot be read", hint=f"its forms are {FORMS}"
        ) from None
    return with_driver(url)


def with_driver(url: URL) -> URL:
    """The same URL with a driver that is installed, the one it names if that is."""
    backend, _, wanted = url.drivername.replace("postgres+", "postgresql+").partition("+")
    backend = "postgresql" if backend == "postgres" else backend
    if backend == "sqlite":
        return url.set(drivername="sqlite")
    if backend not in DRIVERS:
        raise StoreRefused(f"{backend!r} is not a database that MLflow uses", hint=f"use {FORMS}")
    present = [name for name, module in DRIVERS[backend] if is_installed(module)]
    if not present:
        extra = EXTRAS.get(backend)
        install = f"pip install 'gcd[{extra}]'" if extra else "pip install pyodbc"
        raise StoreRefused(f"no driver for {backend} is installed", hint=install)
    # What MLflow's users wrote may name a driver that only the server has.
    return url.set(drivername=f"{backend}+{wanted if wanted in present else present[0]}")


def is_same(uri: str, other: str) -> bool:
    """Whether two URIs name one database in the same words, whichever driver they name."""
    return parse_uri(uri) == parse_uri(other)


def is_installed(module: str) -> bool:
    """Whether a top-level module can be imported."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def sqlite_path(url: URL) -> Path:
    """The file of a SQLite URL; StoreRefused for a database in memory."""
    name = url.database or ""
    if name.startswith("file:"):
        name = name[len("file:") :].split("?")[0]
    if name in ("", ":memory:"):
        raise StoreRefused("a SQLite database in memory holds no store", hint=f"use {FORMS}")
    return Path(name).absolute()


def open_engine(uri: str, *, read_only: bool) -> Engine:
    """An engine for the store; nothing is sent yet, but a SQLite file must be there.

    Raises StoreRefused and StoreUnreachable.
    """
    url = parse_uri(uri)
    if url.get_backend_name() == "sqlite":
        return sqlite_engine(sqlite_path(url), read_only=read_only)
    engine = sa.create_engine(
        url,
        pool_pre_ping=True,
        pool_size=4,
        connect_args=connect_arguments(url),
        isolation_level="READ COMMITTED",
        hide_parameters=True,
    )
    if url.get_backend_name() in ("mysql", "mariadb"):
        sa.event.listen(engine, "connect", on_connect_mysql)
    return engine


def connect_arguments(url: URL) -> dict[str, Any]:
    """Time-outs, where the user's own query string does not set them."""
    seconds = int(CONNECT_TIMEOUT.total_seconds())
    backend = url.get_backend_name()
    wanted: dict[str, Any] = {}
    if backend == "postgresql":
        wanted = {"connect_timeout": seconds, "application_name": "gcd", "keepalives_idle": 30}
    elif url.get_driver_name() == "pymysql":
        wanted = {"connect_timeout": seconds}
    return {key: value for key, value in wanted.items() if key not in url.query}


def sqlite_engine(path: Path, *, read_only: bool) -> Engine:
    """SQLite with explicit transactions: BEGIN for reading, BEGIN IMMEDIATE for writing."""
    if not path.exists():
        raise StoreUnreachable(
            f"there is no database at {path}", hint="check the path; gcd never creates a store"
        )
    if path.is_dir():
        raise StoreRefused(f"{path} is a folder, not a database", hint=f"use {FORMS}")
    mode = "ro" if read_only else "rw"
    url = URL.create(
        "sqlite", database=f"file:{quote(str(path))}", query={"mode": mode, "uri": "true"}
    )
    engine = sa.create_engine(
        url,
        connect_args={"timeout": BUSY_TIMEOUT.total_seconds(), "check_same_thread": False},
        hide_parameters=True,
    )
    try:
        file = PinnedFile(path)
    except OSError as error:
        raise StoreUnreachable(
            f"the database {path} cannot be opened: {error.strerror}", hint="check the path"
        ) from error
    engine.update_execution_options(gcd_file=file)
    sa.event.listen(engine, "connect", on_connect_sqlite)
    sa.event.listen(engine, "connect", lambda _dbapi, _record: file.refuse_replaced())
    sa.event.listen(engine, "begin", on_begin_sqlite)
    sa.event.listen(engine, "commit", on_commit_sqlite)
    sa.event.listen(engine, "engine_disposed", lambda _engine: file.close())
    return engine


def pinned_file(engine: Engine) -> PinnedFile | None:
    """The file of a SQLite database that this engine was opened on, None of any other database."""
    file: PinnedFile | None = engine.get_execution_options().get("gcd_file")
    return file


def on_connect_sqlite(dbapi: Any, _record: ConnectionPoolEntry) -> None:
    """Put the driver's own, implicit transactions off: gcd says when one begins."""
    dbapi.isolation_level = None
    dbapi.execute("PRAGMA foreign_keys = ON")
    # A rollback journal that comes back after a power loss would bring purged rows with it.
    dbapi.execute("PRAGMA synchronous = EXTRA")
    # LIKE folds case by default, and ids that differ in case are different entities.
    dbapi.execute("PRAGMA case_sensitive_like = ON")


def keep_readable(engine: Engine) -> None:
    """Let SQLite's readers go on until a large transaction commits, at the cost of memory.

    Else it writes pages that do not fit its cache before that, and excludes readers from then on.
    To be called before the first connection.
    """
    if engine.dialect.name == "sqlite":
        sa.event.listen(
            engine, "connect", lambda dbapi, _record: dbapi.execute("PRAGMA cache_spill = OFF")
        )


def on_begin_sqlite(conn: Connection) -> None:
    """Take the write lock at once where writing is meant: a later upgrade could deadlock."""
    options = conn.get_execution_options()
    options["gcd_file"].refuse_replaced()
    conn.exec_driver_sql("BEGIN IMMEDIATE" if options.get("gcd_writes", False) else "BEGIN")


def on_commit_sqlite(conn: Connection) -> None:
    """Commit nothing to a file that was replaced since the transaction began."""
    options = conn.get_execution_options()
    if options.get("gcd_writes", False):
        options["gcd_file"].refuse_replaced()


def on_connect_mysql(dbapi: Any, _record: ConnectionPoolEntry) -> None:
    """Time-outs of the session: short waits for locks, and no transaction left idle."""
    idle = int(IDLE_IN_TRANSACTION.total_seconds())
    with dbapi.cursor() as cursor:
        cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {LOCK_TIMEOUT.seconds}")
        cursor.execute("SELECT VERSION()")
        if "mariadb" in str(cursor.fetchone()[0]).lower():
            cursor.execute(f"SET SESSION idle_transaction_timeout = {idle}")
        else:  # MySQL has no such time-out: an idle session of gcd loses its connection
            cursor.execute(f"SET SESSION wait_timeout = {idle}")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection in a transaction that cannot write, where the database can promise that."""
    with translated(), engine.connect() as conn:
        if engine.dialect.name == "postgresql":
            conn.exec_driver_sql("SET TRANSACTION READ ONLY")
        yield conn


@contextmanager
def writing(engine: Engine, *, foreign_keys: bool = True) -> Iterator[Connection]:
    """A connection in a write transaction, committed at the end with full durability.

    Without `foreign_keys` this connection alone does not check them (not on PostgreSQL).
    """
    with translated(), engine.connect() as conn:
        conn = conn.execution_options(gcd_writes=True)
        try:
            if not foreign_keys:
                skip_foreign_keys(conn)
            with conn.begin():
                if engine.dialect.name == "postgresql":
                    prepare_postgresql(conn)
                yield conn
        finally:
            if not foreign_keys:
                # A session that was lost meanwhile is not handed on with its checks off.
                conn.invalidate()


def skip_foreign_keys(conn: Connection) -> None:
    """Put the checks of this session off, before its transaction: within, SQLite ignores it."""
    statements = {"sqlite": "PRAGMA foreign_keys = OFF"}
    statement = statements.get(conn.engine.dialect.name, "SET SESSION foreign_key_checks = 0")
    cursor = conn.connection.cursor()
    cursor.execute(statement)
    cursor.close()


def prepare_postgresql(conn: Connection) -> None:
    """Settings of this transaction alone, so that they also hold behind a pooler."""
    idle = int(IDLE_IN_TRANSACTION.total_seconds() * 1000)
    lock = int(LOCK_TIMEOUT.total_seconds() * 1000)
    conn.exec_driver_sql("SET LOCAL synchronous_commit = on")
    conn.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {idle}")
    conn.exec_driver_sql(f"SET LOCAL lock_timeout = {lock}")
