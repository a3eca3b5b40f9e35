"""A store made by MLflow's own client: what is deleted and free goes, all else reads as before."""

from __future__ import annotations

from pathlib import Path

from tests.mlflow_store import RealStore, read_back, rich_store
from tests.program import collect, decisions, report
from tests.snapshot import Snapshot, mentions


def test_what_is_deleted_and_free_goes_and_all_else_stays(store: RealStore) -> None:
    rich = rich_store(store)
    before = Snapshot.of(store.database, store.root)
    told = read_back(store.client, without=rich.gone)

    decided = decisions(store.uri)

    assert decided == {**dict.fromkeys(rich.gone, "collect"), **rich.kept}
    assert before.against(Snapshot.of(store.database, store.root)) == []

    collect(store.uri)

    after = Snapshot.of(store.database, store.root)
    assert before.without(rich.gone).against(after) == []
    assert mentions(after.tables, rich.gone) == []
    assert [name for name in after.files if set(Path(name).parts) & rich.gone.keys()] == []
    assert read_back(store.client, without=rich.gone) == told

    second = report(store.uri)

    assert second["purged"] == {"run": 0}
    assert second["state"] == "done"
    assert second["kept"] == {reason: len(ids) for reason, ids in by_reason(rich.kept).items()}
    assert after.against(Snapshot.of(store.database, store.root)) == []


def test_kept_runs_go_once_nothing_holds_them(store: RealStore) -> None:
    experiment = store.experiment("e")
    held = store.run(experiment, tags={"gcd.hold": "paper"})
    registered = store.run(experiment)
    version = store.version("m", store.client.get_run(registered).info.artifact_uri + "/model")
    before = Snapshot.of(store.database, store.root)
    store.delete(held, registered)
    collect(store.uri)
    assert store.exists(held)
    assert store.exists(registered)

    store.restore(held, registered)
    assert before.against(Snapshot.of(store.database, store.root)) == []
    store.client.delete_tag(held, "gcd.hold")
    store.client.delete_model_version("m", version)
    store.delete(held, registered)
    collect(store.uri)

    assert not store.exists(held)
    assert not store.exists(registered)
    left = Snapshot.of(store.database, store.root)
    assert [name for name in left.files if set(Path(name).parts) & {held, registered}] == []


def by_reason(kept: dict[str, str]) -> dict[str, list[str]]:
    """Keep reason to the runs it keeps."""
    found: dict[str, list[str]] = {}
    for run, reason in kept.items():
        found.setdefault(reason, []).append(run)
    return found
