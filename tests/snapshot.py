"""A picture of a store: every row of every table, every file; and what a purge must make of it.

The expectation is written here on its own, from MLflow's tables; it shares nothing with gcd.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tests.servers import Database

OWN = "alembic_gcd_"
Row = dict[str, Any]
Tables = dict[str, list[Row]]
SOURCE_RUN = "mlflow.assessment.sourceRunId"


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


# -- what a purge must make of it ----------------------------------------------------------------


def without_runs(tables: Tables, runs: Collection[str]) -> Tables:
    """The rows as they must be once these runs are purged."""
    ids = set(runs)
    dead_inputs = {row["input_uuid"] for row in tables.get("inputs", []) if is_input(row, ids)}
    return {
        name: [
            cleared(name, row, ids)
            for row in rows
            if not belongs(name, row, ids) and row.get("input_uuid") not in dead_inputs
        ]
        for name, rows in tables.items()
    }


def is_input(row: Row, ids: Collection[str]) -> bool:
    """Whether a row of `inputs` is one of the runs' inputs or outputs."""
    return (row["destination_type"] == "RUN" and row["destination_id"] in ids) or (
        row["source_type"] in ("RUN_INPUT", "RUN_OUTPUT") and row["source_id"] in ids
    )


def by_column(column: str) -> Callable[[Row, Collection[str]], bool]:
    """The row belongs to the run that the column names."""
    return lambda row, ids: row[column] in ids


BELONGS: dict[str, Callable[[Row, Collection[str]], bool]] = {
    **{name: by_column("run_uuid") for name in ("runs", "metrics", "latest_metrics", "params")},
    "tags": by_column("run_uuid"),
    "logged_model_metrics": by_column("run_id"),
    "entity_associations": lambda row, ids: any(
        row[f"{side}_type"] == "run" and row[f"{side}_id"] in ids
        for side in ("source", "destination")
    ),
    "trace_request_metadata": lambda row, ids: (
        row["key"] == "mlflow.sourceRun" and row["value"] in ids
    ),
    "assessments": lambda row, ids: member(row["assessment_metadata"], SOURCE_RUN) in ids,
}


def belongs(name: str, row: Row, ids: Collection[str]) -> bool:
    """Whether the row goes with the runs."""
    return name in BELONGS and BELONGS[name](row, ids)


def member(value: Any, name: str) -> Any:
    """A member of a JSON object, however the driver gives it."""
    return (json.loads(value) if isinstance(value, str) else value or {}).get(name)


def cleared(name: str, row: Row, ids: Collection[str]) -> Row:
    """A row that stays, without its pointers to the runs."""
    new = dict(row)
    for table, column in (("assessments", "run_id"), ("issues", "source_run_id")):
        if name == table and row[column] in ids:
            new[column] = None
    is_list = name in ("registered_model_tags", "model_version_tags")
    if is_list and row["key"] == "mlflow.prompt.associatedRunIds":
        new["value"] = ",".join(part for part in row["value"].split(",") if part not in ids)
    return new


ALLOWED = {
    ("logged_models", "source_run_id"),
    ("tags", "value"),
    ("params", "value"),
    ("experiment_tags", "value"),
    ("trace_tags", "value"),
    ("spans", "content"),
    ("jobs", "params"),
    ("jobs", "result"),
    # A deleted version's place of storage stays as MLflow left it.
    ("model_versions", "storage_location"),
}
"""Rows of what stays that merely name a run: text, and the two pointers that gcd leaves by design."""


def mentions(tables: Tables, runs: Collection[str]) -> list[str]:
    """Every value anywhere that still names one of the runs, those that may apart."""
    return [
        f"{name}.{column} = {text[:200]}"
        for name, rows in tables.items()
        for row in rows
        for column, value in row.items()
        if value is not None and (name, column) not in ALLOWED
        for text in [value if isinstance(value, str) else json.dumps(value, default=str)]
        if any(run in text for run in runs)
    ]


# -- files ---------------------------------------------------------------------------------------


def read_files(root: Path) -> dict[str, str]:
    """Every file, folder and link below the root, with what is in it."""
    return dict(walk(root, root))


def walk(root: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """The entries of a folder, its folders opened; links are not followed."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = str(Path(entry.path).relative_to(root))
        if entry.is_symlink():
            yield name, "link to " + os.readlink(entry.path)
        elif entry.is_dir(follow_symlinks=False):
            yield name, "folder"
            yield from walk(root, Path(entry.path))
        else:
            info = entry.stat(follow_symlinks=False)
            content = hashlib.sha256(Path(entry.path).read_bytes()).hexdigest()
            yield name, f"{stat.filemode(info.st_mode)} {info.st_size} {content}"


def without_trees(files: Mapping[str, str], runs: Collection[str]) -> dict[str, str]:
    """The files as they must be once the runs' trees are swept: nothing under their ids remains."""
    return {
        name: what for name, what in files.items() if not set(Path(name).parts).intersection(runs)
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

    def without(self, runs: Collection[str]) -> Snapshot:
        """What has to be left when these runs are collected."""
        return Snapshot(without_runs(self.tables, runs), without_trees(self.files, runs))

    def against(self, found: Snapshot) -> list[str]:
        """What `found` has otherwise, empty folders apart."""
        wanted, there = without_empty(self.files), without_empty(found.files)
        files = [f"lost {name}" for name in wanted.keys() - there.keys()]
        files += [f"left over or new {name}" for name in there.keys() - wanted.keys()]
        files += [f"changed {n}" for n in wanted.keys() & there.keys() if wanted[n] != there[n]]
        return differences(self.tables, found.tables) + sorted(files)
