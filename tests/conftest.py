"""What every test gets: no network, no stray environment, databases, and stores made by MLflow."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.guard import sitecustomize as guard
from tests.servers import DIALECTS, Database, Keeper, opened

if TYPE_CHECKING:
    from tests.mlflow_store import RealStore
    from tests.object_servers import ObjectServer

HERE = Path(__file__).parent
ORDER = ("unit", "contract", "integration", "acceptance")
SETTINGS = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_GCE_CHECK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported: MLflow reads its environment early."""
    for name in list(os.environ):
        if name.startswith(("GCD_", "MLFLOW_", "AZURE_")) and not name.startswith("GCD_TEST_"):
            del os.environ[name]
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each start of gcd compiles it anew
    os.environ.update(SETTINGS)
    os.environ["PYTHONPATH"] = str(HERE / "guard")
    os.umask(0o022)  # gcd reads no configuration that others may write
    guard.install()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`: one more than there are processors, since many tests wait for something."""
    return (
        len(os.sched_getaffinity(0)) + 1
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first; MLflow's own warnings are not ours to turn into errors."""

    def place(item: pytest.Item) -> int:
        parts = item.path.relative_to(HERE).parts
        return ORDER.index(parts[0]) if parts[0] in ORDER else len(ORDER)

    items.sort(key=place)
    for item in items:
        if {"store", "schema", "database"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What is captured may be no Unicode, on purpose; between processes only Unicode travels."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """A test leaves the environment as it found it, also where MLflow changed it."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before) - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update({k: v for k, v in before.items() if k != "PYTEST_CURRENT_TEST"})


@pytest.fixture(autouse=True)
def _no_store_stays_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stores that a test opened in this process are closed: `select` knows a thousand descriptors."""
    module = sys.modules.get("gcd.artifacts.object_store")
    if module is None:
        yield
        return
    kind, opened = module.ObjectArtifactStore, []
    begin = kind.__init__

    def noted(self: Any, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        opened.append(self)

    monkeypatch.setattr(kind, "__init__", noted)
    yield
    for each in opened:
        if hasattr(each, "session"):  # else its credentials were refused
            each.close()


@pytest.fixture(scope="session", params=DIALECTS)
def server(request: pytest.FixtureRequest) -> Iterator[Keeper]:
    """Each kind of database in turn."""
    with opened(request.param) as keeper:
        yield keeper


@pytest.fixture(scope="session")
def schema(server: Keeper) -> Database:
    """A database with MLflow's current schema, made by MLflow once; copy it, never write to it."""
    from tests.mlflow_store import make_schema

    return make_schema(server.create())


@pytest.fixture
def empty_database(server: Keeper) -> Iterator[Database]:
    """A database with nothing in it."""
    with server.passing():
        yield server.create()


@pytest.fixture
def database(server: Keeper, schema: Database) -> Iterator[Database]:
    """A database of its own with MLflow's current schema."""
    with server.passing():
        yield server.copy(schema)


@pytest.fixture
def store(server: Keeper, database: Database, tmp_path: Path) -> Iterator[RealStore]:
    """An empty MLflow store: database and artifact folder."""
    from tests.mlflow_store import RealStore, release

    yield RealStore(server, database, tmp_path / "artifacts")
    release(database.uri)


@pytest.fixture(scope="session", params=("moto", "seaweedfs", "radosgw"))
def objects(request: pytest.FixtureRequest) -> Iterator[ObjectServer]:
    """Each object server in turn."""
    from tests.object_servers import SERVERS

    with SERVERS[request.param]() as started:
        yield started


@pytest.fixture(scope="session")
def gcs() -> Iterator[str]:
    """The URL of Google Cloud Storage's emulator."""
    from tests.gcs_server import emulator

    with emulator() as url:
        yield url


def pytest_report_header() -> str:
    """Which servers there are."""
    from tests.servers import find_mariadb, find_postgresql

    found = [f if isinstance(f, str) else f.dialect for f in (find_postgresql(), find_mariadb())]
    return f"databases: sqlite, {', '.join(found)} (python {sys.version.split()[0]})"
