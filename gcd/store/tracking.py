"""TrackingStore: MLflow's database and gcd's tables in it, behind verbs of the domain.

It must never decide what to collect: it is handed decisions and lets the database confirm them.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from gcd.durations import to_millis
from gcd.errors import SchemaUnsupported, StoreRefused, StoreUnreachable
from gcd.model import (
    Candidate,
    Entry,
    Hold,
    Identity,
    KeepReason,
    Kind,
    Outcome,
    Place,
    Probe,
    Report,
    Root,
)
from gcd.planning.emptiness import Witness
from gcd.planning.entries import ids_of
from gcd.planning.patterns import unmatched
from gcd.planning.policy import Keep
from gcd.store import (
    clocks,
    connection,
    contents,
    elsewhere,
    holds,
    identity,
    indexes,
    journal,
    novelty,
    presence,
    purge,
    read,
    registry,
    search_path,
    tables,
    uses,
    visibility,
    witnesses,
)
from gcd.store import lease as leases
from gcd.store.barrier import Barrier
from gcd.store.direct import Direct
from gcd.store.eraser import Eraser, Export, slices
from gcd.store.faults import StillReferenced, is_conflict, is_foreign_key, steadily
from gcd.store.lease import Lease
from gcd.store.news import News
from gcd.store.pinned import Stamps
from gcd.store.presence import Evidence
from gcd.store.read import Wanted
from gcd.store.references import ENTITY_TABLES
from gcd.store.schema import Schema, read_schema, refuse_migrated
from gcd.store.streaming import stream
from gcd.store.tag_holds import tag_holds
from gcd.store.turns import Turns

ATTEMPTS = 5
"""How often a transaction that lost a deadlock or a lock time-out is tried."""
PATIENCE = timedelta(seconds=30)
"""How long a transaction may take where each entity costs a look through a whole table."""
WRITERS_PATIENCE = timedelta(seconds=1)
"""The same where all other writers wait meanwhile, as SQLite's do."""

T = TypeVar("T")


class TrackingStore:
    """An MLflow tracking store in a SQL database, and the registry's if that is another one."""

    def __init__(
        self,
        uri: str,
        *,
        read_only: bool,
        registry_uri: str | None = None,
        harmless: Collection[str] = (),
    ) -> None:
        """Open the store and read its schema; raises StoreUnreachable, StoreRefused.

        `registry_uri` may name the store's own database: then no version is looked for elsewhere.
        `harmless` names tables and triggers that gcd does not know and that are no reason to stop.
        """
        self.engine: Engine = connection.open_engine(uri, read_only=read_only)
        is_another = registry_uri is not None and not connection.is_same(registry_uri, uri)
        if is_another:
            connection.keep_readable(self.engine)
        self.direct = Direct(self.engine)
        self.harmless = harmless
        search_path.settle(self.engine)
        with connection.reading(self.engine) as conn:
            schema = read_schema(conn, harmless)
            visibility.confirm(conn, schema.catalogue)
            novel = novelty.suspects(conn, schema, harmless)
            self.schema: Schema = replace(schema, novel=novel)
            self.has_own_tables = tables.version_of(conn) is not None
        self.is_registry_known = registry_uri is not None
        self.registry = (
            registry.open_registry(registry_uri) if registry_uri and is_another else None
        )
        self.versions_elsewhere = 0
        """How many entities a version that is not here may refer to, as holds() found."""
        self.export: Export | None = None
        self.turns = Turns() if self.dialect == "sqlite" else None
        self.seconds_each: Mapping[str, float] = {}
        """Table to how long the database takes to delete a row for want of an index."""

    def close(self) -> None:
        """Close every connection."""
        self.direct.close()
        self.engine.dispose()
        if self.registry is not None:
            self.registry.close()

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

    def clock_doubt(self) -> str | None:
        """Why the database's clock cannot be trusted, None if nothing speaks against it."""
        if not self.has_own_tables:
            return None
        with self.reading() as conn:
            return clocks.doubt(conn, self.schema)

    def check_clock(self, planned_for: datetime | None = None) -> None:
        """Raise ClockDoubtful where the database's clock has jumped since the last cycle."""
        with self.reading() as conn:
            clocks.refuse_doubtful(conn, self.schema, planned_for)

    def note_clock(self, lease: Lease) -> None:
        """Remember what the clocks show, once they were checked."""

        def transaction(conn: Connection) -> None:
            lease.confirm(conn)
            clocks.remember(conn)

        self.retried(transaction)

    def accept_clock(self) -> datetime:
        """Take the database's clock as it is for right, as a person says; what it shows."""
        return self.retried(lambda conn: clocks.remember(conn, alone=True))

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
        self.ensure_identity()
        with self.reading() as conn:
            self.seconds_each = steadily(lambda: indexes.seconds_each(conn, self.schema))

    def ensure_identity(self) -> None:
        """Give the database an id of its own, and a copy of another one a new one."""
        with self.reading() as conn:
            if identity.is_up_to_date(conn):
                return
        self.retried(identity.ensure)

    def identity(self) -> Identity:
        """Who this database is: asked anew each time, and written by `prepare` alone."""
        with self.reading() as conn:
            return identity.identity_of(conn, has_own_tables=self.has_own_tables)

    def refuse_unsafe_mysql(self, conn: Connection) -> None:
        """Without transactions, or with statement-based replication, a purge is not atomic."""
        rows = conn.execute(
            sa.text(
                "SELECT table_name, engine FROM information_schema.tables "
                "WHERE table_schema = DATABASE() AND table_name IN :names"
            ).bindparams(sa.bindparam("names", expanding=True)),
            {"names": self.schema.purged_tables()},
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

    def acquire(self, wait: timedelta | None, stop: threading.Event | None = None) -> Lease:
        """Become the only collector; raises LeaseHeld, also when it is asked to stop waiting."""
        return leases.acquire(self.engine, wait=wait, stop=stop)

    def lease_holder(self) -> str | None:
        """Who collects now, None if nobody does."""
        return leases.holder_of(self.engine) if self.has_own_tables else None

    def check_unchanged(self) -> None:
        """Refuse to go on when MLflow is migrating the database; raises SchemaUnsupported.

        A migration may have begun and not noted a revision yet, so tables and keys are compared too.
        """
        with self.reading() as conn:
            now = read_schema(conn, self.harmless)
        refuse_migrated(self.schema.catalogue.revisions, now.catalogue.revisions)
        if now.shape != self.schema.shape:
            raise SchemaUnsupported(
                "the tables that gcd deletes from, or what refers to them, were changed meanwhile",
                hint="run gcd again when the change is done",
            )

    # -- deciding --------------------------------------------------------------------------------

    def candidates(self, kind: Kind, wanted: Wanted, limit: int) -> Iterator[list[Candidate]]:
        """Candidates of a kind by id, page by page; each page is read in a transaction of its own."""
        if wanted.ids is not None:
            for part in slices(wanted.ids, limit):
                found = self.page(kind, replace(wanted, ids=tuple(part)), limit=limit)
                yield [each for each in found if each.id in part]  # MySQL finds other cases too
            return
        after = None
        while page := self.page(kind, wanted, after=after, limit=limit):
            yield page
            after = page[-1].id

    def page(
        self, kind: Kind, wanted: Wanted, *, after: str | None = None, limit: int = 1000
    ) -> list[Candidate]:
        """One page of candidates, undated ones with the time that gcd first saw them."""
        with self.reading() as conn:
            return self.page_of(conn, kind, wanted, after=after, limit=limit)

    def page_of(
        self,
        conn: Connection,
        kind: Kind,
        wanted: Wanted,
        *,
        after: str | None = None,
        limit: int = 1000,
    ) -> list[Candidate]:
        """The same, inside a transaction."""
        found = read.page(conn, self.schema, kind, wanted, after=after, limit=limit)
        undated = [each.id for each in found if each.deleted_at is None]
        if not (undated and self.has_own_tables):
            return found
        seen = read.first_seen(conn, kind, undated)
        return [replace(each, first_seen_at=seen.get(each.id)) for each in found]

    def finished_jobs(
        self, before: datetime, ids: Sequence[str] | None, workspaces: Sequence[str] | None
    ) -> Iterator[list[Candidate]]:
        """Finished jobs made before a time, page by page."""
        after, at = "", to_millis(before)
        while True:
            with self.reading() as conn:
                page = read.finished_jobs(
                    conn, self.schema, ids=ids, workspaces=workspaces, before_ms=at, after=after
                )
            if not page:
                return
            yield page
            after = page[-1].id

    def with_contents(
        self, group: Sequence[Candidate], is_held: Callable[[str], bool]
    ) -> list[Candidate]:
        """Deleted experiments with what is in them."""
        with self.reading() as conn:
            return contents.with_contents(conn, self.schema, group, is_held)

    # -- who uses what ---------------------------------------------------------------------------

    def deleted_experiments(self, workspaces: Sequence[str] | None) -> set[str]:
        """The ids of all deleted experiments."""
        with self.reading() as conn:
            return uses.deleted_experiments(conn, self.schema, workspaces)

    def with_active_models(self, experiments: Sequence[str]) -> set[str]:
        """Those of the experiments that have logged models which go with them."""
        found: set[str] = set()
        with self.reading() as conn:
            for part in slices(experiments):
                numbers = read.native(Kind.EXPERIMENT, part)
                found |= uses.with_active_models(conn, self.schema, numbers)
        return found

    def uses_across(self, experiments: Sequence[str]) -> Iterator[uses.Use]:
        """Runs that need something in these experiments and are in other ones."""
        with self.reading() as conn:
            for part in slices(experiments):
                numbers = read.native(Kind.EXPERIMENT, part)
                yield from uses.uses_across(conn, self.schema, numbers)

    def needed_by_measuring(
        self, kind: Kind, ids: Sequence[str], *, with_models: bool
    ) -> list[uses.Needed]:
        """What the runs need that measured the models of these experiments, or these models."""
        native = read.native(kind, ids)
        with self.reading() as conn:
            found = uses.needed_by_measuring(
                conn, self.schema, kind, native, with_models=with_models
            )
            return list(found)

    def users(self, kind: Kind, ids: Sequence[str]) -> dict[str, dict[str, str | None]]:
        """Logged model or trace to the runs that use it, each with its stage."""
        with self.reading() as conn:
            return uses.users(conn, self.schema, kind, ids)

    # -- holds -----------------------------------------------------------------------------------

    def holds(self) -> Iterator[Hold]:
        """Everything that may keep an entity or a tree, but for model versions, streamed."""
        with self.reading() as conn:
            yield from holds.all_holds(conn, self.schema, has_own_tables=self.has_own_tables)
        self.versions_elsewhere = 0
        for hold in self.elsewhere():
            self.versions_elsewhere += 1
            yield hold

    def news(self) -> tuple[News, ...]:
        """The model versions, to be read once and then asked for what is new."""
        databases = [(self.direct, self.schema)]
        if self.registry is not None:
            databases.append((self.registry.direct, self.registry.schema))
        return tuple(News(*each) for each in databases)

    def elsewhere(self) -> Iterator[Hold]:
        """What versions may refer to that are in no registry that gcd was told of."""
        if not self.is_registry_known:
            with self.reading() as conn:
                yield from elsewhere.holds(conn, self.schema)

    def entity_holds(self, conn: Connection, ids: Sequence[str]) -> Iterator[Hold]:
        """What users and operators hold of these entities now, inside a purge transaction."""
        yield from tag_holds(conn, self.schema, ids)
        yield from holds.operator_holds(conn, ids)
        if not self.is_registry_known:
            yield from elsewhere.holds(conn, self.schema, ids)

    def stages(self, kind: Kind, ids: Sequence[str]) -> dict[str, str | None]:
        """The stage of each of the entities that exist."""
        with self.reading() as conn:
            return read.stages(conn, self.schema, kind, ids)

    def evidence(self, entries: Sequence[Entry]) -> Evidence:
        """What the database of now says of entries that are about to be swept."""
        stamps = self.stamps()
        with self.reading() as conn:
            return Evidence(
                journal.unchanged(conn, entries),
                presence.present(conn, self.schema, {n for e in entries for n in ids_of(e)}),
                stamps,
            )

    def stamps(self) -> Stamps | None:
        """The state of a SQLite database's file, None elsewhere; StoreReplaced where it is another."""
        file = connection.pinned_file(self.engine)
        return file.stamps() if file is not None else None

    def locations(self, experiments: Iterable[str]) -> dict[str, str]:
        """Where experiments log that are there, by id."""
        with self.reading() as conn:
            return presence.locations(conn, self.schema, experiments)

    def every_location(self) -> Iterator[tuple[str, str]]:
        """Every experiment that is there, by id, and where it logs."""
        with self.reading() as conn:
            yield from presence.every_location(conn, self.schema)

    def unknown_references(self, kind: Kind, ids: Sequence[str]) -> dict[str, str]:
        """Entity to what refers to it, or may, that gcd does not know."""
        if kind in self.schema.novel:
            return dict.fromkeys(ids, self.schema.novel[kind])
        if not (self.schema.strangers and ids):
            return {}
        with self.reading() as conn:
            found = read.unknown_references(conn, self.schema, kind, ids)
        return {entity: f"the table {table} refers to it" for entity, table in found.items()}

    def entities_inside(self, segments: Sequence[str]) -> dict[str, str]:
        """Path segments that are ids of entities."""
        with self.reading() as conn:
            return holds.entities_inside(conn, self.schema, segments)

    def some_trees(self, prefix: str, limit: int) -> Iterator[str]:
        """Artifact URIs that the database names below a URI, at most `limit` of each kind."""
        for query in read.some_trees(self.schema, prefix, limit):
            with self.reading() as conn:
                found = list(conn.execute(query).scalars())
            yield from found

    def experiment_names(self) -> Generator[str]:
        """The name of every experiment, deleted or not, streamed."""
        query = sa.select(self.schema.table("experiments").c.name)
        with self.reading() as conn:
            yield from (name for (name,) in stream(conn, query) if name is not None)

    def unmatched(self, patterns: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """A sentence for each of the patterns, by key, that is of no experiment's name."""
        if not any(patterns.values()):
            return ()
        with closing(self.experiment_names()) as names:
            return unmatched(patterns, names)

    def witnesses(self, kind: Kind, ids: Sequence[str]) -> Mapping[str, Witness]:
        """Entities of which something in the database says that they have files."""
        with self.reading() as conn:
            return witnesses.of_entities(conn, self.schema, kind, ids)

    def with_witness(self, kind: Kind, limit: int, wanted: Wanted) -> list[str]:
        """Some entities that may be collected of which something says that they have files."""
        with self.reading() as conn:
            return witnesses.first(conn, self.schema, kind, limit, wanted)

    def newest_trees(self, experiment: str, limit: int) -> list[str]:
        """The newest artifact URIs in an experiment, at most `limit` of each kind."""
        with self.reading() as conn:
            return list(witnesses.newest_trees(conn, self.schema, experiment, limit))

    def swept_with_files(self, experiments: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
        """Experiment to some trees, each with its root, in which gcd deleted something."""
        found: dict[str, list[tuple[str, str]]] = {each: [] for each in experiments}
        if not (experiments and self.has_own_tables):
            return found
        with self.reading() as conn:
            for each, target, root in witnesses.swept_with_files(conn, experiments):
                found[each].append((target, root))
        return found

    def counts(self) -> Mapping[Kind, int]:
        """How many entities of each kind there are."""
        with self.reading() as conn:
            return contents.counts(conn, self.schema)

    def note_undated(self, lease: Lease, kind: Kind, ids: Sequence[str], now: datetime) -> None:
        """Remember when undated entities were first seen."""
        if not ids:
            return
        with connection.writing(self.engine) as conn:
            lease.confirm(conn)
            known = set(read.first_seen(conn, kind, ids))
            rows = [
                {"kind": kind.value, "entity_id": entity, "first_seen_ms": to_millis(now)}
                for entity in ids
                if entity not in known
            ]
            if rows:
                conn.execute(tables.seen.insert(), rows)

    def forget_seen(self, lease: Lease) -> None:
        """Forget undated entities that were restored, dated or purged since they were first seen."""
        for kind in (Kind.RUN, Kind.LOGGED_MODEL, Kind.EXPERIMENT):
            mine = tables.seen.c.kind == kind.value
            with self.reading() as conn:
                ids = list(conn.execute(sa.select(tables.seen.c.entity_id).where(mine)).scalars())
            for part in slices(ids):
                page = self.page(kind, Wanted(ids=tuple(part)))
                undated = {each.id for each in page if each.deleted_at is None}
                gone = [entity for entity in part if entity not in undated]
                if gone:
                    with connection.writing(self.engine) as conn:
                        lease.confirm(conn)
                        where = tables.seen.c.entity_id.in_(gone)
                        conn.execute(tables.seen.delete().where(mine, where))

    # -- purging ---------------------------------------------------------------------------------

    def row_counts(self, kind: Kind, ids: Sequence[str]) -> dict[str, int]:
        """Rows that hang on each entity, for packing batches."""
        with self.reading() as conn:
            return purge.row_counts(conn, self.schema, kind, ids)

    @property
    def splits_giants(self) -> bool:
        """Whether a giant's own row goes first: PostgreSQL deletes it whole, and quickly."""
        return self.dialect != "postgresql"

    def purge_apart(
        self,
        lease: Lease,
        batch: purge.Batch,
        rejudge: purge.Rejudge,
        come_late: purge.Rejudge,
        error: StoreRefused,
    ) -> purge.Purged:
        """A batch that a foreign key stopped, in halves, so that only what it names is kept."""
        middle = len(batch.items) // 2
        if not middle:
            keep = Keep(KeepReason.UNKNOWN_REFERENCE, error.message)
            return purge.Purged(kept={item.candidate.id: keep for item in batch.items})
        parts = (batch.items[:middle], batch.items[middle:])
        first, second = (
            self.purge(lease, replace(batch, items=part), rejudge, come_late) for part in parts
        )
        return purge.Purged(
            first.ids + second.ids, first.rows + second.rows, {**first.kept, **second.kept}
        )

    def _purge(
        self,
        lease: Lease,
        batch: purge.Batch,
        rejudge: purge.Rejudge,
        come_late: purge.Rejudge,
    ) -> purge.Purged:
        is_checked_at_once = self.checks_keys_at_once(batch.kind)
        barrier = Barrier(self.engine, self.schema)

        def transaction(conn: Connection) -> purge.Purged:
            barrier.lift()
            at = read.now_ms(conn)
            done = purge.purge(self.eraser(conn), lease, batch, rejudge, at)
            if is_checked_at_once:
                purge.refuse_referenced(conn, self.schema, batch.kind, done.ids)
            if done.ids:
                barrier.set(conn, purge.shared_parents(batch))
                # SQLite lets nobody else write since this transaction began, and many deleted rows
                # keep other connections from reading: asking there would wait for itself.
                is_alone = self.turns is not None and self.registry is None
                if not is_alone and (late := come_late(conn, done.ids)):
                    raise purge.CameLate(late)
            return done

        foreign_keys = not (batch.is_giant or is_checked_at_once)
        try:
            return self.retried(transaction, foreign_keys=foreign_keys, is_exported=True)
        finally:
            barrier.lift()

    def purge(
        self,
        lease: Lease,
        batch: purge.Batch,
        rejudge: purge.Rejudge,
        come_late: purge.Rejudge,
    ) -> purge.Purged:
        """Journal and delete one batch in one transaction, the single point of no return.

        `come_late` is asked after the last DELETE: what has come to refer to anything until then undoes
        them, and the batch is judged again.
        """
        for _ in range(ATTEMPTS):
            try:
                return self._purge(lease, batch, rejudge, come_late)
            except purge.CameLate as late:
                kept = late.kept
            except StoreRefused as error:
                if not (isinstance(error, StillReferenced) or is_foreign_key(error.__cause__)):
                    raise
                return self.purge_apart(lease, batch, rejudge, come_late, error)
        rest = tuple(item for item in batch.items if item.candidate.id not in kept)
        done = self.purge(lease, replace(batch, items=rest), rejudge, come_late) if rest else None
        return replace(done or purge.Purged(), kept={**(done.kept if done else {}), **kept})

    def checks_keys_at_once(self, kind: Kind) -> bool:
        """Whether gcd checks the foreign keys to a batch of runs itself, once.

        SQLite would read a table that lacks an index once for each run, and keep all writers waiting.
        Where there are keys that gcd does not know, listed as harmless or not, the database does it.
        """
        is_slow = self.dialect == "sqlite" and kind is Kind.RUN and "runs" in self.seconds_each
        return is_slow and not (self.schema.harmless or self.schema.strangers)

    def most_at_once(self, kind: Kind, most: int) -> int:
        """How many entities one transaction may take, where each takes its time."""
        seconds = self.seconds_each.get(ENTITY_TABLES[kind], 0.0)
        if not seconds or self.checks_keys_at_once(kind):
            return most
        patience = WRITERS_PATIENCE if self.turns else PATIENCE
        return min(most, max(1, int(patience.total_seconds() / seconds)))

    def eraser(self, conn: Connection) -> Eraser:
        """What deletes rows in a transaction, and exports them where that is wanted."""
        return Eraser(conn, self.schema, self.export)

    def retried(
        self,
        transaction: Callable[[Connection], T],
        *,
        foreign_keys: bool = True,
        is_exported: bool = False,
    ) -> T:
        """Run a write transaction, again where the database chose it to lose a conflict."""
        for attempt in range(ATTEMPTS):
            try:
                writing = connection.writing(self.engine, foreign_keys=foreign_keys)
                with (
                    self.export.batch() if is_exported and self.export else nullcontext(),
                    self.turns.taken(writing) if self.turns else writing as conn,
                ):
                    result = transaction(conn)
                    if is_exported and self.export:
                        self.export.seal()
                return result
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

    def unfinished(self, now: datetime) -> int:
        """How many purges of earlier cycles have rows or trees that are due to be deleted."""
        if not self.has_own_tables:
            return 0
        with self.reading() as conn:
            return journal.unfinished(conn, to_millis(now))

    def stuck(self) -> int:
        """How many entries, of whatever cycle, wait for a person."""
        with self.reading() as conn:
            return journal.stuck(conn)

    def history(self, entity_id: str) -> list[Entry]:
        """What the journal remembers of an entity, newest first."""
        if not self.has_own_tables:
            return []
        with self.reading() as conn:
            return journal.of_entity(conn, entity_id)

    def history_of_runs(
        self, experiment_id: str, limit: int
    ) -> tuple[int, list[tuple[str, int, datetime]]]:
        """How many runs of an experiment went, and (run, cycle, when) of the newest of them."""
        if not self.has_own_tables:
            return 0, []
        with self.reading() as conn:
            return journal.of_experiment(conn, experiment_id, limit=limit)

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

    def accepted_roots(self) -> frozenset[Place]:
        """The places that a person gave to this database."""
        if not self.has_own_tables:
            return frozenset()
        with self.reading() as conn:
            return journal.accepted_roots(conn)

    def remember_root(self, lease: Lease | None, place: Place, values: Mapping[str, Any]) -> None:
        """Write what is known of a root; without a lease where an operator says so."""

        def transaction(conn: Connection) -> None:
            if lease is not None:
                lease.confirm(conn)
            journal.remember_root(conn, place, values)

        self.retried(transaction)

    def begin_cycle(self, lease: Lease, now: datetime) -> int:
        """Note that a cycle starts; its number. Raises LeaseHeld where another collector's runs."""

        def transaction(conn: Connection) -> int:
            lease.confirm(conn)
            return journal.begin_cycle(conn, lease.holder, to_millis(now))

        return self.retried(transaction)

    def end_cycle(self, report: Report) -> None:
        """Note how a cycle ended."""
        self.retried(lambda conn: journal.end_cycle(conn, report))

    def prune(self, lease: Lease, before: datetime) -> None:
        """Forget settled history from before a time."""

        def transaction(conn: Connection) -> int:
            lease.confirm(conn)
            return journal.prune(conn, to_millis(before))

        while self.retried(transaction):
            pass
