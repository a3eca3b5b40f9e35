"""What bad input gets: one clear sentence, a hint, the documented exit code, and nothing deleted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import sqlalchemy as sa

from tests.mlflow_store import RealStore
from tests.program import collect, gcd, gcd_as_nobody, shown
from tests.servers import Mariadb, Postgresql, Sqlite, new_name
from tests.snapshot import Snapshot

USAGE, CONFIG, UNREACHABLE, REFUSED = 2, 10, 12, 14
SECRET = "s3cr3t-p4ss"
IS_ROOT = os.geteuid() == 0

only_sqlite = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
only_servers = pytest.mark.parametrize("server", ["postgresql", "mariadb"], indirect=True)
Done = subprocess.CompletedProcess[str]


def refused(done: Done, code: int, *words: str, hint: bool = True) -> None:
    """The documented exit code, a sentence and a hint on stderr, and no traceback or secret."""
    assert done.returncode == code, shown(done)
    told = done.stderr.strip().splitlines()
    assert told, shown(done)
    assert len(told) <= 8, shown(done)
    assert "Traceback" not in done.stderr + done.stdout, shown(done)
    assert SECRET not in done.stderr + done.stdout
    for word in words:
        assert word.lower() in done.stderr.lower(), shown(done)
    if hint and code != USAGE:
        assert "hint:" in done.stderr, shown(done)


@pytest.fixture
def loaded(store: RealStore) -> Iterator[RealStore]:
    """A store with a deleted run; whatever the test does, nothing of it may change."""
    experiment = store.experiment("e")
    store.run(experiment)
    store.delete(store.run(experiment))
    before = Snapshot.of(store.database, store.root)
    yield store
    assert before.against(Snapshot.of(store.database, store.root)) == []


def cycle(uri: str | None, *arguments: object, **options: object) -> Done:
    """A cycle that would delete everything deleted, if it were not refused."""
    return gcd("gc", "--older-than", "0s", "--yes", *arguments, uri=uri, **options)  # type: ignore[arg-type]


# -- the command line ----------------------------------------------------------------------------


@only_sqlite
@pytest.mark.parametrize(
    "arguments",
    [
        ("--run-ids", ""),
        ("--run-ids", "a,,b"),
        ("--run-ids", "a b"),
        ("--run-ids", "%"),
        ("--run-ids", "../.."),
        ("--older-than", ""),
        ("--older-than", "7 weeks ago"),
        ("--older-than", "inf"),
        ("--older-than=-1d",),
        ("--dry-run", "--wait", "1m"),
        ("--wait", "forever"),
        ("--absent-roots", "maybe"),
        ("--no-such-flag",),
        ("stray",),
    ],
    ids=" ".join,
)
def test_usage_errors(loaded: RealStore, arguments: tuple[str, ...]) -> None:
    refused(cycle(loaded.uri, *arguments), USAGE)


@only_sqlite
def test_dry_run_and_yes_contradict_each_other(loaded: RealStore) -> None:
    refused(cycle(loaded.uri, "--dry-run"), USAGE, "--dry-run")


def test_an_empty_uri_is_refused() -> None:
    refused(gcd("gc", "--yes", "--backend-store-uri", ""), USAGE, "--backend-store-uri")


def test_no_store_at_all_is_refused() -> None:
    done = gcd("gc", "--yes")
    assert done.returncode in (USAGE, CONFIG), shown(done)
    refused(done, done.returncode, "backend-store-uri")


@only_sqlite
def test_unknown_and_active_ids_are_each_told(loaded: RealStore) -> None:
    active = str(
        loaded.database.scalar("SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active'")
    )
    unknown = "0" * 32
    done = cycle(loaded.uri, "--run-ids", f"{unknown},{active}")
    assert done.returncode == 3, shown(done)
    lines = done.stderr.splitlines()
    assert any(unknown in line and "unknown" in line for line in lines), done.stderr
    assert any(active in line and "active" in line for line in lines), done.stderr
    assert gcd("explain", unknown, uri=loaded.uri).returncode == 1
    assert gcd("explain", active, uri=loaded.uri).returncode == 0


# -- the configuration ---------------------------------------------------------------------------


@only_sqlite
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[purge]\nbatch_rows = 'many'\nbatch_runz = 3\n",
            ("purge.batch_rows", "purge.batch_runz"),
        ),
        ("[purge]\nbatch_runs = 0\n", ("purge.batch_runs",)),
        ("[retention]\nolder_than = '30'\n", ("retention.older_than",)),
        ("[nonsense]\nx = 1\n", ("nonsense",)),
        ("purge = [[[", ()),
        ("\udcff", ()),
    ],
    ids=["two problems", "zero", "age", "section", "no TOML", "no UTF-8"],
)
def test_a_wrong_configuration_is_told_all_at_once(
    loaded: RealStore, tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    path = tmp_path / "gcd.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    refused(cycle(loaded.uri, "--config", path), CONFIG, *words, hint=False)


@only_sqlite
def test_a_configuration_that_is_not_there(loaded: RealStore, tmp_path: Path) -> None:
    refused(cycle(loaded.uri, "--config", tmp_path / "none.toml"), CONFIG, "none.toml", hint=False)
    refused(cycle(loaded.uri, "--config", tmp_path), CONFIG, hint=False)
    refused(cycle(loaded.uri, env={"GCD_CONFIG": "/nowhere/gcd.toml"}), CONFIG, hint=False)


@only_sqlite
def test_a_wrong_environment_is_told_with_its_key(loaded: RealStore) -> None:
    done = cycle(loaded.uri, env={"GCD_PURGE__BATCH_ROWS": "many"})
    refused(done, CONFIG, "batch_rows", hint=False)
    done = cycle(loaded.uri, env={"GCD_PURGE__BATCH_RUNZ": "1"})
    refused(done, CONFIG, "batch_runz", hint=False)


# -- the database that is not there --------------------------------------------------------------


@pytest.mark.parametrize("command", ["gc", "plan", "init", "doctor"])
def test_a_missing_file_is_not_made(tmp_path: Path, command: str) -> None:
    path = tmp_path / "none.db"
    done = gcd(command, uri=f"sqlite:///{path}")
    assert done.returncode != 0, shown(done)
    assert "Traceback" not in done.stderr
    assert "none.db" in done.stderr + done.stdout
    assert not path.exists()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    # Perhaps its disk is not mounted yet: a service may try again.
    refused(cycle(f"sqlite:///{tmp_path}/none.db"), UNREACHABLE, "none.db")
    (tmp_path / "empty.db").touch()
    refused(cycle(f"sqlite:///{tmp_path}/empty.db"), REFUSED)
    assert (tmp_path / "empty.db").stat().st_size == 0
    (tmp_path / "text.db").write_text("this is no database, but a text of some length\n" * 40)
    refused(cycle(f"sqlite:///{tmp_path}/text.db"), REFUSED)


@pytest.mark.parametrize(
    "uri",
    [
        f"postgresql://ann:{SECRET}@127.0.0.1:1/mlflow",
        f"mysql+pymysql://ann:{SECRET}@127.0.0.1:1/mlflow",
    ],
)
def test_a_server_that_does_not_answer_is_unreachable(uri: str) -> None:
    refused(cycle(uri), UNREACHABLE)
    refused(gcd("plan", uri=uri), UNREACHABLE)


@only_servers
def test_a_database_that_does_not_exist_is_refused(loaded: RealStore) -> None:
    uri = loaded.uri.replace(loaded.database.name, new_name())
    refused(cycle(uri), REFUSED)


def test_an_empty_database_is_refused(empty_database) -> None:  # type: ignore[no-untyped-def]
    empty_database.rows("SELECT 1")
    refused(cycle(empty_database.uri), REFUSED, "empty")


def test_a_database_of_something_else_is_refused(empty_database) -> None:  # type: ignore[no-untyped-def]
    empty_database.execute(
        "CREATE TABLE runs (id INTEGER PRIMARY KEY, lifecycle_stage VARCHAR(20))",
        "INSERT INTO runs VALUES (1, 'deleted')",
    )
    refused(cycle(empty_database.uri), REFUSED, "MLflow")
    assert empty_database.rows("SELECT id FROM runs") == [(1,)]


@pytest.mark.parametrize(
    "uri",
    [
        "./mlruns",
        "/srv/mlruns",
        "file:///srv/mlruns",
        "http://127.0.0.1:5000",
        "databricks",
        "oracle://u@127.0.0.1/x",
        "sqlite://",
        f"postgresql://ann:{SECRET}@127.0.0.1:notaport/x",
    ],
)
def test_a_uri_of_something_else_is_refused(uri: str) -> None:
    refused(cycle(uri), REFUSED)


# -- who may what --------------------------------------------------------------------------------


@contextmanager
def role(store: RealStore, *grants: str) -> Iterator[str]:
    """A user of the server with these rights; yields the store's URI for it."""
    server, name = store.keeper.server, new_name()
    if isinstance(server, Postgresql):
        server.admin(f"CREATE ROLE {name} LOGIN PASSWORD '{SECRET}'")
        store.sql(*(grant.format(role=name) for grant in grants))
        host = server.host
        gone = f"DROP ROLE {name}"
    else:
        assert isinstance(server, Mariadb)
        hosts = ("localhost", "127.0.0.1")
        server.admin(*(f"CREATE USER {name}@'{h}' IDENTIFIED BY '{SECRET}'" for h in hosts))
        server.admin(
            *(
                grant.format(role=f"{name}@'{h}'", db=store.database.name)
                for h in hosts
                for grant in grants
            )
        )
        host = "127.0.0.1:3306"
        gone = f"DROP USER {', '.join(f'{name}@{h!r}' for h in hosts)}"
    driver = "postgresql" if isinstance(server, Postgresql) else "mysql+pymysql"
    try:
        yield f"{driver}://{name}:{SECRET}@{host}/{store.database.name}"
    finally:
        if isinstance(server, Postgresql):
            store.sql(f"DROP OWNED BY {name}")
        server.admin(gone)


def read_grants(store: RealStore) -> tuple[str, ...]:
    """What lets a role read the store and nothing else."""
    if store.database.dialect == "postgresql":
        return (
            "GRANT USAGE ON SCHEMA public TO {role}",
            "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}",
        )
    return ("GRANT SELECT ON {db}.* TO {role}",)


@only_servers
def test_a_wrong_password_is_refused_and_never_shown(loaded: RealStore) -> None:
    with role(loaded, *read_grants(loaded)) as uri:
        wrong = uri.replace(SECRET, SECRET + "-wrong")
        for command in (("gc", "--yes"), ("plan",), ("doctor",), ("--debug", "plan")):
            words = [*command, "--backend-store-uri", wrong]
            done = gcd(*words)
            assert SECRET not in done.stdout + done.stderr, shown(done)
        if loaded.database.dialect == "mariadb":  # PostgreSQL trusts us here, whatever we say
            refused(cycle(wrong), REFUSED)
        refused(cycle(wrong.replace("gcd_test_", "nobody_", 1)), REFUSED)


@only_servers
def test_a_role_without_create_is_told_the_way_out(loaded: RealStore) -> None:
    with role(loaded, *read_grants(loaded)) as uri:
        refused(cycle(uri), REFUSED, "gcd init --sql")
        done = gcd("plan", "--older-than", "0s", uri=uri)
        assert done.returncode == 0, shown(done)
        assert SECRET not in done.stdout + done.stderr


@only_servers
def test_a_role_without_delete_purges_nothing(store: RealStore) -> None:
    experiment = store.experiment("e")
    store.run(experiment)
    run = store.run(experiment)
    store.delete(run)
    assert gcd("init", uri=store.uri).returncode == 0
    before = Snapshot.of(store.database, store.root)
    own = [
        str(name)
        for (name,) in store.database.rows(
            "SELECT table_name FROM information_schema.tables"
            " WHERE table_name LIKE 'alembic_gcd%' AND table_schema IN ('public', :name)",
            name=store.database.name,
        )
    ]
    where = "{db}." if store.database.dialect == "mariadb" else ""
    every = [f"GRANT SELECT, INSERT, UPDATE, DELETE ON {where}{name} TO {{role}}" for name in own]
    if store.database.dialect == "postgresql":
        every.append("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}")
        every.append("GRANT UPDATE ON runs TO {role}")  # or nothing could be locked
    else:
        every.append("GRANT UPDATE ON {db}.runs TO {role}")
    with role(store, *read_grants(store), *every) as uri:
        refused(cycle(uri), REFUSED, "grant")
        doctor = gcd("doctor", uri=uri)
        assert "GRANT" in doctor.stdout + doctor.stderr, shown(doctor)
        assert "DELETE" in doctor.stdout + doctor.stderr, shown(doctor)
    assert before.against(Snapshot.of(store.database, store.root)) == []
    store.restore(run)


@only_servers
def test_what_init_prints_is_enough_to_collect(store: RealStore) -> None:
    run = store.run(store.experiment("e"))
    store.delete(run)
    with role(store, *read_grants(store)) as uri:
        name = sa.make_url(uri).username
        printed = gcd("init", "--sql", "--role", str(name), uri=store.uri)
        assert printed.returncode == 0, shown(printed)
        statements = [s for s in printed.stdout.split(";\n") if s.strip(" ;\n")]
        if store.database.dialect == "mariadb":
            both = ("localhost", "127.0.0.1")
            statements = [
                each.replace(f"TO {name}", f"TO {name}@'{host}'")
                for each in statements
                for host in (both if each.lstrip().startswith("GRANT") else both[:1])
            ]
        with store.database.begin() as conn:
            for statement in statements:
                conn.exec_driver_sql(statement.replace("%", "%%").rstrip("; \n"))
        done = gcd("gc", "--older-than", "0s", "--yes", uri=uri)
        assert done.returncode == 0, shown(done)
    assert not store.exists(run)


# -- media that cannot be written ----------------------------------------------------------------


@pytest.mark.parametrize("server", ["postgresql"], indirect=True)
def test_a_read_only_server_is_refused(loaded: RealStore) -> None:
    name = loaded.database.name
    loaded.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    try:
        refused(cycle(loaded.uri), REFUSED)
        assert gcd("plan", uri=loaded.uri).returncode == 0
    finally:
        with suppress(AttributeError):
            loaded.keeper.server.admin(f"ALTER DATABASE {name} RESET ALL")  # type: ignore[attr-defined]


@contextmanager
def elsewhere(store: RealStore, *, size: str) -> Iterator[tuple[Path, str]]:
    """The SQLite store's file on a file system of its own, and the URI there."""
    assert isinstance(store.keeper.server, Sqlite)
    with TemporaryDirectory(prefix="gcd-medium-") as folder:
        Path(folder).chmod(0o755)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", folder]
        if not IS_ROOT or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("no right to mount here")
        try:
            path = Path(folder) / "store.db"
            path.write_bytes(store.keeper.server.path(store.database).read_bytes())
            yield path, f"sqlite:///{path}"
        finally:
            subprocess.run(["umount", folder], check=True)


@only_sqlite
@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_read_only_medium_is_refused(loaded: RealStore, mode: str) -> None:
    with elsewhere(loaded, size="16m") as (path, uri):
        engine = sa.create_engine(uri, poolclass=sa.pool.NullPool)
        with engine.connect() as conn:
            conn.exec_driver_sql(f"PRAGMA journal_mode = {mode}")
        before = path.read_bytes()
        subprocess.run(["mount", "-o", "remount,ro", str(path.parent)], check=True)
        done = cycle(uri)
        assert done.returncode in (UNREACHABLE, REFUSED), shown(done)
        refused(done, done.returncode)
        planned = gcd("plan", "--older-than", "0s", uri=uri)
        assert planned.returncode in (0, UNREACHABLE, REFUSED), shown(planned)
        if planned.returncode:
            refused(planned, planned.returncode)
        assert path.read_bytes() == before


@only_sqlite
def test_a_file_that_may_only_be_read_is_refused(loaded: RealStore) -> None:
    assert isinstance(loaded.keeper.server, Sqlite)
    path = loaded.keeper.server.path(loaded.database)
    path.chmod(0o444)
    try:
        run = gcd_as_nobody if IS_ROOT else gcd
        done = run("gc", "--older-than", "0s", "--yes", uri=loaded.uri)
        refused(done, REFUSED)
        planned = run("plan", "--older-than", "0s", uri=loaded.uri)
        assert planned.returncode in (0, 3), shown(planned)
    finally:
        path.chmod(0o644)


@only_sqlite
def test_a_full_disk_deletes_nothing(loaded: RealStore) -> None:
    with elsewhere(loaded, size="3m") as (path, uri):
        assert gcd("init", uri=uri).returncode == 0
        filler = path.with_name("filler")
        with suppress(OSError), filler.open("wb", buffering=0) as out:
            while True:
                out.write(b"\0" * 4096)
        refused(cycle(uri), UNREACHABLE, "full")
        engine = sa.create_engine(uri, poolclass=sa.pool.NullPool)
        with engine.connect() as conn:
            count = "SELECT COUNT(*) FROM runs WHERE lifecycle_stage = 'deleted'"
            assert conn.exec_driver_sql(count).scalar() == 1
        filler.unlink()
        collected = cycle(uri)
        assert collected.returncode in (0, 3), shown(collected)
        # Its files were those of the store that this is a copy of: put them back.
        loaded.root.mkdir(exist_ok=True)
        restore_files(loaded)


def restore_files(store: RealStore) -> None:
    """Write what `loaded` had in its deleted run."""
    deleted = store.database.rows("SELECT run_uuid FROM runs WHERE lifecycle_stage = 'deleted'")
    from tests.mlflow_store import FILES

    store.write(str(deleted[0][0]), FILES)


@only_sqlite
def test_a_trigger_that_nobody_knows_is_refused(loaded: RealStore) -> None:
    loaded.sql(
        "CREATE TABLE audit (run VARCHAR(32))",
        "CREATE TRIGGER audit_runs AFTER DELETE ON runs BEGIN"
        " INSERT INTO audit VALUES (old.run_uuid); END",
    )
    try:
        refused(cycle(loaded.uri), REFUSED, "audit_runs")
    finally:
        loaded.sql("DROP TRIGGER audit_runs", "DROP TABLE audit")


@only_sqlite
def test_a_newer_gcds_tables_are_refused(store: RealStore) -> None:
    run = store.run(store.experiment("e"))
    store.delete(run)
    assert gcd("init", uri=store.uri).returncode == 0
    store.sql("UPDATE alembic_gcd_meta SET value = '999' WHERE name = 'version'")
    refused(cycle(store.uri), REFUSED, "999")
    assert store.exists(run)
    store.sql("UPDATE alembic_gcd_meta SET value = '1' WHERE name = 'version'")
    collect(store.uri)
    assert not store.exists(run)
