"""Schemas in an odd state and rows in an odd shape: migrations that are under way, stamps, leftovers."""

from __future__ import annotations

import pytest

from tests.mlflow_store import (
    DAY,
    RealStore,
    make_old_schema,
    now_ms,
    release,
    tracking_store,
    upgrade,
)
from tests.program import collect, decisions, gcd, shown
from tests.servers import Database, Keeper
from tests.snapshot import Snapshot
from tests.stopper import Moment, resumed, stopped

REFUSED = 14
VERSION = "SELECT version_num FROM alembic_version"
CYCLE = ("gc", "--older-than", "0s", "--yes")
only_sqlite = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
only_servers = pytest.mark.parametrize("server", ["postgresql", "mariadb"], indirect=True)


def look(store: RealStore) -> Snapshot:
    """The store as it is."""
    return Snapshot.of(store.database, store.root)


# -- migrations --------------------------------------------------------------------------------------


HALF: dict[str, tuple[str, str]] = {
    "DELETE FROM alembic_version": (
        "INSERT INTO alembic_version VALUES ('dc11669786a5')",
        "no row",
    ),
    "INSERT INTO alembic_version VALUES ('0584bdc529eb')": (
        "DELETE FROM alembic_version WHERE version_num = '0584bdc529eb'",
        "2 rows",
    ),
    "CREATE TABLE _alembic_tmp_runs (run_uuid VARCHAR(32))": (
        "DROP TABLE _alembic_tmp_runs",
        "_alembic_tmp_runs",
    ),
}
"""What is done to a schema: what undoes it, and what is told of it."""


def test_a_half_finished_migration_is_refused(store: RealStore) -> None:
    store.delete(store.run(store.experiment("e")))
    before = look(store)
    for statement, (undone, told) in HALF.items():
        store.sql(statement)
        done = gcd(*CYCLE, uri=store.uri)
        store.sql(undone)
        assert done.returncode == REFUSED, shown(done)
        assert told in done.stderr
        assert "mlflow db upgrade" in done.stderr
    assert before.tables["runs"] == look(store).tables["runs"]
    assert before.files == look(store).files


def test_a_revision_that_nobody_has_seen_is_collected_and_told(store: RealStore) -> None:
    run = store.run(store.experiment("e"))
    store.delete(run)
    store.sql(
        "UPDATE alembic_version SET version_num = 'ffffffffffff'",
        "ALTER TABLE runs ADD COLUMN news INTEGER",
        "CREATE TABLE novelties (id INTEGER PRIMARY KEY)",
    )
    before = look(store)
    for command in (("plan",), ("doctor",), CYCLE):
        done = gcd(*command, uri=store.uri)
        assert done.returncode == 0, shown(done)
        assert "ffffffffffff is one that this gcd has not seen" in done.stdout, shown(done)
    assert before.without([run]).against(look(store)) == []


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE alembic_version SET version_num = 'ffffffffffff'",
        "CREATE TABLE late (run VARCHAR(32), FOREIGN KEY (run) REFERENCES runs (run_uuid))",
        "ALTER TABLE params ADD COLUMN news INTEGER",
    ],
    ids=["revision", "foreign key", "column"],
)
def test_what_is_migrated_between_two_batches_stops_before_the_next(
    store: RealStore, change: str
) -> None:
    experiment = store.experiment("e")
    runs = [store.run(experiment) for _ in range(3)]
    store.delete(*runs)
    before = look(store)
    with stopped(Moment("after", "commit", r"DELETE FROM runs\b"), *CYCLE, uri=store.uri) as gc:
        left = store.runs()
        store.sql(change)
        done = resumed(gc)
    assert done.returncode == REFUSED, shown(done)
    assert "meanwhile" in done.stderr, shown(done)
    assert len(left) == 2
    assert store.runs() == left
    expected = before.without(set(runs) - left).tables
    assert look(store).tables["metrics"] == expected["metrics"]


@only_servers
def test_what_is_migrated_just_before_the_lock_stops_that_batch(store: RealStore) -> None:
    experiment = store.experiment("e")
    runs = [store.run(experiment) for _ in range(3)]
    store.delete(*runs)
    locked = Moment("before", "statement", r"FROM runs[^;]* FOR UPDATE", number=2)
    with stopped(locked, *CYCLE, uri=store.uri) as gc:
        left = store.runs()
        store.sql("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        done = resumed(gc)
    assert done.returncode == REFUSED, shown(done)
    assert len(left) == 2
    assert store.runs() == left


def start(database: Database) -> tuple[str, object]:
    """What MLflow's start-up check says of a database, and the revision that it leaves."""
    try:
        tracking_store.SqlAlchemyStore(database.uri, "/nowhere")
    except Exception as error:  # whatever it is, it has to be the same
        said = str(error).splitlines()[0].replace(database.name, "NAME")
    else:
        said = "fine"
    release(database.uri)
    return said, database.scalar(VERSION)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("revision", ["b7e2c1a4d9f3", "75868b020152"])
def test_mlflow_does_with_gcds_tables_what_it_does_without(
    server: Keeper, empty_database: Database, revision: str
) -> None:
    # Where a table is missing it migrates by itself; where none is, it refuses what is out of date.
    bare = make_old_schema(empty_database, revision)
    with server.passing():
        ours = server.copy(bare)
        assert gcd("init", uri=ours.uri).returncode == 0
        assert start(bare) == start(ours)
        upgrade(ours, "heads")
        assert start(ours)[0] == "fine"


# -- stamps ------------------------------------------------------------------------------------------

STAMPS: dict[str, tuple[object, str]] = {
    "none": (None, "undated"),
    "zero": (0, "undated"),
    "negative": (-1, "undated"),
    "seconds": (1_700_000_000, "undated"),
    "long ago": (1_700_000_000_000, "collect"),
    "tomorrow": (now_ms() + DAY, "from_the_future"),
    "the year 3000": (32_503_680_000_000, "from_the_future"),
    "no date at all": (2**63 - 1, "undated"),
}


def test_absurd_stamps_of_every_kind_of_entity(store: RealStore) -> None:
    live = store.experiment("live")
    maker = store.run(live)
    stamps = dict(STAMPS)
    if store.database.dialect == "sqlite":  # it takes any value in any column
        stamps |= {"text": ("2024-01-01", "undated"), "empty": ("", "undated")}
    wanted: dict[str, str] = {}
    for name, (stamp, reason) in stamps.items():
        run, experiment = store.run(live), store.experiment(name)
        model = store.logged_model(maker, "m")
        store.delete(run, model)
        store.client.delete_experiment(experiment)
        wanted |= dict.fromkeys((run, model, experiment), reason)
        set_stamp(store, "runs", "deleted_time", "run_uuid", run, stamp)
        known = now_ms() if stamp is None else stamp  # it may not be NULL
        set_stamp(store, "logged_models", "last_updated_timestamp_ms", "model_id", model, known)
        if stamp is None:
            wanted[model] = "too_young"
        number = int(experiment)
        set_stamp(store, "experiments", "last_update_time", "experiment_id", number, stamp)
    before = look(store)

    assert decisions(store.uri, "--older-than", "1d") == wanted
    done = gcd("gc", "--older-than", "1d", "--yes", uri=store.uri)

    assert done.returncode == 0, shown(done)
    due = [each for each, reason in wanted.items() if reason == "collect"]
    assert before.without(due).against(look(store)) == []
    store.sql(f"UPDATE alembic_gcd_seen SET first_seen_ms = first_seen_ms - {2 * DAY}")
    gcd("gc", "--older-than", "1d", "--yes", uri=store.uri)
    due += [each for each, reason in wanted.items() if reason == "undated"]
    assert before.without(due).against(look(store)) == []


def set_stamp(
    store: RealStore, table: str, column: str, key: str, ident: object, stamp: object
) -> None:
    """Write a stamp as an import may have."""
    where = f"UPDATE {table} SET {column} = :stamp WHERE {key} = :ident"
    store.sql(where, stamp=stamp, ident=ident)


@only_sqlite
def test_a_run_without_a_uri_or_with_absurd_times_is_no_obstacle(store: RealStore) -> None:
    experiment = store.experiment("e")
    homeless, timeless, free = (store.run(experiment) for _ in range(3))
    store.delete(homeless, timeless, free)
    store.sql("UPDATE runs SET artifact_uri = NULL WHERE run_uuid = :run", run=homeless)
    absurd = "start_time = 9223372036854775807, end_time = -1, status = 'RUNNING'"
    store.sql(f"UPDATE runs SET {absurd} WHERE run_uuid = :run", run=timeless)
    store.sql("UPDATE latest_metrics SET timestamp = 0 WHERE run_uuid = :run", run=timeless)
    before = look(store)
    decided = decisions(store.uri)
    assert decided[free] == "collect"
    collect(store.uri, expect=None)
    gone = [each for each, reason in decided.items() if reason == "collect"]
    assert before.without(gone).against(look(store)) == []


# -- rows whose parent is long gone -------------------------------------------------------------------


@only_sqlite
def test_rows_whose_parents_are_long_gone_stop_nothing(store: RealStore) -> None:
    gone, live = store.experiment("gone"), store.experiment("live")
    store.run(gone)
    kept, lost = store.run(live), store.run(live)
    store.client.delete_experiment(gone)
    store.delete(lost)
    own = f"{int(gone)}"
    before = look(store)
    nobody = "0" * 32
    store.sql(
        "INSERT INTO spans (trace_id, span_id, experiment_id, status, start_time_unix_nano, content)"
        f" VALUES ('tr-none', 's', {own}, 'OK', 1, '{{}}')",
        "INSERT INTO span_metrics VALUES ('tr-none', 's', 'cost', 1.0)",
        "INSERT INTO logged_model_metrics (model_id, metric_name, metric_timestamp_ms, metric_step,"
        f" metric_value, experiment_id, run_id) VALUES ('m-none', 'f', 1, 1, 1, {own}, '{nobody}')",
        "INSERT INTO logged_model_params (model_id, experiment_id, param_key, param_value)"
        f" VALUES ('m-none', {own}, 'k', 'v')",
        "INSERT INTO logged_model_tags (model_id, experiment_id, tag_key, tag_value)"
        f" VALUES ('m-none', {own}, 'k', 'v')",
        "INSERT INTO online_scoring_configs (online_scoring_config_id, scorer_id, sample_rate,"
        f" experiment_id) VALUES ('o', 'no-scorer', 0.5, {own})",
    )
    # A deleted run whose experiment is gone: nobody can say where its files may be.
    orphan = store.run(live)
    store.delete(orphan)
    store.sql("UPDATE runs SET experiment_id = 999 WHERE run_uuid = :run", run=orphan)
    stays = look(store)

    decided = decisions(store.uri, "--all-workspaces")  # it is in no workspace either
    assert (decided[gone], decided[lost], decided[orphan]) == (
        "collect",
        "collect",
        "unsafe_target",
    )
    collect(store.uri, "--all-workspaces")

    after = look(store)
    assert kept in store.runs()
    for table in ("spans", "span_metrics", "logged_model_metrics", "online_scoring_configs"):
        assert after.tables[table] == before.tables[table], table
    for table in ("logged_model_params", "logged_model_tags"):
        assert after.tables[table] == [], table
    assert {row["run_uuid"] for row in after.tables["runs"]} == {kept, orphan}
    trees = {name: what for name, what in stays.files.items() if kept in name or orphan in name}
    assert trees.items() <= after.files.items()
    assert not any(lost in name for name in after.files)
