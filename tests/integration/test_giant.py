"""A run with more rows than a transaction may delete: MLflow can never restore a part of it."""

from __future__ import annotations

import pytest
from mlflow import MlflowException

from tests.mlflow_store import RealStore
from tests.program import collect, decisions, report
from tests.snapshot import Snapshot, mentions
from tests.stopper import PURGE, Moment, killed

CYCLE = ("gc", "--older-than", "0s", "--yes")
MOST = 1000
SMALL = {
    "GCD_PURGE__BATCH_ROWS": str(MOST),
    # A logged model that stays would keep the giant, and one that goes would take its share of rows.
    "GCD_RETENTION__RUNS_OF_LIVE_MODELS": "collect_run",
}
METRICS = 3 * MOST
CHILDREN = ("metrics", "latest_metrics", "params", "tags")
SPLIT = pytest.mark.parametrize("server", ["sqlite", "mariadb"], indirect=True)
"""PostgreSQL deletes a giant whole."""


def giant_store(store: RealStore) -> str:
    """A deleted run with many rows of each kind, and live ones that share some with it."""
    experiment = store.experiment("e")
    live = store.run(experiment, dataset="shared", metrics=MOST + 1)
    giant = store.run(
        experiment,
        metrics=METRICS,
        params={f"p{n}": "v" for n in range(90)},
        dataset="shared",
    )
    model = store.logged_model(giant, "m", metrics=True)
    store.client.set_logged_model_tags(model, {"gcd.hold": "not what is tested here"})
    store.client.delete_logged_model(model)
    trace = store.trace(experiment, run=giant)
    for run in (giant, live):
        store.client.link_traces_to_run([trace], run)
    store.delete(giant)
    return giant


def children(store: RealStore, run: str) -> dict[str, object]:
    """How many rows the run has in the tables of its own."""
    query = "SELECT COUNT(*) FROM {} WHERE run_uuid = :run"
    return {table: store.database.scalar(query.format(table), run=run) for table in CHILDREN}


def rows_left(store: RealStore, run: str) -> object:
    """What the journal says is still to be deleted of it."""
    query = "SELECT rows_left FROM alembic_gcd_journal WHERE entity_id = :run"
    return store.database.scalar(query, run=run)


def test_nothing_of_a_giant_is_left_and_nothing_of_the_others_goes(store: RealStore) -> None:
    giant = giant_store(store)
    small = store.run(store.client.get_experiment_by_name("e").experiment_id)
    store.delete(small)
    before = Snapshot.of(store.database, store.root)

    found = report(store.uri, env=SMALL)

    after = Snapshot.of(store.database, store.root)
    assert before.without([giant, small]).against(after) == []
    assert mentions(after.tables, [giant, small]) == []
    lost = sum(map(len, before.tables.values())) - sum(map(len, after.tables.values()))
    assert found["rows"] == lost
    assert found["purged"]["run"] == 2
    assert rows_left(store, giant) == 0


@SPLIT
def test_a_giant_goes_in_bounded_transactions_its_own_row_first(store: RealStore) -> None:
    giant = giant_store(store)
    before = Snapshot.of(store.database, store.root)
    whole = children(store, giant)

    killed(Moment("after", "commit", PURGE), *CYCLE, uri=store.uri, env=SMALL)

    assert not store.exists(giant)
    assert children(store, giant) == whole
    assert rows_left(store, giant) == 2
    killed(Moment("after", "commit", r"DELETE FROM metrics\b", 2), *CYCLE, uri=store.uri, env=SMALL)

    assert children(store, giant) == {**whole, "metrics": int(str(whole["metrics"])) - 2 * MOST}
    assert rows_left(store, giant) == 2
    with pytest.raises(MlflowException):
        store.restore(giant)
    assert giant not in decisions(store.uri)

    collect(store.uri, env=SMALL)

    after = Snapshot.of(store.database, store.root)
    assert before.without([giant]).against(after) == []
    assert mentions(after.tables, [giant]) == []


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
def test_what_is_left_of_a_giant_that_is_back_stays(store: RealStore) -> None:
    giant = giant_store(store)
    before = Snapshot.of(store.database, store.root)
    (row,) = [row for row in before.tables["runs"] if row["run_uuid"] == giant]
    whole = children(store, giant)
    killed(Moment("after", "commit", PURGE), *CYCLE, uri=store.uri, env=SMALL)
    columns = {name: value for name, value in row.items() if value is not None}
    store.sql(
        f"INSERT INTO runs ({', '.join(columns)}) VALUES (:{', :'.join(columns)})",
        **{**columns, "lifecycle_stage": "active"},
    )

    collect(store.uri, env=SMALL)

    assert children(store, giant) == whole
    assert before.files == Snapshot.of(store.database, store.root).files
    entries = store.database.rows("SELECT state, error FROM alembic_gcd_journal")
    assert [state for state, _ in entries] == ["parked"]
    assert "its rows are kept" in str(entries[0][1])


@pytest.mark.parametrize("server", ["postgresql"], indirect=True)
def test_on_postgresql_a_giant_goes_whole(store: RealStore) -> None:
    giant = giant_store(store)
    before = Snapshot.of(store.database, store.root)
    killed(Moment("before", "commit", PURGE), *CYCLE, uri=store.uri, env=SMALL)
    assert before.against(Snapshot.of(store.database, store.root)) == []
    killed(Moment("after", "commit", PURGE), *CYCLE, uri=store.uri, env=SMALL)
    assert children(store, giant) == dict.fromkeys(CHILDREN, 0)
