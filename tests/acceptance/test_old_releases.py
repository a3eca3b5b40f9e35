"""Stores that real old releases of MLflow wrote: collected right, and still theirs afterwards.

Each release is installed with pip into a virtual environment of its own; GCD_TEST_RELEASES names a
folder that keeps them from one time to the next.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.mlflow_store import make_old_schema
from tests.program import collect, gcd
from tests.servers import Database, Keeper
from tests.snapshot import Snapshot

SCRIPT = Path(__file__).parents[1] / "old_release.py"
RELEASES = ("1.30.1", "2.0.1", "2.9.2", "2.14.3", "2.22.0", "3.1.4", "3.6.0")
OTHERS = {"1.30.1": (), "2.0.1": ()}
"""What a release needs besides the databases' drivers: some import no newer SQLAlchemy."""
NEWER = ("2.22.0", "3.6.0")
"""Releases that must refuse, or not, what older ones made, with gcd's tables as without."""
VERSION = "SELECT version_num FROM alembic_version"

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore")]


@cache
def installed(release: str) -> Path | str:
    """The Python of a release's virtual environment, made if need be; or why there is none."""
    kept = os.environ.get("GCD_TEST_RELEASES") or tempfile.mkdtemp(prefix="gcd-releases-")
    folder = Path(kept) / release
    python = folder / "bin" / "python"
    if (folder / "ok").exists():
        return python
    wanted = [f"mlflow=={release}", "psycopg2-binary", "pymysql", "setuptools<81"]
    wanted += OTHERS.get(release, ("SQLAlchemy<2.1",))
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", *wanted],
    ):
        done = subprocess.run(command, capture_output=True, text=True, env=plain(), check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no word"])[-1]
            return f"MLflow {release} cannot be installed here: {last[:200]}"
    (folder / "ok").touch()
    return python


def plain() -> dict[str, str]:
    """The environment without these tests' own modules, which the releases' Pythons must not see."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def guarded() -> dict[str, str]:
    """The same with the guard that refuses addresses other than loopback."""
    return {**plain(), "PYTHONPATH": str(SCRIPT.parent / "guard")}


def called(
    release: str, what: str, database: Database, place: Path
) -> subprocess.CompletedProcess[str]:
    """Let a release do something with a store."""
    python = installed(release)
    if isinstance(python, str):
        pytest.skip(python)
    place.mkdir(parents=True, exist_ok=True)
    command = [str(python), str(SCRIPT), what, database.uri, str(place)]
    return subprocess.run(command, capture_output=True, text=True, env=guarded(), check=False)


def told(release: str, what: str, database: Database, place: Path) -> dict[str, Any]:
    """What the release answers; it has to succeed."""
    done = called(release, what, database, place)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("release", RELEASES)
def test_what_an_old_release_wrote_is_collected_and_it_goes_on_using_the_rest(
    empty_database: Database, release: str, tmp_path: Path
) -> None:
    place = tmp_path / "artifacts"
    made = told(release, "make", empty_database, place)
    before = Snapshot.of(empty_database, place)

    collect(empty_database.uri)
    assert before.without(made["gone"]).against(Snapshot.of(empty_database, place)) == []

    used = told(release, "use", empty_database, place)
    before = Snapshot.of(empty_database, place)
    collect(empty_database.uri)
    assert before.without(used["gone"]).against(Snapshot.of(empty_database, place)) == []
    told(release, "use", empty_database, place)

    # And on to the newest, with gcd's tables inside, as an operator does it.
    upgraded(empty_database)
    before = Snapshot.of(empty_database, place)
    gone = [row[0] for row in empty_database.rows(DELETED)]
    collect(empty_database.uri)
    after = Snapshot.of(empty_database, place)
    assert before.without([str(each) for each in gone]).against(after) == []


DELETED = "SELECT experiment_id FROM experiments WHERE lifecycle_stage = 'deleted'"


def upgraded(database: Database) -> None:
    """`mlflow db upgrade` by the installed release, which then starts on it."""
    for code in (
        ["-m", "mlflow", "db", "upgrade", database.uri],
        ["-c", f"import mlflow; mlflow.MlflowClient({database.uri!r}).search_experiments()"],
    ):
        done = subprocess.run([sys.executable, *code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]


REFUSED = ("5b0e9adcef9c", "2.22.0")
"""A database with all the tables of a release of 2.x that is newer, and with an older revision."""


@pytest.mark.parametrize("newer", NEWER)
@pytest.mark.parametrize("revision", ["97727af70f4d", "acf3f17fdcc7", "5b0e9adcef9c"])
def test_a_newer_release_does_with_gcds_tables_what_it_does_without(
    server: Keeper, newer: str, revision: str, tmp_path: Path
) -> None:
    with server.passing():
        bare = make_old_schema(server.create(), revision)
        ours = server.copy(bare)
        assert gcd("init", uri=ours.uri).returncode == 0
        told_of = []
        for database in (bare, ours):
            done = called(newer, "start", database, tmp_path)
            said = done.stderr.replace(ours.name, bare.name).strip().rpartition("\n")[2]
            told_of.append((database.scalar(VERSION), done.returncode, done.returncode and said))
    assert told_of[0] == told_of[1]
    if (revision, newer) == REFUSED:
        at, status, why = told_of[1]
        assert (at, status) == (revision, 1)
        assert "out-of-date database schema" in str(why)
    else:  # it lacks tables, or is older than what this release refuses: brought up to date
        assert told_of[1][1] == 0
