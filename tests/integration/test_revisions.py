"""Databases as every MLflow since 0.9.1 left them: what is collected goes whole, all else stays.

One database climbs all of MLflow's migrations, with gcd's tables and what gcd left inside, and is
filled and collected at every step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from gcd.cli import main
from gcd.store.catalogue import read_catalogue
from gcd.store.revisions import KNOWN
from tests import world as put
from tests.mlflow_store import make_old_schema, revisions, upgrade
from tests.servers import Database
from tests.snapshot import OWN, differences, read_tables
from tests.world import COLLECTED, TRACE

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's migrations warn


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
@pytest.mark.parametrize("half", [0, 1])
def test_what_any_release_left_is_collected_whole(
    empty_database: Database, half: int, tmp_path: Path
) -> None:
    assert climb(empty_database, tmp_path, part(half), only_changes=False) == len(part(half))


@pytest.mark.parametrize("server", ["mariadb"], indirect=True)
def test_some_of_what_releases_changed_on_a_slow_server_is_collected_whole(
    empty_database: Database, tmp_path: Path
) -> None:
    steps = ["base", *revisions()]
    assert climb(empty_database, tmp_path, steps, only_changes=True, stride=SOME) >= 10


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "server", ["postgresql", pytest.param("mariadb", marks=pytest.mark.soak)], indirect=True
)
@pytest.mark.parametrize("half", [0, 1])
def test_what_any_release_changed_on_a_server_is_collected_whole(
    empty_database: Database, half: int, tmp_path: Path
) -> None:
    assert climb(empty_database, tmp_path, part(half), only_changes=True) > len(part(half)) // 2


SOME = 6
"""On MariaDB CI looks at each sixth revision that changes the schema, and at the last one."""


def part(half: int) -> list[str]:
    """One half of the revisions, 0.9.1's missing one included: two processes share the climb."""
    every = ["base", *revisions()]
    middle = every.index("6953534de441")  # 3.0: from here on there are many tables
    return every[middle:] if half else every[:middle]


def climb(
    database: Database, place: Path, steps: list[str], *, only_changes: bool, stride: int = 1
) -> int:
    """Fill and collect at each step, or at those that change more than rows; how many those were.

    With a stride at every so-manieth of those, and at the last step.
    """
    make_old_schema(database, steps[0])
    before: Any = None
    changes = looked_at = 0
    for revision in steps:
        if revision != steps[0]:
            upgrade(database, revision)
        now = shape(database) if only_changes else revision
        if now == before:
            continue
        before = now
        changes += 1
        if (changes - 1) % stride and revision != steps[-1]:
            continue
        looked_at += 1
        empty(database)
        collected_whole(database, revision, place / revision)
    return looked_at


def collected_whole(database: Database, revision: str, place: Path) -> None:
    """Fill every table, collect, look at every row and at the files."""
    world = put.filled(database, place)
    put.crowd(world)
    before = read_tables(database)
    assert [name for name, rows in before.items() if not rows] == [], revision

    collect(database)

    after = read_tables(database)
    assert differences(world.expected(before), after) == [], revision
    assert dangling(database, world.meta) == [], revision
    gone = {path.name for path in place.rglob("*")}.intersection({*COLLECTED, TRACE})
    assert not gone, revision


def collect(database: Database) -> None:
    """One cycle over everything that is deleted, in this process: there are many."""
    words = ["gc", "--backend-store-uri", database.uri, "--older-than", "0s", "--yes"]
    with warnings.catch_warnings(action="ignore"):
        done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output


def shape(database: Database) -> Any:
    """Columns, keys and foreign keys of all tables, gcd's own too: those do not change."""
    home = "table_schema = " + ("DATABASE()" if database.dialect == "mariadb" else "'public'")
    kind = "column_type" if database.dialect == "mariadb" else "udt_name"
    columns = f"SELECT table_name, column_name, {kind}, is_nullable FROM information_schema.columns"
    keys = (
        "SELECT table_name, constraint_name, column_name, ordinal_position"
        " FROM information_schema.key_column_usage"
    )
    with database.begin() as conn:
        rules = sorted(map(repr, read_catalogue(conn).foreign_keys))
    return rules, *(sorted(database.rows(f"{query} WHERE {home}")) for query in (columns, keys))


def empty(database: Database) -> None:
    """Take all rows out of MLflow's tables, but what its migrations put there."""
    off = {
        "sqlite": "PRAGMA foreign_keys = OFF",
        "postgresql": "SET session_replication_role = replica",
        "mariadb": "SET foreign_key_checks = 0",
    }
    with database.begin() as conn:
        conn.exec_driver_sql(off[database.dialect])
        for name in sa.inspect(conn).get_table_names():
            if name.startswith(OWN) or name == "alembic_version":
                continue
            where = " WHERE name <> 'default'" if name == "workspaces" else ""
            conn.exec_driver_sql(f"DELETE FROM {name}{where}")


def dangling(database: Database, meta: sa.MetaData) -> list[str]:
    """Rows whose foreign key points nowhere: the databases' own checks may have been off."""
    with database.begin() as conn:
        return [
            f"{key.parent} of {count} rows names nothing in {key.target_fullname}"
            for table in meta.sorted_tables
            for key in table.foreign_keys
            if (count := conn.scalar(sa.select(sa.func.count()).where(*lost(key))))
        ]


def lost(key: sa.ForeignKey) -> Iterator[sa.ColumnElement[bool]]:
    """The condition of rows whose foreign key, column by column, points nowhere."""
    owner = key.column.table.alias()
    yield key.parent.is_not(None)
    yield ~sa.exists().where(owner.c[key.column.name] == key.parent)


def test_the_revisions_that_the_installed_mlflow_ships_are_known() -> None:
    assert set(revisions()) - KNOWN == set() or len(revisions()) > len(KNOWN)
