"""What is purged and still to be swept: late bytes, failures, what came back, and how it is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gcd.planning.retry import FIRST
from tests.mlflow_store import DAY, FILES, RealStore, now_ms
from tests.program import collect, gcd, report, shown
from tests.stopper import PURGE, Moment, killed

CYCLE = ("gc", "--older-than", "0s", "--yes")
PURGED = Moment("after", "commit", PURGE)
"""The rows are gone for good, and no file is."""
SIZE = sum(map(len, FILES.values()))
SECONDS = 30_000
"""Milliseconds that a slow machine may take for a cycle or two."""
ON_SQLITE = pytest.mark.parametrize("server", ["sqlite"], indirect=True)


def entry(store: RealStore, run: str) -> dict[str, Any]:
    """The run's only line in the journal."""
    with store.database.begin() as conn:
        query = f"SELECT * FROM alembic_gcd_journal WHERE entity_id = '{run}'"
        (row,) = conn.exec_driver_sql(query).mappings().all()
        return dict(row)


def make_due(store: RealStore) -> None:
    """Let every entry's time have come."""
    store.sql("UPDATE alembic_gcd_journal SET due_ms = 0")


def explained(store: RealStore, run: str) -> str:
    """What `gcd explain` says."""
    done = gcd("explain", run, uri=store.uri)
    assert done.returncode == 0, shown(done)
    return done.stdout


def deleted_run(store: RealStore) -> tuple[str, Path]:
    """A deleted run among live ones, and its tree."""
    experiment = store.experiment("e")
    store.run(experiment)
    run = store.run(experiment)
    tree = store.tree(run)
    store.delete(run)
    return run, tree


def purged_run(store: RealStore) -> tuple[str, Path]:
    """A run whose rows are purged and whose files are not swept, and its tree."""
    run, tree = deleted_run(store)
    killed(PURGED, *CYCLE, uri=store.uri)
    assert not store.exists(run)
    assert is_whole(tree)
    return run, tree


def is_whole(tree: Path) -> bool:
    """Whether every file of the run is there as it was logged."""
    return all((tree / name).read_bytes() == content for name, content in FILES.items())


def upload(tree: Path, name: str = "late.bin") -> None:
    """What a client does that knew the place before the run was deleted."""
    tree.mkdir(parents=True, exist_ok=True)
    (tree / name).write_bytes(b"late")


# -- late bytes ----------------------------------------------------------------------------------


def test_bytes_that_come_late_are_deleted_a_day_later(store: RealStore) -> None:
    run, tree = deleted_run(store)
    collect(store.uri)
    assert not tree.exists()
    first = entry(store, run)
    assert (first["state"], first["looks"]) == ("pending", 1)
    assert first["due_ms"] - first["swept_ms"] == DAY
    upload(tree)

    collect(store.uri)

    assert tree.exists(), "it was looked at again before its time"
    assert "looked at once more" in explained(store, run)
    make_due(store)
    found = report(store.uri)
    assert (found["objects"], found["bytes"], found["purged"]["run"]) == (1, 4, 0)
    assert not tree.parent.exists()
    second = entry(store, run)
    assert (second["state"], second["objects"], second["bytes"]) == ("done", 3, SIZE + 4)
    assert "its files were deleted" in explained(store, run)
    assert "once more" not in explained(store, run)


@ON_SQLITE
def test_a_tree_that_nobody_changed_for_a_day_is_not_looked_at_again(store: RealStore) -> None:
    run, tree = deleted_run(store)
    yesterday = (now_ms() - DAY) / 1000 - 60
    for path in (tree, *tree.rglob("*")):
        os.utime(path, (yesterday, yesterday))
    collect(store.uri)
    assert entry(store, run)["state"] == "done"


@ON_SQLITE
def test_late_bytes_that_are_registered_stay(store: RealStore) -> None:
    run, tree = deleted_run(store)
    collect(store.uri)
    upload(tree)
    store.version("classifier", tree.as_uri())
    make_due(store)
    collect(store.uri)
    assert (tree / "late.bin").exists()
    assert "parked: registered" in explained(store, run)


# -- what does not go ----------------------------------------------------------------------------


@ON_SQLITE
def test_what_fails_for_a_passing_reason_is_tried_again_later_and_later(store: RealStore) -> None:
    run, tree = purged_run(store)
    aside = store.root.with_name("aside")
    store.root.rename(aside)
    for attempt, wait in ((1, FIRST), (2, 2 * FIRST)):
        make_due(store)
        before = now_ms()
        collect(store.uri, expect=3)
        found = entry(store, run)
        assert (found["state"], found["attempts"]) == ("pending", attempt)
        due = before + wait.total_seconds() * 1000
        assert due <= found["due_ms"] < due + SECONDS
        assert "is not there" in found["error"]
    collect(store.uri)
    assert entry(store, run)["attempts"] == 2, "it was tried before its time"
    said = explained(store, run)
    assert "due to be deleted" in said
    assert "is not there" in said

    aside.rename(store.root)
    make_due(store)
    collect(store.uri)

    assert not tree.parent.exists()
    assert entry(store, run)["error"] is None
    assert "its files were deleted" in explained(store, run)


@ON_SQLITE
def test_what_only_a_person_can_mend_is_stuck_and_not_tried_again(store: RealStore) -> None:
    run, tree = purged_run(store)
    aside = store.root.with_name("aside")
    tree.parent.rename(aside)
    tree.parent.symlink_to(aside)

    assert collect(store.uri, expect=3).returncode == 3

    found = entry(store, run)
    assert (found["state"], found["attempts"]) == ("stuck", 1)
    assert "its files are still there, stuck" in explained(store, run)
    assert "symbolic link" in explained(store, run)
    make_due(store)
    again = collect(store.uri, expect=3)
    assert "1 tree stuck until a person acts" in again.stdout
    assert entry(store, run)["attempts"] == 1
    assert is_whole(aside / "artifacts")


@ON_SQLITE
def test_one_that_is_stuck_does_not_keep_the_others(store: RealStore) -> None:
    stuck, tree = purged_run(store)
    store.sql("UPDATE alembic_gcd_journal SET state = 'stuck', error = 'on purpose'")
    other = store.run(store.client.get_experiment_by_name("e").experiment_id)
    store.delete(other)
    collect(store.uri, expect=3)
    assert not store.exists(other)
    assert entry(store, stuck)["state"] == "stuck"
    assert is_whole(tree)


# -- what came back ------------------------------------------------------------------------------


def bring_back(store: RealStore, run: str, tree: Path) -> None:
    """Put the run's row in again, active."""
    experiment = store.client.get_experiment_by_name("e").experiment_id
    store.sql(
        "INSERT INTO runs (run_uuid, name, experiment_id, artifact_uri, lifecycle_stage, status,"
        " user_id, start_time) VALUES (:run, 'r', :experiment, :uri, 'active', 'FINISHED', 'ann', 1)",
        run=run,
        experiment=int(experiment),
        uri=tree.as_uri(),
    )


def test_the_files_of_a_run_that_is_back_stay(store: RealStore) -> None:
    """A failover lost the purge, or somebody put the row in again."""
    run, tree = purged_run(store)
    bring_back(store, run, tree)
    for _ in range(2):
        collect(store.uri)
        make_due(store)
        assert is_whole(tree)
        found = entry(store, run)
        assert (found["state"], found["attempts"]) == ("parked", 1)
        assert "is back" in found["error"]
    assert len(store.client.list_artifacts(run)) == 2


@ON_SQLITE
def test_explain_tells_of_the_files_that_were_to_be_deleted_of_a_run_that_is_back(
    store: RealStore,
) -> None:
    run, tree = purged_run(store)
    bring_back(store, run, tree)
    collect(store.uri)
    said = explained(store, run)
    assert "active" in said
    assert "parked" in said


def test_a_model_version_made_between_purge_and_sweep_saves_the_files(store: RealStore) -> None:
    run, tree = purged_run(store)
    store.version("classifier", (tree / "model").as_uri())
    for _ in range(2):
        collect(store.uri)
        make_due(store)
        assert is_whole(tree)
        assert entry(store, run)["state"] == "parked"
    assert "its files are still there, parked: registered: version 1" in explained(store, run)
    got = store.client.get_model_version_download_uri("classifier", "1")
    assert got == (tree / "model").as_uri()


@ON_SQLITE
def test_a_live_run_that_points_there_between_purge_and_sweep_saves_the_files(
    store: RealStore,
) -> None:
    run, tree = purged_run(store)
    (live,) = store.runs()
    store.point(live, tree.as_uri())
    collect(store.uri)
    assert is_whole(tree)
    assert "parked: shared" in explained(store, run)


# -- history -------------------------------------------------------------------------------------


@ON_SQLITE
def test_history_is_kept_as_long_as_it_says(store: RealStore) -> None:
    experiment = store.experiment("e")
    old, young = store.run(experiment), store.run(experiment)
    for run in (old, young):
        store.delete(run)
        collect(store.uri)
    store.sql(
        f"UPDATE alembic_gcd_journal SET state = 'done', swept_ms = swept_ms - {DAY // 2}",
        f"UPDATE alembic_gcd_journal SET swept_ms = swept_ms - {DAY} WHERE cycle = 1",
        f"UPDATE alembic_gcd_cycle SET ended_ms = ended_ms - {2 * DAY} WHERE id = 1",
    )

    collect(store.uri, env={"GCD_JOURNAL__KEEP_HISTORY": "1d"})

    assert store.database.rows("SELECT entity_id FROM alembic_gcd_journal") == [(young,)]
    assert store.database.rows("SELECT id FROM alembic_gcd_cycle ORDER BY id") == [(2,), (3,)]
    assert "was collected by cycle 2" in explained(store, young)
    done = gcd("explain", old, uri=store.uri)
    assert done.returncode == 1, shown(done)
    assert "keep_history" in done.stderr


@ON_SQLITE
def test_what_is_not_settled_is_never_forgotten(store: RealStore) -> None:
    experiment = store.experiment("e")
    runs = [store.run(experiment) for _ in range(4)]
    store.delete(*runs)
    collect(store.uri)
    states = dict(zip(runs, ("pending", "stuck", "parked", "done"), strict=True))
    store.sql(f"UPDATE alembic_gcd_journal SET swept_ms = 1, purged_ms = 1, due_ms = {2**53}")
    for run, state in states.items():
        store.sql(f"UPDATE alembic_gcd_journal SET state = '{state}' WHERE entity_id = '{run}'")

    collect(store.uri, expect=3, env={"GCD_JOURNAL__KEEP_HISTORY": "0s"})

    found = dict(store.database.rows("SELECT entity_id, state FROM alembic_gcd_journal"))
    assert found == {run: state for run, state in states.items() if state != "done"}
