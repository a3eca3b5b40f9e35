"""TrackingStore: MLflow's database and gcd's tables in it, behind verbs of the domain.

It must never decide what to collect: it is handed decisions and lets the database confirm them.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from gcd.durations import to_millis
from gcd.errors import SchemaUnsupported, StoreRefused, StoreUnreachable
from gcd.model import Candidate, Entry, Hold, Kind, Outcome, Place, Probe, Report, Root
from gcd.store import connection, journal, purge, read, tables
from gcd.store import lease as leases
from gcd.store.faults import is_conflict
from gcd.store.lease import Lease
from gcd.store.schema import Reference, Schema, read_schema

ATTEMPTS = 5
"""How often a transaction that lost a deadlock or a lock time-out is tried."""
SCAN_IDS = 20_000
"""Purged runs whose remaining references one pass over the tables looks for: bounds its memory."""
SCAN_ROWS = 20_000
"""Rows that a pass finds before they are settled: bounds its memory too."""

T = TypeVar("T")


class TrackingStore:
    """An MLflow tracking store in a SQL database."""

    def __init__(self, uri: str, *, read_only: bool) -> None:
        """Open the store and read its schema; raises StoreUnreachable, StoreRefused."""
        self.engine: Engine = connection.open_engine(uri, read_only=read_only)
        with connection.reading(self.engine) as conn:
            self.schema: Schema = read_schema(conn)
            self.has_own_tables = tables.version_of(conn) is not None

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    @property
    def dialect(self) -> str:
        """sqlite, postgresql, mysql or mssql."""
        return self.schema.catalogue.dialect

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that cannot write."""
        with connection.reading(self.engine) as conn:
            yield conn

    def now(self) -> datetime:
        """The database's time."""
        with self.reading() as conn:
            return journal.known(read.now_ms(conn))

    # -- preparing to write ----------------------------------------------------------------------

    def prepare(self) -> None:
        """Make gcd's tables if need be, and refuse a database on which deleting is not safe.

        Raises StoreRefused, SchemaUnsupported, PrivilegeMissing.
        """
        if self.dialect == "mssql":
            raise StoreRefused(
                "deleting on SQL Server is refused: nobody has tested it",
                hint="`gcd plan` may work there",
            )
        if self.dialect == "mysql":
            with self.reading() as conn:
                self.refuse_unsafe_mysql(conn)
        tables.ensure(self.engine)
        self.has_own_tables = True

    def refuse_unsafe_mysql(self, conn: Connection) -> None:
        """Without transactions, or with statement-based replication, a purge is not atomic."""
        wanted = (*self.schema.purged_tables(), "experiments")
        rows = conn.execute(
            sa.text(
                "SELECT table_name, engine FROM information_schema.tables "
                "WHERE table_schema = DATABASE() AND table_name IN :names"
            ).bindparams(sa.bindparam("names", expanding=True)),
            {"names": wanted},
        )
        for table, engine in rows:
            if str(engine).lower() != "innodb":
                raise StoreRefused(
                    f"the table {table} is kept by {engine}, which has no transactions",
                    hint=f"ALTER TABLE {table} ENGINE = InnoDB",
                )
        logs, form = conn.exec_driver_sql("SELECT @@log_bin, @@binlog_format").one()
        if logs and str(form).upper() == "STATEMENT":
            raise StoreRefused(
                "binlog_format is STATEMENT: READ COMMITTED cannot be replicated safely",
                hint="SET GLOBAL binlog_format = 'MIXED' or 'ROW'",
            )

    def acquire(self, wait: timedelta | None) -> Lease:
        """Become the only collector; raises LeaseHeld."""
        return leases.acquire(self.engine, wait=wait)

    def check_unchanged(self) -> None:
        """Refuse to go on when MLflow is migrating the database; raises SchemaUnsupported."""
        with self.reading() as conn:
            now = read_schema(conn)
        if now.catalogue.revision != self.schema.catalogue.revision:
            raise SchemaUnsupported(
                f"MLflow migrated the database from {self.schema.catalogue.revision} to "
                f"{now.catalogue.revision} meanwhile; gcd stops",
                hint="run gcd again when the migration is done",
            )

    # -- deciding --------------------------------------------------------------------------------

    def candidates(self, ids: Sequence[str] | None, limit: int) -> Iterator[list[Candidate]]:
        """Soft-deleted runs by id, page by page; each page is read in a transaction of its own."""
        if ids is not None:
            for start in range(0, len(ids), limit):
                yield self.page(ids=ids[start : start + limit])
            return
        after = ""
        while page := self.page(after=after, limit=limit):
            yield page
            after = page[-1].id

    def page(
        self, *, after: str = "", limit: int = 1000, ids: Sequence[str] | None = None
    ) -> list[Candidate]:
        """One page of candidates, undated ones with the time that gcd first saw them."""
        with self.reading() as conn:
            found = read.deleted_runs(conn, self.schema, after=after, limit=limit, ids=ids)
            undated = [each.id for each in found if each.deleted_at is None]
            if not (undated and self.has_own_tables):
                return found
            seen = read.first_seen(conn, undated)
        return [replace(each, first_seen_at=seen.get(each.id)) for each in found]

    def holds(self) -> Iterator[Hold]:
        """Everything that may keep a run or a tree, streamed."""
        with self.reading() as conn:
            yield from read.all_holds(conn, self.schema, has_own_tables=self.has_own_tables)

    def entity_holds(self, conn: Connection, ids: Sequence[str]) -> Iterator[Hold]:
        """What holds these runs now, inside a purge transaction."""
        yield from read.version_holds(conn, self.schema)
        yield from read.tag_holds(conn, self.schema, ids)
        yield from read.operator_holds(conn, ids)

    def stages(self, ids: Sequence[str]) -> dict[str, str | None]:
        """The stage of each of the runs that exist."""
        with self.reading() as conn:
            return read.run_stages(conn, self.schema, ids)

    def unknown_references(self, ids: Sequence[str]) -> dict[str, str]:
        """Run to a table that gcd does not know and that refers to it."""
        if not (self.schema.strangers and ids):
            return {}
        with self.reading() as conn:
            return read.unknown_references(conn, self.schema, ids)

    def entities_inside(self, segments: Sequence[str]) -> dict[str, str]:
        """Path segments that are ids of entities."""
        with self.reading() as conn:
            return read.entities_inside(conn, self.schema, segments)

    def some_trees(self, prefix: str, limit: int) -> list[str]:
        """Artifact URIs that the database names below a URI."""
        with self.reading() as conn:
            return read.some_trees(conn, self.schema, prefix, limit)

    def note_undated(self, ids: Sequence[str], now: datetime) -> None:
        """Remember when undated runs were first seen."""
        if not ids:
            return
        with connection.writing(self.engine) as conn:
            known = set(read.first_seen(conn, ids))
            rows = [
                {"kind": Kind.RUN.value, "entity_id": run, "first_seen_ms": to_millis(now)}
                for run in ids
                if run not in known
            ]
            if rows:
                conn.execute(tables.seen.insert(), rows)

    def forget_seen(self) -> None:
        """Forget undated runs that were restored, dated or purged since they were first seen."""
        with self.reading() as conn:
            ids = list(conn.execute(sa.select(tables.seen.c.entity_id)).scalars())
        for part in purge.slices(ids):
            undated = {each.id for each in self.page(ids=part) if each.deleted_at is None}
            gone = [run for run in part if run not in undated]
            if gone:
                with connection.writing(self.engine) as conn:
                    conn.execute(tables.seen.delete().where(tables.seen.c.entity_id.in_(gone)))

    # -- purging ---------------------------------------------------------------------------------

    def row_counts(self, ids: Sequence[str]) -> dict[str, int]:
        """Rows that hang on each run, for packing batches."""
        with self.reading() as conn:
            return purge.row_counts(conn, self.schema, ids)

    @property
    def splits_giants(self) -> bool:
        """Whether a giant run's own row goes first: PostgreSQL deletes it whole, and quickly."""
        return self.dialect != "postgresql"

    def purge(self, lease: Lease, batch: purge.Batch, rejudge: purge.Rejudge) -> purge.Purged:
        """Journal and delete one batch in one transaction, the single point of no return."""

        def transaction(conn: Connection) -> purge.Purged:
            at = read.now_ms(conn)
            return purge.purge(conn, self.schema, lease, batch, rejudge, at)

        return self.retried(transaction, foreign_keys=not batch.is_giant)

    def finish_rows(self, lease: Lease, limit: int, goes_on: Callable[[], bool]) -> int:
        """Delete what is left of purged runs' rows, in chunks; how many rows went.

        Giant runs' children first, then the references that only a scan finds.
        """
        rows = 0
        while goes_on():
            with self.reading() as conn:
                giants = journal.with_rows_left(conn, journal.CHILDREN_LEFT, limit=1)
            if not giants:
                break
            rows += self.finish_giant(lease, giants[0], limit, goes_on)
        while goes_on():
            with self.reading() as conn:
                page = journal.with_rows_left(conn, journal.REFERENCES_LEFT, limit=SCAN_IDS)
            if not page:
                break
            rows += self.finish_references(lease, page)
        return rows

    def finish_giant(
        self, lease: Lease, entry: Entry, limit: int, goes_on: Callable[[], bool]
    ) -> int:
        """Delete the children of one run whose own row is gone, chunk by chunk."""
        rows = 0

        def chunk(conn: Connection) -> int | None:
            lease.confirm(conn)
            if read.run_stages(conn, self.schema, [entry.entity_id]):
                journal.park(conn, entry.id, "a run with this id is back: its rows are kept")
                return None
            gone = purge.delete_some_children(conn, self.schema, entry.entity_id, limit)
            if gone == 0:
                journal.set_rows_left(conn, [entry.id], journal.REFERENCES_LEFT)
            return gone

        while goes_on() and (gone := self.retried(chunk)):
            rows += gone
        return rows

    def finish_references(self, lease: Lease, page: Sequence[Entry]) -> int:
        """One pass over the tables that refer to runs without an index, for a page of entries."""
        back = self.stages([entry.entity_id for entry in page])
        ids = {entry.entity_id for entry in page if entry.entity_id not in back}
        rows = sum(
            self.finish_reference(lease, reference, ids)
            for reference in self.schema.references(scanned=True)
        )

        def done(conn: Connection) -> None:
            lease.confirm(conn)
            journal.set_rows_left(conn, [entry.id for entry in page], 0)

        self.retried(done)
        return rows

    def finish_reference(self, lease: Lease, reference: Reference, ids: set[str]) -> int:
        """Look one way of referring through until it finds nothing; how many rows were settled.

        What is found is settled after the look: on SQLite a reader would keep the writer waiting.
        """
        rows = 0
        while True:
            with self.reading() as conn:
                scanned = purge.scanned_rows(conn, self.schema, reference, ids)
                found = list(islice(scanned, SCAN_ROWS))
            settled = sum(
                self.settle_rows(lease, reference, part, ids)
                for part in batched(found, purge.SLICE)
            )
            rows += settled
            if len(found) < SCAN_ROWS or settled == 0:
                return rows

    def settle_rows(
        self, lease: Lease, reference: Reference, part: Sequence[Mapping[str, Any]], ids: set[str]
    ) -> int:
        """Do with scanned rows what their reference says, in one transaction."""

        def transaction(conn: Connection) -> int:
            lease.confirm(conn)
            return sum(purge.settle_row(conn, self.schema, reference, row, ids) for row in part)

        return self.retried(transaction)

    def retried(self, transaction: Callable[[Connection], T], *, foreign_keys: bool = True) -> T:
        """Run a write transaction, again where the database chose it to lose a conflict."""
        for attempt in range(ATTEMPTS):
            try:
                with connection.writing(self.engine, foreign_keys=foreign_keys) as conn:
                    return transaction(conn)
            except StoreUnreachable as error:
                cause = error.__cause__
                is_lost = isinstance(cause, sa.exc.DBAPIError) and is_conflict(cause)
                if not is_lost or attempt == ATTEMPTS - 1:
                    raise
                # Both losers of a deadlock would meet again if they waited equally long.
                threading.Event().wait(random.uniform(0.05, 0.2) * 2**attempt)
        raise AssertionError("unreachable")

    # -- the journal -----------------------------------------------------------------------------

    def due(self, now: datetime, *, after: int = 0, limit: int = 500) -> list[Entry]:
        """A page of entries that are to be swept by now."""
        with self.reading() as conn:
            return journal.due(conn, to_millis(now), after=after, limit=limit)

    def waiting(self, now: datetime) -> int:
        """How many trees of earlier cycles are due to be swept."""
        if not self.has_own_tables:
            return 0
        with self.reading() as conn:
            return sum(journal.backlog(conn, to_millis(now), with_stuck=False).values())

    def history(self, entity_id: str) -> list[Entry]:
        """What the journal remembers of an entity, newest first."""
        if not self.has_own_tables:
            return []
        with self.reading() as conn:
            return journal.of_entity(conn, entity_id)

    def settle(self, lease: Lease, outcomes: Sequence[Outcome], now: datetime) -> None:
        """Write what became of swept entries, and how their roots did."""

        def transaction(conn: Connection) -> None:
            lease.confirm(conn)
            journal.settle(conn, outcomes, now)
            journal.note_sweeps(conn, outcomes, to_millis(now))

        if outcomes:
            self.retried(transaction)

    def roots(self, probes: Mapping[Place, Probe], now: datetime) -> dict[Place, Root]:
        """Probed roots with what is remembered of them."""
        if not self.has_own_tables:
            return {place: Root(place, probe) for place, probe in probes.items()}
        with self.reading() as conn:
            return journal.known_roots(conn, probes, to_millis(now))

    def remembered_roots(self) -> frozenset[Place]:
        """The roots whose identity is known."""
        if not self.has_own_tables:
            return frozenset()
        with self.reading() as conn:
            return journal.remembered_roots(conn)

    def remember_root(self, place: Place, values: Mapping[str, Any]) -> None:
        """Write what is known of a root."""

        def transaction(conn: Connection) -> None:
            journal.remember_root(conn, place, values)

        self.retried(transaction)

    def begin_cycle(self, lease: Lease, now: datetime) -> int:
        """Note that a cycle starts; its number."""
        return self.retried(lambda conn: journal.begin_cycle(conn, lease.holder, to_millis(now)))

    def end_cycle(self, report: Report) -> None:
        """Note how a cycle ended."""
        self.retried(lambda conn: journal.end_cycle(conn, report))

    def cycle(self, number: int) -> sa.Row[*tuple[Any, ...]] | None:
        """A cycle as it was noted, None once it is forgotten."""
        with self.reading() as conn:
            return journal.cycle_row(conn, number)

    def prune(self, before: datetime) -> None:
        """Forget settled history from before a time."""
        while self.retried(lambda conn: journal.prune(conn, to_millis(before))):
            pass


def batched(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """The rows in lists of at most `size`."""
    iterator = iter(rows)
    while part := list(islice(iterator, size)):
        yield part
