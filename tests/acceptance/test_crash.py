"""SIGKILL at every step of a cycle, with a restore after it: all or nothing of each run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from mlflow import MlflowException

from tests.killer import Point, count_events, kill_at, points
from tests.mlflow_store import RealStore
from tests.program import collect
from tests.snapshot import Snapshot, mentions

CYCLE = ("gc", "--older-than", "0s", "--yes")
GIANT = {"GCD_PURGE__BATCH_ROWS": "1000"}
MOST: dict[str, dict[str, int | None]] = {
    "sqlite": {"commit": None, "statement": 10, "unlink": 4, "rmdir": 4},
    "postgresql": {"commit": 7, "statement": 5, "unlink": 2, "rmdir": 2},
    "mariadb": {"commit": 7, "statement": 5, "unlink": 2, "rmdir": 2},
}


SHARE = pytest.mark.parametrize("share", ["some", pytest.param("all", marks=pytest.mark.soak)])
"""How many of the moments: evenly spread ones, or each."""


@SHARE
@pytest.mark.parametrize("event", ["commit", "statement", "unlink", "rmdir"])
def test_killed_anywhere_each_run_is_whole_or_gone(
    store: RealStore, tmp_path: Path, event: str, share: str
) -> None:
    runs = small_store(store)
    saved = store.save()
    everything = points(
        count_events(tmp_path, *CYCLE, uri=store.uri),
        event,
        most=MOST[store.database.dialect][event] if share == "some" else None,
    )
    assert everything, f"a cycle without a single {event}"
    for number, point in enumerate(everything):
        store.again(saved)
        crash_restore_and_go_on(store, point, runs, runs[number % len(runs)], {})


@SHARE
@pytest.mark.parametrize("event", ["commit", "statement"])
def test_killed_in_the_rows_of_a_giant_run(
    store: RealStore, tmp_path: Path, event: str, share: str
) -> None:
    experiment = store.experiment("e")
    store.run(experiment)
    runs = [store.run(experiment, metrics=5000), store.run(experiment)]
    store.delete(*runs)
    saved = store.save()
    some = 12 if store.database.dialect == "sqlite" else 6
    most = some if share == "some" else None
    everything = points(count_events(tmp_path, *CYCLE, uri=store.uri, env=GIANT), event, most=most)
    for number, point in enumerate(everything):
        store.again(saved)
        restored = runs[0] if number % 3 else runs[1]
        crash_restore_and_go_on(store, point, runs, restored, GIANT)


def small_store(store: RealStore) -> list[str]:
    """A few deleted runs with rows and files, and live ones beside them."""
    experiment = store.experiment("e")
    store.run(experiment, dataset="shared")
    runs = [
        store.run(experiment),
        store.run(experiment, dataset="shared"),
        store.run(experiment, files={}),
        store.run(experiment, files={"deep/er/file": b"1", "top": b"2"}),
    ]
    store.delete(*runs)
    return runs


def crash_restore_and_go_on(
    store: RealStore, point: Point, runs: list[str], restored: str, env: dict[str, str]
) -> None:
    """Kill at the point, restore one run, run a second cycle; look after each step."""
    before = Snapshot.of(store.database, store.root)
    if not kill_at(point, *CYCLE, uri=store.uri, env=env):
        return
    there = store.runs()
    gone = set(runs) - there
    assert lost(before.without(gone), Snapshot.of(store.database, store.root)) == [], point

    is_back = restored in there
    if is_back:
        store.restore(restored)
    else:
        with pytest.raises(MlflowException):
            store.restore(restored)
    expected = as_restored(before, restored) if is_back else before
    assert lost(expected.without(gone), Snapshot.of(store.database, store.root)) == [], point

    collect(store.uri, env=env)

    gone = set(runs) - ({restored} if is_back else set())
    after = Snapshot.of(store.database, store.root)
    assert expected.without(gone).against(after) == [], point
    assert mentions(after.tables, gone) == [], point
    with suppress(FileNotFoundError):
        assert not [name for name in after.files if set(Path(name).parts) & gone], point


def lost(expected: Snapshot, found: Snapshot) -> list[str]:
    """What is missing or changed; what is still to be deleted may be there."""
    return [
        problem
        for problem in expected.against(found)
        if problem.startswith(("lost", "changed")) or ": lost " in problem
    ]


def as_restored(snapshot: Snapshot, run: str) -> Snapshot:
    """The same store with one run restored."""
    rows = [
        {**row, "lifecycle_stage": "active", "deleted_time": None}
        if row["run_uuid"] == run
        else row
        for row in snapshot.tables["runs"]
    ]
    return Snapshot({**snapshot.tables, "runs": rows}, snapshot.files)
