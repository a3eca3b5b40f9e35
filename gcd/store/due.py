"""When the next cycle of a store is due, kept in the store itself, so that several daemons share it.

It must never let a fire be made twice: who takes one writes the next before the cycle starts.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.durations import from_millis, to_millis
from gcd.store import tables
from gcd.store.lease import Lease
from gcd.store.tracking import TrackingStore

NAME = "next_due_ms"


def next_due(store: TrackingStore) -> datetime | None:
    """When the next cycle is due; None where no daemon has said so yet."""
    if not store.has_own_tables:
        return None
    with store.reading() as conn:
        return read(conn)


def read(conn: Connection) -> datetime | None:
    """The stored time."""
    value = conn.scalar(sa.select(tables.meta.c.value).where(tables.meta.c.name == NAME))
    return from_millis(int(value)) if value and value.isdecimal() else None


def claim(
    store: TrackingStore, lease: Lease, seen: datetime | None, following: datetime | None
) -> bool:
    """Take the turn that was found due, and write when the next one is; False where it is taken.

    It is taken where the time is no more the one that was `seen`: another daemon has had it.
    """

    def transaction(conn: Connection) -> bool:
        lease.confirm(conn)
        if read(conn) != seen:
            return False
        write(conn, following)
        return True

    return store.retried(transaction)


def hasten(store: TrackingStore, at: datetime) -> datetime:
    """Let the next cycle be due at a time, unless it is due before; when it is due."""

    def transaction(conn: Connection) -> datetime:
        stored = read(conn)
        if stored is not None and stored <= at:
            return stored
        write(conn, at)
        return at

    return store.retried(transaction)


def write(conn: Connection, at: datetime | None) -> None:
    """Store the time, over what was stored."""
    conn.execute(tables.meta.delete().where(tables.meta.c.name == NAME))
    if at is not None:
        conn.execute(tables.meta.insert().values(name=NAME, value=str(to_millis(at))))
