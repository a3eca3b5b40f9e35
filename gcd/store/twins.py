"""Whether another store of the same configuration is a copy of this one, or this one of it.

Neither knows that it is a copy where it was made before gcd first collected. It must never take a
store that does not answer for one that is no copy.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from gcd.errors import GcdError, StoreUnreachable
from gcd.store.connection import open_engine, reading
from gcd.store.identity import facts_of

SAMPLE = 1000
"""Runs whose ids are looked up in the other database, from each side."""

runs = sa.table("runs", sa.column("run_uuid"))


class Twins:
    """The other stores of the configuration, by name; they are asked once, when first needed."""

    def __init__(self, engine: Engine, others: Mapping[str, str]) -> None:
        self._engine = engine
        self._others = others
        self._found: list[str] | None = None

    def why(self) -> str | None:
        """Why one of them seems to be a copy, or may be one; None where none is."""
        return next(iter(self.all()), None)

    def all(self) -> list[str]:
        """The same for each of them."""
        if self._found is None:
            looked = (self._why(name, uri) for name, uri in self._others.items())
            self._found = [each for each in looked if each]
        return self._found

    def _why(self, name: str, uri: str) -> str | None:
        try:
            other = open_engine(uri, read_only=True)
        except StoreUnreachable:
            return None  # a file that is not there
        except GcdError as error:
            return unanswered(name, error)
        try:
            with reading(self._engine) as mine, reading(other) as theirs:
                shared = shares_runs(mine, theirs)
        except GcdError as error:
            return unanswered(name, error)
        finally:
            other.dispose()
        if shared is None:
            return None
        return f"the store {name} of this configuration has the run {shared} too: one is a copy"


def unanswered(name: str, error: GcdError) -> str:
    """What is said of a store that may be a copy, for all that is known."""
    text = f"the store {name} of this configuration cannot be asked whether it is a copy"
    return f"{text} of this database: {error}"


def shares_runs(mine: Connection, theirs: Connection) -> str | None:
    """A run that both databases have; None if none was found, or it is the same one."""
    if not sa.inspect(theirs).has_table(runs.name) or facts_of(mine) == facts_of(theirs):
        return None
    for one, other in ((mine, theirs), (theirs, mine)):
        sample = list(
            one.execute(sa.select(runs).order_by(runs.c.run_uuid).limit(SAMPLE)).scalars()
        )
        found = sa.select(runs).where(runs.c.run_uuid.in_(sample)).limit(1)
        if (shared := other.scalar(found)) is not None:
            return str(shared)
    return None
