"""Every SELECT for model versions: what they refer to, and by what one can tell that some are new.

Invariant: only a version in the stage `Deleted_Internal` refers to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.planning.names import Versions
from gcd.planning.registered import Version
from gcd.store.exact import Exact
from gcd.store.schema import Schema
from gcd.store.streaming import stream

VERSIONS, MODELS = "model_versions", "registered_models"
GONE = "Deleted_Internal"
"""The stage of a version that a user deleted."""
LIKES = 50
"""Ids that the database looks for in the texts of all versions; gcd does it for more."""


def refers(schema: Schema) -> bool:
    """Whether model versions of this revision can refer to anything."""
    return schema.has(VERSIONS, "name", "version", "source", "run_id", "current_stage")


def is_live(versions: sa.FromClause) -> sa.ColumnElement[bool]:
    """Whether a version may refer to anything."""
    stage = versions.c.current_stage
    return sa.or_(stage.is_(None), Exact(stage) != GONE)


def location(schema: Schema) -> sa.ColumnElement[Any]:
    """Where the files of a version are, if that is not its source: most often it is."""
    if not schema.has(VERSIONS, "storage_location"):
        return sa.null()
    versions = schema.table(VERSIONS)
    place = versions.c.storage_location
    is_other = sa.or_(versions.c.source.is_(None), Exact(place) != versions.c.source)
    return sa.case((is_other, place), else_=sa.null())


def columns(schema: Schema) -> list[sa.ColumnElement[Any]]:
    """What a version refers to, in the order of a Version."""
    v = schema.table(VERSIONS).c
    return [v.name, v.version, v.run_id, v.source, location(schema)]


def references(schema: Schema) -> sa.Select[*tuple[Any, ...]]:
    """What each live version refers to."""
    return sa.select(*columns(schema)).where(is_live(schema.table(VERSIONS)))


def all_versions(conn: Connection, schema: Schema) -> Iterator[Version]:
    """Every live version, streamed."""
    if refers(schema):
        yield from map(Version._make, stream(conn, references(schema)))


def deleted_versions(conn: Connection, schema: Schema, named: Set[Versions]) -> Iterator[Version]:
    """Those of the versions that users deleted: MLflow leaves where their files are in the row."""
    if not (refers(schema) and schema.has(VERSIONS, "storage_location")):
        return
    v = schema.table(VERSIONS).c
    query = sa.select(v.name, v.version, sa.null(), sa.null(), v.storage_location)
    names = sorted({each.name for each in named})
    wanted = {(name.casefold(), number) for name, number in named}
    for first in range(0, len(names), LIKES):
        part = v.name.in_(names[first : first + LIKES])
        for row in conn.execute(query.where(part, sa.not_(is_live(schema.table(VERSIONS))))):
            version = Version._make(row)
            name = version.name.casefold()  # which some databases take for the same
            if not wanted.isdisjoint({(name, version.version), (name, None)}):
                yield version
