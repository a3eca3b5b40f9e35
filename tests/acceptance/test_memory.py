"""Planning over a million runs: bounded memory, bounded time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.measuring import measured
from tests.mlflow_store import RealStore, local_path

DELETED, LIVE = 100_000, 1_000_000
LIMIT = 150 * 1024 * 1024
SECONDS = 250
"""A generous end: a plan that compared each run with each other would take days."""

ROWS = {
    "sqlite": "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < :rows)",
    "postgresql": "",
}
SERIES = {
    "sqlite": "(SELECT n, printf('%032x', n) AS id FROM s) x",
    "postgresql": "(SELECT n, lpad(to_hex(n), 32, '0') AS id FROM generate_series(1, :rows) n) x",
}


@pytest.mark.parametrize(
    "server", ["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)], indirect=True
)
def test_a_plan_over_a_million_runs_fits_into_150_mb(store: RealStore, tmp_path: Path) -> None:
    experiment = store.experiment("e")
    store.run(experiment)
    insert(store, experiment)

    plain = within_bounds(tmp_path / "plain", "plan", "--older-than", "30d", uri=store.uri)
    listed = within_bounds(
        tmp_path / "listed", "plan", "--older-than", "30d", "--json", uri=store.uri
    )

    assert f"{DELETED:,} runs" in plain
    document = json.loads(listed)
    assert document["summary"]["collect"] == DELETED
    assert len(document["items"]) == DELETED


def insert(store: RealStore, experiment: str) -> None:
    """Every eleventh run is deleted; most trees are at their canonical place, some are not."""
    dialect = store.database.dialect
    home = store.client.get_experiment(experiment).artifact_location
    store.database.execute(
        f"INSERT INTO runs (run_uuid, name, user_id, status, start_time, lifecycle_stage, deleted_time,"
        f" artifact_uri, experiment_id) {ROWS[dialect]} SELECT id, 'n', 'ann', 'FINISHED', 1600000000000,"
        f" CASE WHEN n % 11 = 0 THEN 'deleted' ELSE 'active' END,"
        f" CASE WHEN n % 11 = 0 THEN 1600000000000 + n END,"
        f" '{home}/' || CASE WHEN n % 1000 = 1 AND n % 11 <> 0 THEN 'imported/' ELSE '' END || id || '/artifacts',"
        f" {experiment} FROM {SERIES[dialect]}",
        rows=DELETED + LIVE,
    )
    store.sql("ANALYZE runs")  # as a server does by itself in time
    for n in range(0, DELETED + LIVE, 500):  # a root where files are found is the right one
        (local_path(home) / f"{n:032x}" / "artifacts").mkdir(parents=True)


def within_bounds(out: Path, *arguments: object, uri: str) -> str:
    """What gcd printed, if it kept within memory and time."""
    done = measured(out, *arguments, uri=uri)
    assert done.code == 0, done.stderr
    assert done.peak < LIMIT, f"{done.mib:.0f} MiB at the peak"
    assert done.seconds < SECONDS, f"{done.seconds:.0f} s"
    return done.stdout
