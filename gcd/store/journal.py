"""The journal: what was purged and is still to be swept, and the history of what was.

It must never lose an entry that is not settled, and never invent one.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from gcd.durations import from_millis, to_millis
from gcd.errors import GcdError
from gcd.model import (
    Candidate,
    Entry,
    EntryState,
    Kind,
    Outcome,
    Place,
    Probe,
    Report,
    Result,
    Root,
    Target,
)
from gcd.planning.guard import place_uri, written_place
from gcd.planning.retry import next_attempt
from gcd.store.tables import cycle as cycles
from gcd.store.tables import journal, root

REFERENCES_LEFT = 1
"""Rows that refer to the entity by a column without an index are still to be looked for."""
CHILDREN_LEFT = 2
"""The entity's own row is gone, its children are still to be deleted; then as above."""

LOOK_AGAIN = timedelta(days=1)
"""MLflow accepts uploads to a deleted run: a tree that changed this recently is looked at twice."""

PARTED = tuple(kind.value for kind in Kind if kind is not Kind.EXPERIMENT)
"""Kinds whose rows may go in several transactions: an experiment's never do."""
FREED = frozenset({"objects", "bytes"})
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def record(
    conn: Connection,
    cycle: int,
    doomed: Iterable[tuple[Candidate, tuple[Target, ...]]],
    *,
    rows_left: int,
    at_ms: int,
    due_ms: int,
) -> None:
    """Write the entries of a batch, one a tree, in the transaction that purges it."""
    times = {"purged_ms": at_ms, "due_ms": due_ms}
    rows = [
        entry_row(cycle, candidate, target, rows_left=0 if number else rows_left) | times
        for candidate, targets in doomed
        for number, target in enumerate(targets or (None,))
    ]
    conn.execute(journal.insert(), rows)


def entry_row(
    cycle: int, candidate: Candidate, target: Target | None, *, rows_left: int
) -> dict[str, Any]:
    """The columns of a new entry, its times apart."""
    root_uri = place_uri(target.root) if target else None
    return {
        "cycle": cycle,
        "kind": candidate.kind.value,
        "entity_id": candidate.id,
        "experiment_id": candidate.experiment_id,
        "target": place_uri(target.place) if target else None,
        "root": root_uri,
        "root_id": root_key(root_uri) if root_uri else None,
        "state": EntryState.PENDING.value,
        "attempts": 0,
        "rows_left": rows_left,
        "looks": 0,
    }


def root_key(uri: str) -> str:
    """A key of fixed length for a root's URI, which may be longer than a database can index."""
    return hashlib.sha256(uri.encode()).hexdigest()


def due(conn: Connection, at_ms: int, *, after: int = 0, limit: int = 500) -> list[Entry]:
    """The next page of entries that are to be swept by now, oldest first."""
    query = (
        sa.select(journal)
        .where(
            journal.c.state == EntryState.PENDING.value,
            journal.c.due_ms <= at_ms,
            journal.c.id > after,
        )
        .order_by(journal.c.id)
        .limit(limit)
    )
    return [entry(row) for row in conn.execute(query)]


def unchanged(conn: Connection, entries: Sequence[Entry]) -> set[int]:
    """The ids of those entries whose rows are there as they were read, still to be swept."""
    names = ("id", "kind", "entity_id", "experiment_id", "target", "root", "state", "purged_ms")
    query = sa.select(*(journal.c[name] for name in names)).where(
        journal.c.id.in_([each.id for each in entries])
    )
    found = {row.id: tuple(row) for row in conn.execute(query)}
    return {each.id for each in entries if found.get(each.id) == as_written(each)}


@lru_cache(maxsize=64)
def root_uri(place: Place) -> str:
    """A root's URI: many entries in a row have the same."""
    return place_uri(place)


def as_written(entry: Entry) -> tuple[int | str | None, ...]:
    """The columns that do not change until an entry is settled."""
    target = entry.target
    return (
        entry.id,
        entry.kind.value,
        entry.entity_id,
        entry.experiment_id,
        place_uri(target.place) if target else None,
        root_uri(target.root) if target else None,
        EntryState.PENDING.value,
        to_millis(entry.purged_at),
    )


def of_entity(conn: Connection, entity_id: str) -> list[Entry]:
    """All that the journal remembers of an entity, newest first."""
    query = sa.select(journal).where(journal.c.entity_id == entity_id).order_by(journal.c.id.desc())
    return [entry(row) for row in conn.execute(query)]


def of_experiment(
    conn: Connection, experiment_id: str, *, limit: int
) -> tuple[int, list[tuple[str, int, datetime]]]:
    """How many runs of an experiment went, and (run, cycle, when) of the newest of them.

    SQLite gives a number again: what went before an experiment of that number went is not told.
    """
    is_itself = sa.and_(
        journal.c.kind == Kind.EXPERIMENT.value, journal.c.entity_id == experiment_id
    )
    last = conn.scalar(sa.select(sa.func.max(journal.c.id)).where(is_itself)) or 0
    runs = (
        sa.select(
            journal.c.entity_id,
            sa.func.max(journal.c.cycle).label("cycle"),
            sa.func.max(journal.c.purged_ms).label("at"),
        )
        .where(
            journal.c.kind == Kind.RUN.value,
            journal.c.experiment_id == experiment_id,
            journal.c.id > last,
        )
        .group_by(journal.c.entity_id)
    )
    count = conn.scalar(sa.select(sa.func.count()).select_from(runs.subquery())) or 0
    newest = runs.order_by(sa.desc("at"), journal.c.entity_id).limit(limit)
    return count, [(run, cycle, known(at)) for run, cycle, at in conn.execute(newest)]


def with_rows_left(conn: Connection, rows_left: int, *, limit: int) -> list[Entry]:
    """Entries whose rows are not all deleted yet."""
    query = (
        sa.select(journal)
        .where(
            journal.c.rows_left == rows_left,
            journal.c.state != EntryState.PARKED.value,
            journal.c.kind.in_(PARTED),
        )
        .order_by(journal.c.id)
        .limit(limit)
    )
    return [entry(row) for row in conn.execute(query)]


def set_rows_left(conn: Connection, ids: Sequence[int], rows_left: int) -> None:
    """Note that a part of the entries' remaining rows is gone."""
    conn.execute(journal.update().where(journal.c.id.in_(ids)).values(rows_left=rows_left))


def park(conn: Connection, entry_id: int, error: str) -> None:
    """Leave an entry alone until a person looks: what it names is back."""
    values = {"state": EntryState.PARKED.value, "error": error}
    conn.execute(journal.update().where(journal.c.id == entry_id).values(values))


def entry(row: Row[*tuple[Any, ...]]) -> Entry:
    """A row of the journal as an entry; one that gcd cannot have written has a flaw."""
    try:
        return written_entry(row)
    except (ValueError, TypeError, AttributeError, GcdError) as error:
        return Entry(
            id=row.id,
            cycle=row.cycle,
            kind=Kind(row.kind) if row.kind in {*Kind} else Kind.JOB,
            entity_id=str(row.entity_id),
            experiment_id=str(row.experiment_id),
            target=None,
            state=EntryState.PENDING,
            attempts=row.attempts,
            purged_at=EPOCH,
            due_at=EPOCH,
            error=row.error,
            flaw=f"gcd did not write this row of its journal: {error}",
        )


def written_entry(row: Row[*tuple[Any, ...]]) -> Entry:
    """A row as gcd writes it. Raises what its values make of it where it is another's."""
    target = None
    if row.target:
        target = Target(written_place(row.target), written_place(row.root))
    return Entry(
        id=row.id,
        cycle=row.cycle,
        kind=Kind(row.kind),
        entity_id=row.entity_id,
        experiment_id=row.experiment_id,
        target=target,
        state=EntryState(row.state),
        attempts=row.attempts,
        purged_at=known(row.purged_ms),
        due_at=known(row.due_ms),
        has_rows_left=row.rows_left > 0,
        is_second_look=row.looks > 0,
        error=row.error,
        swept_at=None if row.swept_ms is None else known(row.swept_ms),
    )


def known(milliseconds: int) -> datetime:
    """A time that gcd itself has written."""
    found = from_millis(milliseconds)
    if found is None:
        raise ValueError(f"{milliseconds} is no time that gcd has written")
    return found


def settle(conn: Connection, outcomes: Iterable[Outcome], now: datetime) -> None:
    """Write what became of swept entries; `settle`, `defer` and `park` in one."""
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for outcome in outcomes:
        columns = settlement(outcome, now)
        new = {f"new_{name}": value for name, value in columns.items()}
        rows[tuple(columns)].append({"entry": outcome.entry.id, **new})
    for names, values in rows.items():
        changed = {name: changed_to(name) for name in names}
        conn.execute(
            journal.update().where(journal.c.id == sa.bindparam("entry")).values(changed), values
        )


def changed_to(name: str) -> sa.ColumnElement[Any]:
    """What a column is set to: what was freed is added up over the looks at a tree."""
    new: sa.ColumnElement[Any] = sa.bindparam(f"new_{name}", type_=journal.c[name].type)
    return sa.func.coalesce(journal.c[name], 0) + new if name in FREED else new


def settlement(outcome: Outcome, now: datetime) -> dict[str, Any]:
    """The columns that an outcome changes."""
    entry, now_ms = outcome.entry, to_millis(now)
    if outcome.result is Result.SWEPT:
        return swept(outcome, now)
    error = {"error": outcome.error, "attempts": entry.attempts + 1}
    match outcome.result:
        case Result.DEFERRED:
            again = to_millis(next_attempt(entry.attempts + 1, now))
            return {**error, "due_ms": again}
        case Result.LOCKED if outcome.until is not None:
            return {**error, "due_ms": max(now_ms, to_millis(outcome.until))}
        case Result.PARKED:
            return {**error, "state": EntryState.PARKED.value}
        case _:
            return {**error, "state": EntryState.STUCK.value}


def swept(outcome: Outcome, now: datetime) -> dict[str, Any]:
    """Done, or to be looked at once more where the tree was changed shortly before."""
    entry = outcome.entry
    columns: dict[str, Any] = {
        "swept_ms": to_millis(now),
        "error": None,
        "attempts": entry.attempts + 1,
        "objects": outcome.usage.objects,
        "bytes": outcome.usage.bytes,
        "state": EntryState.DONE.value,
    }
    is_late = outcome.changed_at is not None and now - outcome.changed_at < LOOK_AGAIN
    if is_late and not entry.is_second_look:
        columns |= {
            "state": EntryState.PENDING.value,
            "looks": 1,
            "due_ms": to_millis(now + LOOK_AGAIN),
        }
    return columns


def stuck(conn: Connection) -> int:
    """How many entries, of whatever cycle, wait for a person."""
    query = sa.select(sa.func.count()).where(journal.c.state == EntryState.STUCK.value)
    return conn.scalar(query) or 0


# -- roots ---------------------------------------------------------------------------------------


def known_roots(conn: Connection, probes: Mapping[Place, Probe], at_ms: int) -> dict[Place, Root]:
    """Probed roots with what is remembered of them and what waits to be swept there."""
    keys = {root_key(place_uri(place)): place for place in probes}
    rows = {row.id: row for row in conn.execute(sa.select(root).where(root.c.id.in_(list(keys))))}
    waiting = backlog(conn, at_ms)
    return {
        place: as_root(place, probes[place], rows.get(key), waiting.get(key, 0))
        for key, place in keys.items()
    }


def unfinished(conn: Connection, at_ms: int) -> int:
    """How many entries have rows left, or a tree that is due."""
    is_due = sa.and_(journal.c.state == EntryState.PENDING.value, journal.c.due_ms <= at_ms)
    has_rows = sa.and_(journal.c.rows_left > 0, journal.c.state != EntryState.PARKED.value)
    query = sa.select(sa.func.count()).select_from(journal).where(sa.or_(is_due, has_rows))
    return conn.scalar(query) or 0


def remembered_roots(conn: Connection) -> frozenset[Place]:
    """The roots whose identity is known."""
    query = sa.select(root.c.uri).where(root.c.identity.is_not(None))
    return frozenset(written_place(uri) for uri in conn.execute(query).scalars())


def accepted_roots(conn: Connection) -> frozenset[Place]:
    """The places that a person trusted by name."""
    query = sa.select(root.c.uri).where(root.c.is_accepted != 0)
    return frozenset(written_place(uri) for uri in conn.execute(query).scalars())


def backlog(conn: Connection, at_ms: int) -> dict[str, int]:
    """Entries that are due and not swept, or stuck, by the key of their root."""
    is_due = sa.and_(journal.c.state == EntryState.PENDING.value, journal.c.due_ms <= at_ms)
    waiting = sa.or_(is_due, journal.c.state == EntryState.STUCK.value)
    query = (
        sa.select(journal.c.root_id, sa.func.count())
        .where(waiting, journal.c.root_id.is_not(None))
        .group_by(journal.c.root_id)
    )
    return {key: count for key, count in conn.execute(query)}


def remember_root(conn: Connection, place: Place, values: Mapping[str, Any]) -> None:
    """Write what is known of a root, over what was."""
    uri = place_uri(place)
    key = root_key(uri)
    changed = conn.execute(root.update().where(root.c.id == key).values(dict(values)))
    if changed.rowcount == 0 and conn.scalar(sa.select(root.c.id).where(root.c.id == key)) is None:
        fresh = {"id": key, "uri": uri, "is_accepted": 0, "failures": 0, **values}
        conn.execute(root.insert().values(fresh))


def note_sweeps(conn: Connection, outcomes: Sequence[Outcome], now_ms: int) -> None:
    """Count failures per root: one that succeeds forgives those before it."""
    by_root: dict[Place, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.entry.target and outcome.result is not Result.PARKED:
            by_root.setdefault(outcome.entry.target.root, []).append(outcome)
    for place, found in by_root.items():
        if any(outcome.result is Result.SWEPT for outcome in found):
            remember_root(conn, place, {"failures": 0, "swept_ms": now_ms, "error": None})
        else:
            values = {"failed_ms": now_ms, "error": found[-1].error}
            remember_root(conn, place, values)
            key = root_key(place_uri(place))
            conn.execute(
                root.update().where(root.c.id == key).values(failures=root.c.failures + len(found))
            )


def as_root(place: Place, probe: Probe, row: Row[*tuple[Any, ...]] | None, waiting: int) -> Root:
    """A probed root with what is remembered of it."""
    if row is None:
        return Root(place, probe, backlog=waiting)
    return Root(
        place,
        probe,
        remembered_identity=row.identity,
        is_accepted=bool(row.is_accepted),
        failures=row.failures,
        error=row.error,
        is_proved=row.swept_ms is not None,
        backlog=waiting,
    )


# -- cycles --------------------------------------------------------------------------------------


def begin_cycle(conn: Connection, holder: str, now_ms: int) -> int:
    """Note that a cycle starts, and that those which a crash left running ended; its number."""
    ended = {"state": "killed", "ended_ms": now_ms}
    conn.execute(cycles.update().where(cycles.c.state == "running").values(ended))
    values = {"started_ms": now_ms, "holder": holder, "state": "running"}
    result = conn.execute(cycles.insert().values(values))
    key = result.inserted_primary_key
    return int(key[0]) if key else 0


def end_cycle(conn: Connection, report: Report) -> None:
    """Note how a cycle ended and what it did."""
    numbers = {
        "candidates": report.candidates,
        "purged": {kind.value: count for kind, count in report.purged.items()},
        "rows": report.rows,
        "results": {result.value: count for result, count in report.results.items()},
        "objects": report.usage.objects,
        "bytes": report.usage.bytes,
        "kept": {reason.value: count for reason, count in report.kept.items()},
        "already_empty": report.already_empty,
        "notes": list(report.notes),
    }
    values = {
        "ended_ms": to_millis(report.ended_at),
        "state": report.state,
        "report": json.dumps(numbers),
        "error": report.error,
    }
    conn.execute(cycles.update().where(cycles.c.id == report.cycle).values(values))


def cycle_row(conn: Connection, number: int) -> Row[*tuple[Any, ...]] | None:
    """One cycle as it was noted."""
    return conn.execute(sa.select(cycles).where(cycles.c.id == number)).first()


def prune(conn: Connection, before_ms: int, *, limit: int = 10_000) -> int:
    """Forget settled entries and cycles from before a time; never one with work left."""
    old = (
        sa.select(journal.c.id)
        .where(
            journal.c.state == EntryState.DONE.value,
            journal.c.rows_left == 0,
            journal.c.swept_ms < before_ms,
        )
        .limit(limit)
    )
    ids = list(conn.execute(old).scalars())
    if ids:
        conn.execute(journal.delete().where(journal.c.id.in_(ids)))
    conn.execute(
        cycles.delete().where(cycles.c.ended_ms < before_ms, cycles.c.ended_ms.is_not(None))
    )
    return len(ids)
