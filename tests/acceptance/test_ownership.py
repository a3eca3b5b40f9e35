"""One root belongs to one database: copies of a database delete nothing of the original's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gcd.artifacts.base import MARK
from tests.daemon import cycles, daemon, settings, write
from tests.mlflow_store import RealStore, release
from tests.program import collect, decisions, gcd, shown
from tests.servers import Database


@contextmanager
def copied(store: RealStore) -> Iterator[RealStore]:
    """A copy of the database by its own means, over the same files."""
    release(store.uri)
    database = store.keeper.copy(store.database)
    copy = RealStore(store.keeper, database, store.root)
    try:
        yield copy
    finally:
        release(database.uri)


def tree_files(store: RealStore, run: str) -> int:
    """How many files a run has."""
    return sum(path.is_file() for path in store.tree(run).rglob("*"))


def details(uri: str) -> list[str]:
    """What `gcd plan` says of each candidate that is kept."""
    done = gcd("plan", "--older-than", "0s", "--json", uri=uri)
    items = json.loads(done.stdout)["items"]
    return [item["reasons"][0]["detail"] for item in items if item["reasons"]]


def findings(uri: str) -> list[tuple[str, str]]:
    """Grade and text of what `gcd doctor` says of marks and identities."""
    done = gcd("doctor", "--json", uri=uri)
    return [
        (each["grade"], f"{each['seen']} {each['mend'] or ''}")
        for each in json.loads(done.stdout)
        if each["subject"] in ("root mark", "identity")
    ]


def in_use(store: RealStore, name: str = "e") -> str:
    """An experiment of a store that gcd has collected from once; it is named, not numbered."""
    experiment = store.experiment(name)
    store.delete(store.run(experiment))
    collect(store.uri)
    return experiment


@pytest.mark.parametrize("is_numbered", [False, True], ids=["named", "numbered"])
def test_a_copy_deletes_nothing_of_the_originals(store: RealStore, is_numbered: bool) -> None:
    experiment = store.numbered("n") if is_numbered else store.experiment("e")
    live, restored, gone = (store.run(experiment) for _ in range(3))
    store.delete(gone)
    collect(store.uri)
    store.delete(restored)  # when the copy is made
    with copied(store) as copy:
        store.restore(restored)
        copy.delete(live)
        model = copy.logged_model(copy.run(copy.experiment("new")), "m")
        copy.delete(model)
        before = sorted(path for path in store.root.rglob("*") if path.name != MARK)
        assert set(decisions(copy.uri).values()) == {"foreign_root"}
        for _ in range(2):  # the first cycle takes a new id, the second one has it
            collect(copy.uri, expect=3)
            assert copy.exists(live)
            assert copy.exists(restored)
        assert sorted(path for path in store.root.rglob("*") if path.name != MARK) == before
        assert any("copy of the one with the id" in text for _, text in findings(copy.uri))
        store.delete(live)  # and the original goes on
        assert decisions(store.uri) == {live: "collect"}
        collect(store.uri)
        assert not store.exists(live)
        assert not store_has(store, live)
        assert tree_files(store, restored) == 2


def store_has(store: RealStore, run: str) -> bool:
    """Whether a folder of a run's name is anywhere."""
    return any(path.name == run for path in store.root.rglob("*"))


def test_a_copy_of_before_gcds_first_cycle_is_refused_by_the_mark(store: RealStore) -> None:
    experiment = store.experiment("e")
    live, gone = store.run(experiment), store.run(experiment)
    with copied(store) as copy:
        store.delete(gone)
        collect(store.uri)
        copy.delete(live)
        assert decisions(copy.uri) == {live: "foreign_root"}
        [detail] = details(copy.uri)
        assert store.database.name in detail
        assert "--accept-root" in detail
        done = collect(copy.uri, expect=3)
        assert "foreign_root" in done.stdout
        assert copy.exists(live)
        assert tree_files(store, live) == 2
        assert "root@" not in detail
        assert "127.0.0.1" not in detail


def test_a_person_transfers_a_root_and_hears_from_which_database(store: RealStore) -> None:
    experiment = in_use(store)
    run, other = store.run(experiment), store.run(experiment)
    root = store.folder(experiment).as_uri() + "/"
    before = json.loads((store.folder(experiment) / MARK).read_text())
    with copied(store) as copy:
        copy.delete(run)
        collect(copy.uri, expect=3)
        done = gcd("doctor", "--accept-root", root, uri=copy.uri)
        assert done.returncode == 0, shown(done)
        assert store.database.name in done.stdout
        assert before["database"][:8] in done.stdout
        after = json.loads((store.folder(experiment) / MARK).read_text())
        assert after["transferred_from"] == before["database"] != after["database"]
        assert any(grade == "ok" and "carries the mark" in t for grade, t in findings(copy.uri))
        assert decisions(copy.uri) == {run: "collect"}
        collect(copy.uri)
        assert not store_has(store, run)
        store.delete(other)
        assert decisions(store.uri) == {other: "foreign_root"}
        collect(store.uri, expect=3)
        assert tree_files(store, other) == 2


def test_the_folder_around_gives_a_copy_what_the_original_had_marked_below(
    store: RealStore,
) -> None:
    runs = [store.run(in_use(store, name)) for name in ("a", "b")]
    with copied(store) as copy:
        copy.delete(*runs)
        collect(copy.uri, expect=3)
        done = gcd("doctor", "--accept-root", store.root.as_uri(), uri=copy.uri)
        assert done.returncode == 0, shown(done)
        assert decisions(copy.uri) == dict.fromkeys(runs, "collect")
        collect(copy.uri)
        store.delete(*runs)
        assert decisions(store.uri) == dict.fromkeys(runs, "foreign_root")


def test_what_the_original_purged_is_not_swept_by_a_copy(store: RealStore) -> None:
    """The copy has the original's journal too."""
    experiment = in_use(store)
    run = store.run(experiment)
    tree = store.tree(run)
    store.delete(run)
    shutil.copytree(tree, saved := store.root.parent / "saved")
    collect(store.uri)
    store.sql(
        "UPDATE alembic_gcd_journal SET state = 'pending', due_ms = 0, looks = 1"
        " WHERE entity_id = :run",
        run=run,
    )
    shutil.copytree(saved, tree)
    with copied(store) as copy:
        done = collect(copy.uri, expect=3)
        assert "deferred" in done.stdout
        assert sum(path.is_file() for path in tree.rglob("*")) == 2
        collect(store.uri)  # it is the original's own
        assert not tree.exists()


def spoil_by_text(path: Path) -> None:
    path.write_text("{")


def spoil_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def spoil_by_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def spoil_by_a_newer_format(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


@pytest.mark.parametrize(
    "spoil", [spoil_by_text, spoil_by_folder, spoil_by_link, spoil_by_a_newer_format]
)
def test_a_mark_that_cannot_be_read_keeps_everything(
    store: RealStore, spoil: Callable[[Path], None]
) -> None:
    experiment = in_use(store)
    run = store.run(experiment)
    store.delete(run)
    spoil(store.folder(experiment) / MARK)
    assert decisions(store.uri) == {run: "unreachable"}
    assert MARK in details(store.uri)[0]
    collect(store.uri, expect=3)
    assert store.exists(run)
    assert tree_files(store, run) == 2
    assert any(grade == "failure" for grade, _ in findings(store.uri))


def test_whoever_only_looks_writes_no_id_and_no_mark(store: RealStore) -> None:
    experiment = store.experiment("e")
    run = store.run(experiment)
    store.delete(run)
    assert gcd("init", uri=store.uri).returncode == 0
    query = "SELECT value FROM alembic_gcd_meta WHERE name = 'store_id'"
    store.sql("DELETE FROM alembic_gcd_meta WHERE name <> 'version'")
    assert decisions(store.uri) == {run: "collect"}
    gcd("doctor", uri=store.uri)
    assert store.database.rows(query) == []
    assert not list(store.root.rglob(MARK))
    collect(store.uri)
    assert len(store.database.rows(query)) == 1
    assert [path.parent for path in store.root.rglob(MARK)] == [store.folder(experiment)]


# -- what is no copy -----------------------------------------------------------------------------


def moved(store: RealStore) -> Database:
    """The database under another name, on the same server or file system."""
    release(store.uri)
    there = store.keeper.server.named(store.database.name + "_moved")
    if store.database.dialect == "sqlite":
        Path(store.uri.removeprefix("sqlite:///")).rename(there.uri.removeprefix("sqlite:///"))
    else:
        server: Any = store.keeper.server
        server.admin(f"ALTER DATABASE {store.database.name} RENAME TO {there.name}")
    store.keeper.made.append(there)
    return there


def test_a_database_that_was_moved_goes_on(store: RealStore) -> None:
    if store.database.dialect == "mariadb":
        pytest.skip("a database cannot be renamed there")
    run = store.run(in_use(store))
    store.delete(run)
    there = moved(store)
    assert decisions(there.uri) == {run: "collect"}
    collect(there.uri)
    assert not store_has(store, run)


def test_a_backup_restored_in_the_databases_place_goes_on(store: RealStore) -> None:
    run = store.run(in_use(store))
    store.delete(run)
    with copied(store) as backup:
        store.keeper.reset(store.database, backup.database)
        assert decisions(store.uri) == {run: "collect"}
        collect(store.uri)
        assert not store_has(store, run)


def test_a_server_of_another_identity_has_a_copy(store: RealStore) -> None:
    """As after pg_upgrade, on another host, or in another file system: a person confirms."""
    run = store.run(in_use(store))
    store.delete(run)
    fact = "fs" if store.database.dialect == "sqlite" else "server"
    store.sql(
        "UPDATE alembic_gcd_meta SET value = 'another' WHERE name = :name", name=f"server_{fact}"
    )
    assert decisions(store.uri) == {run: "foreign_root"}
    collect(store.uri, expect=3)
    assert tree_files(store, run) == 2
    root = store.tree(run).parents[1].as_uri()
    assert gcd("doctor", "--accept-root", root, uri=store.uri).returncode == 0
    collect(store.uri)
    assert not store_has(store, run)


# -- several stores of one configuration ---------------------------------------------------------


def configured(folder: Path, *stores: RealStore) -> Path:
    """A configuration of stores a, b, ..."""
    return write(folder / "gcd.toml", settings(*stores))


def test_two_stores_of_one_configuration_that_are_copies(store: RealStore, tmp_path: Path) -> None:
    """gcd has collected from neither, so neither knows that it is a copy."""
    experiment = store.experiment("e")
    run, live = store.run(experiment), store.run(experiment)
    with copied(store) as copy:
        path = configured(tmp_path, store, copy)
        own = copy.run(experiment)  # the original does not have it
        copy.delete(live, own)
        done = gcd("gc", "--yes", "--store", "b", "--config", path)
        assert done.returncode == 3, shown(done)
        assert tree_files(store, live) == 2
        assert copy.exists(own)
        done = gcd("doctor", "--store", "b", "--config", path)
        assert "the store a of this configuration has the run" in " ".join(done.stdout.split())
        root = store.folder(experiment).as_uri()
        done = gcd("doctor", "--accept-root", root, "--store", "a", "--config", path)
        assert done.returncode == 0, shown(done)
        store.delete(run)
        done = gcd("gc", "--yes", "--store", "a", "--config", path)
        assert done.returncode == 0, shown(done)
        assert not store_has(store, run)
        done = gcd("gc", "--yes", "--store", "b", "--config", path)
        assert done.returncode == 3, shown(done)
        assert tree_files(store, live) == 2
        assert copy.exists(live)


def test_a_daemon_with_two_copies_deletes_nothing(store: RealStore, tmp_path: Path) -> None:
    experiment = store.experiment("e")
    runs = [store.run(experiment) for _ in range(2)]
    with copied(store) as copy:
        copy.delete(runs[0])
        store.delete(runs[1])
        both = (store, copy)
        with daemon(tmp_path, settings(*both)) as running:
            running.until(lambda: all(len(cycles(s)) > 1 for s in both), "no two cycles each", 120)
        assert [tree_files(store, run) for run in runs] == [2, 2]
        assert copy.exists(runs[0])
        assert store.exists(runs[1])
        assert not list(store.root.rglob(MARK))


def test_what_lies_beside_the_mark_is_as_it_was(store: RealStore) -> None:
    """One mark in a root, whole and readable for others; nothing else is left there."""
    experiment = in_use(store)
    found = os.listdir(store.folder(experiment))
    assert [name for name in found if name.startswith(".")] == [MARK]
    mark = store.folder(experiment) / MARK
    assert mark.stat().st_mode & 0o777 == 0o644
    fields = json.loads(mark.read_text())
    assert fields["format"] == 1
    assert store.database.name in fields["name"]
