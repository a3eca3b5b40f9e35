"""The journal is believed only after a look at the database of now: replaced, restored, forged."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from gcd.mounts import read_mounts
from gcd.store.journal import root_key
from tests.daemon import cycles, daemon, settings
from tests.mlflow_store import FILES, RealStore, now_ms, release
from tests.program import collect, gcd, shown
from tests.snapshot import Snapshot
from tests.stopper import BEGUN, PURGE, Moment, resumed, stopped

CYCLE = ("gc", "--older-than", "0s", "--yes")
ON_SQLITE = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
PURGED = Moment("after", "commit", PURGE)
"""The rows are gone for good, and no file is."""
ONE_BY_ONE = {"GCD_ARTIFACTS__HANDS": "1"}
CHANGES = {
    3: "DELETE FROM alembic_gcd_journal WHERE entity_id = :run",
    4: "UPDATE alembic_gcd_journal SET state = 'parked' WHERE entity_id = :run",
    5: "UPDATE alembic_gcd_journal SET purged_ms = purged_ms - 1 WHERE entity_id = :run",
    6: "UPDATE alembic_gcd_journal SET target = 'file:///srv/a/artifacts/' WHERE entity_id = :run",
    7: "UPDATE alembic_gcd_journal SET kind = 'trace' WHERE entity_id = :run",
}
PHASES = {
    "reading": Moment("after", "commit", BEGUN),
    "purging": Moment("before", "statement", PURGE),
    "committing": Moment("before", "commit", PURGE),
    "sweeping": PURGED,
    "second sweep": Moment("after", "commit", PURGE, number=2),
}


def is_whole(tree: Path) -> bool:
    """Whether every file of a run is there as it was logged."""
    return all(
        (tree / name).is_file() and (tree / name).read_bytes() == content
        for name, content in FILES.items()
    )


def backed_up(store: RealStore, count: int = 3) -> tuple[list[Path], Path]:
    """Trees of runs that are live in a backup and deleted since; and the backup, of SQLite's file."""
    experiment = store.experiment("e")
    runs = [store.run(experiment) for _ in range(count)]
    release(store.uri)
    path = file_of(store)
    backup = path.with_suffix(".backup")
    shutil.copyfile(path, backup)
    trees = [store.tree(run) for run in runs]
    store.delete(*runs)
    release(store.uri)
    return trees, backup


def file_of(store: RealStore) -> Path:
    """SQLite's file."""
    return Path(store.uri.removeprefix("sqlite:///"))


def restore_in_place(path: Path, backup: Path) -> None:
    """What `sqlite3 FILE '.restore BACKUP'` does: the file stays, and all of its pages change."""
    source, target = sqlite3.connect(backup), sqlite3.connect(path)
    source.backup(target)
    source.close()
    target.close()


# -- another file at the path ----------------------------------------------------------------------


@ON_SQLITE
@pytest.mark.parametrize("phase", PHASES)
def test_nothing_goes_on_with_a_file_that_was_replaced(store: RealStore, phase: str) -> None:
    trees, backup = backed_up(store)
    swept_before = 1 if phase == "second sweep" else 0  # the canary, while its rows were gone

    with stopped(PHASES[phase], *CYCLE, uri=store.uri) as process:
        os.replace(backup, file_of(store))
        done = resumed(process)

    assert done.returncode == 12, shown(done)
    assert "was replaced while gcd had it open" in done.stderr
    assert sum(map(is_whole, trees)) == len(trees) - swept_before
    assert store.database.rows("SELECT DISTINCT lifecycle_stage FROM runs") == [("active",)]
    collect(store.uri)
    assert sum(map(is_whole, trees)) == len(trees) - swept_before


@ON_SQLITE
@pytest.mark.parametrize("how", ["gone", "another by a link", "folder"])
def test_a_file_that_is_elsewhere_now_is_not_the_store(store: RealStore, how: str) -> None:
    trees, backup = backed_up(store)
    path = file_of(store)
    folder = path.parent / "data"
    folder.mkdir()
    real = path.rename(folder / "real.db")
    path.symlink_to(real)
    with stopped(PURGED, *CYCLE, uri=store.uri) as process:
        if how == "gone":
            real.rename(folder / "aside.db")
        elif how == "folder":
            folder.rename(path.parent / "old")
            folder.mkdir()
            shutil.copyfile(backup, real)
        else:
            path.unlink()
            path.symlink_to(backup)
        done = resumed(process)
    assert done.returncode == 12, shown(done)
    assert all(map(is_whole, trees))
    path.unlink()
    shutil.rmtree(folder)
    shutil.rmtree(path.parent / "old", ignore_errors=True)
    shutil.copyfile(backup, path)


@ON_SQLITE
def test_the_versions_of_a_registry_that_was_replaced_are_not_believed(
    store: RealStore, tmp_path: Path
) -> None:
    """A version that is only in the registry's restored file holds a tree as any other."""
    experiment = store.experiment("e")
    run = store.run(experiment)
    release(store.uri)
    registry = tmp_path / "registry.db"
    shutil.copyfile(file_of(store), registry)
    other = RealStore(store.keeper, store.database, store.root)
    other.client = type(store.client)(store.uri, f"sqlite:///{registry}")
    other.client.create_registered_model("classifier")
    with store.as_tracking():
        other.client.create_model_version("classifier", store.tree(run).as_uri(), run)
    release(f"sqlite:///{registry}")
    backup = tmp_path / "backup.db"
    shutil.copyfile(registry, backup)
    other.client.delete_model_version("classifier", "1")
    release(f"sqlite:///{registry}")
    tree = store.tree(run)
    store.delete(run)
    words = (*CYCLE, "--registry-store-uri", f"sqlite:///{registry}")
    with stopped(PURGED, *words, uri=store.uri) as process:
        os.replace(backup, registry)
        done = resumed(process)
    assert done.returncode == 12, shown(done)
    assert is_whole(tree)
    assert collect(store.uri, "--registry-store-uri", f"sqlite:///{registry}").returncode == 0
    assert is_whole(tree)


@ON_SQLITE
@pytest.mark.parametrize("how", ["moved", "in place", "copied over"])
def test_a_backup_within_the_delay_of_a_daemon_saves_every_tree(
    store: RealStore, tmp_path: Path, how: str
) -> None:
    trees, backup = backed_up(store, 4)
    path = file_of(store)
    wanted = settings(store, schedule="every 1h", run_at_start=True, sweep_delay="4s")
    with daemon(tmp_path, wanted) as running:
        running.ready().until(lambda: not store.runs(), "the rows stay")
        release(store.uri)
        if how == "moved":
            os.replace(backup, path)
        elif how == "in place":
            restore_in_place(path, backup)
        else:
            shutil.copyfile(backup, path)
        assert all(map(is_whole, trees))
        running.tells("cycle failed")
        # The backup is from before gcd came, so that the mark is a stranger's: a person confirms.
        accepted = gcd("doctor", "--accept-root", (store.root / "e").as_uri(), uri=store.uri)
        assert accepted.returncode == 0, shown(accepted)
        later = store.run(store.client.get_experiment_by_name("e").experiment_id)
        gone = store.tree(later)
        store.delete(later)
        running.reload(settings(store, schedule="every 1s", sweep_delay="0s"))
        running.until(lambda: not gone.exists(), "the next cycle does not work on the new file")
        running.until(lambda: "done" in cycles(store), "no cycle ends on the new file")
        assert running.stop() == 0
    assert all(map(is_whole, trees))


# -- the same database, other rows -----------------------------------------------------------------


@pytest.mark.parametrize("backup", ["before gcd came", "after a first cycle"])
def test_a_backup_that_is_restored_between_purge_and_sweep_saves_every_tree(
    store: RealStore, backup: str
) -> None:
    """The database's own way of restoring; numbers of the journal are then given a second time."""
    experiment = store.experiment("e")
    if backup == "after a first cycle":
        store.delete(*(store.run(experiment) for _ in range(2)))
        collect(store.uri)
        store.sql("DELETE FROM alembic_gcd_journal")
    runs = [store.run(experiment) for _ in range(3)]
    trees = [store.tree(run) for run in runs]
    release(store.uri)
    saved = store.keeper.copy(store.database)
    store.delete(*runs)
    release(store.uri)
    with stopped(PURGED, *CYCLE, uri=store.uri) as process:
        if store.database.dialect == "sqlite":
            restore_in_place(file_of(store), Path(saved.uri.removeprefix("sqlite:///")))
        else:
            store.keeper.reset(store.database, saved)
        done = resumed(process)
    assert done.returncode not in (0, 3), shown(done)
    assert all(map(is_whole, trees))
    assert store.runs() >= set(runs)
    collect(store.uri)
    assert all(map(is_whole, trees))


def test_a_line_that_is_gone_or_changed_deletes_nothing(store: RealStore) -> None:
    """The page was read before: each line is looked at again shortly before its tree goes."""
    experiment = store.experiment("e")
    runs = [store.run(experiment, metrics=0) for _ in range(9)]
    trees = {run: store.tree(run) for run in runs}
    store.delete(*runs)
    collect(store.uri)
    assert not any(tree.exists() for tree in trees.values())
    for run, tree in trees.items():
        store.sql("UPDATE alembic_gcd_journal SET due_ms = 0, state = 'pending', looks = 0")
        tree.mkdir(parents=True)
        (tree / run).write_text("late")
    with stopped(Moment("before", "unlink"), *CYCLE, uri=store.uri, env=ONE_BY_ONE) as process:
        order = [str(row[0]) for row in journal(store)]
        for at, what in CHANGES.items():
            store.sql(what, run=order[at])
        time.sleep(1)  # longer than a look is believed
        done = resumed(process)
    assert done.returncode == 0, shown(done)
    assert [run for run in order if trees[run].exists()] == [order[at] for at in CHANGES]


def journal(store: RealStore) -> list[tuple[object, ...]]:
    """Entity, state and error of each line."""
    return store.database.rows(
        "SELECT entity_id, state, error FROM alembic_gcd_journal ORDER BY id"
    )


# -- lines that gcd did not write ------------------------------------------------------------------


@dataclass
class Forger:
    """Somebody who may write to gcd's tables, and knows the store's folders."""

    store: RealStore
    live: str
    """A live run."""
    model: str
    """A live logged model, of that run."""
    experiment: str
    outside: Path
    """Another store's artifact root."""

    def line(self, **columns: object) -> None:
        """Write a line of the journal that is due."""
        values: dict[str, object] = {
            "cycle": 1,
            "kind": "run",
            "entity_id": "f" * 32,
            "experiment_id": self.experiment,
            "root": self.store.root.as_uri() + "/",
            "state": "pending",
            "attempts": 0,
            "rows_left": 0,
            "looks": 0,
            "purged_ms": now_ms() - 1000,
            "due_ms": 0,
            **columns,
        }
        names = ", ".join(values)
        marks = ", ".join(f":{name}" for name in values)
        self.store.sql(f"INSERT INTO alembic_gcd_journal ({names}) VALUES ({marks})", **values)

    @property
    def folder(self) -> str:
        """The experiment's location."""
        return self.store.folder(self.experiment).as_uri()

    @property
    def tree(self) -> str:
        """The live run's tree."""
        return self.store.tree(self.live).as_uri()


def outside_tree(f: Forger) -> str:
    return (f.outside / "3" / ("f" * 32) / "artifacts").as_uri() + "/"


FORGED: dict[str, Callable[[Forger], dict[str, object]]] = {
    "a live run's folder for another id": lambda f: {"target": f.tree + "/"},
    "a live run": lambda f: {"target": f.tree + "/", "entity_id": f.live},
    "a live run as another kind": lambda f: {
        "target": f"{f.folder}/models/{f.live}/artifacts/",
        "entity_id": f.live,
        "kind": "logged_model",
    },
    "a live model as a run": lambda f: {
        "target": f"{f.folder}/models/{f.model}/artifacts/",
        "entity_id": f.model,
        "kind": "run",
    },
    "a folder in a live run's tree": lambda f: {"target": f"{f.tree}/x/{'f' * 32}/artifacts/"},
    "a folder that holds a live run": lambda f: {"target": f"{f.folder}/"},
    "another store's run": lambda f: {
        "target": outside_tree(f),
        "root": f.outside.as_uri() + "/",
    },
    "another store's run, its root remembered": lambda f: {
        "target": outside_tree(f),
        "root": f.outside.as_uri() + "/",
        "experiment_id": "3",
    },
    "a root": lambda f: {"target": f.store.root.as_uri() + "/"},
    "a place above its root": lambda f: {
        "target": outside_tree(f),
        "root": f"{f.folder}/",
    },
    "dots": lambda f: {"target": f"{f.folder}/../../other/3/{'f' * 32}/artifacts/"},
    "quoted dots": lambda f: {"target": f"{f.folder}/%2e%2e/%2e%2e/other/3/{'f' * 32}/artifacts/"},
    "a reference": lambda f: {"target": f"runs:/{f.live}/artifacts/"},
    "no root": lambda f: {"target": f.tree + "/", "entity_id": f.live, "root": None},
    "an unknown kind": lambda f: {"target": f.tree + "/", "kind": "file"},
    "an id that is a path": lambda f: {
        "target": f"{f.folder}/{f.live}/artifacts/",
        "entity_id": f"x/{f.live}",
    },
    "an empty id": lambda f: {"target": f"{f.folder}//artifacts/", "entity_id": ""},
    "times that are none": lambda f: {"target": f.tree + "/", "purged_ms": 2**62},
    "an experiment elsewhere": lambda f: {
        "target": f.outside.as_uri() + "/empty/",
        "root": f.outside.as_uri() + "/",
        "kind": "experiment",
        "entity_id": "77",
        "experiment_id": "77",
    },
}


ROOTED = "another store's run, its root remembered"


@pytest.fixture
def forger(store: RealStore, tmp_path: Path) -> Forger:
    """A store that gcd has collected before, and another store's files beside it."""
    experiment = store.experiment("e")
    live = store.run(experiment)
    model = store.logged_model(live, "m")
    gone = store.run(experiment)
    store.delete(gone)
    collect(store.uri)
    outside = tmp_path / "other"
    for folder in ("3/" + "f" * 32 + "/artifacts", "empty"):
        (outside / folder).mkdir(parents=True)
    (outside / "3" / ("f" * 32) / "artifacts" / "weights").write_bytes(b"w")
    return Forger(store, live, model, experiment, outside)


def files_in(folder: Path) -> set[Path]:
    """Everything below a folder, empty folders too."""
    return set(folder.rglob("*"))


def test_lines_that_gcd_did_not_write_delete_nothing(forger: Forger) -> None:
    """All kinds at once, beside what is to be collected: one bad line stops only itself."""
    store = forger.store
    doomed = store.run(forger.experiment)
    tree = store.tree(doomed)
    store.delete(doomed)
    before, others = Snapshot.of(store.database, store.root), files_in(forger.outside)
    written = {name: make(forger) for name, make in FORGED.items()}
    for columns in written.values():
        forger.line(**columns)
    remember_root(forger, str(written[ROOTED]["root"]))
    if store.database.dialect == "mariadb":  # elsewhere it is another id, and there is no such tree
        other = forger.live.upper()
        forger.line(entity_id=other, target=f"{forger.folder}/{other}/artifacts/")

    collect(store.uri)

    assert before.without([doomed]).against(Snapshot.of(store.database, store.root)) == []
    assert files_in(forger.outside) == others
    assert not tree.exists()
    lines = [(e, state, error) for e, state, error in journal(store) if state != "done"]
    pending = [line for line in lines if line[1] == "pending"]
    assert {str(line[0]) for line in pending} <= {doomed} | set(settled_before(store)), lines
    parked = [line for line in lines if line[1] == "parked"]
    assert len(parked) >= len(written), lines
    assert all(error for _, _, error in parked)


def remember_root(forger: Forger, uri: str) -> None:
    """What gcd notes of a root that it knows, with the identity that the folder really has."""
    fd = os.open(forger.outside, os.O_RDONLY)
    identity = read_mounts().identity(fd)
    os.close(fd)
    forger.store.sql(
        "INSERT INTO alembic_gcd_root (id, uri, identity, is_accepted, failures, swept_ms)"
        " VALUES (:id, :uri, :identity, 0, 0, 1)",
        id=root_key(uri),
        uri=uri,
        identity=identity,
    )


def settled_before(store: RealStore) -> list[str]:
    """Entities whose trees are looked at once more a day later."""
    rows = store.database.rows("SELECT entity_id FROM alembic_gcd_journal WHERE looks = 1")
    return [str(row[0]) for row in rows]


def test_the_last_of_a_root_is_finished_by_the_next_process(store: RealStore) -> None:
    """Nothing in the database names the root any more: its mark does."""
    other = store.root.with_name("elsewhere")
    store.experiment("live", other.as_uri())
    experiment = store.experiment("e")
    run = store.run(experiment)
    tree = store.tree(run)
    store.delete(run)
    store.delete(experiment)
    with stopped(PURGED, *CYCLE, uri=store.uri) as process:
        process.kill()
        process.communicate()
    assert is_whole(tree)
    store.sql(f"DELETE FROM experiments WHERE experiment_id = {int(experiment)}")

    aside = store.root.rename(store.root.with_name("unmounted"))
    collect(store.uri, expect=3)
    assert [state for _, state, _ in journal(store)] == ["pending"]
    aside.rename(store.root)
    store.sql("UPDATE alembic_gcd_journal SET due_ms = 0")
    collect(store.uri)
    assert not tree.exists()


def test_without_a_mark_the_last_of_a_root_waits_for_a_person(store: RealStore) -> None:
    other = store.root.with_name("elsewhere")
    store.experiment("live", other.as_uri())
    experiment = store.experiment("e")
    run = store.run(experiment)
    tree = store.tree(run)
    store.delete(run)
    with stopped(PURGED, *CYCLE, uri=store.uri) as process:
        process.kill()
        process.communicate()
    store.sql(f"DELETE FROM experiments WHERE experiment_id = {int(experiment)}")
    for mark in store.root.rglob(".gcd-root.json"):
        mark.unlink()

    collect(store.uri)

    assert is_whole(tree)
    [(_, state, error)] = journal(store)
    assert state == "parked"
    assert "artifacts.roots" in str(error)
    roots = {"GCD_ARTIFACTS__ROOTS": store.root.as_uri()}
    assert gcd("retry", run, uri=store.uri).returncode == 0
    collect(store.uri, env=roots)
    assert not tree.exists()


# -- rows that wait for a later transaction --------------------------------------------------------


@pytest.mark.parametrize("rows_left", [1, 2])
def test_rows_of_what_is_there_stay_whatever_the_journal_says(
    forger: Forger, rows_left: int
) -> None:
    """A live entity's rows, under its own kind and others, in another case, and of no kind at all."""
    store = forger.store
    trace = store.trace(forger.experiment, forger.live, model=forger.model)
    store.version("classifier", forger.tree, forger.live)
    before = Snapshot.of(store.database, store.root)
    ids = [forger.live, forger.model, trace, forger.experiment]
    for entity in [*ids, *(each.upper() for each in ids), "", "x"]:
        for kind in ("run", "logged_model", "trace", "experiment", "job", "file"):
            forger.line(entity_id=entity, kind=kind, rows_left=rows_left, due_ms=2**52)

    collect(store.uri)

    assert before.against(Snapshot.of(store.database, store.root)) == []


# -- a batch that does not fit SQLite's cache ------------------------------------------------------


@ON_SQLITE
@pytest.mark.parametrize("registry", [False, True])
def test_a_batch_that_fills_the_cache_is_not_locked_out_by_its_own_questions(
    store: RealStore, registry: bool
) -> None:
    """SQLite excludes readers once it writes pages before the COMMIT: gcd's other connections too."""
    experiment = store.experiment("e")
    runs = [store.run(experiment, metrics=0, files={}) for _ in range(20)]
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) "
    for run in runs:
        store.sql(
            "INSERT INTO metrics ({key}, value, timestamp, run_uuid, step, is_nan) "
            + numbers
            + "SELECT 'loss', i, 1600000000000, :run, i, 0 FROM n",
            run=run,
        )
    store.delete(*runs)
    words = ["--absent-roots", "collect"]
    if registry:
        words += ["--registry-store-uri", store.keeper.copy(store.database).uri]
    collect(store.uri, *words, timeout=25)  # less than a client waits for a lock
    assert not store.runs()
