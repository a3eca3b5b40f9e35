"""Keeps new references out between the last look of a purge and its COMMIT.

Invariant: it is set as late as possible, waits for other clients for a moment only, and changes nothing.
Where the database does not let it be set, the last look alone remains.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from gcd.store.connection import LOCK_TIMEOUT
from gcd.store.faults import translate
from gcd.store.schema import Schema
from gcd.store.versions import MODELS, VERSIONS

WAIT_MS = 1500
"""How long to wait for transactions that write references: PostgreSQL interrupts its VACUUM after 1 s."""
TAGS = "experiment_tags"
HOLDS = "gcd%"
"""Keys of tags that may hold."""

logger = logging.getLogger(__name__)


class Barrier:
    """What stands in the way of new model versions, and of hold tags on experiments that stay.

    SQLite needs none: whoever purges is its only writer. PostgreSQL's tables are locked against
    writing, by the purge itself. InnoDB has no such lock within a transaction: a second one locks all
    registered models and the gaps between them, which MLflow has to change for each new version.
    """

    def __init__(self, engine: Engine, schema: Schema) -> None:
        self._engine = engine
        self._schema = schema
        self._session: Connection | None = None
        """The second transaction."""

    def set(self, conn: Connection, shared: Sequence[int]) -> None:
        """Keep references out until the purge in this transaction ends, and `lift` is called.

        `shared` are experiments that stay, of which parts are purged.
        """
        match conn.dialect.name:
            case "postgresql":
                self._set_postgresql(conn, is_shared=bool(shared))
            case "mysql" | "mariadb":
                self._set_innodb(shared)

    def lift(self) -> None:
        """Let others go on. To be called after the COMMIT, or instead of it."""
        session, self._session = self._session, None
        if session is None:
            return
        try:
            with session:
                session.rollback()
                wait = LOCK_TIMEOUT.seconds  # whoever has the connection next waits as always
                session.exec_driver_sql(f"SET SESSION innodb_lock_wait_timeout = {wait}")
        except sa.exc.DBAPIError as error:
            # A session that was lost keeps nobody out; if the purge's was too, that fails by itself.
            logger.info("the lock on new references was lost: %s", translate(error).message)

    def _set_postgresql(self, conn: Connection, *, is_shared: bool) -> None:
        names = [VERSIONS] if self._schema.has(VERSIONS) else []
        names += [TAGS] if is_shared and self._schema.has(TAGS) else []
        shown = conn.dialect.identifier_preparer.format_table
        tables = ", ".join(shown(self._schema.table(name)) for name in names)
        if not tables:
            return
        before = conn.exec_driver_sql("SHOW lock_timeout").scalar_one()
        try:
            with conn.begin_nested():
                conn.exec_driver_sql(f"SET LOCAL lock_timeout = {WAIT_MS}")
                conn.exec_driver_sql(f"LOCK TABLE {tables} IN SHARE MODE")
                conn.exec_driver_sql(f"SET LOCAL lock_timeout = '{before}'")
        except sa.exc.DBAPIError as error:
            _note(error)

    def _set_innodb(self, shared: Sequence[int]) -> None:
        if not self._schema.has(MODELS, "name"):
            return
        try:
            self._session = session = self._engine.connect()
            session.execution_options(isolation_level="REPEATABLE READ")
            session.exec_driver_sql(f"SET SESSION innodb_lock_wait_timeout = {WAIT_MS // 1000}")
            for query in self._locking(shared):
                session.execute(query.with_for_update())
        except sa.exc.DBAPIError as error:
            _note(error)

    def _locking(self, shared: Sequence[int]) -> Iterator[sa.Select[*tuple[Any, ...]]]:
        """What is read so that it is locked, with the gaps in it."""
        yield sa.select(sa.func.count()).select_from(self._schema.table(MODELS))
        if shared and self._schema.has(TAGS, "key", "experiment_id"):
            tags = self._schema.table(TAGS)
            named = tags.c.key.like(HOLDS), tags.c.experiment_id.in_(shared)
            yield sa.select(sa.func.count()).select_from(tags).where(*named)


def _note(error: sa.exc.DBAPIError) -> None:
    """A lock that was not to be had: others hold it, or this role may not."""
    logger.info("new references were not kept out: %s", translate(error).message)
