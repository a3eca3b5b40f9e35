"""A revision of MLflow that gcd does not know: what it brought may refer to what gcd would delete."""

from __future__ import annotations

import pytest

from gcd.store.catalogue import read_catalogue
from gcd.store.known_tables import BASE, BORN, COLUMNS
from gcd.store.references import ALL
from gcd.store.revisions import ORDER
from tests.mlflow_store import RealStore, revisions
from tests.program import collect, decisions, gcd, shown
from tests.servers import Database

REVISION = "ffffffffffff"


def renew(store: RealStore, *changes: str) -> None:
    """What a later release did to the schema."""
    store.sql(f"UPDATE alembic_version SET version_num = '{REVISION}'", *changes)


def four(store: RealStore) -> dict[str, str]:
    """Deleted entities by what they are: a run, a logged model, an empty experiment, one with a trace."""
    live, empty, traced = (store.experiment(name) for name in ("live", "empty", "traced"))
    run, maker = store.run(live), store.run(live)
    model = store.logged_model(maker, "m")
    store.trace(traced, file=b"x")
    store.delete(run, model, empty, traced)
    return {"run": run, "model": model, "empty": empty, "traced": traced}


def kept(store: RealStore, made: dict[str, str]) -> set[str]:
    """Which of them stay, and that they stay for what nobody knows."""
    found = decisions(store.uri)
    reasons = {what: found[each] for what, each in made.items()}
    assert set(reasons.values()) <= {"collect", "unknown_reference", "has_live_children"}
    return {what for what, reason in reasons.items() if reason != "collect"}


NEWER = {"last_seen_timestamp", "last_updated_by", "metadata"}
"""What 3.18 added to a table."""
CHANGES = {
    "CREATE TABLE verdicts (id INTEGER PRIMARY KEY, run_id VARCHAR(40))": {"run"},
    "CREATE TABLE verdicts (id INTEGER PRIMARY KEY, judged_run CHAR(40))": {"run"},
    "CREATE TABLE verdicts (id INTEGER PRIMARY KEY, subject CHAR(32))": {"run"},
    "CREATE TABLE verdicts (id INTEGER PRIMARY KEY, logged_model VARCHAR(99))": {"model"},
    "CREATE TABLE verdicts (id INTEGER PRIMARY KEY, trace_uuid VARCHAR(99))": {"traced"},
    "CREATE TABLE verdicts (id INTEGER PRIMARY KEY, experiment_id INTEGER)": {"empty", "traced"},
    "CREATE TABLE verdicts (id INTEGER PRIMARY KEY, artifact_uri VARCHAR(99))": {
        "run",
        "model",
        "empty",
        "traced",
    },
    "ALTER TABLE registered_models ADD COLUMN entity_id VARCHAR(99)": {
        "run",
        "model",
        "empty",
        "traced",
    },
    "ALTER TABLE params RENAME COLUMN value TO text": set(),
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda text: text.split("(")[0] + text[-30:])
def test_a_new_column_that_may_name_an_entity_keeps_its_kind(store: RealStore, change: str) -> None:
    made = four(store)
    renew(store, change)
    assert kept(store, made) == CHANGES[change]


@pytest.mark.parametrize(
    "column", ["inputs.destination_type", "experiment_tags.key", "runs.deleted_time"]
)
def test_a_new_revision_without_a_column_that_gcd_goes_by_is_refused(
    store: RealStore, column: str
) -> None:
    made = four(store)
    table, _, name = column.partition(".")
    name = "{key}" if name == "key" else name
    renew(store, f"ALTER TABLE {table} RENAME COLUMN {name} TO renamed")
    done = collect(store.uri, expect=14)
    assert column in done.stderr
    assert "upgrade gcd" in done.stderr
    assert made["run"] in store.runs()


def test_what_stays_for_a_new_revision_is_told_and_an_operator_can_say_it_is_harmless(
    store: RealStore,
) -> None:
    made = four(store)
    renew(store, "CREATE TABLE verdicts (id INTEGER PRIMARY KEY, run_id VARCHAR(32))")
    told = gcd("explain", made["run"], "--older-than", "0s", uri=store.uri).stdout
    for word in ("verdicts.run_id", REVISION, "upgrade gcd", "purge.harmless"):
        assert word in told
    assert "verdicts.run_id" in gcd("doctor", uri=store.uri).stdout
    done = collect(store.uri)
    assert "verdicts.run_id" in done.stdout, shown(done)
    assert made["run"] in store.runs()
    assert made["empty"] not in store.experiments()
    for listed in ("verdicts", "verdicts.run_id"):
        env = {"GCD_PURGE__HARMLESS": listed}
        assert decisions(store.uri, env=env)[made["run"]] == "collect"


@pytest.mark.parametrize("server", ["postgresql"], indirect=True)
@pytest.mark.parametrize("kind", ["TEXT[]", "JSONB", "UUID", "BYTEA"])
def test_a_column_of_any_type_of_postgresql_may_name_an_entity(store: RealStore, kind: str) -> None:
    made = four(store)
    renew(store, f"CREATE TABLE verdicts (id INTEGER PRIMARY KEY, judged_runs {kind})")
    assert kept(store, made) == {"run"}
    store.sql("DROP TABLE verdicts", f"CREATE TABLE verdicts (about {kind})")
    assert kept(store, made) == set()
    texts = {
        "TEXT[]": "ARRAY[:run]",
        "JSONB": "to_jsonb(ARRAY[:run])",
        "UUID": "CAST(:run AS UUID)",
    }
    if kind in texts:
        store.sql(f"INSERT INTO verdicts SELECT {texts[kind]}", run=made["run"])
        assert kept(store, made) == {"run"}


def test_values_tell_what_a_column_names(store: RealStore) -> None:
    made = four(store)
    texts = {
        "a": f'{{"about": ["runs:/{made["run"]}/model"]}}',
        "b": f"see {made['model']}",
        "c": "nothing",
    }
    renew(
        store,
        "CREATE TABLE remarks (id INTEGER PRIMARY KEY, a TEXT, b TEXT, c TEXT)",
    )
    assert kept(store, made) == set()
    store.sql("INSERT INTO remarks VALUES (1, :a, :b, :c)", **texts)
    assert kept(store, made) == {"run", "model"}


def test_a_new_revision_with_nothing_that_may_refer_is_collected(store: RealStore) -> None:
    made = four(store)
    renew(
        store,
        "ALTER TABLE runs ADD COLUMN news INTEGER",
        "CREATE TABLE widgets (widget_id VARCHAR(36) PRIMARY KEY, name VARCHAR(50), size FLOAT,"
        " created_at BIGINT, status VARCHAR(32), note TEXT)",
        "CREATE TABLE widget_tags (widget_id VARCHAR(36), {key} VARCHAR(250))",
    )
    store.sql("INSERT INTO widgets VALUES (:own, 'w', 1.5, 7, 'ok', 'n')", own="7" * 32)
    done = collect(store.uri)
    assert "nothing new in it may refer" in done.stdout, shown(done)
    assert made["run"] not in store.runs()


def test_a_revision_that_gcd_knows_is_not_judged_by_its_names(store: RealStore) -> None:
    made = four(store)
    store.sql("CREATE TABLE verdicts (id INTEGER PRIMARY KEY, run_id VARCHAR(32))")
    assert kept(store, made) == set()


def test_gcd_knows_every_table_and_column_of_the_installed_mlflow(schema: Database) -> None:
    with schema.begin() as conn:
        found = read_catalogue(conn)
    known = {name: table for name, table in found.tables.items() if name != "alembic_version"}
    born = [name for name, revision in BORN.items() if revision in (BASE, *revisions())]
    assert set(known) == set(born)
    gone = {("jobs", "function_fullname"), ("spans", "dimension_attributes")}
    gone.add(("spans", "duration_ns"))  # computed: SQLite does not list it
    if ORDER[-1] not in revisions():  # 3.18
        gone |= {("issues", name) for name in COLUMNS["issues"] & NEWER}
    for name, table in known.items():
        columns = {column.name for column in table.c}
        missing = {(name, column) for column in COLUMNS[name] - columns}
        assert columns <= COLUMNS[name], name
        assert missing <= gone, name
    assert {reference.table for reference in ALL} <= set(COLUMNS)
    assert set(BORN.values()) <= {BASE, *ORDER}
