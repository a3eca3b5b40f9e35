"""Reads the rows of a query as they come from the server.

Invariant: never all of them are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

STREAM = 2000
"""Rows fetched at a time."""


def stream(conn: Connection, query: sa.Select[*tuple[Any, ...]]) -> Iterator[Row[*tuple[Any, ...]]]:
    """Rows as they come from the server, never all of them in memory."""
    options = {"yield_per": STREAM}
    with conn.execute(query, execution_options=options) as result:
        yield from result
