"""Finishes purges whose rows are not all deleted: giants chunk by chunk, references by one pass.

It must never go on without the lease, and never touch rows of an entity that is back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, islice
from typing import Any

from sqlalchemy.engine import Connection

from gcd.model import Entry, Kind
from gcd.store import journal, leftovers, turns
from gcd.store.eraser import slices
from gcd.store.lease import Lease
from gcd.store.presence import gone_ids
from gcd.store.references import ENTITY_TABLES, Reference
from gcd.store.schema import confirm
from gcd.store.tracking import TrackingStore

SCAN_IDS = 20_000
"""Purged entities whose remaining references one pass over the tables looks for: bounds its memory."""
SCAN_ROWS = 20_000
"""Rows that a pass finds before they are settled: bounds its memory too."""


def finish_rows(store: TrackingStore, lease: Lease, limit: int, goes_on: Callable[[], bool]) -> int:
    """Delete what is left of purged entities' rows, in chunks; how many rows went.

    Giants' children first, then the references that only a scan finds.
    """
    rows = 0
    while goes_on():
        with store.reading() as conn:
            giants = journal.with_rows_left(conn, journal.CHILDREN_LEFT, limit=1)
        if not giants:
            break
        rows += finish_giant(store, lease, giants[0], limit, goes_on)
    while goes_on():
        with store.reading() as conn:
            page = journal.with_rows_left(conn, journal.REFERENCES_LEFT, limit=SCAN_IDS)
        if not page:
            break
        rows += finish_references(store, lease, page)
    return rows


def finish_giant(
    store: TrackingStore, lease: Lease, entry: Entry, limit: int, goes_on: Callable[[], bool]
) -> int:
    """Delete the children of one entity whose own row is gone, chunk by chunk."""
    rows = 0
    limit = min(limit, turns.ROWS) if store.turns else limit

    def chunk(conn: Connection) -> int | None:
        lease.confirm(conn)
        confirm(conn, store.schema)
        if not gone_ids(conn, store.schema, entry.kind, [entry.entity_id]):
            journal.park(conn, entry.id, "an entity with this id is back: its rows are kept")
            return None
        eraser = store.eraser(conn)
        gone = leftovers.delete_some_children(eraser, entry.kind, entry.entity_id, limit)
        if gone == 0:
            journal.set_rows_left(conn, [entry.id], journal.REFERENCES_LEFT)
        return gone

    while goes_on() and (gone := store.retried(chunk, is_exported=True)):
        rows += gone
    return rows


def finish_references(store: TrackingStore, lease: Lease, page: Sequence[Entry]) -> int:
    """One pass over the tables that refer to entities without an index, for a page of entries."""
    rows = 0
    by_kind = sorted(page, key=lambda entry: entry.kind)
    for kind, entries in groupby(by_kind, key=lambda entry: entry.kind):
        with store.reading() as conn:
            ids = gone_ids(conn, store.schema, kind, [entry.entity_id for entry in entries])
        for reference in store.schema.references(ENTITY_TABLES[kind], scanned=True):
            rows += finish_reference(store, lease, reference, kind, ids)

    def done(conn: Connection) -> None:
        lease.confirm(conn)
        for part in slices([entry.id for entry in page]):
            journal.set_rows_left(conn, part, 0)

    store.retried(done)
    return rows


def finish_reference(
    store: TrackingStore, lease: Lease, reference: Reference, kind: Kind, ids: set[str]
) -> int:
    """Look one way of referring through until it finds nothing; how many rows were settled.

    What is found is settled after the look: on SQLite a reader would keep the writer waiting.
    """
    rows = 0
    while ids:
        with store.reading() as conn:
            scanned = leftovers.scanned_rows(conn, store.schema, reference, ids)
            found = list(islice(scanned, SCAN_ROWS))
        settled = [settle_rows(store, lease, reference, kind, part, ids) for part in slices(found)]
        rows += sum(each.gone for each in settled)
        if len(found) < SCAN_ROWS or not any(map(any, settled)):
            break
    return rows


def settle_rows(
    store: TrackingStore,
    lease: Lease,
    reference: Reference,
    kind: Kind,
    part: Sequence[Mapping[str, Any]],
    ids: set[str],
) -> leftovers.Settled:
    """Do with scanned rows what their reference says, in one transaction.

    The pass may have taken long: entities that are back by now keep what refers to them.
    """

    def transaction(conn: Connection) -> leftovers.Settled:
        lease.confirm(conn)
        confirm(conn, store.schema)
        eraser = store.eraser(conn)
        column = reference.column
        names = {each for row in part for each in leftovers.named(row[column], reference)}
        gone = gone_ids(conn, store.schema, kind, sorted(names & ids))
        rows = [r for r in part if gone.intersection(leftovers.named(r[column], reference))]
        done = [leftovers.settle_row(eraser, reference, row, gone) for row in rows]
        return leftovers.Settled(sum(d.gone for d in done), sum(d.changed for d in done))

    return store.retried(transaction, is_exported=True)
