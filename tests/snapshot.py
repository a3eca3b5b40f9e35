"""A picture of a store: every row of every table, every file; and what a collection must make of it."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from gcd.artifacts.base import MARK
from tests.expectation import Tables, collected, mentions, without
from tests.servers import Database

__all__ = ["Snapshot", "mentions"]
OWN = "alembic_gcd_"


def read_tables(database: Database) -> Tables:
    """Every row of every table but gcd's own."""
    with database.begin() as conn:
        prepare = sa.inspect(conn).dialect.identifier_preparer.quote
        names = [n for n in sa.inspect(conn).get_table_names() if not n.startswith(OWN)]
        return {
            name: [
                dict(row)
                for row in conn.exec_driver_sql(f"SELECT * FROM {prepare(name)}").mappings()
            ]
            for name in sorted(names)
        }


def canonical(row: Mapping[str, Any]) -> str:
    """A row as text that is equal exactly if the row is; floats to the last digit."""
    return json.dumps({k: v if v is None else exact(v) for k, v in row.items()}, sort_keys=True)


def exact(value: Any) -> Any:
    """A value that JSON can hold, with nothing lost."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    return repr(value) if isinstance(value, float) else str(value)


def differences(expected: Tables, found: Tables) -> list[str]:
    """What is not as expected, a line a row."""
    problems = [f"table {name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"table {name} is new" for name in found.keys() - expected.keys()]
    for name in sorted(expected.keys() & found.keys()):
        wanted = Counter(canonical(row) for row in expected[name])
        there = Counter(canonical(row) for row in found[name])
        problems += [f"{name}: lost {row[:300]}" for row in (wanted - there)]
        problems += [f"{name}: left over or new {row[:300]}" for row in (there - wanted)]
    return problems


# -- files ---------------------------------------------------------------------------------------


def read_files(root: Path) -> dict[str, str]:
    """Every file, folder and link below the root, with what is in it."""
    return dict(walk(root, root))


def walk(root: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """The entries of a folder, its folders opened; links are not followed."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = str(Path(entry.path).relative_to(root))
        if entry.name == MARK and entry.is_file(follow_symlinks=False):
            continue  # gcd's own, as its tables are: it stays in the root, whatever goes below it
        if entry.is_symlink():
            yield name, "link to " + os.readlink(entry.path)
        elif entry.is_dir(follow_symlinks=False):
            yield name, "folder"
            yield from walk(root, Path(entry.path))
        else:
            info = entry.stat(follow_symlinks=False)
            content = hashlib.sha256(Path(entry.path).read_bytes()).hexdigest()
            yield name, f"{stat.filemode(info.st_mode)} {info.st_size} {content}"


def without_trees(files: Mapping[str, str], ids: Collection[str]) -> dict[str, str]:
    """The files as they must be once trees are swept: nothing under the ids of their owners remains."""
    return {
        name: what for name, what in files.items() if not set(Path(name).parts).intersection(ids)
    }


def without_empty(files: Mapping[str, str]) -> dict[str, str]:
    """Leave out folders with nothing in them: gcd may prune those above a tree it swept."""
    filled = {
        str(parent)
        for name, what in files.items()
        if what != "folder"
        for parent in Path(name).parents
    }
    return {name: what for name, what in files.items() if what != "folder" or name in filled}


@dataclass(frozen=True)
class Snapshot:
    """A store as it is at one moment."""

    tables: Tables
    files: dict[str, str]

    @classmethod
    def of(cls, database: Database, root: Path) -> Snapshot:
        """Look now."""
        return cls(read_tables(database), read_files(root))

    @property
    def size(self) -> int:
        """How many rows there are."""
        return sum(map(len, self.tables.values()))

    def without(self, ids: Collection[str]) -> Snapshot:
        """What has to be left when these runs, logged models, experiments and jobs are collected."""
        gone = collected(self.tables, ids).ids
        return Snapshot(without(self.tables, ids), without_trees(self.files, gone))

    def gone(self, ids: Collection[str]) -> frozenset[str]:
        """All ids that go with these: what is in an experiment goes with it."""
        found = collected(self.tables, ids)
        return found.ids | found.numbers

    def against(self, found: Snapshot) -> list[str]:
        """What `found` has otherwise, empty folders apart."""
        wanted, there = without_empty(self.files), without_empty(found.files)
        files = [f"lost {name}" for name in wanted.keys() - there.keys()]
        files += [f"left over or new {name}" for name in there.keys() - wanted.keys()]
        files += [f"changed {n}" for n in wanted.keys() & there.keys() if wanted[n] != there[n]]
        return differences(self.tables, found.tables) + sorted(files)
