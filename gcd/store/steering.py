"""What an operator writes by hand: holds, and the wish that entries be tried again.

It must never touch a row of MLflow's; it locks them so that a hold wins or is told that it is late.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from gcd.durations import from_millis, to_millis
from gcd.errors import GcdError
from gcd.model import EntryState, Kind
from gcd.store import journal, read
from gcd.store.purge import lock
from gcd.store.tables import hold as holds
from gcd.store.tables import journal as entries
from gcd.store.tables import root as roots
from gcd.store.tracking import TrackingStore


@dataclass(frozen=True, slots=True)
class Placed:
    """A hold in gcd's own table."""

    kind: Kind
    entity_id: str
    reason: str | None
    placed_by: str | None
    placed_at: datetime
    until: datetime | None


def place_hold(
    store: TrackingStore,
    kind: Kind,
    entity: str,
    *,
    reason: str | None,
    placed_by: str,
    until: datetime | None,
) -> None:
    """Protect an entity, over a hold that it had.

    Its row is locked: a purge under way is waited for, and one that comes later sees the hold. Raises
    GcdError where the entity is not there, with the cycle that collected it.
    """

    def transaction(conn: sa.Connection) -> None:
        if entity not in lock(conn, store.schema, kind, [entity]):
            raise GcdError(why_gone(conn, kind, entity))
        conn.execute(holds.delete().where(*named(kind, entity)))
        values = {
            "kind": kind.value,
            "entity_id": entity,
            "reason": reason,
            "placed_by": placed_by,
            "placed_ms": read.now_ms(conn),
            "until_ms": None if until is None else to_millis(until),
        }
        conn.execute(holds.insert().values(values))

    store.retried(transaction)


def why_gone(conn: sa.Connection, kind: Kind, entity: str) -> str:
    """Why an entity cannot be held."""
    what = f"{kind.replace('_', ' ')} {entity}"
    for entry in journal.of_entity(conn, entity):
        if entry.kind is kind:
            return f"the {what} is already collected, by cycle {entry.cycle}"
    return f"there is no {what}"


def named(kind: Kind, entity: str) -> tuple[sa.ColumnElement[bool], ...]:
    """The condition that finds one hold."""
    return holds.c.kind == kind.value, holds.c.entity_id == entity


def remove_hold(store: TrackingStore, kind: Kind, entity: str) -> bool:
    """Let an entity go; whether it was held."""
    return store.retried(
        lambda conn: conn.execute(holds.delete().where(*named(kind, entity))).rowcount > 0
    )


def placed_holds(store: TrackingStore) -> list[Placed]:
    """All holds, oldest first, those that have ended too."""
    if not store.has_own_tables:
        return []
    with store.reading() as conn:
        rows = conn.execute(sa.select(holds).order_by(holds.c.placed_ms)).all()
    return [
        Placed(
            Kind(row.kind),
            row.entity_id,
            row.reason,
            row.placed_by,
            journal.known(row.placed_ms),
            None if row.until_ms is None else from_millis(row.until_ms),
        )
        for row in rows
    ]


def retry(store: TrackingStore, ids: Sequence[str] | None) -> int:
    """Make deferred, stuck and parked entries due now, all of them or those of some entities.

    The failures of their storage roots are forgiven. A parked one is parked again by the next sweep
    if what it would delete is still needed. Returns how many there are.
    """

    def transaction(conn: sa.Connection) -> int:
        waits = sa.or_(
            entries.c.state.in_((EntryState.STUCK.value, EntryState.PARKED.value)),
            sa.and_(entries.c.state == EntryState.PENDING.value, entries.c.attempts > 0),
        )
        where = [waits, entries.c.looks == 0]
        if ids is not None:
            where.append(entries.c.entity_id.in_(ids))
        values = {"state": EntryState.PENDING.value, "due_ms": read.now_ms(conn)}
        found = conn.execute(entries.update().where(*where).values(values)).rowcount
        if found:
            conn.execute(roots.update().values(failures=0, error=None))
        return found

    return store.retried(transaction)
