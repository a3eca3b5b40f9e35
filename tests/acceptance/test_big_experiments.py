"""Collecting an experiment with very many runs and spans: bounded memory, nothing left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.test_memory import ROWS, measured
from tests.mlflow_store import RealStore

RUNS, TRACES, SPANS = 20_000, 2_000, 100
CYCLE = ("gc", "--older-than", "0s", "--yes", "--absent-roots", "collect")
LONG_AGO = 1_600_000_000_000
NUMBERS = {
    "sqlite": "(SELECT n FROM s) x",
    "postgresql": "(SELECT n FROM generate_series(1, :rows) n) x",
}
HEXADECIMAL = {"sqlite": "printf('%032x', {})", "postgresql": "lpad(to_hex({}), 32, '0')"}


@pytest.mark.parametrize("server", ["sqlite", "postgresql"], indirect=True)
def test_an_experiment_of_20000_runs_and_200000_spans_fits_into_150_mb(
    store: RealStore, tmp_path: Path
) -> None:
    live, gone = store.experiment("live"), store.experiment("gone")
    kept = store.run(live)
    store.trace(live)
    for rows, statement in filling(store, gone):
        store.sql(statement, rows=rows)
    assert count(store, "spans") == TRACES * SPANS + 2
    # MLflow's client would stamp each run in a loop; the runs are deleted already.
    store.sql(f"UPDATE experiments SET lifecycle_stage = 'deleted' WHERE experiment_id = {gone}")

    measured(tmp_path / "report", *CYCLE, uri=store.uri)

    assert store.runs() == {kept}
    assert [count(store, t) for t in ("spans", "trace_info", "experiments")] == [2, 1, 2]


def count(store: RealStore, table: str) -> object:
    """How many rows a table has."""
    return store.database.scalar(f"SELECT COUNT(*) FROM {table}")


def filling(store: RealStore, experiment: str) -> Iterator[tuple[int, str]]:
    """(numbers to count to, statement): runs with a metric each, traces with spans."""
    dialect = store.database.dialect
    home = store.client.get_experiment(experiment).artifact_location
    series, numbers, padded = ROWS[dialect], NUMBERS[dialect], HEXADECIMAL[dialect]
    run, no = padded.format("n"), "false" if dialect == "postgresql" else "0"
    yield (
        RUNS,
        "INSERT INTO runs (run_uuid, name, user_id, status, start_time, lifecycle_stage,"
        f" deleted_time, artifact_uri, experiment_id) {series} SELECT {run}, 'n', 'ann', 'FINISHED',"
        f" {LONG_AGO}, 'deleted', {LONG_AGO}, '{home}/' || {run} || '/artifacts', {experiment}"
        f" FROM {numbers}",
    )
    yield (
        RUNS,
        f"INSERT INTO metrics ({{key}}, value, timestamp, run_uuid, step, is_nan) {series}"
        f" SELECT 'loss', 0.5, {LONG_AGO}, {run}, 0, {no} FROM {numbers}",
    )
    yield (
        TRACES,
        "INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status,"
        f" db_payload_generation) {series} SELECT 'tr-' || {run}, {experiment}, {LONG_AGO}, 'OK', 0"
        f" FROM {numbers}",
    )
    yield (
        TRACES * SPANS + SPANS - 1,
        "INSERT INTO spans (trace_id, experiment_id, span_id, name, type, status,"
        f" start_time_unix_nano, end_time_unix_nano, content) {series}"
        f" SELECT 'tr-' || {padded.format(f'n / {SPANS}')}, {experiment}, {run}, 'n', 'LLM', 'OK',"
        f" {LONG_AGO}000000, {LONG_AGO}000001, '{{}}' FROM {numbers} WHERE n >= {SPANS}",
    )
