"""Databases as every MLflow since 0.9.1 left them: what is collected goes whole, all else stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import world as put
from tests.mlflow_store import make_old_schema
from tests.program import collect
from tests.servers import Database
from tests.snapshot import differences, read_tables
from tests.world import COLLECTED

REVISIONS = {
    "base": "0.9.1, without a table of revisions",
    "451aebb31d03": "1.0",
    "7ac759974ad8": "1.2, tags of experiments",
    "89d4b8295536": "1.3, latest metrics",
    "2b4d017a5e9b": "1.4, model versions, each with a run",
    "27a6a02d2cf1": "1.10, tags of model versions",
    "bd07f7e963c5": "1.25, indexes on runs",
    "0c779009ac13": "1.28, deletion times of runs",
    "97727af70f4d": "1.29, times of experiments",
    "7f2a7d5fae7d": "2.4, datasets and inputs",
    "acf3f17fdcc7": "2.8, storage locations",
    "867495a8f9d4": "2.13, traces",
    "0584bdc529eb": "2.18, datasets that cascade",
    "6953534de441": "3.0, logged models",
    "770bee3ae1dd": "3.2, assessments",
    "1a0cddfcaa16": "3.3, spans and links",
    "71994744cf8e": "3.4, scorers, evaluation datasets",
    "bf29a5ff90ea": "3.5, jobs",
    "1bd49d398cd23": "3.8, the gateway",
    "d3e4f5a6b7c8": "3.9, online scoring",
    "1b5f0d9ad7c1": "3.10, workspaces",
    "c3d6457b6d8a": "3.11, issues",
    "7d34483879f0": "3.12, guardrails",
    "b7e4c1a90f23": "3.14, label schemas and review queues",
    "6f8d9c3b2a1e": "3.15, traces that cascade",
    "b7e2c1a4d9f3": "3.16",
    "head": "the installed one",
}
ON_SERVERS = ("base", "97727af70f4d", "0584bdc529eb", "1a0cddfcaa16", "1b5f0d9ad7c1")
"""Those that are looked at on servers too, where each takes longer."""


@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
def test_what_any_release_left_is_collected_whole(
    empty_database: Database, revision: str, tmp_path: Path
) -> None:
    collected_whole(empty_database, revision, tmp_path / "artifacts")


@pytest.mark.parametrize("revision", ON_SERVERS)
@pytest.mark.parametrize("server", ["postgresql", "mariadb"], indirect=True)
def test_what_some_releases_left_on_a_server_is_collected_whole(
    empty_database: Database, revision: str, tmp_path: Path
) -> None:
    collected_whole(empty_database, revision, tmp_path / "artifacts")


def collected_whole(database: Database, revision: str, place: Path) -> None:
    """Fill a database of that revision, collect, look at every row and at the files."""
    world = put.filled(make_old_schema(database, revision), place)
    before = read_tables(database)

    collect(database.uri)

    assert differences(world.expected(before), read_tables(database)) == []
    there = {path.name for path in place.rglob("*")}
    assert not there.intersection(COLLECTED)
