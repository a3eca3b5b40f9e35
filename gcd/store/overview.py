"""Every SELECT for `gcd status`: cycles, what waits in the journal, what comes due.

It must never write, and tells nothing it has not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.durations import from_millis, to_millis
from gcd.model import Entry, EntryState, Kind
from gcd.store import due, journal, read, tables
from gcd.store.references import ENTITY_TABLES
from gcd.store.schema import Schema, is_deleted
from gcd.store.tracking import TrackingStore

DATED = (Kind.RUN, Kind.LOGGED_MODEL, Kind.EXPERIMENT)
STATES = ("due", "deferred", "second_look", "stuck", "parked")


@dataclass(frozen=True, slots=True)
class Cycle:
    """A cycle as the history has it."""

    number: int
    state: str
    started_at: datetime
    ended_at: datetime | None
    holder: str
    report: Mapping[str, Any]
    error: str | None


@dataclass(frozen=True, slots=True)
class Overview:
    """What an operator wants to know at a glance."""

    now: datetime
    cycles: Sequence[Cycle] = ()
    last_failure: Cycle | None = None
    waiting: Mapping[str, int] = field(default_factory=dict)
    """Journal entries by STATES."""
    troubled: Sequence[Entry] = ()
    """Entries that were tried and failed, or are stuck or parked; some of them."""
    holder: str | None = None
    due_at: datetime | None = None
    """When a daemon's next cycle is due, None where there is no daemon."""
    coming: Mapping[timedelta, Mapping[Kind, int]] = field(default_factory=dict)
    """How many come due by age within each time from now, holds and the like apart."""


def overview(
    store: TrackingStore, older_than: timedelta, within: Sequence[timedelta], cycles: int
) -> Overview:
    """All of it, read now."""
    with store.reading() as conn:
        now = journal.known(read.now_ms(conn))
        coming = {each: due_within(conn, store.schema, now - older_than, each) for each in within}
        if not store.has_own_tables:
            return Overview(now, coming=coming)
        return Overview(
            now=now,
            cycles=last_cycles(conn, cycles),
            last_failure=last_failure(conn),
            waiting=waiting(conn),
            troubled=troubled(conn),
            holder=store.lease_holder(),
            due_at=due.read(conn),
            coming=coming,
        )


def due_within(
    conn: Connection, schema: Schema, cutoff: datetime, ahead: timedelta
) -> dict[Kind, int]:
    """Soft-deleted entities by kind whose stamp is not after a cut-off that moves ahead."""
    found = {}
    for kind in DATED:
        if not schema.has_kind(kind):
            continue
        table = schema.table(ENTITY_TABLES[kind])
        query = (
            sa.select(sa.func.count())
            .select_from(table)
            .where(
                is_deleted(table),
                schema.stamp(kind) <= to_millis(cutoff + ahead),
            )
        )
        found[kind] = conn.scalar(query) or 0
    return found


def last_cycles(conn: Connection, limit: int) -> list[Cycle]:
    """The newest cycles, newest first."""
    query = sa.select(tables.cycle).order_by(tables.cycle.c.id.desc()).limit(limit)
    return [cycle(row) for row in conn.execute(query)]


def last_failure(conn: Connection) -> Cycle | None:
    """The newest cycle that failed, None if a later one was done."""
    query = (
        sa.select(tables.cycle)
        .where(tables.cycle.c.state.in_(("failed", "done", "partial")))
        .order_by(tables.cycle.c.id.desc())
        .limit(1)
    )
    row = conn.execute(query).first()
    return cycle(row) if row is not None and row.state == "failed" else None


def cycle(row: sa.Row[*tuple[Any, ...]]) -> Cycle:
    """A row of the history."""
    return Cycle(
        number=row.id,
        state=row.state or "unknown",
        started_at=journal.known(row.started_ms),
        ended_at=None if row.ended_ms is None else from_millis(row.ended_ms),
        holder=str(row.holder or "").split(" [")[0],
        report=json.loads(row.report) if row.report else {},
        error=row.error,
    )


def waiting(conn: Connection) -> dict[str, int]:
    """How many entries are in each state that is not done."""
    entries = tables.journal
    is_pending = entries.c.state == EntryState.PENDING.value
    state = sa.case(
        (sa.and_(is_pending, entries.c.looks > 0), "second_look"),
        (sa.and_(is_pending, entries.c.attempts > 0), "deferred"),
        (is_pending, "due"),
        else_=entries.c.state,
    )
    query = (
        sa.select(state.label("name"), sa.func.count())
        .where(entries.c.state != EntryState.DONE.value)
        .group_by(sa.text("name") if conn.dialect.name != "mssql" else state)
    )
    found = {str(name): count for name, count in conn.execute(query)}
    return {name: found.get(name, 0) for name in STATES}


def oldest_waiting(conn: Connection, now: datetime) -> timedelta:
    """How long ago the oldest entry was purged that is still to be swept by itself; 0 for none."""
    entries = tables.journal
    is_due = sa.and_(entries.c.state == EntryState.PENDING.value, entries.c.looks == 0)
    oldest = conn.scalar(sa.select(sa.func.min(entries.c.purged_ms)).where(is_due))
    return timedelta(0) if oldest is None else max(timedelta(0), now - journal.known(oldest))


def last_success(conn: Connection) -> datetime | None:
    """When a cycle last came to its end, whatever it had to leave; None if none has."""
    cycles = tables.cycle
    query = sa.select(sa.func.max(cycles.c.ended_ms)).where(cycles.c.state.in_(("done", "partial")))
    ended = conn.scalar(query)
    return None if ended is None else from_millis(ended)


def is_running(conn: Connection) -> bool:
    """Whether the last cycle has not ended: it runs, or was killed."""
    last = last_cycles(conn, 1)
    return bool(last) and last[0].state == "running"


def deaths(conn: Connection, limit: int = 10) -> int:
    """How many of the last cycles that ended were killed, in a row."""
    states = (each.state for each in last_cycles(conn, limit) if each.state != "running")
    return sum(1 for _ in takewhile(lambda state: state == "killed", states))


def troubled(conn: Connection, limit: int = 10) -> list[Entry]:
    """Entries that failed, those that need a person first."""
    entries = tables.journal
    order = sa.case(
        (entries.c.state == EntryState.STUCK.value, 0),
        (entries.c.state == EntryState.PARKED.value, 1),
        else_=2,
    )
    query = (
        sa.select(entries)
        .where(entries.c.state != EntryState.DONE.value, entries.c.error.is_not(None))
        .order_by(order, entries.c.id)
        .limit(limit)
    )
    return [journal.entry(row) for row in conn.execute(query)]
