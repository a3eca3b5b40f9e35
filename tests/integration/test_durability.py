"""A committed purge survives what the server makes of it, and an open one is in nobody's way."""

from __future__ import annotations

import json
import time

import pytest

from gcd.store.connection import IDLE_IN_TRANSACTION, writing
from gcd.store.tracking import TrackingStore
from tests.mlflow_store import RealStore
from tests.program import collect, gcd, report, shown
from tests.snapshot import Snapshot
from tests.stopper import CONFIRM, PURGE, Moment, resumed, stopped

CYCLE = ("gc", "--older-than", "0s", "--yes")
ON_SQLITE = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("server", ["postgresql"], indirect=True)
ON_MARIADB = pytest.mark.parametrize("server", ["mariadb"], indirect=True)
WITH_ROW_LOCKS = pytest.mark.parametrize("server", ["postgresql", "mariadb"], indirect=True)


def deleted_run(store: RealStore) -> str:
    """A deleted run beside a live one; gcd's tables are there."""
    experiment = store.experiment("e")
    store.run(experiment)
    run = store.run(experiment)
    store.delete(run)
    assert gcd("init", uri=store.uri).returncode == 0
    return run


# -- PostgreSQL ----------------------------------------------------------------------------------


@ON_POSTGRESQL
def test_a_purge_is_durable_whatever_the_databases_default(store: RealStore) -> None:
    """A trigger on gcd's own journal notes the settings of the transaction that purges."""
    run = deleted_run(store)
    settings = (
        "synchronous_commit",
        "transaction_isolation",
        "idle_in_transaction_session_timeout",
    )
    values = ", ".join(f"current_setting('{name}')" for name in settings)
    store.sql(
        "CREATE TABLE noted (synchronous text, isolation text, idle text)",
        f"CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN INSERT INTO noted SELECT {values}; RETURN NEW; END $$",
        "CREATE TRIGGER note AFTER INSERT ON alembic_gcd_journal"
        " FOR EACH ROW EXECUTE FUNCTION note()",
        f"ALTER DATABASE {store.database.name} SET synchronous_commit = off",
        f"ALTER DATABASE {store.database.name} SET default_transaction_isolation = 'serializable'",
    )
    assert store.database.scalar("SHOW synchronous_commit") == "off"
    assert store.database.scalar("SHOW transaction_isolation") == "serializable"

    collect(store.uri)

    assert not store.exists(run)
    idle = f"{IDLE_IN_TRANSACTION.seconds}s"
    assert store.database.rows("SELECT * FROM noted") == [("on", "read committed", idle)]


@ON_POSTGRESQL
def test_every_transaction_that_writes_is_durable(store: RealStore) -> None:
    """Also that which settles: files must not come back as due, nor holds be forgotten."""
    deleted_run(store)
    store.sql(f"ALTER DATABASE {store.database.name} SET synchronous_commit = off")
    tracking = TrackingStore(store.uri, read_only=False)
    with writing(tracking.engine) as conn:
        assert conn.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
    tracking.close()


# -- MariaDB -------------------------------------------------------------------------------------


@ON_MARIADB
def test_a_purge_reads_what_is_committed(store: RealStore) -> None:
    run = deleted_run(store)
    store.sql(
        "CREATE TABLE noted (isolation VARCHAR(30), idle INT, patience INT)",
        "CREATE TRIGGER note AFTER INSERT ON alembic_gcd_journal FOR EACH ROW"
        " INSERT INTO noted VALUES (@@SESSION.tx_isolation, @@SESSION.idle_transaction_timeout,"
        " @@SESSION.innodb_lock_wait_timeout)",
    )
    assert store.database.scalar("SELECT @@SESSION.tx_isolation") == "REPEATABLE-READ"

    collect(store.uri)

    assert not store.exists(run)
    ((isolation, idle, patience),) = store.database.rows("SELECT * FROM noted")
    assert isolation == "READ-COMMITTED"
    assert idle == IDLE_IN_TRANSACTION.seconds
    assert int(str(patience)) < IDLE_IN_TRANSACTION.seconds


# -- what READ COMMITTED is for ------------------------------------------------------------------


@WITH_ROW_LOCKS
def test_what_is_committed_after_the_runs_were_locked_is_seen(store: RealStore) -> None:
    run = deleted_run(store)
    tree = store.root / "e" / run / "artifacts"
    with stopped(
        Moment("before", "statement", CONFIRM), *CYCLE, "--json", uri=store.uri
    ) as process:
        store.version("classifier", (tree / "model").as_uri())
        done = resumed(process)
    assert done.returncode == 0, shown(done)
    assert json.loads(done.stdout)["kept"] == {"registered": 1}
    assert store.exists(run)
    assert (tree / "model" / "weights.bin").exists()


@WITH_ROW_LOCKS
def test_a_purge_that_is_open_is_in_nobodys_way(store: RealStore) -> None:
    deleted = deleted_run(store)
    with stopped(Moment("before", "commit", PURGE), *CYCLE, uri=store.uri) as process:
        began = time.monotonic()
        experiment = store.client.get_experiment_by_name("e").experiment_id
        for _ in range(3):
            run = store.run(experiment, dataset="d")
            store.client.log_metric(run, "more", 1.0)
        other = store.run(store.experiment("other"))
        store.delete(run)
        store.restore(run)
        assert time.monotonic() - began < 25
        expected = Snapshot.of(store.database, store.root).without([deleted])
        done = resumed(process)
    assert done.returncode == 0, shown(done)
    assert expected.against(Snapshot.of(store.database, store.root)) == []
    assert store.runs().issuperset({run, other})


# -- SQLite --------------------------------------------------------------------------------------


@ON_SQLITE
@pytest.mark.parametrize(("mode", "least"), [("delete", 3), ("wal", 2)])
def test_a_purge_is_on_the_disk_when_it_is_committed(
    store: RealStore, mode: str, least: int
) -> None:
    """In mode DELETE a commit removes the journal, and only EXTRA (3) writes that removal to disk.

    After FULL (2) a power failure can bring the journal back, and with it rows whose files are gone.
    """
    deleted_run(store)
    assert store.database.scalar(f"PRAGMA journal_mode = {mode}") == mode
    tracking = TrackingStore(store.uri, read_only=False)
    with writing(tracking.engine) as conn:
        assert conn.exec_driver_sql("PRAGMA journal_mode").scalar() == mode
        assert int(conn.exec_driver_sql("PRAGMA synchronous").scalar_one()) >= least
    tracking.close()
    assert report(store.uri)["purged"]["run"] == 1
