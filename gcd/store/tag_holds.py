"""Every SELECT for holds that users set as tags in MLflow itself.

Invariant: a tag that cannot be understood holds what carries it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.model import Hold, KeepReason, Kind
from gcd.store.schema import Schema
from gcd.store.streaming import stream

NOUNS = {
    Kind.RUN: "run",
    Kind.LOGGED_MODEL: "logged model",
    Kind.EXPERIMENT: "experiment",
    Kind.TRACE: "trace",
}
TAGS = (
    (Kind.RUN, "tags", "run_uuid", "key", "value"),
    (Kind.LOGGED_MODEL, "logged_model_tags", "model_id", "tag_key", "tag_value"),
    (Kind.EXPERIMENT, "experiment_tags", "experiment_id", "key", "value"),
    (Kind.TRACE, "trace_tags", "request_id", "key", "value"),
)
"""(kind, table, column of the entity, of the tag's key, of its value)."""
HOLD_TAG, HOLD_UNTIL_TAG = "gcd.hold", "gcd.hold_until"


def tag_holds(conn: Connection, schema: Schema, ids: Sequence[str] | None = None) -> Iterator[Hold]:
    """What is tagged `gcd.hold` (any value) or `gcd.hold_until` (a time); of `ids`, if given.

    A value that is no time holds for good: in doubt the entity is kept.
    """
    for what, name, column, key_column, value_column in TAGS:
        if not schema.has(name, column, key_column, value_column):
            continue
        tags = schema.table(name)
        query = sa.select(tags.c[column], tags.c[key_column], tags.c[value_column]).where(
            tags.c[key_column].in_((HOLD_TAG, HOLD_UNTIL_TAG))
        )
        if ids is not None and what != Kind.EXPERIMENT:
            query = query.where(tags.c[column].in_(ids))
        for entity, key, value in stream(conn, query):
            yield Hold(
                KeepReason.HELD,
                f"tag {key} on the {NOUNS[what]}" + (f": {value}" if value else ""),
                entity_id=entity_key(what, entity),
                until=parse_until(value) if key == HOLD_UNTIL_TAG else None,
            )


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
