"""Which schema of a PostgreSQL database MLflow's tables are in; gcd then reads no other.

Invariant: a connection of gcd finds unqualified names in that one schema alone, whatever the role's
own search path is: a table of the same name in a schema before it is not read in its stead.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine

from gcd.errors import PrivilegeMissing, StoreRefused
from gcd.store.connection import reading
from gcd.store.known_tables import COLUMNS

TRACKING: Mapping[str, tuple[str, ...]] = {
    "runs": ("run_uuid", "artifact_uri"),
    "experiments": ("experiment_id", "artifact_location"),
}
"""Tables, with some of their columns, that tell a schema with a tracking store."""
REGISTRY: Mapping[str, tuple[str, ...]] = {"model_versions": ("name", "version", "source")}
"""The same for a model registry."""
OWN = "alembic_gcd_meta"
FOUND = (
    "SELECT n.nspname, c.relname, array_agg(a.attname::text) "
    "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
    "JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped "
    "WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't' AND c.relname IN :names "
    "GROUP BY n.nspname, c.relname ORDER BY 1, 2"
)
SEARCH_PATH = re.compile(r"search_path\s*=\s*((?:\\.|[^\s\\])+)")

Found = Mapping[str, Mapping[str, frozenset[str]]]
"""Schema to each table in it that has a name of MLflow's or gcd's, with its columns."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The schema that was chosen, and the others that a server may read beside it."""

    schema: str
    others: tuple[str, ...]


def settle(engine: Engine, wanted: Mapping[str, tuple[str, ...]] = TRACKING) -> str | None:
    """Find the schema with MLflow's tables and let this engine's connections read no other.

    Raises StoreRefused where several schemas have such tables and the URI names none, and where
    gcd's own tables are in another one. Does nothing on other databases.
    """
    if engine.dialect.name != "postgresql":
        return None
    with reading(engine) as conn:
        found = read_found(conn)
        choice = choose(found, wanted, named(engine.url, current_user(conn)))
        if choice is None:
            return None
        refuse_hidden(conn, choice.schema)
        refuse_twins(conn, found, choice)
        if wanted is TRACKING:
            refuse_second_set(found, choice.schema)
    listen(engine, choice.schema)
    return choice.schema


def listen(engine: Engine, schema: str) -> None:
    """Set the search path at the start of each transaction, so that it also holds behind a pooler.

    Without row_security a query fails where a policy would hide rows from it.
    """
    # Where pg_temp is not named last, temporary tables come before all others.
    path = f"{engine.dialect.identifier_preparer.quote(schema)}, pg_temp"
    statement = sa.text(
        "SELECT set_config('search_path', :path, true), set_config('row_security', 'off', true)"
    ).bindparams(path=path)

    def narrow(conn: Connection) -> None:
        conn.execute(statement)

    sa.event.listen(engine, "begin", narrow)


def read_found(conn: Connection) -> Found:
    """Every table with a name of MLflow's or gcd's, in any schema, read or not."""
    query = sa.text(FOUND).bindparams(sa.bindparam("names", expanding=True))
    found: dict[str, dict[str, frozenset[str]]] = {}
    for schema, table, columns in conn.execute(query, {"names": [*COLUMNS, OWN]}):
        found.setdefault(schema, {})[table] = frozenset(columns)
    return found


def current_user(conn: Connection) -> str:
    """The role that works now."""
    return str(conn.exec_driver_sql("SELECT current_user").scalar_one())


def named(url: URL, role: str) -> list[str]:
    """The schemas that the URI names itself, by options=-csearch_path=…, in their order."""
    given = url.query.get("options", "")
    texts = [given] if isinstance(given, str) else list(given)
    paths = [path for text in texts for path in SEARCH_PATH.findall(text)]
    if not paths:
        return []
    parts = re.sub(r"\\(.)", r"\1", paths[-1]).split(",")
    names = (part.strip() for part in parts)
    return [role if name in ('"$user"', "$user") else name.strip('"') for name in names if name]


def choose(
    found: Found, wanted: Mapping[str, tuple[str, ...]], explicit: Sequence[str]
) -> Choice | None:
    """The schema with a set of tables: the only one, or the first that the URI names."""
    sets = [schema for schema, tables in found.items() if is_set(tables, wanted)]
    if explicit:
        mine = next((each for each in explicit if each in sets), None)
        if mine is None and sets:
            raise StoreRefused(
                f"MLflow's tables are in {join(sets)}, and not in {join(explicit)}, "
                "which the URI names",
                hint=f"name the schema in the URI: {option(sets[0])}",
            )
        others = [each for each in explicit if each != mine and each not in sets]
        return Choice(mine, tuple(others)) if mine else None
    if len(sets) > 1:
        raise StoreRefused(
            f"several schemas of this database have MLflow's tables: {join(sets)}",
            hint=f"name the one that the tracking server uses in the URI: {option(sets[0])}",
        )
    if not sets:
        return None
    return Choice(sets[0], tuple(each for each in found if each != sets[0]))


def is_set(tables: Mapping[str, frozenset[str]], wanted: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether all the wanted tables are there, with these columns."""
    return all(
        tables.get(name, frozenset()).issuperset(columns) for name, columns in wanted.items()
    )


def join(names: Collection[str]) -> str:
    """Names of schemas, for people."""
    return " and ".join(names)


def option(schema: str) -> str:
    """What to add to a URI."""
    return f"?options=-csearch_path%3D{schema}"


def refuse_hidden(conn: Connection, schema: str) -> None:
    """PrivilegeMissing where this role may not look into the schema: its tables read as absent."""
    query = sa.text("SELECT has_schema_privilege(:schema, 'USAGE')")
    if not conn.execute(query, {"schema": schema}).scalar_one():
        quote = conn.dialect.identifier_preparer.quote
        role = quote(current_user(conn))
        raise PrivilegeMissing(
            f"MLflow's tables are in the schema {schema}, which this role may not use",
            hint=f"GRANT USAGE ON SCHEMA {quote(schema)} TO {role};",
        )


def refuse_twins(conn: Connection, found: Found, choice: Choice) -> None:
    """StoreRefused where a single table of MLflow's in another schema has rows."""
    for schema in choice.others:
        for table, columns in found[schema].items() if schema in found else ():
            if is_mlflows(table, columns) and not is_empty(conn, schema, table):
                raise StoreRefused(
                    f"the schema {schema} has a table {table} like MLflow's, with rows or hidden "
                    f"from this role, beside {choice.schema}, where its other tables are; the "
                    "tracking server may read either",
                    hint=f"drop or rename {schema}.{table} if nothing uses it, or name the schema "
                    f"that the tracking server uses in the URI: {option(choice.schema)}",
                )


def is_mlflows(table: str, columns: frozenset[str]) -> bool:
    """Whether a table has nothing but columns that MLflow's of that name has, and several of them."""
    known = COLUMNS.get(table, frozenset())
    return columns <= known and len(columns) * 2 > min(len(known), 6)


def is_empty(conn: Connection, schema: str, table: str) -> bool:
    """Whether a table has no rows, as far as this role may see all of them."""
    quote = conn.dialect.identifier_preparer.quote
    name = f"{quote(schema)}.{quote(table)}"
    may = sa.text(
        "SELECT has_schema_privilege(:schema, 'USAGE') AND EXISTS (SELECT 1 FROM pg_catalog.pg_class"
        " WHERE relname = :table AND relnamespace = CAST(:quoted AS regnamespace)"
        " AND has_table_privilege(oid, 'SELECT') AND NOT row_security_active(oid))"
    )
    values = {"schema": schema, "table": table, "quoted": quote(schema)}
    if not conn.execute(may, values).scalar_one():
        return False
    return not conn.exec_driver_sql(f"SELECT EXISTS (SELECT 1 FROM {name})").scalar_one()


def refuse_second_set(found: Found, schema: str) -> None:
    """StoreRefused where gcd's tables are in a schema that has no MLflow's tables of its own."""
    stray = [
        each
        for each, tables in found.items()
        if each != schema and OWN in tables and not is_set(tables, TRACKING)
    ]
    if not stray:
        return
    both = [schema, *stray] if OWN in found[schema] else stray
    raise StoreRefused(
        f"gcd's own tables are in the schema {join(both)}; they belong beside MLflow's, in "
        f"{schema}, once: holds and the lease of one set are not seen by the other",
        hint=f"put what {stray[0]}.alembic_gcd_hold holds under `gcd hold` again, drop the tables "
        f"alembic_gcd_… in {stray[0]}, then run gcd again",
    )
