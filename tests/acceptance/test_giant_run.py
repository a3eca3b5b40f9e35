"""A run with millions of metric values: purged in little memory, while others go on logging."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.measuring import Measured, measured
from tests.mlflow_store import RealStore

SMALL, BIG = 200_000, 5_000_000
MEMORY = 150 * 1024 * 1024
PATIENCE = 3.0
"""Seconds that no call of a client may take: MLflow gives SQLite five, and then fails."""
GIANT = "f" * 32
SERIES = {
    "sqlite": "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < :rows)"
    " SELECT n FROM s",
    "postgresql": "SELECT n FROM generate_series(1, :rows) n",
    "mariadb": "SELECT seq AS n FROM seq_1_to_{rows}",
}


@dataclass
class Client:
    """Somebody who logs without a pause until told to stop, and notes how long each call took."""

    store: RealStore
    experiment: str
    took: list[tuple[float, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    values: int = 0
    runs: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    """How many values the giant still had, each time a look was taken."""

    def work(self, stop: threading.Event) -> None:
        """Make runs, and log a metric, a tag and a parameter to each; all calls are MLflow's."""
        client = self.store.client
        while not stop.is_set():
            run = self.timed("create_run", lambda: client.create_run(self.experiment).info.run_id)
            if run is None:
                continue
            self.runs.append(run)
            for step in range(10):
                if self.timed("log_metric", lambda: self.log(run, step)):
                    self.values += 1
            self.timed("set_tag", lambda: client.set_tag(run, "team", "blue"))
            self.timed("log_param", lambda: client.log_param(run, "lr", "1"))
            self.timed("set_experiment_tag", self.tag_experiment)
            self.timed("search_runs", lambda: client.search_runs([self.experiment], max_results=5))
            self.look()
            time.sleep(0.01)

    def log(self, run: str, step: int) -> bool:
        """One value."""
        self.store.client.log_metric(run, "loss", 0.5, step=step)
        return True

    def tag_experiment(self) -> None:
        """The experiment's row is written too."""
        self.store.client.set_experiment_tag(self.experiment, "team", str(len(self.runs)))

    def timed(self, name: str, call: Callable[[], object]) -> str | None:
        """Call, and note how long it took or how it failed."""
        began = time.monotonic()
        try:
            return call()  # type: ignore[return-value]
        except Exception as error:
            self.failed.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
            return None
        finally:
            self.took.append((time.monotonic() - began, name))

    def look(self) -> None:
        """See how much of the giant is left, unless the database is locked just now."""
        with suppress(Exception):
            query = "SELECT COUNT(*) FROM metrics WHERE run_uuid = :run"
            self.rows.append(int(str(self.store.database.scalar(query, run=GIANT))))


def giant(store: RealStore, experiment: str, rows: int) -> None:
    """A deleted run with so many values of one metric, put there by SQL."""
    place = store.client.get_experiment(experiment).artifact_location
    series = SERIES[store.database.dialect].format(rows=rows)
    store.sql(
        "INSERT INTO runs (run_uuid, name, user_id, source_type, status, start_time, end_time,"
        " lifecycle_stage, deleted_time, artifact_uri, experiment_id) VALUES (:run, 'n', 'ann',"
        " 'LOCAL', 'FINISHED', 1600000000000, 1600000000000, 'deleted', 1600000000000, :uri, :number)",
        run=GIANT,
        uri=f"{place}/{GIANT}/artifacts",
        number=int(experiment),
    )
    store.sql(
        "INSERT INTO metrics ({key}, value, timestamp, step, is_nan, run_uuid)"
        f" SELECT 'loss', 0.5, 1600000000000 + n, n, {store.database.dialect == 'postgresql'}"
        f" AND FALSE, '{GIANT}' FROM ({series}) x",
        **({} if store.database.dialect == "mariadb" else {"rows": rows}),
    )


def purged(store: RealStore, out: Path, rows: int) -> tuple[Measured, Client]:
    """Collect a giant while a client works."""
    experiment = store.experiment("e")
    store.run(experiment)
    giant(store, experiment, rows)
    client, stop = Client(store, experiment), threading.Event()
    worker = threading.Thread(target=client.work, args=(stop,))
    worker.start()
    try:
        words = ("gc", "--older-than", "0s", "--yes")
        done = measured(out, *words, uri=store.uri, timeout=3600)
    finally:
        stop.set()
        worker.join()
    return done, client


def told(done: Measured, client: Client) -> str:
    """What was measured, for the log of a long test."""
    worst: dict[str, float] = {}
    for seconds, name in client.took:
        worst[name] = max(seconds, worst.get(name, 0))
    middle = sorted(seconds for seconds, _ in client.took)[len(client.took) // 2]
    return (
        f"{client.store.database.dialect}: {done.mib:.0f} MiB, {done.seconds:.1f} s; "
        f"{len(client.took)} calls, median {middle * 1000:.1f} ms, worst "
        + ", ".join(f"{name} {s * 1000:.0f} ms" for name, s in sorted(worst.items()))
    )


def check(done: Measured, client: Client) -> None:
    """Nothing of the giant is left, everything of the client's is there, and nobody waited long."""
    print(told(done, client))
    assert done.code == 0, done.stderr
    assert client.failed == []
    count = client.store.database.scalar
    assert count("SELECT COUNT(*) FROM metrics WHERE run_uuid = :run", run=GIANT) == 0
    assert not client.store.exists(GIANT)
    assert set(client.runs) <= client.store.runs()
    mine = count(
        "SELECT COUNT(*) FROM metrics WHERE run_uuid <> :run AND {0} = 0.5".format("value"),
        run=GIANT,
    )
    assert mine == client.values
    assert max(client.took)[0] < PATIENCE, told(done, client)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_five_million_values_go_in_little_memory_while_others_log(
    store: RealStore, tmp_path: Path
) -> None:
    done, client = purged(store, tmp_path / "out", BIG)
    check(done, client)
    assert done.peak < MEMORY, told(done, client)
