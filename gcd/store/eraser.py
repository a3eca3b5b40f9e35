"""Deletes and changes rows in one transaction, children before parents, exported first where asked.

It must never delete by anything but ids that its caller has locked or journalled, and never rely on
the database's own cascades.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.store.references import OWNERS, Action, Reference
from gcd.store.schema import Schema

SLICE = 1000
"""Ids in one IN list: below every database's limit on parameters."""

Id = str | int
T = TypeVar("T")


class Export(Protocol):
    """Where purged rows are kept before they are gone. Raises GcdError where it cannot write."""

    def write(
        self, table: str, rows: Iterable[Mapping[str, Any]], *, is_purged: bool = True
    ) -> None:
        """Keep rows of a table as they are before they are purged, or changed."""

    def batch(self) -> AbstractContextManager[None]:
        """Around a transaction: what was written in it is marked by how it ended."""

    def seal(self) -> None:
        """Make durable what was written; called before each COMMIT."""


@dataclass(frozen=True, slots=True)
class Eraser:
    """The means to delete and to change rows within one write transaction."""

    conn: Connection
    schema: Schema
    export: Export | None = None
    gone: Counter[str] = field(default_factory=Counter)
    """Rows deleted so far, by table."""

    def delete(self, table: str, *where: sa.ColumnElement[bool]) -> int:
        """Delete the rows that fulfil all conditions; how many went."""
        self._export(table, *where)
        rows = self.conn.execute(self.schema.table(table).delete().where(*where)).rowcount
        self.gone[table] += rows
        return rows

    def update(self, table: str, values: Mapping[str, Any], *where: sa.ColumnElement[bool]) -> int:
        """Change the rows that fulfil all conditions; how many were."""
        self._export(table, *where, is_purged=False)
        return self.conn.execute(
            self.schema.table(table).update().where(*where).values(**values)
        ).rowcount

    def delete_belongings(self, owner: str, ids: Sequence[Id]) -> int:
        """Delete every row that exists only for these rows of `owner` and that an index finds.

        Pointers to them in rows of others are emptied. The rows of `owner` themselves stay.
        """
        gone = 0
        for part in slices(ids):
            for reference in self.schema.references(owner, scanned=False):
                if reference.action is Action.DELETE:
                    gone += self.delete_referring(reference, part)
                elif reference.action is Action.CLEAR:
                    self.clear(reference, part)
        return gone

    def delete_referring(self, reference: Reference, ids: Sequence[Id]) -> int:
        """The rows that refer in this way, and first what belongs to those."""
        where, gone = matching(self.schema, reference, ids), 0
        key = None if reference.is_unbounded else OWNERS.get(reference.table)
        if key is not None and self._has_belongings(reference.table):
            table = self.schema.table(reference.table)
            found = self.conn.execute(sa.select(table.c[key]).where(*where)).scalars().all()
            gone = self.delete_belongings(reference.table, found)
        return gone + self.delete(reference.table, *where)

    def _has_belongings(self, table: str) -> bool:
        return any(True for _ in self.schema.references(table, scanned=False))

    def clear(self, reference: Reference, ids: Sequence[Id]) -> None:
        """Empty the pointers that refer in this way."""
        where = matching(self.schema, reference, ids)
        if reference.beside:
            where.append(self._beside(reference, ids))
        self.update(reference.table, {reference.column: None}, *where)

    def _beside(self, reference: Reference, ids: Sequence[Id]) -> sa.ColumnElement[bool]:
        """The condition by which an index finds rows that refer to others of their own table."""
        table = self.schema.table(reference.table)
        shared, key = table.c[reference.beside], table.c[OWNERS[reference.to]]
        query = sa.select(shared).where(key.in_(ids)).distinct()
        return shared.in_(self.conn.execute(query).scalars().all())

    def export_belongings(self, owner: str, ids: Sequence[Id]) -> None:
        """Export now what `delete_some` will delete later: nothing can join it meanwhile."""
        if self.export is None:
            return
        for reference in self.schema.references(owner, scanned=False):
            if reference.is_unbounded:
                self._export(reference.table, *matching(self.schema, reference, ids))

    def _export(self, table: str, *where: sa.ColumnElement[bool], is_purged: bool = True) -> None:
        if self.export is not None:
            query = sa.select(self.schema.table(table)).where(*where)
            options = {"yield_per": SLICE}
            with self.conn.execute(query, execution_options=options) as rows:
                self.export.write(table, map(dict, rows.mappings()), is_purged=is_purged)

    def delete_some(self, reference: Reference, owner: Id, limit: int) -> int:
        """Delete at most `limit` of the rows that refer to one owner in this way, unexported."""
        table = self.schema.table(reference.table)
        where = matching(self.schema, reference, [owner])
        if self.conn.dialect.name in ("mysql", "mariadb"):
            limited = table.delete().where(*where)
            limited = limited.with_dialect_options(mysql_limit=limit, mariadb_limit=limit)
            return self.conn.execute(limited).rowcount
        name = "ctid" if self.conn.dialect.name == "postgresql" else "rowid"
        row: sa.ColumnClause[Any] = sa.literal_column(name)
        part = sa.select(row).select_from(table).where(*where).limit(limit)
        return self.conn.execute(table.delete().where(row.in_(part))).rowcount


def matching(
    schema: Schema, reference: Reference, ids: Sequence[Id]
) -> list[sa.ColumnElement[bool]]:
    """The condition that finds the rows which refer to the ids in this way."""
    table = schema.table(reference.table)
    fixed = [table.c[column].in_(values) for column, values in reference.where]
    wanted = [str(each) for each in ids] if reference.is_text else ids
    return [*fixed, table.c[reference.column].in_(wanted)]


def slices(values: Iterable[T], size: int = SLICE) -> Iterator[list[T]]:
    """The values in parts, by default such that fit an IN list."""
    iterator = iter(values)
    while part := list(islice(iterator, size)):
        yield part
