"""What users of `mlflow gc` suffer from, one test each: gcd does not have it.

The numbers are those of the list of pains that the project started from.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.mlflow_store import DAY, RealStore, now_ms
from tests.program import collect, decisions, gcd, report, shown, start
from tests.snapshot import Snapshot


def test_pain_1_one_bad_run_does_not_stop_the_others(store: RealStore) -> None:
    good = store.experiment("good")
    runs = [store.run(good) for _ in range(6)]
    missing = store.run(good, files={})
    linked = store.run(good, files={})
    outside = store.root / "outside"
    outside.mkdir()
    (outside / "precious").write_text("not yours")
    store.tree(linked).parent.mkdir(exist_ok=True)
    store.tree(linked).symlink_to(outside)
    foreign = store.run(store.experiment("foreign", "oss://bucket/store"), files={})
    nowhere = store.run(good, files={})
    store.delete(*runs, missing, linked, foreign, nowhere)
    store.sql("UPDATE runs SET artifact_uri = NULL WHERE run_uuid = :run", run=nowhere)

    for _ in range(2):
        done = collect(store.uri, expect=None)
        assert done.returncode in (0, 3), shown(done)
        assert not store.runs() & {*runs, missing}
        assert store.exists(foreign)
        assert (outside / "precious").read_text() == "not yours"
    assert decisions(store.uri)[foreign] == "no_backend"
    assert decisions(store.uri).get(linked) in ("unsafe_target", "shared")


def test_pain_4_selectors_only_narrow(store: RealStore) -> None:
    experiment, other = store.experiment("e"), store.experiment("other")
    wanted, sibling, in_other = store.run(experiment), store.run(experiment), store.run(other)
    active = store.run(experiment)
    store.delete(wanted, sibling)
    store.client.delete_experiment(other)
    before = Snapshot.of(store.database, store.root)
    for arguments in (
        ("--run-ids", ""),
        ("--run-ids", " "),
        ("--run-ids", ","),
        ("--run-ids", f"{wanted},"),
        ("--older-than", ""),
        ("--older-than", "", "--run-ids", wanted),
    ):
        done = gcd("gc", "--yes", *arguments, uri=store.uri)
        assert done.returncode == 2, shown(done)
    assert before.against(Snapshot.of(store.database, store.root)) == []

    collect(store.uri, "--run-ids", wanted)

    after = Snapshot.of(store.database, store.root)
    assert before.without([wanted]).against(after) == []

    unknown = "f" * 32
    done = collect(store.uri, "--run-ids", f"{sibling},{active},{unknown}", expect=3)
    assert active in done.stderr
    assert unknown in done.stderr
    assert before.without([wanted, sibling]).against(Snapshot.of(store.database, store.root)) == []
    assert store.exists(in_other)


def test_pain_5_proxied_artifacts_need_no_server(store: RealStore, tmp_path: Path) -> None:
    destination = tmp_path / "destination"
    proxied = store.experiment("proxied", "mlflow-artifacts:/proxied")
    hosted = store.experiment("hosted", "mlflow-artifacts://tracking.example:5000/hosted")
    plain = store.experiment("plain")
    first, second = (store.run(proxied, files={}) for _ in range(2))
    live, far = store.run(proxied, files={}), store.run(hosted, files={})
    near = store.run(plain)
    for run in (first, second, live):
        tree = destination / "proxied" / run / "artifacts" / "model"
        tree.mkdir(parents=True)
        (tree / "weights.bin").write_bytes(b"\0" * 100)
    store.delete(first, second, far, near)
    assert decisions(store.uri) == {
        **dict.fromkeys((first, second, far), "no_backend"),
        near: "collect",
    }
    (tmp_path / "wrong").mkdir()
    assert (
        decisions(store.uri, "--artifacts-destination", tmp_path / "wrong")[first] == "unreachable"
    )

    collect(store.uri, "--run-ids", first, "--artifacts-destination", destination)
    done = gcd(
        *("gc", "--older-than", "0s", "--yes"),
        uri=store.uri,
        env={"MLFLOW_ARTIFACTS_DESTINATION": destination.as_uri()},
    )

    assert done.returncode in (0, 3), shown(done)
    assert store.runs() == {live, far}
    assert [path.name for path in (destination / "proxied").iterdir()] == [live]
    assert (destination / "proxied" / live / "artifacts" / "model" / "weights.bin").exists()


def test_pain_9_many_pages_and_batches(store: RealStore) -> None:
    experiment = store.experiment("many")
    real, live = store.run(experiment), store.run(experiment)
    store.delete(real)
    many = 4000
    insert_runs(store, experiment, many)
    expected = {live, *(f"{n:032x}" for n in range(1, many, 2))}

    found = report(store.uri, env={"GCD_PURGE__BATCH_RUNS": "37"}, timeout=400)

    assert found["purged"]["run"] == many // 2 + 1
    assert store.runs() == expected
    assert store.database.scalar("SELECT COUNT(*) FROM params") == len(expected)


def insert_runs(store: RealStore, experiment: str, count: int) -> None:
    """Runs with a parameter each and no files; every other one is deleted."""
    home = store.client.get_experiment(experiment).artifact_location
    runs = [
        {
            "run": f"{n:032x}",
            "stage": "active" if n % 2 else "deleted",
            "at": None if n % 2 else now_ms() - DAY,
            "uri": f"{home}/{n:032x}/artifacts",
            "experiment": int(experiment),
        }
        for n in range(count)
    ]
    insert = (
        "INSERT INTO runs (run_uuid, name, user_id, status, start_time, lifecycle_stage, deleted_time,"
        " artifact_uri, experiment_id) VALUES (:run, 'n', 'ann', 'FINISHED', 1600000000000, :stage, :at,"
        " :uri, :experiment)"
    )
    key = "`key`" if store.database.dialect == "mariadb" else '"key"'
    with store.database.begin() as conn:
        conn.execute(sa.text(insert), runs)
        conn.execute(
            sa.text(f"INSERT INTO params ({key}, value, run_uuid) VALUES ('p', 'v', :run)"),
            [{"run": run["run"]} for run in runs],
        )


def test_pain_10_foreign_keys_never_stop_it(store: RealStore) -> None:
    experiment = store.experiment("e")
    full = store.run(experiment, dataset="d")
    model = store.logged_model(full, "m", metrics=True)
    store.client.delete_logged_model(model)
    store.trace(experiment, run=full)
    noted, free = store.run(experiment), store.run(experiment)
    store.delete(full, noted, free)
    text = "VARCHAR(32)"
    store.sql(
        f"CREATE TABLE plugin_notes (id INTEGER PRIMARY KEY, run_uuid {text} NOT NULL,"
        " FOREIGN KEY (run_uuid) REFERENCES runs (run_uuid))"
    )
    store.sql("INSERT INTO plugin_notes VALUES (1, :run)", run=noted)
    before = Snapshot.of(store.database, store.root)

    assert decisions(store.uri)[noted] == "unknown_reference"
    collect(store.uri)

    after = Snapshot.of(store.database, store.root)
    assert before.without([full, free, model]).against(after) == []


def test_pain_16_runs_without_a_stamp_age_from_when_they_were_seen(store: RealStore) -> None:
    experiment = store.experiment("e")
    undated, old, young = (store.run(experiment) for _ in range(3))
    store.delete(undated, old, young)
    store.stamp(undated, None)
    store.stamp(old, now_ms() - 2 * DAY)

    done = gcd("gc", "--older-than", "1d", "--yes", uri=store.uri)

    assert done.returncode == 0, shown(done)
    assert store.runs() == {undated, young}
    kept = {undated: "undated", young: "too_young"}
    assert decisions(store.uri, "--older-than", "1d") == kept
    store.sql(f"UPDATE alembic_gcd_seen SET first_seen_ms = first_seen_ms - {2 * DAY}")
    done = gcd("gc", "--older-than", "1d", "--yes", uri=store.uri)
    assert done.returncode == 0, shown(done)
    assert store.runs() == {young}


@pytest.mark.parametrize("age", ["1.2.3d", "30", "30x", "-1d", "nan", "1d1d", "soon"])
def test_pain_16_a_malformed_age_is_refused(store: RealStore, age: str) -> None:
    run = store.run(store.experiment("e"))
    store.delete(run)
    done = gcd("gc", "--yes", f"--older-than={age}", uri=store.uri)
    assert done.returncode == 2, shown(done)
    assert "Traceback" not in done.stderr
    assert store.exists(run)


def test_pain_18_a_restore_that_is_under_way_wins(store: RealStore) -> None:
    experiment = store.experiment("e")
    restored, free = store.run(experiment), store.run(experiment)
    before = Snapshot.of(store.database, store.root)
    store.delete(restored, free)
    collect(store.uri, "--run-ids", "0" * 32, expect=3)  # gcd's tables are made before

    with restoring(store, restored):
        process = start("gc", "--older-than", "0s", "--yes", "--json", uri=store.uri)
        time.sleep(2)
        assert process.poll() is None, process.communicate()
    out, err = process.communicate(timeout=60)

    assert process.returncode == 0, err
    # On SQLite gcd waits before it plans at all: then the run is simply active again.
    kept = {} if store.database.dialect == "sqlite" else {"restored": 1}
    assert json.loads(out)["kept"] == kept
    assert before.without([free]).against(Snapshot.of(store.database, store.root)) == []


@contextmanager
def restoring(store: RealStore, run: str) -> Iterator[None]:
    """A restore as MLflow does it, committed at the end of the block."""
    engine = store.database.engine()
    with engine.connect() as conn:
        if engine.dialect.name == "sqlite":
            conn.exec_driver_sql("BEGIN IMMEDIATE")
        conn.execute(
            sa.text(
                "UPDATE runs SET lifecycle_stage = 'active', deleted_time = NULL"
                " WHERE run_uuid = :run"
            ),
            {"run": run},
        )
        yield
        conn.commit()
    engine.dispose()


def test_pain_19_two_at_once_do_not_harm_each_other(store: RealStore) -> None:
    experiment = store.experiment("e")
    runs = [store.run(experiment) for _ in range(30)]
    live = store.run(experiment)
    before = Snapshot.of(store.database, store.root)
    store.delete(*runs)

    small = {"GCD_PURGE__BATCH_RUNS": "2"}
    every = [start("gc", "--older-than", "0s", "--yes", uri=store.uri, env=small) for _ in range(3)]
    ends = []
    for process in every:
        _, err = process.communicate(timeout=120)
        ends.append(process.returncode)
        assert process.returncode in (0, 11), err
        assert "Traceback" not in err
    assert 0 in ends
    collect(store.uri)
    assert before.without(runs).against(Snapshot.of(store.database, store.root)) == []
    assert store.runs() == {live}


def test_pain_20_a_dry_run_tells_everything_and_writes_nothing(store: RealStore) -> None:
    experiment = store.experiment("e")
    first, second = store.run(experiment), store.run(experiment, tags={"gcd.hold": "paper"})
    store.delete(first, second)
    before = Snapshot.of(store.database, store.root)
    tables = table_names(store)

    plan = gcd("plan", "--older-than", "0s", "--json", "--sizes", uri=store.uri)
    dry = gcd("gc", "--dry-run", "--older-than", "0s", "--json", "--sizes", uri=store.uri)
    people = gcd("gc", "--dry-run", "--older-than", "0s", uri=store.uri)

    assert [done.returncode for done in (plan, dry, people)] == [0, 0, 0]
    assert json.loads(plan.stdout)["items"] == json.loads(dry.stdout)["items"]
    summary = json.loads(plan.stdout)["summary"]
    assert (summary["collect"], summary["kept"]) == (1, {"held": 1})
    size = sum(path.stat().st_size for path in store.tree(first).rglob("*") if path.is_file())
    assert (summary["objects"], summary["bytes"]) == (2, size)
    assert first in people.stdout
    assert "held" in people.stdout
    assert table_names(store) == tables
    assert before.against(Snapshot.of(store.database, store.root)) == []

    done = report(store.uri)

    assert done["purged"]["run"] == summary["collect"]
    assert done["kept"] == summary["kept"]
    assert (done["objects"], done["bytes"]) == (summary["objects"], summary["bytes"])
    explained = gcd("explain", first, uri=store.uri)
    assert explained.returncode == 0, shown(explained)
    assert re.search(rf"cycle\s+{done['cycle']}\b", explained.stdout), explained.stdout
    assert "held" in gcd("explain", second, uri=store.uri).stdout


def table_names(store: RealStore) -> list[str]:
    """Every table, gcd's included."""
    with store.database.begin() as conn:
        return sorted(sa.inspect(conn).get_table_names())


@pytest.mark.parametrize("server", ["postgresql"], indirect=True)
@pytest.mark.parametrize("hidden", ["psycopg", "psycopg2"])
@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_pain_26_uris_work_with_the_driver_that_is_there(
    store: RealStore, scheme: str, hidden: str
) -> None:
    run = store.run(store.experiment("e"))
    store.delete(run)
    uri = store.uri.replace("postgresql", scheme, 1)
    collect(uri, env={"TEST_HIDE_MODULES": hidden})
    assert not store.exists(run)


@pytest.mark.parametrize("server", ["postgresql"], indirect=True)
def test_pain_26_without_a_driver_the_extra_is_named(store: RealStore) -> None:
    done = gcd("plan", uri=store.uri, env={"TEST_HIDE_MODULES": "psycopg,psycopg2"})
    assert done.returncode == 14, shown(done)
    assert "gcd[postgres]" in done.stderr
    assert "Traceback" not in done.stderr


def test_pain_18_restores_by_the_client_during_a_sweep(store: RealStore) -> None:
    """Whatever the client is told while gcd works is what it finds afterwards."""
    experiment = store.experiment("e")
    runs = [store.run(experiment, files={f"f{n}": b"x" for n in range(40)}) for _ in range(20)]
    before = Snapshot.of(store.database, store.root)
    store.delete(*runs)
    acknowledged: list[str] = []

    def restore() -> None:
        for run in reversed(runs):
            try:
                store.restore(run)
            except Exception:
                continue
            acknowledged.append(run)

    thread = threading.Thread(target=restore)
    process = start(
        *("gc", "--older-than", "0s", "--yes"), uri=store.uri, env={"GCD_PURGE__BATCH_RUNS": "1"}
    )
    time.sleep(0.8)
    thread.start()
    thread.join()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    collect(store.uri)
    gone = set(runs) - set(acknowledged)
    assert before.without(gone).against(Snapshot.of(store.database, store.root)) == []
