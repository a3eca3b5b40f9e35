"""The model registry, where it lives in another database than the tracking store.

It must never write there, nor count what it cannot read as holding nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from gcd.errors import StoreRefused
from gcd.store import search_path, visibility
from gcd.store.catalogue import Catalogue, family
from gcd.store.connection import open_engine, reading
from gcd.store.direct import Direct
from gcd.store.schema import Schema
from gcd.store.versions import MODELS, VERSIONS


@dataclass(frozen=True, slots=True)
class Registry:
    """The model versions of another database."""

    engine: Engine
    schema: Schema
    direct: Direct

    def close(self) -> None:
        """Close every connection."""
        self.direct.close()
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
        present = filter(inspector.has_table, (VERSIONS, MODELS))
        tables = {name: described(inspector, name) for name in present}
        found = Catalogue(family(conn.dialect.name), place, tables, (), (), None)
        visibility.confirm_registry(conn, found)
    return Registry(engine, Schema(found, ()), Direct(engine))


def described(inspector: sa.Inspector, name: str) -> sa.TableClause:
    """A table with the columns that it has here."""
    columns = inspector.get_columns(name)
    return sa.table(name, *(sa.column(column["name"].lower()) for column in columns))
