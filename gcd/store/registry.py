"""The model registry, where it lives in another database than the tracking store.

It must never write there, nor count what it cannot read as holding nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from gcd.errors import StoreRefused
from gcd.model import Hold
from gcd.store import search_path, visibility
from gcd.store.catalogue import Catalogue, family
from gcd.store.connection import open_engine, reading
from gcd.store.holds import version_holds
from gcd.store.schema import Schema

VERSIONS = "model_versions"


@dataclass(frozen=True, slots=True)
class Registry:
    """The model versions of another database."""

    engine: Engine
    schema: Schema

    def holds(self) -> Iterator[Hold]:
        """What its model versions refer to. Raises StoreUnreachable: then nothing is purged."""
        with reading(self.engine) as conn:
            yield from version_holds(conn, self.schema)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def open_registry(uri: str) -> Registry:
    """Open a registry's database. Raises StoreRefused where it holds no registry."""
    engine = open_engine(uri, read_only=True)
    place = search_path.settle(engine, search_path.REGISTRY)
    with reading(engine) as conn:
        inspector = sa.inspect(conn)
        if not inspector.has_table(VERSIONS):
            raise StoreRefused(
                "the registry store is no model registry: it has no table model_versions",
                hint="give the URI that the tracking server has as --registry-store-uri",
            )
        names = [column["name"].lower() for column in inspector.get_columns(VERSIONS)]
        table = sa.table(VERSIONS, *map(sa.column, names))
        found = Catalogue(family(conn.dialect.name), place, {VERSIONS: table}, (), (), None)
        visibility.confirm_registry(conn, found)
    return Registry(engine, Schema(found, ()))
