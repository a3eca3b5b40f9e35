"""Which ids are those of entities that are in the database now, of whatever kind.

It must never write. What it cannot ask about it leaves out: an id is text that the database can hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.model import Kind
from gcd.planning.guard import in_workspace
from gcd.store import read
from gcd.store.eraser import slices
from gcd.store.holds import entities_inside
from gcd.store.pinned import Stamps
from gcd.store.schema import Schema, workspace_of
from gcd.store.streaming import stream


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the database of now says of entries that are about to be swept."""

    unchanged: set[int]
    """The entries whose rows are there as they were read."""
    present: Mapping[str, str]
    """Ids that they or their trees name and that are entities now: what each is."""
    stamps: Stamps | None
    """The state of SQLite's file before the look."""


def present(conn: Connection, schema: Schema, names: Iterable[str]) -> dict[str, str]:
    """Those of the names that the database takes for ids of runs, logged models or traces: what each is.

    MariaDB and MySQL find ids in another case too, and tell them as they are stored.
    """
    wanted = sorted({name for name in names if is_text(name)})
    fold = folded if conn.dialect.name in ("mysql", "mariadb") else str
    found = {
        fold(entity): what
        for part in slices(wanted)
        for entity, what in entities_inside(conn, schema, part).items()
    }
    return {name: found[fold(name)] for name in wanted if fold(name) in found}


def gone_ids(conn: Connection, schema: Schema, kind: Kind, ids: Sequence[str]) -> set[str]:
    """Those of the ids that are no entity's now: neither of this kind nor of another."""
    ids = [each for each in ids if is_text(each)]
    fold = folded if conn.dialect.name in ("mysql", "mariadb") else str
    back = {fold(each) for part in slices(ids) for each in read.stages(conn, schema, kind, part)}
    others = present(conn, schema, ids)
    return {each for each in ids if fold(each) not in back and each not in others}


def folded(entity_id: str) -> str:
    """An id without what the collations of MariaDB and MySQL ignore."""
    return entity_id.strip().casefold()


def is_text(name: str) -> bool:
    """Whether every database can hold a name: some are bytes that are no Unicode."""
    try:
        return bool(name.encode()) and "\0" not in name
    except UnicodeEncodeError:
        return False


def locations(conn: Connection, schema: Schema, ids: Iterable[str]) -> dict[str, str]:
    """Where the experiments that are there log, by id."""
    numbers = [int(each) for each in ids if each.isascii() and each.isdigit() and len(each) < 19]
    experiments = schema.table("experiments")
    found: dict[str, str] = {}
    for part in slices(numbers):
        query = placed(schema).where(experiments.c.experiment_id.in_(part))
        found.update(located(conn, query))
    return found


def every_location(conn: Connection, schema: Schema) -> Iterator[tuple[str, str]]:
    """Every experiment that is there, by id, and where it logs; streamed."""
    yield from located(conn, placed(schema))


def placed(schema: Schema) -> sa.Select[*tuple[Any, ...]]:
    """Id, location and workspace of the experiments that have a location."""
    experiments = schema.table("experiments")
    return sa.select(
        experiments.c.experiment_id, experiments.c.artifact_location, workspace_of(schema)
    ).where(experiments.c.artifact_location.is_not(None))


def located(conn: Connection, query: sa.Select[*tuple[Any, ...]]) -> Iterator[tuple[str, str]]:
    """Each experiment's location as the tracking server takes it."""
    for number, uri, workspace in stream(conn, query):
        yield str(number), in_workspace(uri, workspace)
