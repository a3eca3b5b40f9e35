"""Tables and triggers that gcd does not know, on what it would purge: kept or refused, nothing lost."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gcd.store.catalogue import read_catalogue
from tests.mlflow_store import RealStore
from tests.program import collect, decisions, gcd, shown
from tests.servers import Database
from tests.snapshot import Snapshot, read_tables

REFUSED = 14
RUN = "VARCHAR(32) REFERENCES runs (run_uuid)"
Done = subprocess.CompletedProcess[str]

only_sqlite = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
only_servers = pytest.mark.parametrize("server", ["postgresql", "mariadb"], indirect=True)


def look(store: RealStore) -> Snapshot:
    """The store as it is."""
    return Snapshot.of(store.database, store.root)


def noted(store: RealStore) -> tuple[str, str]:
    """Two deleted runs, one of which a table is going to refer to."""
    experiment = store.experiment("e")
    both = store.run(experiment), store.run(experiment)
    store.delete(*both)
    return both


def key(columns: str, to: str, rule: str = "") -> str:
    """A foreign key, written so that every database checks it."""
    return f"FOREIGN KEY ({columns}) REFERENCES {to} {rule}"


def refused(done: Done, *words: str) -> None:
    """Exit code 14, one clear sentence with these words, and a hint."""
    assert done.returncode == REFUSED, shown(done)
    assert "hint:" in done.stderr, shown(done)
    assert "Traceback" not in done.stderr, shown(done)
    for word in words:
        assert word in done.stderr, shown(done)


def harmless(*names: str) -> dict[str, str]:
    """The environment in which these are listed."""
    return {"GCD_PURGE__HARMLESS": ", ".join(names)}


# -- tables that refer to entities ------------------------------------------------------------------


def test_each_kind_of_entity_that_an_unknown_table_refers_to_stays(store: RealStore) -> None:
    rule = "ON DELETE CASCADE"
    live = store.experiment("live")
    run, free = store.run(live), store.run(live)
    model, loose = (store.logged_model(store.run(live), name) for name in ("m-a", "m-b"))
    named, traced, other = (store.experiment(name) for name in ("named", "traced", "other"))
    trace = store.trace(traced)
    store.delete(run, free, model, loose)
    for experiment in (named, traced, other):
        store.run(experiment)
        store.client.delete_experiment(experiment)
    store.sql(
        f"CREATE TABLE notes (id INTEGER PRIMARY KEY, run VARCHAR(32), model VARCHAR(50),"
        f" trace VARCHAR(50), experiment INTEGER, {key('run', 'runs (run_uuid)', rule)},"
        f" {key('model', 'logged_models (model_id)', rule)},"
        f" {key('trace', 'trace_info (request_id)', rule)},"
        f" {key('experiment', 'experiments (experiment_id)', rule)})"
    )
    store.sql(
        "INSERT INTO notes VALUES (1, :run, :model, :trace, :named)",
        run=run,
        model=model,
        trace=trace,
        named=int(named),
    )
    inside = [store.runs_in(each)[0] for each in (named, traced)]
    before = look(store)

    decided = decisions(store.uri)
    done = collect(store.uri)

    assert {decided[each] for each in (run, model, named)} == {"unknown_reference"}
    assert decided[traced] == "has_live_children"
    assert {decided[each] for each in (free, loose, other)} == {"collect"}
    # The runs inside experiments that stay go by themselves, as they are free.
    assert before.without([free, loose, other, *inside]).against(look(store)) == []
    assert "unknown_reference" in done.stdout
    told = gcd("explain", run, "--older-than", "0s", uri=store.uri).stdout
    assert "notes" in told


def test_a_key_on_something_else_than_the_id_counts(store: RealStore) -> None:
    names = ("experiment_id, name", "run_uuid, experiment_id")
    store.sql("CREATE UNIQUE INDEX pair ON runs (run_uuid, experiment_id)")
    store.sql("CREATE UNIQUE INDEX named ON experiments (experiment_id, name)")
    run, free = noted(store)
    gone, other = store.experiment("gone"), store.experiment("other")
    for experiment in (gone, other):
        store.client.delete_experiment(experiment)
    text = "VARCHAR(256)"
    store.sql(
        f"CREATE TABLE by_pair (note {text}, number INTEGER, run VARCHAR(32),"
        f" {key('run, number', f'runs ({names[1]})', 'ON DELETE CASCADE')})",
        f"CREATE TABLE by_name (number INTEGER, name {text},"
        f" {key('number, name', f'experiments ({names[0]})', 'ON DELETE CASCADE')})",
    )
    store.sql("INSERT INTO by_name VALUES (:number, 'gone')", number=int(gone))
    store.sql(
        "INSERT INTO by_pair SELECT 'x', experiment_id, run_uuid FROM runs WHERE run_uuid = :run",
        run=run,
    )
    before = look(store)

    decided = decisions(store.uri)
    collect(store.uri)

    assert {each: decided[each] for each in (run, free, gone, other)} == {
        run: "unknown_reference",
        free: "collect",
        gone: "unknown_reference",
        other: "collect",
    }
    assert before.without([free, other]).against(look(store)) == []


@only_sqlite
def test_sqlite_takes_names_in_any_case_and_keys_unnamed(store: RealStore) -> None:
    experiment = store.experiment("e")
    targets = ("RUNS (RUN_UUID)", "runs", '"Runs"', "[runs] (run_uuid)")
    runs = [store.run(experiment) for _ in targets]
    free = store.run(experiment)
    store.delete(*runs, free)
    for number, (run, target) in enumerate(zip(runs, targets, strict=True)):
        rule = f"run VARCHAR(32) REFERENCES {target} ON DELETE CASCADE"
        store.sql(f"CREATE TABLE notes_{number} ({rule})")
        store.sql(f"INSERT INTO notes_{number} VALUES (:run)", run=run)
    before = look(store)
    collect(store.uri)
    assert before.without([free]).against(look(store)) == []


# -- other schemas, other databases -----------------------------------------------------------------


@contextmanager
def elsewhere(store: RealStore) -> Iterator[str]:
    """Another schema on PostgreSQL, another database on MariaDB; its name."""
    if store.database.dialect == "postgresql":
        store.sql("CREATE SCHEMA reports")
        yield "reports"
        return
    with store.keeper.passing() as keeper:
        other: Database = keeper.create()
        yield other.name
        store.sql(f"DROP TABLE IF EXISTS {other.name}.notes")


@only_servers
def test_a_table_of_another_schema_counts(store: RealStore) -> None:
    run, free = noted(store)
    rule = "ON DELETE CASCADE"
    with elsewhere(store) as place:
        home = f"{store.database.name}." if store.database.dialect == "mariadb" else ""
        store.sql(
            f"CREATE TABLE {place}.notes (run VARCHAR(32), {key('run', f'{home}runs (run_uuid)', rule)})"
        )
        store.sql(f"INSERT INTO {place}.notes VALUES (:run)", run=run)
        before = look(store)

        assert decisions(store.uri)[run] == "unknown_reference"
        collect(store.uri)

        assert before.without([free]).against(look(store)) == []
        assert store.database.rows(f"SELECT run FROM {place}.notes") == [(run,)]
        told = gcd("explain", run, "--older-than", "0s", uri=store.uri).stdout
        assert f"{place}.notes" in told
        doctor = gcd("doctor", uri=store.uri)
        assert f"{place}.notes" in doctor.stdout, shown(doctor)


# -- what cannot be told per entity -----------------------------------------------------------------


def test_a_table_that_refers_to_a_part_of_an_entity_is_refused(store: RealStore) -> None:
    noted(store)
    store.sql("CREATE UNIQUE INDEX only_one ON datasets (dataset_uuid)")
    rule = key("part", "datasets (dataset_uuid)", "ON DELETE CASCADE")
    store.sql(f"CREATE TABLE notes (part VARCHAR(36), {rule})")
    before = look(store)
    done = gcd("gc", "--yes", "--older-than", "0s", uri=store.uri)
    refused(done, "notes", "datasets", "purge.harmless")
    assert before.against(look(store)) == []
    collect(store.uri, env=harmless("notes"))
    assert store.runs() == set()


TRIGGERS = {
    "sqlite": "CREATE TRIGGER {name} AFTER DELETE ON {table} BEGIN"
    " INSERT INTO audit VALUES ('{table}'); END",
    "mariadb": "CREATE TRIGGER {name} AFTER DELETE ON {table} FOR EACH ROW"
    " INSERT INTO audit VALUES ('{table}')",
    "postgresql": "CREATE TRIGGER {name} AFTER DELETE ON {table} FOR EACH ROW"
    " EXECUTE FUNCTION audited()",
}


def trigger(store: RealStore, name: str, table: str) -> None:
    """A trigger that notes each row of the table that is deleted."""
    if not store.database.rows(AUDIT[store.database.dialect]):
        store.sql("CREATE TABLE audit (what VARCHAR(40))")
        if store.database.dialect == "postgresql":
            store.sql(
                "CREATE FUNCTION audited() RETURNS trigger LANGUAGE plpgsql AS"
                " 'BEGIN INSERT INTO audit VALUES (TG_TABLE_NAME); RETURN NULL; END'"
            )
    store.sql(TRIGGERS[store.database.dialect].format(name=name, table=table))


AUDIT = {
    "sqlite": "SELECT name FROM sqlite_master WHERE name = 'audit'",
    "postgresql": "SELECT relname FROM pg_class WHERE relname = 'audit'",
    "mariadb": "SELECT table_name FROM information_schema.tables"
    " WHERE table_name = 'audit' AND table_schema = DATABASE()",
}


def test_an_unknown_trigger_is_refused_and_a_listed_one_fires(store: RealStore) -> None:
    noted(store)
    trigger(store, "audit_it", "runs")
    trigger(store, "audit_too", "input_tags")
    before = look(store)
    for listed, told in ((), "audit_"), (("audit_it",), "audit_too"), (("audit_too",), "audit_it"):
        done = gcd("gc", "--older-than", "0s", "--yes", uri=store.uri, env=harmless(*listed))
        refused(done, told, "purge.harmless")
    assert before.against(look(store)) == []

    collect(store.uri, env=harmless("audit_it", "audit_too"))

    assert store.runs() == set()
    assert [row["what"] for row in read_tables(store.database)["audit"]] == ["runs", "runs"]


@only_sqlite
def test_a_trigger_of_sqlites_is_seen_however_it_is_written(store: RealStore) -> None:
    store.sql(
        "CREATE TRIGGER a after\n delete\n on runs BEGIN SELECT 1; END",
        "CREATE TRIGGER b AFTER DELETE /* of */ ON RUNS BEGIN SELECT 1; END",
        'CREATE TRIGGER c AFTER DELETE -- of\n ON "runs" BEGIN SELECT 1; END',
        'CREATE TRIGGER "d--" AFTER DELETE ON [Runs] BEGIN SELECT 1; END',
    )
    with store.database.begin() as conn:
        found = read_catalogue(conn).delete_triggers
    assert sorted(found) == [("runs", name) for name in ("a", "b", "c", "d--")]


@only_sqlite
def test_triggers_on_other_changes_and_other_tables_are_no_obstacle(store: RealStore) -> None:
    noted(store)
    store.sql(
        "CREATE TRIGGER a AFTER UPDATE ON runs BEGIN SELECT 1; END",
        "CREATE TRIGGER b AFTER INSERT ON metrics BEGIN DELETE FROM experiments WHERE 0; END",
        "CREATE TRIGGER c AFTER DELETE ON registered_models BEGIN SELECT 1; END",
    )
    collect(store.uri)
    assert store.runs() == set()


# -- tables that an operator knows to be harmless ----------------------------------------------------


def test_of_harmless_tables_the_rule_of_their_own_is_followed(store: RealStore) -> None:
    experiment = store.experiment("e")
    tables = {"cascades": "ON DELETE CASCADE", "empties": "ON DELETE SET NULL", "stops": ""}
    runs = {name: store.run(experiment) for name in tables}
    store.delete(*runs.values())
    for name, rule in tables.items():
        store.sql(f"CREATE TABLE {name} (run VARCHAR(32), {key('run', 'runs (run_uuid)', rule)})")
        store.sql(f"INSERT INTO {name} VALUES (:run)", run=runs[name])
    before = look(store)

    done = collect(store.uri, env=harmless(*tables))

    assert "unknown_reference" in done.stdout
    expected = before.without([runs["cascades"], runs["empties"]])
    expected.tables.update(cascades=[], empties=[{"run": None}])
    assert expected.against(look(store)) == []
    doctor = gcd("doctor", uri=store.uri, env=harmless(*tables))
    assert "ON DELETE CASCADE or SET NULL" in doctor.stdout, shown(doctor)


@pytest.mark.parametrize("server", ["sqlite", "mariadb"], indirect=True)
def test_a_giant_that_a_harmless_table_names_stays(store: RealStore) -> None:
    experiment = store.experiment("e")
    run, free = (store.run(experiment, metrics=1500) for _ in range(2))
    store.delete(run, free)
    rule = "ON DELETE CASCADE"
    store.sql(f"CREATE TABLE notes (run VARCHAR(32), {key('run', 'runs (run_uuid)', rule)})")
    store.sql("INSERT INTO notes VALUES (:run)", run=run)
    before = look(store)
    small = {**harmless("notes"), "GCD_PURGE__BATCH_ROWS": "1000"}
    collect(store.uri, env=small)
    assert before.without([free]).against(look(store)) == []
    collect(store.uri, env=harmless("notes"))
    expected = before.without([free, run])
    expected.tables["notes"] = []
    assert expected.against(look(store)) == []


# -- what gcd cannot see -----------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["mariadb"], indirect=True)
def test_what_a_key_stops_that_gcd_cannot_see_is_kept_alone(store: RealStore) -> None:
    experiment = store.experiment("e")
    runs = [store.run(experiment) for _ in range(5)]
    store.delete(*runs)
    user, host = f"{store.database.name[-10:]}u", "127.0.0.1"
    with elsewhere(store) as place:
        store.sql(
            f"CREATE TABLE {place}.notes (run VARCHAR(32),"
            f" {key('run', f'{store.database.name}.runs (run_uuid)')})"
        )
        store.sql(f"INSERT INTO {place}.notes VALUES (:run)", run=runs[2])
        before = look(store)
        store.sql(
            f"CREATE USER {user}@'{host}'",
            f"GRANT ALL ON {store.database.name}.* TO {user}@'{host}'",
        )
        try:
            uri = f"mysql+pymysql://{user}@{host}:3306/{store.database.name}"
            done = collect(uri)
        finally:
            store.sql(f"DROP USER {user}@'{host}'")
        assert "unknown_reference" in done.stdout, shown(done)
        free = [run for run in runs if run != runs[2]]
        assert before.without(free).against(look(store)) == []
