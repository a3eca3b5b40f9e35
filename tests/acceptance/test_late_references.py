"""What users refer to while gcd collects it: acknowledged before its COMMIT, it keeps its rows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowException

from tests.mlflow_store import RealStore
from tests.pauser import Plan, paused
from tests.program import shown

CYCLE = ("gc", "--older-than", "0s", "--yes")
PATIENCE = 1.0
"""Seconds that an action may take while gcd stands still: then it waits for gcd, and gcd goes on."""


class Late:
    """A store with a deleted run, and with a logged model of it."""

    def __init__(self, store: RealStore) -> None:
        self.store = store
        self.experiment = store.experiment("e")
        self.run = store.run(self.experiment, files={"model/w": b"w"})
        self.model = store.logged_model(self.run, "m")
        store.client.create_registered_model("known")
        self.tree = store.tree(self.run)

    def by_run(self) -> None:
        self.store.version("known", f"runs:/{self.run}/model", self.run)

    def by_run_id_alone(self) -> None:
        self.store.version("known", "s3://elsewhere/model", self.run)

    def by_source_alone(self) -> None:
        self.store.version("known", f"{self.tree}/model")

    def of_a_new_name(self) -> None:
        self.store.version("unknown", f"runs:/{self.run}/model", self.run)

    def by_logged_model(self) -> None:
        self.store.version("known", f"models:/{self.model}", model=self.model)

    def by_a_tag_on_the_experiment(self) -> None:
        self.store.client.set_experiment_tag(self.experiment, "gcd.hold", "yes")

    def by_a_tag_on_the_run(self) -> None:
        self.store.restore(self.run)  # MLflow takes no tag for a deleted run
        self.store.client.set_tag(self.run, "gcd.hold", "yes")
        self.store.delete(self.run)


WAYS: tuple[Callable[[Late], None], ...] = (
    Late.by_run,
    Late.by_run_id_alone,
    Late.by_source_alone,
    Late.of_a_new_name,
    Late.by_logged_model,
    Late.by_a_tag_on_the_experiment,
    Late.by_a_tag_on_the_run,
)
WAITS = (Late.by_a_tag_on_the_run,)
"""What changes the run's own row, which a purge has locked: it waits, and is then refused."""


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_reference_acknowledged_before_the_commit_keeps_the_rows(
    store: RealStore, tmp_path: Path, way: Callable[[Late], None]
) -> None:
    late = Late(store)
    store.delete(late.run)
    saved = store.save()
    instants = purging(tmp_path / "all", store)
    assert not store.exists(late.run)
    acknowledged = 0
    for instant in instants:
        store.again(saved)
        acknowledged += one(late, tmp_path / "told", instant, way)
    assert acknowledged or store.database.dialect == "sqlite" or way in WAITS


def purging(path: Path, store: RealStore) -> list[int]:
    """Instants of the transaction that deletes the run's row: midway, there, and before its COMMIT."""
    plan = Plan(str(path), tuple(range(1, 1000)))
    with paused(plan, *CYCLE, uri=store.uri, env={}) as gc:
        events = [instant.event for instant in gc.instants()]
        done = gc.ended()
    assert done.returncode == 0, shown(done)
    last = next(n for n, event in enumerate(events) if event.startswith("DELETE FROM runs"))
    first = max(n for n in range(last) if events[n] == "commit")
    commit = next(n for n in range(last, len(events)) if events[n] == "commit")
    return [1 + first + (last - first) // 2, 1 + last, 1 + commit]


def one(late: Late, path: Path, number: int, way: Callable[[Late], None]) -> bool:
    """A cycle with an action at one instant; whether it was acknowledged while the run was there."""
    seen: list[bool] = []

    def act() -> None:
        try:
            way(late)
        except MlflowException:
            return
        seen.append(late.store.exists(late.run))

    with paused(Plan(str(path), (number,)), *CYCLE, uri=late.store.uri, env={}) as gc:
        acting = threading.Thread(target=act)
        for _ in gc.instants():
            acting.start()
            acting.join(PATIENCE)
        done = gc.ended()
    acting.join(120)
    assert done.returncode == 0, shown(done)
    if not any(seen):
        return False
    assert late.store.exists(late.run), gc.met
    assert (late.tree / "model/w").read_bytes() == b"w", gc.met
    return True
