"""What a revision of MLflow that gcd does not know has brought, and whether it may name what gcd deletes.

Invariant: the future is not guessed. A new column that may name an entity, by its name, by its type or
by what is in it, keeps all entities of that kind; a store without a column by which gcd finds what is
in use is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.errors import SchemaUnsupported
from gcd.model import Kind
from gcd.planning.names import ids_in
from gcd.store.eraser import slices
from gcd.store.holds import entities_inside
from gcd.store.known_tables import BORN, COLUMNS
from gcd.store.references import ALL, ENTITY_TABLES, OWNERS
from gcd.store.revisions import KNOWN, ORDER
from gcd.store.schema import REQUIRED, STAMPS, Schema
from gcd.store.tag_holds import TAGS
from gcd.store.visibility import HOLDING

EVERY = (Kind.RUN, Kind.LOGGED_MODEL, Kind.TRACE, Kind.EXPERIMENT)
WORDS: Mapping[str, tuple[Kind, ...]] = {
    **dict.fromkeys(("run", "runs"), (Kind.RUN,)),
    **dict.fromkeys(("model", "models"), (Kind.LOGGED_MODEL,)),
    **dict.fromkeys(("trace", "traces", "request", "requests", "span", "spans"), (Kind.TRACE,)),
    **dict.fromkeys(("experiment", "experiments"), (Kind.EXPERIMENT,)),
    **dict.fromkeys(
        ("artifact", "artifacts", "uri", "uris", "url", "location", "path", "source", "storage"),
        EVERY,
    ),
}
"""A word of a column's name to what it may name."""
IDS = ("id", "ids", "uuid", "uuids")
LENGTHS: Mapping[int, Kind] = {32: Kind.RUN, 36: Kind.LOGGED_MODEL, 50: Kind.TRACE}
"""The lengths that MLflow gives to columns of ids, and of which kind."""
PLAIN = frozenset(
    [
        "status",
        "state",
        "stage",
        "type",
        "kind",
        "name",
        "version",
        "digest",
        "hash",
        "mode",
        "level",
        "category",
        "workspace",
        "user",
        "provider",
        "role",
        "key",
        "unit",
        "currency",
        "color",
        "format",
        "language",
    ]
)
"""Words of columns that have such a length and name no entity."""
NOUNS = {"run": Kind.RUN, "logged model": Kind.LOGGED_MODEL, "trace": Kind.TRACE}
WHOLE = ORDER.index("75868b020152")
"""MLflow 3.17: a revision behind it has every column that gcd looks for."""
COMPACT = re.compile(r"(run|model|trace|request|experiment)_?(?:id|uuid)")
ROWS, IDS_AT_ONCE, CHARACTERS = 1000, 500, 4000
"""How many rows of a column are looked at, how many ids at once, and how much of each value."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column that gcd does not know."""

    table: str
    name: str
    type: sa.types.TypeEngine[Any]
    is_key: bool
    """Whether it alone is the key of its table."""
    refers: bool
    """Whether it has a foreign key: what that is on is known."""

    @property
    def words(self) -> list[str]:
        """The words of its name."""
        return [word for word in re.split(r"[^a-z0-9]+", self.name) if word]

    @property
    def is_text(self) -> bool:
        """Whether it may hold the id of a run, logged model or trace."""
        plain = (sa.Numeric, sa.Boolean, sa.DateTime, sa.Date, sa.Time, sa.Interval)
        return not isinstance(self.type, (sa.Integer, *plain))

    @property
    def is_number(self) -> bool:
        """Whether it may hold the id of an experiment as a number."""
        return isinstance(self.type, sa.Integer | sa.Numeric) and not isinstance(
            self.type, sa.Float
        )


def suspects(conn: Connection, schema: Schema, harmless: Collection[str]) -> dict[Kind, str]:
    """The kinds of entities that a revision which gcd does not know may refer to, and by what.

    `harmless` names tables, or columns as "table.column", that an operator knows to be so.
    Raises SchemaUnsupported where it lacks what gcd goes by.
    """
    revision = schema.catalogue.revision
    if revision is None or revision in KNOWN:
        return {}
    for table, column in lost(schema):
        raise SchemaUnsupported(
            f"MLflow's revision {revision} is newer than this gcd and has no {table}.{column} any "
            "more, by which gcd finds what is in use",
            hint="upgrade gcd: a newer one may know this revision",
        )
    found: dict[Kind, str] = {}
    columns = [each for each in new_columns(conn, schema) if not is_listed(each, harmless)]
    own = {each.name for each in columns if is_own_key(each)}
    for each in columns:
        kinds, why = by_name(each, own), "may name it, by its name or its type"
        if not kinds:
            kinds, why = tuple(by_values(conn, schema, each)), "names some of its kind"
        for kind in kinds:
            found.setdefault(kind, f"the new column {each.table}.{each.name} {why}")
    return {kind: sentence(why, revision) for kind, why in found.items()}


def sentence(why: str, revision: str) -> str:
    """Why a kind of entity stays, and what a person can do."""
    return (
        f"MLflow's revision {revision} is newer than this gcd: {why}. A newer gcd may know it: "
        "upgrade gcd, or list the table in purge.harmless if nothing in it needs what is deleted"
    )


def lost(schema: Schema) -> Iterator[tuple[str, str]]:
    """(table, column) by which gcd finds what must stay, and that is not there any more."""
    wanted: dict[str, set[str]] = {table: set(columns) for table, columns in HOLDING.items()}
    for table, columns in REQUIRED.items():
        wanted.setdefault(table, set()).update(columns)
    for reference in ALL:
        fixed = (column for column, _ in reference.where)
        wanted.setdefault(reference.table, set()).update((reference.column, *fixed))
    for kind, column in STAMPS.items():
        table = ENTITY_TABLES[kind]
        wanted.setdefault(table, set()).update((column, OWNERS[table]))
    for each in TAGS:
        wanted.setdefault(each.name, set()).update((each.entity, each.key, each.value))
    wanted["logged_models"].update(("artifact_location", "source_run_id", "lifecycle_stage"))
    here = [age(table) for table in COLUMNS if schema.has(table)]
    for table, names in sorted(wanted.items()):
        if age(table) > max(here):
            continue  # this revision comes from an older one, which had no such table
        looked_at = names if max(here) >= WHOLE or not schema.has(table) else ()
        yield from ((table, name) for name in sorted(looked_at) if not schema.has(table, name))


def age(table: str) -> int:
    """Which of the known revisions brought a table."""
    return ORDER.index(BORN[table]) if BORN[table] in ORDER else -1


def new_columns(conn: Connection, schema: Schema) -> Iterator[Column]:
    """Every column that no revision has which gcd knows."""
    inspector = sa.inspect(conn)
    for table, found in sorted(schema.catalogue.tables.items()):
        new = {column.name.lower() for column in found.c} - COLUMNS.get(table, frozenset())
        if not new or table.startswith(("alembic_", "sqlite_")):
            continue
        keys = inspector.get_pk_constraint(table)["constrained_columns"]
        key = [name.lower() for name in keys]
        referring = {
            name.lower()
            for each in inspector.get_foreign_keys(table)
            for name in each["constrained_columns"]
        }
        for column in inspector.get_columns(table):
            name = column["name"].lower()
            if name in new:
                yield Column(table, name, column["type"], key == [name], name in referring)


def is_listed(column: Column, harmless: Collection[str]) -> bool:
    """Whether an operator says that it is harmless."""
    return column.table in harmless or f"{column.table}.{column.name}" in harmless


def is_own_key(column: Column) -> bool:
    """Whether it is the id of its own table's rows, by its name."""
    *words, last = column.words or [""]
    is_named = "_".join(words) in column.table and not WORDS.keys() & set(words)
    return column.is_key and last in IDS and is_named


def by_name(column: Column, own: Collection[str]) -> tuple[Kind, ...]:
    """What a column may name by its name and its type; `own` are the ids of new tables."""
    words = column.words
    has_id = bool(words) and words[-1] in IDS
    if column.refers:
        return ()
    words += COMPACT.findall(column.name.lower())
    named = {kind for word in words for kind in WORDS.get(word, ())}
    if column.is_number:
        may = Kind.EXPERIMENT in named or (has_id and not named)
        return (Kind.EXPERIMENT,) if may and not is_own(column, own) else ()
    if not column.is_text:
        return ()
    if named:
        return tuple(kind for kind in EVERY if kind in named)
    if is_own(column, own) or PLAIN & set(words):
        return ()
    length = getattr(column.type, "length", None)
    return EVERY if has_id else tuple(filter(None, (LENGTHS.get(length or 0),)))


def is_own(column: Column, own: Collection[str]) -> bool:
    """Whether it is the id of a new table, there or where another new table names it."""
    return is_own_key(column) or (column.name in own and column.name not in IDS)


def by_values(conn: Connection, schema: Schema, column: Column) -> Iterator[Kind]:
    """The kinds of which a sample of the column's values names some that are there."""
    if not column.is_text:
        return
    found = schema.table(column.table).c[column.name]
    text = sa.func.substr(sa.cast(found, sa.Text), 1, CHARACTERS)
    query = sa.select(text).where(found.is_not(None)).limit(ROWS)
    values = [str(value) for value in conn.execute(query).scalars()]
    # A UUID is written with dashes, an id of MLflow's without.
    values += [value.replace("-", "") for value in values if "-" in value]
    ids = {each for value in values for each in ids_in(value)}
    kinds: set[Kind] = set()
    for part in slices(list(islice(ids, ROWS * 10)), IDS_AT_ONCE):
        kinds.update(NOUNS[noun] for noun in entities_inside(conn, schema, part).values())
    yield from kinds
