"""A connection that is kept for short questions, asked without the cost of a transaction each.

Invariant: it never writes, and no transaction stays open between two questions.
"""

from __future__ import annotations

import threading
from typing import Any

from sqlalchemy.engine import Connection, Engine

from gcd.errors import StoreUnreachable
from gcd.store.connection import pinned_file
from gcd.store.faults import translated


class Direct:
    """One connection in autocommit mode, shared by all threads; it is opened when it is needed."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._file = pinned_file(engine)
        self.session = 0
        """Grows whenever another session answers: what only a session knows is then void."""
        self._conn: Connection | None = None
        self._lock = threading.Lock()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The answer to a SELECT without parameters, as of now. Raises StoreUnreachable, StoreRefused."""
        if (file := pinned_file(self.engine)) is not None:
            file.refuse_replaced()
        with self._lock:
            if self._file is not None:
                self._file.refuse_replaced()  # no transaction begins, which would ask for that
            try:
                return self._fetched(sql)
            except (self.engine.dialect.loaded_dbapi.Error, StoreUnreachable):
                # A session that was idle for long is closed by servers and by what is between.
                self._drop()
            with translated(), self.engine.connect() as conn:
                return [tuple(row) for row in conn.exec_driver_sql(sql)]

    def _fetched(self, sql: str) -> list[tuple[Any, ...]]:
        if self._conn is None:
            self._conn = self._opened()
        cursor = self._conn.connection.cursor()
        try:
            cursor.execute(sql)
            return list(cursor.fetchall())
        finally:
            cursor.close()

    def _opened(self) -> Connection:
        self.session += 1
        with translated():
            conn = self.engine.connect()
            if self.engine.dialect.name == "sqlite":
                return conn  # which gcd opens without transactions of the driver's own
            return conn.execution_options(isolation_level="AUTOCOMMIT")

    def _drop(self) -> None:
        conn, self._conn = self._conn, None
        self.session += 1
        if conn is not None:
            conn.invalidate()
            conn.close()

    def close(self) -> None:
        """Give the connection back."""
        with self._lock:
            conn, self._conn = self._conn, None
            if conn is not None:
                conn.close()
