"""Every SELECT for holds that users set as tags in MLflow itself.

Invariant: a tag that cannot be understood holds what carries it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from itertools import product
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.durations import parse_duration
from gcd.errors import UsageError
from gcd.model import Hold, KeepReason, Kind
from gcd.store.schema import Schema
from gcd.store.streaming import stream

HOLD_TAG, HOLD_UNTIL_TAG, AGE_TAG = "gcd.hold", "gcd.hold_until", "gcd.older_than"
PREFIX = "gcd"
"""Tags that begin like this, in any case, are taken for gcd's."""
RANGES = (
    *(
        (word, word[:-1] + chr(ord(word[-1]) + 1))
        for word in map("".join, product("gG", "cC", "dD"))
    ),
    (" ", "!"),
)
"""Keys that begin with it or with a space, as ranges that an index on the key serves.

A collation that ignores case or spaces finds more between these ends, never less.
"""
NOUNS = {
    Kind.RUN: "run",
    Kind.LOGGED_MODEL: "logged model",
    Kind.EXPERIMENT: "experiment",
    Kind.TRACE: "trace",
}


@dataclass(frozen=True, slots=True)
class TagTable:
    """Where MLflow keeps the tags of one kind of entity, and which of gcd's it may carry."""

    kind: Kind
    name: str
    entity: str
    """The column of the entity."""
    key: str = "key"
    value: str = "value"
    known: tuple[str, ...] = (HOLD_TAG, HOLD_UNTIL_TAG)


TAGS = (
    TagTable(Kind.RUN, "tags", "run_uuid"),
    TagTable(Kind.LOGGED_MODEL, "logged_model_tags", "model_id", "tag_key", "tag_value"),
    TagTable(
        Kind.EXPERIMENT,
        "experiment_tags",
        "experiment_id",
        known=(HOLD_TAG, HOLD_UNTIL_TAG, AGE_TAG),
    ),
    TagTable(Kind.TRACE, "trace_tags", "request_id"),
)


def tag_holds(conn: Connection, schema: Schema, ids: Sequence[str] | None = None) -> Iterator[Hold]:
    """What a tag of gcd's, or one that may be meant as one, holds; of `ids`, if given.

    `gcd.hold` holds with any value, `gcd.hold_until` up to a time. A tag whose key or value cannot be
    understood holds what carries it until somebody corrects it.
    """
    for table in TAGS:
        if schema.has(table.name, table.entity, table.key, table.value):
            for entity, key, value in stream(conn, marks(schema, table, ids)):
                mark = read_mark(table, str(key), value or "")
                if mark is not None:
                    because, until = mark
                    named = entity_key(table.kind, entity)
                    yield Hold(KeepReason.HELD, because, entity_id=named, until=until)


def marks(
    schema: Schema, table: TagTable, ids: Sequence[str] | None
) -> sa.Select[*tuple[Any, ...]]:
    """The tags whose keys may begin with `gcd`, and some others: who reads them looks at each key."""
    tags = schema.table(table.name)
    key, entity = tags.c[table.key], tags.c[table.entity]
    query = sa.select(entity, key, tags.c[table.value])
    if ids is None or table.kind is Kind.EXPERIMENT:
        return query.where(sa.or_(*(sa.and_(key >= first, key < end) for first, end in RANGES)))
    # A function on the key leaves the index of the entities to serve this, which are few.
    return query.where(sa.func.lower(sa.func.ltrim(key)).like(f"{PREFIX}%"), entity.in_(ids))


def read_mark(table: TagTable, key: str, value: str) -> tuple[str, datetime | None] | None:
    """Why a tag holds what carries it, and until when; None where it does not."""
    noun = NOUNS[table.kind]
    if not key.strip().casefold().startswith(PREFIX):
        return None
    if key not in table.known:
        return f"the tag {key!r} on the {noun} is not known; {advice(table, key)}", None
    if key == HOLD_UNTIL_TAG and (until := parse_until(value)) is not None:
        return f"tag {key} on the {noun}: {value}", until
    if key == HOLD_TAG:
        return f"tag {key} on the {noun}" + (f": {value}" if value else ""), None
    if key == AGE_TAG and is_duration(value):
        return None
    example = 'a duration such as "90d"' if key == AGE_TAG else 'a time such as "2030-12-31"'
    return f"the value {value!r} of the tag {key} on the {noun} cannot be read; set {example}", None


def advice(table: TagTable, key: str) -> str:
    """What to do about a tag that is not known."""
    if key == AGE_TAG:
        return f"{AGE_TAG} belongs on the experiment: set it there and remove this one"
    meant = get_close_matches(key.strip().casefold().replace("_", "."), table.known, 1, 0.7)
    correction = f"did you mean {meant[0]}? " if meant else ""
    return f"{correction}Set {' or '.join(table.known)}, or remove it"


def is_duration(text: str) -> bool:
    """Whether a text can be read as an age."""
    try:
        parse_duration(text)
    except UsageError:
        return False
    return True


def entity_key(kind: str, entity: object) -> str:
    """How a hold names an entity: an experiment by "experiment/<id>", others by their id alone."""
    return f"experiment/{entity}" if kind == Kind.EXPERIMENT else str(entity)


def parse_until(text: str | None) -> datetime | None:
    """The time of a `gcd.hold_until` tag (ISO 8601, UTC where it names no zone), None if unreadable.

    A date alone holds to the end of that day.
    """
    try:
        found = datetime.fromisoformat((text or "").strip())
    except ValueError:
        return None
    if re.fullmatch(r"\s*[\d-]+\s*", text or ""):
        found += timedelta(days=1)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
