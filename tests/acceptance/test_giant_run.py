"""A run with millions of metric values: purged in little memory, while others go on logging."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from gcd.store import turns
from gcd.store.tracking import TrackingStore
from tests.measuring import Measured, measured
from tests.mlflow_store import RealStore
from tests.servers import Database

SMALL, BIG = 200_000, 5_000_000
MEMORY = 150 * 1024 * 1024
PATIENCE = 5.0
"""Seconds that no call of a client may take: MLflow lets SQLite wait 20, and fails."""
GIANT = "f" * 32
CYCLE = ("gc", "--older-than", "0s", "--yes")
SERIES = {
    "sqlite": "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {rows})"
    " SELECT n FROM s",
    "postgresql": "SELECT n FROM generate_series(1, {rows}) n",
    "mariadb": "SELECT seq AS n FROM seq_1_to_{rows}",
}


@dataclass
class Client:
    """Somebody who logs with hardly a pause, and notes how long each call of MLflow's took."""

    store: RealStore
    experiment: str
    took: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failed: list[str] = field(default_factory=list)
    values: int = 0
    runs: list[str] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    """How many values the giant still had, whenever a look was taken."""

    def work(self, stop: threading.Event) -> None:
        """Make runs, and log to each."""
        client = self.store.client
        while not stop.is_set():
            made: Any = self.timed(client.create_run, self.experiment)
            if made is None:
                continue
            run = made.info.run_id
            self.runs.append(run)
            for step in range(10):
                done = self.timed(client.log_metric, run, "mine", 0.5, step=step)
                self.values += done is not None
            self.timed(client.set_tag, run, "team", "blue")
            self.timed(client.log_param, run, "lr", "1")
            self.timed(client.set_experiment_tag, self.experiment, "team", run)
            self.timed(client.search_runs, [self.experiment], max_results=5)

    def timed(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> object:
        """What the call returned, True for nothing; None if it failed."""
        began = time.monotonic()
        try:
            found = call(*arguments, **options)
        except Exception as error:
            self.failed.append(f"{call.__name__}: {type(error).__name__}: {str(error)[:200]}")
            return None
        finally:
            self.took[call.__name__].append(time.monotonic() - began)
        return True if found is None else found

    def watch(self, stop: threading.Event) -> None:
        """Look again and again how much of the giant is left; counting millions would be in the way."""
        query = sa.text(f"SELECT COUNT(*) FROM metrics WHERE run_uuid = '{GIANT}'")
        engine = self.store.database.engine()
        while not stop.wait(0.01):
            with suppress(sa.exc.DBAPIError), engine.connect() as conn:  # SQLite may be locked
                self.seen.add(conn.scalar(query))
        engine.dispose()

    @property
    def worst(self) -> float:
        """Seconds of the slowest call."""
        return max(map(max, self.took.values()))

    def told(self) -> str:
        """What the calls took."""
        everything = sorted(seconds for found in self.took.values() for seconds in found)
        each = ", ".join(f"{name} {max(s) * 1000:.0f}" for name, s in sorted(self.took.items()))
        middle = everything[len(everything) // 2] * 1000
        return f"{len(everything)} calls, median {middle:.1f} ms, worst in ms: {each}"


def giant(store: RealStore, experiment: str, rows: int) -> None:
    """A deleted run with so many values of one metric, put there by SQL."""
    place = store.client.get_experiment(experiment).artifact_location
    dialect = store.database.dialect
    store.sql(
        "INSERT INTO runs (run_uuid, name, user_id, source_type, status, start_time, end_time,"
        " lifecycle_stage, deleted_time, artifact_uri, experiment_id) VALUES (:run, 'n', 'ann',"
        " 'LOCAL', 'FINISHED', 1600000000000, 1600000000000, 'deleted', 1600000000000, :uri, :number)",
        run=GIANT,
        uri=f"{place}/{GIANT}/artifacts",
        number=int(experiment),
    )
    no = "FALSE" if dialect == "postgresql" else "0"
    store.sql(
        "INSERT INTO metrics ({key}, value, timestamp, step, is_nan, run_uuid)"
        f" SELECT 'loss', 0.5, 1600000000000 + n, n, {no}, '{GIANT}'"
        f" FROM ({SERIES[dialect].format(rows=rows)}) x"
    )


@contextmanager
def at_work(*duties: Callable[[threading.Event], None]) -> Iterator[None]:
    """Inside, each does its work in a thread of its own."""
    stop = threading.Event()
    workers = [threading.Thread(target=each, args=(stop,)) for each in duties]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        stop.set()
        for worker in workers:
            worker.join()


def purged(store: RealStore, out: Path, rows: int) -> tuple[Measured, Client]:
    """Collect a giant while a client works; nothing is left of it and nothing of the client's lost."""
    experiment = store.experiment("e")
    store.run(experiment)
    giant(store, experiment, rows)
    client = Client(store, experiment)
    duties = [client.work, client.watch] if rows == SMALL else [client.work]
    with at_work(*duties):
        done = measured(out, *CYCLE, uri=store.uri, timeout=3600)

    seconds = f"{done.mib:.0f} MiB, {done.seconds:.1f} s"
    print(f"{rows:,} rows on {store.database.dialect}: {seconds}; {client.told()}")
    assert done.code == 0, done.stderr
    assert client.failed == []
    count = "SELECT COUNT(*) FROM metrics WHERE {key} = '{}'".replace(
        "{key}", "`key`" if store.database.dialect == "mariadb" else '"key"'
    )
    assert store.database.scalar(count.format("loss")) == 5  # of the run that lives
    assert store.database.scalar(count.format("mine")) == client.values
    assert not store.exists(GIANT)
    assert set(client.runs) <= store.runs()
    return done, client


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_five_million_values_go_in_little_memory_while_others_log(
    store: RealStore, tmp_path: Path
) -> None:
    done, client = purged(store, tmp_path / "out", BIG)
    assert client.worst < PATIENCE, client.told()
    assert done.peak < MEMORY, f"{done.mib:.0f} MiB at the peak"


def test_many_values_go_in_hardly_more_memory_than_none_while_others_log(
    store: RealStore, tmp_path: Path
) -> None:
    idle = measured(tmp_path / "idle", *CYCLE, uri=store.uri)
    done, client = purged(store, tmp_path / "out", SMALL)
    # Loaded, they would take ten times as much.
    assert done.peak < idle.peak + 12 * 2**20, f"{done.mib:.0f} MiB after {idle.mib:.0f}"
    if store.database.dialect == "postgresql":
        assert client.seen <= {0, SMALL}
    else:
        assert client.seen - {0, SMALL}, "all in one transaction, or so fast that nobody saw it"


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
def test_a_writer_gets_its_turn_between_the_transactions_of_a_long_purge(
    database: Database,
) -> None:
    store = TrackingStore(database.uri, read_only=False)
    until = time.monotonic() + 10 * turns.HELD
    engine, waited = database.engine(), []

    def other() -> None:
        """Whoever waits for SQLite's lock looks for it every now and then."""
        while time.monotonic() < until:
            began = time.monotonic()
            with engine.begin() as conn:
                conn.exec_driver_sql("UPDATE experiments SET last_update_time = 1")
            waited.append(time.monotonic() - began)

    thread = threading.Thread(target=other)
    thread.start()
    while time.monotonic() < until:
        store.retried(lambda _: time.sleep(turns.HELD / 5))
    thread.join()
    store.close()
    assert max(waited) < 7 * turns.HELD
