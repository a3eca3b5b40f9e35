"""A collector that may purge rows but cannot delete files, and a root that is not the right one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.mlflow_store import RealStore, release
from tests.program import collect, gcd, gcd_as_nobody, report, shown
from tests.servers import Database, Keeper, Sqlite
from tests.snapshot import Snapshot, without_trees

IS_ROOT = os.geteuid() == 0
CYCLE = ("gc", "--older-than", "0s", "--yes")


@pytest.fixture
def public_store(server: Keeper, database: Database) -> Iterator[RealStore]:
    """A store whose database anybody may write, with files that anybody may read."""
    with TemporaryDirectory(prefix="gcd-gate-") as folder:
        Path(folder).chmod(0o755)
        if isinstance(server.server, Sqlite):
            server.server.path(database).chmod(0o666)
        yield RealStore(server, database, Path(folder) / "artifacts")
        release(database.uri)


def folders(root: Path) -> list[Path]:
    """The folder and all folders below it."""
    return [root, *(path for path in root.rglob("*") if path.is_dir())]


def deny_everywhere(store: RealStore) -> None:
    """Nobody may change any folder, its owner included."""
    for folder in folders(store.root):
        folder.chmod(0o555)


def deny_in_the_trees(store: RealStore) -> None:
    """Anybody may write above the runs' folders; those are their owner's."""
    for folder in (store.root, store.root / "e"):
        folder.chmod(0o777)


def deny_deep_in_the_trees(store: RealStore) -> None:
    """Only the folders inside the trees are their owner's: nobody can see that from above."""
    for folder in folders(store.root):
        folder.chmod(0o755 if folder.name in ("model", "notes") else 0o777)


@pytest.mark.parametrize("deny", [deny_everywhere, deny_in_the_trees, deny_deep_in_the_trees])
def test_without_the_right_to_delete_files_rows_stay(
    public_store: RealStore, deny: Callable[[RealStore], None]
) -> None:
    store = public_store
    if deny is not deny_everywhere and not IS_ROOT:
        pytest.skip("only root can make folders that belong to somebody else")
    runs = [store.run(experiment) for experiment in [store.experiment("e")] for _ in range(12)]
    before = Snapshot.of(store.database, store.root)
    store.delete(*runs)
    deny(store)
    try:
        for _ in range(3):
            done = (gcd_as_nobody if IS_ROOT else gcd)(*CYCLE, uri=store.uri)
            assert done.returncode == 3, shown(done)
            assert "root_unhealthy" in done.stdout + done.stderr, shown(done)
            gone = set(runs) - store.runs()
            assert len(gone) <= 1, shown(done)
    finally:
        for folder in folders(store.root):
            folder.chmod(0o755)
    left = [run for run in runs if run not in gone]
    store.restore(*left)
    found = Snapshot.of(store.database, store.root)
    files = without_trees(found.files, gone)
    assert before.without(gone).against(Snapshot(found.tables, files)) == []


@pytest.mark.parametrize("is_known", [False, True], ids=["new store", "known root"])
@pytest.mark.parametrize("how", ["folder", "mount"])
def test_an_empty_folder_instead_of_the_artifacts_purges_nothing(
    public_store: RealStore, is_known: bool, how: str
) -> None:
    store = public_store
    experiment = store.experiment("e")
    if is_known:
        early = store.run(experiment)
        store.delete(early)
        collect(store.uri)
        assert not store.exists(early)
    runs = [store.run(experiment) for _ in range(5)]
    before = Snapshot.of(store.database, store.root)
    store.delete(*runs)

    with (mounted if how == "mount" else swapped)(store.root):
        done = gcd(*CYCLE, uri=store.uri)
        assert done.returncode == 3, shown(done)
        assert "unreachable" in done.stdout
        assert store.runs().issuperset(runs)
        with_experiment_folder = store.root / "e"
        with_experiment_folder.mkdir()
        done = gcd(*CYCLE, uri=store.uri)
        assert done.returncode == 3, shown(done)
        assert store.runs().issuperset(runs)
        with_experiment_folder.rmdir()

    store.restore(*runs)
    assert before.against(Snapshot.of(store.database, store.root)) == []
    store.delete(*runs)
    assert report(store.uri)["purged"]["run"] == 5


@contextmanager
def swapped(root: Path) -> Iterator[None]:
    """An empty folder in the place of the root."""
    aside = root.with_name("aside")
    root.rename(aside)
    root.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(root)
        aside.rename(root)


@contextmanager
def mounted(root: Path) -> Iterator[None]:
    """An empty file system over the root."""
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(root)]
    if not IS_ROOT or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount here; the same with a folder is tested")
    try:
        yield
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_a_disk_once_mounted_below_a_root_is_missed_when_it_is_away(
    public_store: RealStore,
) -> None:
    store = public_store
    near, far = (store.experiment(n, (store.root / n).as_uri()) for n in ("1", "2"))
    assert (near, far) == ("1", "2"), "MLflow's layout: the folder has the experiment's number"
    (store.root / "2").mkdir()
    with mounted(store.root / "2"):
        early, late = store.run(far), store.run(far)
        store.delete(early)
        collect(store.uri)
        assert not store.exists(early)
    here = store.run(near)
    store.delete(late, here)

    done = collect(store.uri, expect=3)

    assert "unreachable" in done.stdout
    assert store.exists(late)
    assert not store.exists(here)


def test_an_unmounted_root_is_collected_where_the_operator_says_so(
    public_store: RealStore,
) -> None:
    store = public_store
    run = store.run(store.experiment("e"), files={})
    store.delete(run)
    shutil.rmtree(store.root)
    assert gcd(*CYCLE, uri=store.uri).returncode == 3
    assert store.exists(run)
    collect(store.uri, "--absent-roots", "collect")
    assert not store.exists(run)
