"""Times `gcd gc` against `mlflow gc` and against hand-written SQL with `rm -rf`, side by side.

    python tests/bench/bench_gc.py [--runs 2000] [--database sqlite|postgresql|mariadb ...]
    python tests/bench/bench_gc.py --versions 300000 [--runs 1000] [--database ...]

Each works on a copy of one store: deleted runs with 50 metric rows and 5 files each, among as many
live ones. PostgreSQL and MariaDB are those that the tests use; databases and files are removed.

With --versions only `gcd gc` is timed, once among a hundred model versions that concern none of these
runs and once among as many as are asked for, each with its peak of memory and the longest that another
writer waited for one small transaction.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.measuring import Measured, measured
from tests.mlflow_store import DAY, RealStore, Saved, make_schema, now_ms
from tests.servers import DIALECTS, Keeper, find_mariadb, find_postgresql, opened

METRICS, FILES = 50, 5
PER_MODEL, FEW = 1000, 100
"""Versions of one registered model; versions that are few."""
CHILDREN = ("metrics", "latest_metrics", "params", "tags")


def fill(store: RealStore, runs: int) -> None:
    """As many deleted runs as live ones, as `log_metric` and `log_artifact` leave them."""
    experiment = store.experiment("bench")
    home = store.client.get_experiment(experiment).artifact_location
    key = "`key`" if store.database.dialect == "mariadb" else '"key"'
    made: list[dict[str, object]] = [
        {
            "run": f"{n:032x}",
            "stage": "active" if n % 2 else "deleted",
            "at": None if n % 2 else now_ms() - DAY,
            "uri": f"{home}/{n:032x}/artifacts",
            "experiment": int(experiment),
        }
        for n in range(2 * runs)
    ]
    metrics: list[dict[str, object]] = [
        {"run": r["run"], "step": s, "value": s / 7} for r in made for s in range(METRICS)
    ]
    statements: list[tuple[str, list[dict[str, object]]]] = [
        (
            "INSERT INTO runs (run_uuid, name, user_id, status, start_time, lifecycle_stage, deleted_time,"
            " artifact_uri, experiment_id) VALUES (:run, 'n', 'ann', 'FINISHED', 1600000000000, :stage,"
            " :at, :uri, :experiment)",
            made,
        ),
        (
            f"INSERT INTO metrics ({key}, value, timestamp, run_uuid, step, is_nan)"
            " VALUES ('loss', :value, 1600000000000, :run, :step, :no)",
            [{**m, "no": False} for m in metrics],
        ),
        (
            f"INSERT INTO latest_metrics ({key}, value, timestamp, run_uuid, step, is_nan)"
            " VALUES ('loss', 7, 1600000000000, :run, 49, :no)",
            [{"run": r["run"], "no": False} for r in made],
        ),
        (f"INSERT INTO params ({key}, value, run_uuid) VALUES ('lr', '0.1', :run)", by_run(made)),
        (f"INSERT INTO tags ({key}, value, run_uuid) VALUES ('a', 'b', :run)", by_run(made)),
    ]
    with store.database.begin() as conn:
        for statement, rows in statements:
            for first in range(0, len(rows), 5000):
                conn.execute(sa.text(statement), rows[first : first + 5000])
        if conn.dialect.name == "postgresql":
            conn.exec_driver_sql("ANALYZE")
    for run in made:
        tree = store.root / "bench" / str(run["run"]) / "artifacts" / "model"
        tree.mkdir(parents=True)
        for number in range(FILES):
            (tree / f"file{number}").write_bytes(b"x" * 1000)


def by_run(made: list[dict[str, object]]) -> list[dict[str, object]]:
    """The run's id alone."""
    return [{"run": run["run"]} for run in made]


# -- the three ways ------------------------------------------------------------------------------


def with_mlflow(store: RealStore) -> None:
    """`mlflow gc` as its documentation has it."""
    words = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", store.uri]
    env = {**os.environ, "MLFLOW_TRACKING_URI": store.uri}
    subprocess.run(words, env=env, check=True, capture_output=True)


def with_gcd(store: RealStore) -> None:
    """`gcd gc`."""
    words = [sys.executable, "-m", "gcd", "gc", "--older-than", "0s", "--yes"]
    words += ["--backend-store-uri", store.uri]
    subprocess.run(words, check=True, capture_output=True, cwd=store.root)


def with_sql(store: RealStore) -> None:
    """What an expert who knows the store, and takes no care, would type."""
    dead = "SELECT run_uuid FROM runs WHERE lifecycle_stage = 'deleted'"
    trees = [row[0] for row in store.database.rows(dead)]
    store.database.execute(
        *(f"DELETE FROM {table} WHERE run_uuid IN ({dead})" for table in CHILDREN),
        "DELETE FROM runs WHERE lifecycle_stage = 'deleted'",
    )
    folder = store.root / "bench"
    for first in range(0, len(trees), 500):
        paths = [str(folder / str(run)) for run in trees[first : first + 500]]
        subprocess.run(["rm", "-rf", *paths], check=True)


WAYS: dict[str, Callable[[RealStore], None]] = {
    "mlflow gc": with_mlflow,
    "gcd gc": with_gcd,
    "SQL and rm -rf": with_sql,
}


def timed(store: RealStore, saved: Saved, way: Callable[[RealStore], None], runs: int) -> float:
    """Seconds on a fresh copy; the outcome is looked at."""
    store.again(saved)
    subprocess.run(["sync"], check=False)
    began = time.monotonic()
    way(store)
    seconds = time.monotonic() - began
    left = store.database.scalar("SELECT COUNT(*) FROM runs")
    folders = len(list((store.root / "bench").glob("*/artifacts/model/file0")))
    metrics = store.database.scalar("SELECT COUNT(*) FROM metrics")
    if (left, folders, metrics) != (runs, runs, runs * METRICS):
        raise SystemExit(f"wrong outcome: {left} runs, {folders} trees, {metrics} metrics are left")
    return seconds


def bench(dialect: str, runs: int) -> None:
    """One table."""
    with opened(dialect) as keeper, tempfile.TemporaryDirectory(prefix="gcd-bench-") as folder:
        store = fresh(keeper, Path(folder))
        fill(store, runs)
        saved = store.save()
        print(f"\n{dialect}: {runs} deleted runs, {METRICS} metric rows and {FILES} files each")
        print(f"  {'':16}{'seconds':>10}{'runs/s':>10}{'of mlflow gc':>14}")
        found: dict[str, float] = {}
        for name, way in WAYS.items():
            found[name] = timed(store, saved, way, runs)
            ratio = found["mlflow gc"] / found[name]
            seconds = found[name]
            print(f"  {name:16}{seconds:10.2f}{runs / seconds:10.0f}{ratio:13.1f}x", flush=True)


# -- among many model versions -------------------------------------------------------------------


def register(store: RealStore, versions: int) -> None:
    """So many versions of models of other runs, as `register_model` leaves them."""
    names = [{"name": f"model-{n}"} for n in range(1 + versions // PER_MODEL)]
    others = [f"{n | 1 << 127:032x}" for n in range(versions)]
    made = [
        {
            "name": f"model-{n // PER_MODEL}",
            "version": 1 + n % PER_MODEL,
            "source": (store.root / "other" / run / "artifacts" / "model").as_uri(),
            "run": run,
        }
        for n, run in enumerate(others)
    ]
    with store.database.begin() as conn:
        models = "INSERT INTO registered_models (name, creation_time) VALUES (:name, 1)"
        conn.execute(sa.text(models), names)
        insert = (
            "INSERT INTO model_versions (name, version, creation_time, last_updated_time, source,"
            " storage_location, run_id, current_stage, status)"
            " VALUES (:name, :version, 1, 1, :source, :source, :run, 'None', 'READY')"
        )
        for first in range(0, versions, 5000):
            conn.execute(sa.text(insert), made[first : first + 5000])
        if conn.dialect.name == "postgresql":
            conn.exec_driver_sql("ANALYZE")


@dataclass
class Writer:
    """Somebody who writes a little all the time."""

    store: RealStore
    waits: list[float] = field(default_factory=list)

    def work(self, stop: threading.Event) -> None:
        """One small transaction after the other, each timed."""
        engine = self.store.database.engine()
        change = sa.text("UPDATE runs SET name = 'written' WHERE run_uuid = :run")
        while not stop.wait(0.01):
            began, is_done = time.monotonic(), False
            while not is_done:  # SQLite gives up after 5 s: whoever writes tries again
                with suppress(sa.exc.OperationalError), engine.begin() as conn:
                    conn.execute(change, {"run": f"{1:032x}"})
                    is_done = True
            self.waits.append(time.monotonic() - began)
        engine.dispose()


def beside_a_writer(store: RealStore, out: Path) -> tuple[Measured, Writer]:
    """`gcd gc` while somebody writes."""
    writer, stop = Writer(store), threading.Event()
    thread = threading.Thread(target=writer.work, args=(stop,))
    thread.start()
    try:
        words = ("gc", "--older-than", "0s", "--yes")
        return measured(out, *words, uri=store.uri, timeout=3600), writer
    finally:
        stop.set()
        thread.join()


def bench_versions(dialect: str, runs: int, versions: int) -> None:
    """One table: a few versions, then many."""
    with opened(dialect) as keeper, tempfile.TemporaryDirectory(prefix="gcd-bench-") as folder:
        store = fresh(keeper, Path(folder))
        fill(store, runs)
        saved = store.save()
        print(f"\n{dialect}: {runs} deleted runs, {METRICS} metric rows and {FILES} files each")
        print(f"  {'model versions':>16}{'seconds':>10}{'of few':>8}{'MiB':>8}{'longest wait':>14}")
        seconds: list[float] = []
        for count in (FEW, versions):
            store.again(saved)
            register(store, count)
            done, writer = beside_a_writer(store, Path(folder) / "out")
            left = store.database.scalar("SELECT COUNT(*) FROM runs")
            if done.code != 0 or left != runs:
                raise SystemExit(f"exit {done.code}, {left} runs are left: {done.stderr}")
            seconds.append(done.seconds)
            ratio, wait = done.seconds / seconds[0], max(writer.waits)
            figures = f"{done.seconds:10.2f}{ratio:7.2f}x{done.mib:8.0f}{wait:12.3f} s"
            print(f"  {count:16,}{figures}", flush=True)


def fresh(keeper: Keeper, folder: Path) -> RealStore:
    """An empty store with MLflow's schema."""
    return RealStore(keeper, make_schema(keeper.create()), folder / "artifacts")


def main() -> None:
    """All databases that are asked for and there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=2000, help="deleted runs (default 2000)")
    parser.add_argument("--versions", type=int, help="model versions that concern none of the runs")
    parser.add_argument("--database", action="append", choices=DIALECTS)
    arguments = parser.parse_args()
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
    servers = {"postgresql": find_postgresql, "mariadb": find_mariadb}
    for dialect in arguments.database or ("sqlite", "postgresql"):
        problem = servers[dialect]() if dialect in servers else None
        if isinstance(problem, str):
            print(f"\n{dialect}: {problem}")
        else:
            if arguments.versions is None:
                bench(dialect, arguments.runs)
            else:
                bench_versions(dialect, arguments.runs, arguments.versions)


if __name__ == "__main__":
    main()
