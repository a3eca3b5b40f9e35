"""Databases for the tests: a file, or one on a PostgreSQL or MariaDB server of this machine.

It must never touch a database whose name does not begin with `gcd_test_`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import pytest
import sqlalchemy as sa

DIALECTS = ("sqlite", "postgresql", "mariadb")
SOCKETS = ("/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/tmp/mysql.sock")
PREFIX = "gcd_test_"


@dataclass(frozen=True)
class Database:
    """One database; `uri` is what an MLflow user would write."""

    dialect: str
    name: str
    uri: str

    def engine(self) -> sa.Engine:
        """A new engine that keeps no connection open."""
        return sa.create_engine(self.uri, poolclass=sa.pool.NullPool)

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """A transaction; the engine is gone with it."""
        engine = self.engine()
        try:
            with engine.begin() as conn:
                yield conn
        finally:
            engine.dispose()

    def execute(self, *statements: str, **parameters: object) -> None:
        """Run statements in one transaction."""
        with self.begin() as conn:
            for statement in statements:
                conn.execute(sa.text(statement), parameters)

    def rows(self, statement: str, **parameters: object) -> list[tuple[object, ...]]:
        """All rows of a query."""
        with self.begin() as conn:
            return [tuple(row) for row in conn.execute(sa.text(statement), parameters)]

    def scalar(self, statement: str, **parameters: object) -> object:
        """The first value of a query."""
        return self.rows(statement, **parameters)[0][0]


class Server(Protocol):
    """Makes databases of one dialect."""

    dialect: str

    def named(self, name: str) -> Database:
        """The database of that name, there or not."""

    def create(self, database: Database) -> None:
        """Make it, empty."""

    def fill(self, database: Database, original: Database) -> None:
        """Make the database, which must not exist, a copy of another; nobody may write to that."""

    def drop(self, database: Database) -> None:
        """Remove the database, whoever is connected."""


def new_name() -> str:
    """A name that no other test uses."""
    return PREFIX + secrets.token_hex(5)


@dataclass
class Sqlite:
    """Files in one folder."""

    folder: Path
    dialect: str = "sqlite"

    def named(self, name: str) -> Database:
        """A file's URI."""
        return Database(self.dialect, name, f"sqlite:///{self.folder / name}.db")

    def create(self, database: Database) -> None:
        """Nothing to do: whoever opens it first makes the file."""

    def path(self, database: Database) -> Path:
        """The database's file."""
        return self.folder / f"{database.name}.db"

    def fill(self, database: Database, original: Database) -> None:
        """Copied as files are."""
        for suffix in ("", "-wal"):
            source = Path(f"{self.path(original)}{suffix}")
            if source.exists():
                shutil.copyfile(source, f"{self.path(database)}{suffix}")

    def drop(self, database: Database) -> None:
        """The file and what SQLite puts beside it."""
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{self.path(database)}{suffix}").unlink(missing_ok=True)


@dataclass
class Postgresql:
    """The server at 127.0.0.1:5432, which trusts us."""

    user: str
    dialect: str = "postgresql"
    host: str = "127.0.0.1:5432"

    def uri(self, name: str) -> str:
        """As MLflow's users write it, driver unnamed."""
        return f"postgresql://{self.user}@{self.host}/{name}"

    def admin(self, *statements: str) -> None:
        """Statements that no transaction may hold."""
        engine = sa.create_engine(
            self.uri("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool
        )
        with engine.connect() as conn:
            for statement in statements:
                conn.exec_driver_sql(statement)
        engine.dispose()

    def named(self, name: str) -> Database:
        """As MLflow's users write it, driver unnamed."""
        return Database(self.dialect, name, self.uri(name))

    def create(self, database: Database) -> None:
        """From template0, so that nothing local creeps in."""
        self.admin(f"CREATE DATABASE {database.name} TEMPLATE template0 ENCODING 'UTF8'")

    def fill(self, database: Database, original: Database) -> None:
        """By template, which takes some tens of milliseconds; idle connections are cut."""
        self.admin(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = '{original.name}'",
            f"CREATE DATABASE {database.name} TEMPLATE {original.name}",
        )

    def drop(self, database: Database) -> None:
        """Connections are cut."""
        self.admin(f"DROP DATABASE IF EXISTS {database.name} WITH (FORCE)")


@dataclass
class Mariadb:
    """The MariaDB (or MySQL) server at 127.0.0.1:3306, as root without a password."""

    where: str
    query: str = ""
    client: list[str] = field(default_factory=list)
    dialect: str = "mariadb"

    def uri(self, name: str) -> str:
        """As MLflow's users write it."""
        return f"mysql+pymysql://root@{self.where}/{name}{self.query}"

    def admin(self, *statements: str) -> None:
        """Statements outside of any test database."""
        engine = sa.create_engine(self.uri("information_schema"), poolclass=sa.pool.NullPool)
        with engine.connect() as conn:
            for statement in statements:
                conn.exec_driver_sql(statement)
        engine.dispose()

    def named(self, name: str) -> Database:
        """As MLflow's users write it."""
        return Database(self.dialect, name, self.uri(name))

    def create(self, database: Database) -> None:
        """In utf8mb4, as MLflow wants it."""
        self.admin(f"CREATE DATABASE {database.name} CHARACTER SET utf8mb4")

    def fill(self, database: Database, original: Database) -> None:
        """By the dump program: it alone keeps foreign keys, checks and triggers."""
        self.create(database)
        dump = shutil.which("mariadb-dump") or shutil.which("mysqldump") or "mariadb-dump"
        load = shutil.which("mariadb") or shutil.which("mysql") or "mariadb"
        flags = ["--triggers", "--hex-blob", "--skip-lock-tables", "--skip-comments"]
        flags += ["--skip-add-locks", "--skip-disable-keys", "--skip-add-drop-table"]  # is empty
        text = subprocess.run(
            [dump, *self.client, *flags, original.name], capture_output=True, check=True
        ).stdout
        subprocess.run([load, *self.client, database.name], input=text, check=True)

    def drop(self, database: Database) -> None:
        """MariaDB waits for locks on metadata only, so nobody may be in a transaction."""
        self.admin(f"DROP DATABASE IF EXISTS {database.name}")


@cache
def find_postgresql() -> Postgresql | str:
    """The server, or why it cannot be had."""
    problem = ""
    for user in dict.fromkeys(filter(None, (os.environ.get("PGUSER"), "postgres", "root"))):
        server = Postgresql(user)
        try:
            server.admin("SELECT 1")
        except sa.exc.DBAPIError as error:
            problem = str(error.orig).strip().splitlines()[0]
        else:
            return server
    return f"no PostgreSQL at 127.0.0.1:5432 that trusts us: {problem}"


@cache
def find_mariadb() -> Mariadb | str:
    """The server, or why it cannot be had."""
    tcp = Mariadb("127.0.0.1:3306", client=["-h127.0.0.1", "-P3306", "-uroot"])
    by_socket = [
        Mariadb("localhost", f"?unix_socket={path}", client=[f"--socket={path}", "-uroot"])
        for path in SOCKETS
        if os.path.exists(path)
    ]
    problem = ""
    for server in (tcp, *by_socket):
        try:
            server.admin("SELECT 1")
        except sa.exc.DBAPIError as error:
            problem = str(error.orig)
        else:
            return server
    return f"no MariaDB at 127.0.0.1:3306 for root without a password: {problem}"


def require(found: Postgresql | Mariadb | str) -> Postgresql | Mariadb:
    """The server; the test is skipped without it, or fails where servers are required."""
    if not isinstance(found, str):
        return found
    if os.environ.get("GCD_TEST_REQUIRE_SERVERS") == "1":
        pytest.fail(found, pytrace=False)
    pytest.skip(found)


class Keeper:
    """A server that remembers what it made, and removes it at the end."""

    def __init__(self, server: Server) -> None:
        self.server, self.dialect = server, server.dialect
        self.made: list[Database] = []

    def create(self) -> Database:
        """An empty database."""
        self.made.append(self.server.named(new_name()))
        self.server.create(self.made[-1])
        return self.made[-1]

    def copy(self, original: Database) -> Database:
        """A database with the same tables and rows."""
        self.made.append(self.server.named(new_name()))
        self.server.fill(self.made[-1], original)
        return self.made[-1]

    def reset(self, database: Database, original: Database) -> None:
        """Make the database a copy of another, under its own name."""
        self.server.drop(database)
        self.server.fill(database, original)

    def drop(self, database: Database) -> None:
        """One that is no longer needed."""
        self.server.drop(database)
        self.made.remove(database)

    @contextmanager
    def passing(self) -> Iterator[Keeper]:
        """What is made inside is removed at its end, failures included."""
        before = list(self.made)
        try:
            yield self
        finally:
            for database in [one for one in self.made if one not in before]:
                with suppress(sa.exc.DBAPIError):
                    self.drop(database)


def in_memory() -> str | None:
    """A folder for many small files whose loss with the machine is nobody's; None is the usual one.

    Each commit waits for the disk otherwise, and nothing here cuts the machine's power.
    """
    memory = "/dev/shm"
    with suppress(OSError):
        if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 << 30:
            return memory
    return None


@contextmanager
def opened(dialect: str) -> Iterator[Keeper]:
    """The server of a dialect; all databases made on it are dropped at the end."""
    with ExitStack() as stack:
        if dialect == "sqlite":
            where = TemporaryDirectory(prefix="gcd-test-db-", dir=in_memory())
            folder = Path(stack.enter_context(where))
            folder.chmod(0o777)  # some tests run gcd as another user
            server: Server = Sqlite(folder)
        else:
            server = require(find_postgresql() if dialect == "postgresql" else find_mariadb())
        yield stack.enter_context(Keeper(server).passing())
