"""gcd's own tables in MLflow's database: their definition, how they are made and how they grow.

It must never alter a table, an index or a revision of MLflow's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.schema import CreateIndex, CreateTable

from gcd.errors import PrivilegeMissing, StoreRefused, StoreUnreachable
from gcd.store.connection import reading, writing

VERSION = 1
ATTEMPTS = 5
"""How often the tables are made where another collector is making them too."""
PREFIX = "alembic_gcd_"
"""MLflow 2.3 to 2.22 compares the set of tables at start-up and leaves such names out (tried)."""

metadata = sa.MetaData()
_serial = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_long = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")


def _table(name: str, *columns: sa.Column[object] | sa.Index) -> sa.Table:
    return sa.Table(
        PREFIX + name,
        metadata,
        *columns,
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
    )


def _text(name: str, size: int, **options: bool) -> sa.Column[object]:
    return sa.Column(name, sa.String(size), **options)  # type: ignore[arg-type]


def _ms(name: str, *, nullable: bool = True) -> sa.Column[object]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


meta = _table("meta", _text("name", 64, primary_key=True), _text("value", 255))
lease = _table(
    "lease",
    _text("name", 32, primary_key=True),
    _text("holder", 255),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    _ms("acquired_ms"),
    _ms("expires_ms", nullable=False),
    _ms("wanted_ms"),
)
cycle = _table(
    "cycle",
    sa.Column("id", _serial, primary_key=True, autoincrement=True),
    _ms("started_ms", nullable=False),
    _ms("ended_ms"),
    _text("holder", 255),
    _text("state", 16),
    sa.Column("report", _long),
    sa.Column("error", _long),
)
journal = _table(
    "journal",
    sa.Column("id", _serial, primary_key=True, autoincrement=True),
    sa.Column("cycle", sa.BigInteger, nullable=False),
    _text("kind", 16, nullable=False),
    _text("entity_id", 64, nullable=False),
    _text("experiment_id", 32, nullable=False),
    sa.Column("target", _long),
    sa.Column("root", _long),
    _text("root_id", 64),
    _text("state", 8, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("rows_left", sa.Integer, nullable=False),
    sa.Column("looks", sa.Integer, nullable=False),
    _ms("purged_ms", nullable=False),
    _ms("due_ms", nullable=False),
    _ms("swept_ms"),
    sa.Column("objects", sa.BigInteger),
    sa.Column("bytes", sa.BigInteger),
    sa.Column("error", _long),
)
sa.Index(PREFIX + "journal_due", journal.c.state, journal.c.due_ms)
sa.Index(PREFIX + "journal_entity", journal.c.entity_id)
sa.Index(PREFIX + "journal_rows", journal.c.rows_left)
hold = _table(
    "hold",
    _text("kind", 16, primary_key=True),
    _text("entity_id", 64, primary_key=True),
    _text("reason", 500),
    _text("placed_by", 255),
    _ms("placed_ms", nullable=False),
    _ms("until_ms"),
)
seen = _table(
    "seen",
    _text("kind", 16, primary_key=True),
    _text("entity_id", 64, primary_key=True),
    _ms("first_seen_ms", nullable=False),
)
root = _table(
    "root",
    _text("id", 64, primary_key=True),
    sa.Column("uri", _long, nullable=False),
    _text("identity", 255),
    sa.Column("is_accepted", sa.Integer, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    _ms("swept_ms"),
    _ms("failed_ms"),
    sa.Column("error", _long),
)


def version_of(conn: Connection) -> int | None:
    """The version of gcd's tables here, None where there are none.

    Raises StoreRefused where a newer gcd made them.
    """
    if not sa.inspect(conn).has_table(meta.name):
        return None
    value = conn.scalar(sa.select(meta.c.value).where(meta.c.name == "version"))
    found = int(value) if value else None
    if found is not None and found > VERSION:
        raise StoreRefused(
            f"gcd's tables here are of version {found}; this gcd knows {VERSION}",
            hint="upgrade gcd on this host; an older gcd never works beside a newer one",
        )
    return found


def ensure(engine: Engine) -> bool:
    """Make gcd's tables where they are missing; True if any was made.

    Raises PrivilegeMissing where the role may not create them.
    """
    with reading(engine) as conn:
        if version_of(conn) == VERSION:
            return False
    for attempt in range(ATTEMPTS):
        try:
            create(engine)
            break
        except PrivilegeMissing as error:
            raise PrivilegeMissing(
                f"gcd's own tables ({PREFIX}…) are missing; this role may not create them: {error}",
                hint="`gcd init --sql` prints the statements for a database administrator",
            ) from error
        except (StoreRefused, StoreUnreachable):
            # Two collectors may create at the same moment: the other one's tables are as good.
            if attempt == ATTEMPTS - 1:
                raise
            threading.Event().wait(0.5)
    return True


def create(engine: Engine) -> None:
    """Make what is missing, the version last: a half-made set is completed by the next attempt."""
    with writing(engine) as conn:
        metadata.create_all(conn, checkfirst=True)
        if version_of(conn) is None:
            conn.execute(
                lease.insert().values(name="collector", epoch=0, expires_ms=0, holder=None)
            )
            conn.execute(meta.insert().values(name="version", value=str(VERSION)))


def statements(engine: Engine, role: str, purged: tuple[str, ...], schema: str | None) -> list[str]:
    """The SQL that makes gcd's tables beside MLflow's, and what `role` must be granted to collect.

    Every name has its schema (on MySQL the database): whoever runs it may have another search path.
    """
    place = schema if engine.dialect.name == "postgresql" else engine.url.database
    place = None if engine.dialect.name == "sqlite" else place
    copy = sa.MetaData(schema=place)
    own = [table.to_metadata(copy) for table in metadata.sorted_tables]
    made = [str(CreateTable(table).compile(engine)).strip() for table in own]
    made += [
        str(CreateIndex(index).compile(engine)).strip()
        for table in own
        for index in sorted(table.indexes, key=lambda index: str(index.name))
    ]
    names = {table.name: engine.dialect.identifier_preparer.format_table(table) for table in own}
    made += [
        f"INSERT INTO {names[meta.name]} (name, value) VALUES ('version', '{VERSION}')",
        f"INSERT INTO {names[lease.name]} (name, epoch, expires_ms) VALUES ('collector', 0, 0)",
    ]
    return [text + ";" for text in [*made, *grants(engine, role, purged, place)]]


def grants(engine: Engine, role: str, purged: tuple[str, ...], place: str | None) -> list[str]:
    """GRANT statements for a role that owns nothing; none on SQLite."""
    quote = engine.dialect.identifier_preparer.quote
    own = [table.name for table in metadata.sorted_tables]
    base = quote(place) if place else ""

    def listed(names: Iterable[str]) -> str:
        return ", ".join(f"{base}.{quote(name)}" for name in names)

    match engine.dialect.name:
        case "postgresql":
            serials = listed(f"{table.name}_id_seq" for table in (cycle, journal))
            return [
                f"GRANT USAGE ON SCHEMA {base} TO {role}",
                f"GRANT SELECT ON ALL TABLES IN SCHEMA {base} TO {role}",
                f"GRANT UPDATE, DELETE ON {listed(purged)} TO {role}",
                f"GRANT INSERT, UPDATE, DELETE ON {listed(own)} TO {role}",
                f"GRANT USAGE ON SEQUENCE {serials} TO {role}",
            ]
        case "mysql" | "mariadb":
            return [
                # By TRIGGER it sees triggers, by REFERENCES keys from tables of other databases.
                f"GRANT SELECT, TRIGGER ON {base}.* TO {role}",
                f"GRANT REFERENCES ON *.* TO {role}",
                *(f"GRANT UPDATE, DELETE ON {listed([name])} TO {role}" for name in purged),
                *(f"GRANT INSERT, UPDATE, DELETE ON {listed([name])} TO {role}" for name in own),
            ]
    return []
