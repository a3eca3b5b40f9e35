"""`gcd sweep-rows` deletes only rows that nothing can need: what may lie elsewhere, or come, stays."""

from __future__ import annotations

import json

from mlflow.entities import LoggedModelInput, LoggedModelOutput

from tests.mlflow_store import DAY, RealStore, now_ms
from tests.program import collect, gcd, shown
from tests.snapshot import Snapshot

MODEL, RUN, TRACE = "m-" + "5" * 32, "5" * 32, "tr-" + "5" * 32
"""What lives in another server."""


def look(store: RealStore) -> Snapshot:
    """The store as it is."""
    return Snapshot.of(store.database, store.root)


def sweep_rows(store: RealStore) -> dict[str, int]:
    """How many rows of each table went; a dry run says the same beforehand."""
    dry, done = (
        gcd("sweep-rows", "--json", *flags, uri=store.uri) for flags in (("--dry-run",), ())
    )
    assert done.returncode == 0, shown(done)
    assert json.loads(dry.stdout) == json.loads(done.stdout)
    return {each["table"]: each["rows"] for each in json.loads(done.stdout)["tables"]}


def age_links(store: RealStore, days: int = 2) -> None:
    """Let all links be older than those whose ends may be on their way."""
    store.sql("UPDATE entity_associations SET created_time = :at", at=now_ms() - days * DAY)


def mark(store: RealStore, trace: str, key: str, value: str) -> None:
    """What a client sends with a trace."""
    store.sql(
        "INSERT INTO trace_request_metadata (request_id, {key}, value)"
        " VALUES (:trace, :name, :value)",
        trace=trace,
        name=key,
        value=value,
    )


def review(store: RealStore, experiment: str, trace: str) -> None:
    """A review queue that asks about a trace."""
    queue = store.inner.create_review_queue(experiment, name="q", queue_type="custom")
    store.inner.add_items_to_review_queue(queue.queue_id, item_ids=[trace])


def test_what_names_things_of_another_server_stays(store: RealStore) -> None:
    experiment = store.experiment("e")
    run = store.run(experiment, dataset="d")
    trace = store.trace(experiment)
    mark(store, trace, "mlflow.modelId", MODEL)  # as with MLFLOW_ACTIVE_MODEL_ID
    mark(store, trace, "mlflow.sourceRun", RUN)
    store.client.log_inputs(run, models=[LoggedModelInput(MODEL)])
    store.client.log_outputs(run, [LoggedModelOutput(MODEL, 1)])
    store.client.link_traces_to_run([TRACE], run)
    store.client.link_traces_to_run([trace], RUN)
    review(store, experiment, TRACE)
    age_links(store)
    before = look(store)

    assert sweep_rows(store) == {}
    assert before.against(look(store)) == []


def test_a_mark_goes_where_inputs_prove_that_its_run_was_here(store: RealStore) -> None:
    experiment = store.experiment("e")
    known, unknown = store.run(experiment, dataset="d"), store.run(experiment)
    traces = [store.trace(experiment, run=known), store.trace(experiment, run=unknown)]
    store.client.link_traces_to_run(traces, known)
    for run in (known, unknown):
        remove(store, run)
    age_links(store)

    gone = sweep_rows(store)

    assert gone == {
        "trace_request_metadata": 1,
        "entity_associations": 2,
        "inputs": 1,
        "input_tags": 1,
    }
    left = look(store).tables["trace_request_metadata"]
    assert [row["value"] for row in left if row["key"] == "mlflow.sourceRun"] == [unknown]
    assert sweep_rows(store) == {}


def remove(store: RealStore, run: str) -> None:
    """Remove a run as `mlflow gc` does: with nothing but what has a foreign key on it."""
    for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
        store.sql(f"DELETE FROM {table} WHERE run_uuid = :run", run=run)


def test_what_gcds_journal_knows_was_here(store: RealStore) -> None:
    experiment = store.experiment("e")
    run = store.run(experiment)
    model = store.logged_model(store.run(experiment), "m")
    trace = store.trace(experiment)
    store.delete(run, model)
    collect(store.uri)
    mark(store, trace, "mlflow.sourceRun", run)  # late, from a client that was still at it
    mark(store, trace, "mlflow.modelId", model)
    other = store.trace(experiment)
    mark(store, other, "mlflow.modelId", MODEL)

    assert sweep_rows(store) == {"trace_request_metadata": 2}
    left = look(store).tables["trace_request_metadata"]
    assert [row["value"] for row in left if row["key"] == "mlflow.modelId"] == [MODEL]


def test_an_old_link_stays_where_a_young_one_names_the_same(store: RealStore) -> None:
    experiment = store.experiment("e")
    run, live = store.run(experiment, dataset="d"), store.run(experiment)
    first, second = store.trace(experiment), store.trace(experiment)
    store.client.link_traces_to_run([first], run)
    age_links(store)
    store.client.link_traces_to_run([second], run)
    store.client.link_traces_to_run([second], live)
    remove(store, run)

    gone = json.loads(gcd("sweep-rows", "--json", uri=store.uri).stdout)["tables"]

    assert {each["table"]: each["rows"] for each in gone} == {"inputs": 1, "input_tags": 1}
    assert len(look(store).tables["entity_associations"]) == 3
