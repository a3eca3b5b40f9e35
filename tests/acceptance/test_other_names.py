"""Live data is found also where it has another name than the dead tree that it lies in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mlflow_store import RealStore, release
from tests.mounting import Mount, mounting
from tests.program import collect, decisions, gcd, shown
from tests.servers import Database, Keeper
from tests.snapshot import Snapshot

KEPT = {"shared", "registered"}
"""The reasons for which a tree stays that something live lies in."""


def look(store: RealStore) -> Snapshot:
    """The store as it is."""
    return Snapshot.of(store.database, store.root)


def kept(store: RealStore, *dead: str) -> None:
    """What is planned and what is done leave these as they are, and take the one run beside them."""
    loose = store.run(store.experiment("beside"))
    store.delete(loose)
    before = look(store)
    found = decisions(store.uri)
    assert found.pop(loose) == "collect"
    assert {run: found[run] for run in dead if found[run] not in KEPT} == {}
    collect(store.uri)
    after = look(store)
    assert before.without([loose]).against(after) == []
    assert not store.exists(loose)


@pytest.fixture
def mount() -> Iterator[Mount]:
    with mounting() as mount:
        yield mount


# -- other schemes ----------------------------------------------------------------------------------

BY_ID = [
    "dbfs:/elsewhere/{run}/artifacts/part",
    "s3://elsewhere/1/{RUN}/artifacts/part",
    "mlflow-artifacts://elsewhere:5000/1/{run}/artifacts",
    "https://elsewhere/mlflow/api/2.0/mlflow-artifacts/artifacts/1/{run}/artifacts",
    "wasbs://box@account.blob.core.windows.net/{run}",
    "uc://catalog/schema/{run}",
    "./mlruns/1/{RUN}/artifacts/part",
]
BY_PLACE = [
    "sftp://elsewhere:22{tree}/part",
    "hdfs://nn1{tree}",
    "file://localhost{tree}/part",
    "file://elsewhere{folder}",
    "{folder}/x/../{run}/artifacts",
    "file://{tree}?version=1",
    "dbfs:{folder}",
]


@pytest.mark.parametrize("stage", ["active", "deleted"])
@pytest.mark.parametrize("kind", ["run", "model"])
def test_a_uri_in_another_scheme_holds_the_tree_that_it_names(
    store: RealStore, kind: str, stage: str
) -> None:
    """Whatever the stage of what it belongs to: what is only soft-deleted can be restored."""
    live, dead = store.experiment("live"), []
    for number, uri in enumerate(BY_ID + BY_PLACE):
        folder = store.experiment(f"e{number}")
        run = store.run(folder)
        dead.append(run)
        named = uri.format(
            run=run, RUN=run.upper(), tree=store.tree(run), folder=store.folder(folder)
        )
        owner = store.run(live, files={})
        if kind == "run":
            store.point(owner, named)
        else:
            store.point_model(owner := store.logged_model(owner, "m"), named)
        if stage == "deleted":
            store.client.set_tag(owner, "gcd.hold", "yes") if kind == "run" else None
            store.delete(owner)
    store.delete(*dead)
    kept(store, *dead)


@pytest.mark.parametrize("at", ["source", "storage_location"])
def test_a_version_in_another_scheme_holds_the_tree_that_it_names(
    store: RealStore, at: str
) -> None:
    dead = []
    for number, uri in enumerate(BY_ID + BY_PLACE):
        folder = store.experiment(f"e{number}")
        run = store.run(folder)
        dead.append(run)
        named = uri.format(
            run=run, RUN=run.upper(), tree=store.tree(run), folder=store.folder(folder)
        )
        version = store.version(f"m{number}", "s3://elsewhere/none")
        store.sql(
            f"UPDATE model_versions SET {at} = :uri WHERE name = :name AND version = :version",
            uri=named,
            name=f"m{number}",
            version=int(version),
        )
    store.delete(*dead)
    kept(store, *dead)


def test_an_experiment_in_another_scheme_that_logs_in_a_dead_tree_holds_it(
    store: RealStore,
) -> None:
    folder = store.experiment("e")
    runs = [store.run(folder) for _ in range(3)]
    store.experiment("by id", f"dbfs:/elsewhere/{runs[0]}/artifacts/more")
    store.experiment("by place", f"hdfs://nn1{store.tree(runs[1])}/more")
    store.experiment("by dots", f"dbfs:{store.tree(runs[2])}")
    store.delete(*runs)
    kept(store, *runs)


def test_own_names_hold_nothing(store: RealStore) -> None:
    """A run's own odd URI, and an experiment's own location, are no reason to keep themselves."""
    number = store.numbered("numbered")
    run = store.run(number)
    store.client.delete_experiment(number)
    before = look(store)
    assert set(decisions(store.uri).values()) == {"collect"}
    collect(store.uri)
    assert before.gone([number])
    assert not Path(store.root, number).exists()
    assert not store.exists(run)


# -- other mount points -----------------------------------------------------------------------------

SHOWN = {
    "tree": "{tree}",
    "part": "{tree}/part",
    "folder": "{tree}/../..",
    "above": "{tree}/../../..",
}
"""What of the dead run's tree, or around it, another mount point shows."""


@pytest.mark.parametrize("what", SHOWN)
def test_what_is_live_at_another_mount_point_holds_the_tree(
    store: RealStore, mount: Mount, what: str
) -> None:
    """None of the URIs has the dead run's id; nothing but the disk tells what they name."""
    live, dead = store.experiment("live"), []

    def shown() -> str:
        """A mount point that shows a new dead run's tree, or what of it."""
        number = len(dead)
        run = store.run(store.experiment(f"above{number}/e{number}", deep(store, number)))
        dead.append(run)
        store.write(run, {"part/more": b"live"})
        return str(mount.bind(Path(SHOWN[what].format(tree=store.tree(run))), at(store, number)))

    store.point(store.run(live, files={}), shown())
    store.point_model(store.logged_model(store.run(live, files={}), "m"), Path(shown()).as_uri())
    store.version("registered", shown())
    if what in ("tree", "part"):  # an experiment holds only what it lies in
        store.experiment("at a mount", shown())
        store.experiment("below a mount", shown() + "/more")
    store.delete(*dead)
    kept(store, *dead)


def deep(store: RealStore, number: int) -> str:
    """A location in a folder of its own."""
    return (store.root / f"above{number}" / f"e{number}").as_uri()


def at(store: RealStore, number: int) -> Path:
    """Where to mount: beside the store."""
    return store.root.with_name("mounted") / str(number)


def test_a_dead_tree_that_is_reached_by_a_mount_is_held_by_what_lies_around_it(
    store: RealStore, mount: Mount
) -> None:
    """The experiment logs at a mount point that shows a folder of a live run's tree."""
    host = store.run(store.experiment("live"))
    (store.tree(host) / "inner").mkdir()
    by_layout = mount.bind(store.tree(host) / "inner", at(store, 0))
    elsewhere = store.root / "odd/tree"
    (elsewhere / "inner").mkdir(parents=True)
    store.point(store.run(store.experiment("odd"), files={}), str(elsewhere))
    by_uri = mount.bind(elsewhere / "inner", at(store, 1))
    dead = [store.run(store.experiment(each.name, each.as_uri())) for each in (by_layout, by_uri)]
    store.delete(*dead)
    kept(store, *dead)


def test_two_mount_points_of_one_disk_are_no_reason_to_keep(store: RealStore, mount: Mount) -> None:
    """Experiments that log on the same disk by two paths keep nothing of one another."""
    disk = store.root.with_name("disk")
    disk.mkdir()
    mount(disk)
    again = mount.bind(disk, store.root.with_name("again"))
    one = store.experiment("one", (disk / "1").as_uri())
    two = store.experiment("two", (again / "1").as_uri())
    three = store.experiment("three", (again / "3").as_uri())
    dead = [store.run(each) for each in (one, two, three)]
    live = [store.run(each) for each in (one, two, three)]
    store.delete(*dead)
    assert set(decisions(store.uri).values()) == {"collect"}
    collect(store.uri)
    assert not any(store.exists(run) for run in dead)
    assert all(any(store.tree(run).iterdir()) for run in live)


# -- relative paths, and names of names --------------------------------------------------------------


def register(store: RealStore, name: str, source: str, **columns: object) -> None:
    """A version with a source that MLflow would refuse, as imports and old clients left them."""
    version = int(store.version(name, "s3://elsewhere/none"))
    values = {"source": source, "storage_location": source, "run_id": None, **columns}
    store.sql(
        "UPDATE model_versions SET source = :source, storage_location = :storage_location,"
        " run_id = :run_id WHERE name = :name AND version = :version",
        name=name,
        version=version,
        **values,
    )


@pytest.mark.parametrize("source", ["model", "./d/model", "../model", "~/model", "a b/model"])
def test_a_relative_source_keeps_every_local_tree_and_says_how_to_end_that(
    store: RealStore, source: str
) -> None:
    run, other = store.run(store.experiment("e")), store.run(store.experiment("f"))
    register(store, "m", source)
    store.delete(run, other)
    before = look(store)

    done = gcd("plan", "--older-than", "0s", uri=store.uri)
    assert "artifacts.ignored_sources" in done.stdout + done.stderr, shown(done)
    assert source in done.stdout + done.stderr
    assert decisions(store.uri) == {run: "registered", other: "registered"}
    collect(store.uri)
    assert before.against(look(store)) == []

    ignoring = {"GCD_ARTIFACTS__IGNORED_SOURCES": json.dumps([source])}
    assert set(decisions(store.uri, env=ignoring).values()) == {"collect"}
    collect(store.uri, env=ignoring)
    assert not store.exists(run)
    assert not store.exists(other)


def test_a_relative_source_of_a_known_run_keeps_that_run(store: RealStore) -> None:
    run, other = store.run(store.experiment("e")), store.run(store.experiment("f"))
    register(store, "m", "artifacts/model", run_id=run)
    register(store, "by id", f"./mlruns/1/{run}/artifacts/model")
    register(store, "stored", "model", storage_location="s3://elsewhere/model")
    register(store, "prompt", "dummy-source")
    register(store, "another", "prompt-template")
    store.delete(run, other)
    assert decisions(store.uri) == {run: "registered", other: "collect"}
    collect(store.uri)
    assert store.exists(run)
    assert not store.exists(other)


def test_a_version_that_was_deleted_is_followed_where_another_names_it(store: RealStore) -> None:
    """By number, alias or stage, over several versions, quoted, and round in a circle."""
    runs = [store.run(store.experiment(f"e{number}")) for number in range(6)]
    trees = [str(store.tree(run)) for run in runs]
    named = {
        "models:/A1/1": "A1",
        "models:/A2@best": "A2",
        "models:/A3/Production": "A3",
        "models:/A%34/1": "A4",
        "models://profile@databricks/A5/1/model": "A5",
    }
    for number, (uri, name) in enumerate(named.items()):
        register(store, name, f"{trees[number]}/d")
        register(store, f"copy of {name}", uri, storage_location=None)
    register(store, "end", f"{trees[5]}/d")
    register(store, "middle", "models:/end/1")
    register(store, "start", "models:/middle/latest", storage_location=None)
    register(store, "one", "models:/other/1", storage_location=None)
    register(store, "other", "models:/one/1", storage_location=None)
    for name in (*named.values(), "end", "middle"):
        store.client.delete_model_version(name, "1")
    store.delete(*runs)
    kept(store, *runs)


def test_a_deleted_version_of_a_registry_elsewhere_is_followed(
    store: RealStore, server: Keeper, schema: Database, tmp_path: Path
) -> None:
    registry = RealStore(server, server.copy(schema), tmp_path / "registry")
    run, loose = store.run(store.experiment("e")), store.run(store.experiment("f"))
    register(registry, "m", f"{store.tree(run)}/d")
    register(registry, "copy", "models:/m/1", storage_location=None)
    registry.client.delete_model_version("m", "1")
    release(registry.uri)
    store.delete(run, loose)
    words = ("--registry-store-uri", registry.uri)
    assert decisions(store.uri, *words) == {run: "registered", loose: "collect"}
    collect(store.uri, *words)
    assert store.exists(run)
    assert store.tree(run).is_dir()
    assert not store.exists(loose)


def test_a_deleted_version_that_nothing_names_holds_nothing(store: RealStore) -> None:
    run = store.run(store.experiment("e"))
    register(store, "m", f"{store.tree(run)}/d")
    register(store, "other", "models:/m2/1", storage_location=None)
    store.client.delete_model_version("m", "1")
    store.delete(run)
    assert decisions(store.uri) == {run: "collect"}
