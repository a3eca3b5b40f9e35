"""Tells what is new among the model versions of a database, at next to no cost where nothing is.

Invariant: a version that is committed before a question begins is in its answer, or was in one before,
whatever clock wrote its times and however late its transaction committed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from gcd import clock
from gcd.planning.names import Versions
from gcd.planning.registered import Version
from gcd.store.connection import reading
from gcd.store.direct import Direct
from gcd.store.schema import Schema
from gcd.store.versions import (
    MODELS,
    VERSIONS,
    all_versions,
    columns,
    deleted_versions,
    is_live,
    references,
    refers,
)

GATES: Mapping[str, str] = {
    # Changes whenever another connection has committed anything.
    "sqlite": "PRAGMA data_version",
    # Which transactions are visible: the same text, the same rows.
    "postgresql": "SELECT CAST(txid_current_snapshot() AS text)",
}
LARGE = 10_000
"""Versions from which on not all of them are looked over each time: that takes 5 ms and more."""
SHARE = 20
"""They are looked over anew after this many times as long as it takes,"""
MOST = 1.0
"""at the latest after this many seconds. New versions of a registered model are seen at once."""
FEW = 200
"""Registered models of which each one's newest version is asked for."""
MANY = 10_000
"""New versions from which on all are read instead, which needs less memory."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What tells a set of versions from another: counts, and sums that no two sets share by chance."""

    rows: int = 0
    live: int = 0
    numbers: int = 0
    created: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.rows + other.rows,
            self.live + other.live,
            self.numbers + other.numbers,
            self.created + other.created,
        )


@dataclass(frozen=True, slots=True)
class Mark:
    """All versions at one moment, and the newest time in them."""

    all: Sums
    newest: int


class News:
    """The model versions of one database, and how many of them were read.

    To be used by one thread at a time.
    """

    def __init__(self, direct: Direct, schema: Schema) -> None:
        self.direct = direct
        self.schema = schema
        self._gate: tuple[int, str] | None = None
        self._mark: Mark | None = None
        self._tops: dict[tuple[Any, ...], int] | None = None
        """Registered model to its newest version, None where there are too many."""
        self._cost = 0.0
        self._looked_at = 0.0
        self._questions = Questions(direct.engine, schema) if refers(schema) else None

    def new(self) -> Iterator[Version]:
        """Live versions that came since the last time, others perhaps too; all, the first time.

        What was told counts as read once all of it was taken.
        """
        if self._questions is None:
            return
        gate = self._passed()
        if gate is not None and gate == self._gate:
            return
        began = clock.monotonic()
        if self._mark is not None and began - self._looked_at < self._slack:
            yield from self._of_known_models(self._questions)
            return
        tops = self._newest_of_each(self._questions)
        mark, old = self._look(self._questions)
        self._cost = clock.monotonic() - began
        if mark is None or mark != self._mark:
            yield from self._since(self._questions, mark, old)
        self._gate, self._mark, self._looked_at, self._tops = gate, mark, began, tops

    def deleted(self, named: Set[Versions]) -> list[Version]:
        """Those of the versions that users deleted, in this database."""
        if self._questions is None:
            return []
        with reading(self.direct.engine) as conn:
            return list(deleted_versions(conn, self.schema, named))

    @property
    def _slack(self) -> float:
        """Seconds for which the last look over all versions is good enough."""
        return min(MOST, SHARE * self._cost) if self._is_large else 0.0

    @property
    def _is_large(self) -> bool:
        return self._mark is not None and self._mark.all.rows > LARGE

    def _passed(self) -> tuple[int, str] | None:
        """What is the same as long as nothing is committed, where the database has such a thing."""
        question = GATES.get(self.direct.engine.dialect.name)
        if question is None:
            return None
        value = str(self.direct.rows(question)[0][0])
        return self.direct.session, value

    # -- dear databases: registered model by registered model -------------------------------------

    def _newest_of_each(self, questions: Questions) -> dict[tuple[Any, ...], int] | None:
        """The newest version of each registered model, where there are not too many."""
        is_wanted = self._mark is None or self._is_large
        if not (is_wanted and questions.tops):
            return None
        rows = self.direct.rows(questions.tops)
        return {tuple(model): number(top) for *model, top in rows} if len(rows) <= FEW else None

    def _of_known_models(self, questions: Questions) -> Iterator[Version]:
        """What MLflow registered meanwhile: it numbers the versions of a registered model."""
        if self._tops is None:
            return
        tops = self._newest_of_each(questions)
        for model, top in (tops or {}).items():
            known = self._tops.get(model, 0)
            if top != known:
                after = known if top > known else 0
                yield from questions.versions_of(model, after)
        self._tops = tops

    # -- a look over all versions ------------------------------------------------------------------

    def _look(self, questions: Questions) -> tuple[Mark | None, Sums]:
        """All versions as they are now; of those, what is not newer than the last mark's newest."""
        if questions.sums is None:
            return None, Sums()
        newest = self._mark.newest if self._mark else -1
        [row] = self.direct.rows(questions.sums.format(newest=newest))
        numbers = [number(value) for value in row]
        return Mark(Sums(*numbers[:4]), numbers[4]), Sums(*numbers[5:])

    def _since(self, questions: Questions, mark: Mark | None, old: Sums) -> Iterator[Version]:
        """The versions behind a mark that has changed: those with newer times, if that is all."""
        before = self._mark
        if mark is not None and before is not None and mark.all.rows - old.rows <= MANY:
            rows = self.direct.rows(questions.newer.format(newest=before.newest))
            moved = sums(row for row in rows if number(row[6]) <= before.newest)
            # Older versions are as they were, but for those that carry a newer time now.
            if old + moved == before.all:
                yield from (Version._make(row[:5]) for row in rows if row[5])
                return
        with reading(self.direct.engine) as conn:
            yield from all_versions(conn, self.schema)


def number(value: Any) -> int:
    """A number of the database's, whichever type it has; 0 for what is none."""
    return int(value) if isinstance(value, int | float | Decimal) else 0


def sums(rows: Iterator[tuple[Any, ...]]) -> Sums:
    """The sums of versions that were read one by one."""
    total = Sums()
    for row in rows:
        total += Sums(1, number(row[5]), number(row[1]), number(row[6]))
    return total


class Questions:
    """The statements for one database, as its driver takes them."""

    def __init__(self, engine: Engine, schema: Schema) -> None:
        self.engine = engine
        # A direct connection begins no transaction, and so sets no search path.
        self.schema = schema.qualified()
        self.sums: str | None = None
        self.newer = ""
        if schema.has(VERSIONS, "creation_time", "last_updated_time"):
            self.sums = self._text(self._sums())
            self.newer = self._text(self._newer())
        names = [name for name in ("workspace", "name") if schema.has(VERSIONS, name)]
        self.names = [name for name in names if schema.has(MODELS, name)]
        self.tops = self._text(self._tops()) if "name" in self.names else ""

    def _text(self, query: sa.Select[*tuple[Any, ...]]) -> str:
        return str(query.compile(self.engine, compile_kwargs={"literal_binds": True}))

    def _sums(self) -> sa.Select[*tuple[Any, ...]]:
        versions = self.schema.table(VERSIONS)
        v = versions.c
        newest: sa.ColumnElement[int] = sa.literal_column("{newest}")
        is_old = sa.or_(v.last_updated_time.is_(None), v.last_updated_time <= newest)
        live = sa.case((is_live(versions), 1), else_=0)
        each: tuple[Any, ...] = (sa.literal_column("1"), live, v.version, v.creation_time)
        return sa.select(
            *(sa.func.sum(one) for one in each),
            sa.func.max(v.last_updated_time),
            *(sa.func.sum(sa.case((is_old, one), else_=0)) for one in each),
        ).select_from(versions)

    def _newer(self) -> sa.Select[*tuple[Any, ...]]:
        versions = self.schema.table(VERSIONS)
        v = versions.c
        newest: sa.ColumnElement[int] = sa.literal_column("{newest}")
        live = sa.case((is_live(versions), 1), else_=0)
        query = sa.select(*columns(self.schema), live, v.creation_time)
        return query.where(v.last_updated_time > newest)

    def _tops(self) -> sa.Select[*tuple[Any, ...]]:
        models, versions = self.schema.table(MODELS), self.schema.table(VERSIONS)
        mine = (versions.c[name] == models.c[name] for name in self.names)
        newest = versions.c.version
        # MySQL finds the end of an index by this, and not by MAX.
        top = sa.select(newest).where(*mine).order_by(newest.desc()).limit(1).scalar_subquery()
        # One that is deleted and made anew has another time.
        made = ["creation_time"] if self.schema.has(MODELS, "creation_time") else []
        query = sa.select(*(models.c[name] for name in (*self.names, *made)), top)
        return query.select_from(models).limit(FEW + 1)

    def versions_of(self, model: tuple[Any, ...], after: int) -> list[Version]:
        """The live versions of a registered model with higher numbers."""
        versions = self.schema.table(VERSIONS)
        mine = [versions.c[n] == value for n, value in zip(self.names, model, strict=False)]
        query = references(self.schema).where(*mine, versions.c.version > after)
        with reading(self.engine) as conn:
            return [Version._make(row) for row in conn.execute(query)]
