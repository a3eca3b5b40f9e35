"""Absent is not empty: files that the database names and that are not there are no reason to forget them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.mlflow_store import RealStore
from tests.program import collect, decisions, gcd, report, shown
from tests.snapshot import Snapshot

MODEL = {"mlflow.log-model.history": '[{"artifact_path": "model", "flavors": {}}]'}
TABLE = {"mlflow.loggedArtifacts": '[{"path": "table.json", "type": "table"}]'}
IMAGE = {"mlflow.loggedImages": "True"}
ALL = ("--older-than", "0s", "--yes")
KEPT = {"unreachable"}


@pytest.fixture
def near_and_far(store: RealStore) -> tuple[str, str]:
    """Two experiments below one root; the first has a deleted run that proves the root."""
    near, far = store.numbered("near"), store.numbered("far")
    store.delete(store.run(near))
    return near, far


def bound(disk: Path, point: Path) -> None:
    """Mount a folder as if it were a disk; skip where that is not allowed."""
    command = ["mount", "--bind", str(disk), str(point)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount here; the same with a folder is tested")


@contextmanager
def away(folder: Path, how: str) -> Iterator[None]:
    """A folder's disk is not mounted: an empty folder is in its place, or ("missing") none."""
    disk = folder.with_name(f"{folder.name}-disk")
    folder.rename(disk)
    if how == "mount":
        folder.mkdir()
        bound(disk, folder)  # it is a disk; and now it goes away
        subprocess.run(["umount", str(folder)], check=True)
    elif how == "folder":
        folder.mkdir()
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            folder.rmdir()
        disk.rename(folder)


# A disk below the root ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["folder", "mount"])
@pytest.mark.parametrize("tags", [{}, MODEL], ids=["unsaid", "witness"])
def test_a_disk_that_gcd_never_saw_mounted_keeps_its_runs(
    store: RealStore, near_and_far: tuple[str, str], how: str, tags: dict[str, str]
) -> None:
    _, far = near_and_far
    runs = [store.run(far, tags=tags) for _ in range(3)]
    before = Snapshot.of(store.database, store.root / far)
    store.delete(*runs)

    with away(store.root / far, how):
        done = collect(store.uri, expect=3)
        assert store.runs() == set(runs), shown(done)
        assert done.stdout.count(f"file://{store.root}/{far}/ is an empty folder") == 1
        explained = gcd("explain", runs[0], "--older-than", "0s", uri=store.uri).stdout
        assert f"file://{store.root}/{far}/ is an empty folder" in explained
        assert "--accept-root" in explained

    for run in runs:
        assert (store.tree(run) / "model/weights.bin").exists()
    assert before.files == Snapshot.of(store.database, store.root / far).files
    assert report(store.uri)["purged"]["run"] == 3
    assert not any((store.root / far).rglob("*.bin"))


def test_a_disk_below_which_several_experiments_log_is_missed(store: RealStore) -> None:
    """Not the experiment's own folder is the mount point, but the one above."""
    served = ("--artifacts-destination", store.root)
    near = store.experiment("near", "mlflow-artifacts:/near/1")
    far = store.experiment("far", "mlflow-artifacts:/team/2")
    runs = {each: store.run(each, files={}) for each in (near, far)}
    for place, run in (("near/1", runs[near]), ("team/2", runs[far])):
        tree = store.root / place / run / "artifacts"
        tree.mkdir(parents=True)
        (tree / "f").write_bytes(b"x")
    store.delete(*runs.values())
    with away(store.root / "team", "folder"):
        collect(store.uri, *served, expect=3)
        assert store.runs() == {runs[far]}
    collect(store.uri, *served)
    assert store.runs() == set()
    assert not list(store.root.rglob("f"))


def test_a_disk_for_the_models_of_an_experiment_is_missed(store: RealStore) -> None:
    experiment = store.numbered("e")
    run = store.run(experiment)
    model = store.logged_model(run, "m")
    store.delete(run, model)
    with away(store.root / experiment / "models", "folder"):
        assert decisions(store.uri)[model] == "unreachable"
        collect(store.uri, expect=3)
        assert not store.exists(run)
    collect(store.uri)
    assert decisions(store.uri) == {}
    assert not list(store.root.rglob("MLmodel"))


def test_a_folder_that_gcd_itself_emptied_is_no_mount_point(store: RealStore) -> None:
    near, far = store.numbered("near"), store.numbered("far")
    store.run(near)
    store.delete(store.run(far))
    collect(store.uri)
    assert list((store.root / far).iterdir()) == []
    bare = store.run(far, files={})
    lost = store.run(far, files={}, tags=MODEL)
    store.delete(bare, lost)
    done = report(store.uri)
    assert done["purged"]["run"] == 2
    assert done["already_empty"] == 1  # its place is the one from which gcd deleted before
    assert store.runs_in(far) == []


def test_an_experiment_without_a_folder_and_without_a_witness_is_collected(
    store: RealStore, near_and_far: tuple[str, str]
) -> None:
    run = store.run(near_and_far[1], files={})
    store.delete(run)
    assert report(store.uri)["already_empty"] == 0
    assert not store.exists(run)


@pytest.mark.parametrize("way_out", ["rmdir", "accept", "absent trees"])
def test_an_operator_has_a_way_out_of_an_empty_folder(
    store: RealStore, near_and_far: tuple[str, str], way_out: str
) -> None:
    run = store.run(near_and_far[1], files={})
    store.delete(run)
    folder = store.root / near_and_far[1]
    folder.mkdir()
    collect(store.uri, expect=3)
    assert store.exists(run)
    if way_out == "rmdir":
        folder.rmdir()
    elif way_out == "accept":
        done = gcd("doctor", "--accept-root", folder.as_uri(), uri=store.uri)
        assert done.returncode == 0, shown(done)
    collect(store.uri, *(("--absent-trees", "collect") if way_out == "absent trees" else ()))
    assert not store.exists(run)


# Witnesses ----------------------------------------------------------------------------------------


def tagged(tags: dict[str, str]) -> Callable[[RealStore, str], str]:
    """A run with these tags, as MLflow's client sets them when it uploads."""
    return lambda store, experiment: store.run(experiment, tags=tags)


def model_alone(store: RealStore, experiment: str) -> str:
    """A logged model that another experiment's run made."""
    return store.logged_model(store.run("0", files={}), "m", experiment=experiment)


def filed_trace(store: RealStore, experiment: str) -> str:
    """A deleted experiment with a trace whose spans are in a file."""
    trace = store.trace(experiment)
    store.sql(
        "UPDATE trace_tags SET value = 'ARTIFACT_REPO' WHERE request_id = :trace AND {key} = :key",
        trace=trace,
        key="mlflow.trace.spansLocation",
    )
    return experiment


def old_trace(store: RealStore, experiment: str) -> str:
    """The same as MLflow had it before it told where spans are, and had them in no table."""
    trace = store.trace(experiment)
    store.sql("DELETE FROM span_metrics WHERE trace_id = :trace", trace=trace)
    store.sql("DELETE FROM spans WHERE trace_id = :trace", trace=trace)
    store.sql(
        "DELETE FROM trace_tags WHERE request_id = :trace AND {key} = :key",
        trace=trace,
        key="mlflow.trace.spansLocation",
    )
    return experiment


@pytest.mark.parametrize(
    "make",
    [tagged(MODEL), tagged(TABLE), tagged(IMAGE), model_alone, filed_trace, old_trace],
    ids=["model", "table", "image", "logged model", "trace", "old trace"],
)
def test_what_the_database_names_files_of_is_kept_where_nothing_of_its_experiment_is(
    store: RealStore, near_and_far: tuple[str, str], make: Callable[[RealStore, str], str]
) -> None:
    _, far = near_and_far
    entity = make(store, far)
    shutil.rmtree(store.root / far, ignore_errors=True)
    store.delete(entity)

    assert decisions(store.uri)[entity] == "unreachable"
    collect(store.uri, expect=3)
    assert decisions(store.uri) == {entity: "unreachable"}
    explained = gcd("explain", entity, "--older-than", "0s", uri=store.uri).stdout
    assert "--absent-trees collect" in explained

    found = report(store.uri, "--absent-trees", "collect")
    assert found["already_empty"] == 1
    assert decisions(store.uri) == {}


def test_what_says_nothing_of_files_is_no_witness(
    store: RealStore, near_and_far: tuple[str, str]
) -> None:
    """Spans in the database, a model whose upload failed, an empty list."""
    _, far = near_and_far
    run = store.run(
        far, files={}, tags={"mlflow.loggedArtifacts": "[]", "mlflow.note.content": "x"}
    )
    model = store.client.create_logged_model(far, name="m", source_run_id=run).model_id
    store.client.finalize_logged_model(model, "FAILED")
    store.trace(far)
    store.delete(run, model, far)
    done = report(store.uri)
    assert done["purged"]["experiment"] == 1
    assert done["already_empty"] == 0


# A place that other trees prove -------------------------------------------------------------------


def moved(store: RealStore, old: int, new: int) -> tuple[list[str], list[str], Path]:
    """Deleted runs with models: `old` ones at a former destination, `new` ones at the present one."""
    before, after = store.root / "before", store.root / "after"
    experiment = store.experiment("e", "mlflow-artifacts:/1")
    runs = [store.run(experiment, files={}, tags=MODEL) for _ in range(old + new)]
    for at, run in enumerate(runs):
        tree = (before if at < old else after) / "1" / run / "artifacts/model"
        tree.mkdir(parents=True)
        (tree / "MLmodel").write_bytes(b"x")
    store.delete(*runs)
    return runs[:old], runs[old:], after


def test_trees_that_are_already_empty_are_told_of_everywhere(store: RealStore) -> None:
    old, new, destination = moved(store, 3, 1)
    served = ("--artifacts-destination", destination)

    planned = json.loads(gcd("plan", "--json", *ALL[:2], *served, uri=store.uri).stdout)
    assert planned["summary"]["already_empty"] == 3
    empty = {each["id"]: each["already_empty"] for each in planned["items"]}
    assert empty == {
        **{run: [f"file://{destination}/1/{run}/artifacts/"] for run in old},
        **{run: [] for run in new},
    }
    told = "already empty although the database names files in it"
    assert f"3 trees {told}" in gcd("plan", *ALL[:2], *served, uri=store.uri).stdout
    explained = gcd("explain", old[0], *ALL[:2], *served, uri=store.uri).stdout
    assert f"{told} (its tag mlflow.log-model.history)" in explained
    assert told not in gcd("explain", new[0], *ALL[:2], *served, uri=store.uri).stdout
    looked = gcd("doctor", *served, uri=store.uri, env={"GCD_RETENTION__OLDER_THAN": "0s"})
    assert f"3 trees {told}" in looked.stdout, shown(looked)

    done = report(store.uri, *served)
    assert done["purged"]["run"] == 4
    assert done["already_empty"] == 3
    assert f"3 trees {told}" in gcd("status", uri=store.uri).stdout
    assert len(list((store.root / "before").rglob("MLmodel"))) == 3
    assert not list(destination.rglob("MLmodel"))


@pytest.mark.parametrize("command", ["gc", "plan"])
def test_a_destination_in_which_most_files_are_missing_stops_the_cycle(
    store: RealStore, command: str
) -> None:
    old, _, destination = moved(store, 7, 4)
    before = Snapshot.of(store.database, store.root)
    served = ("--artifacts-destination", destination)
    done = gcd(command, *(ALL if command == "gc" else ALL[:2]), *served, uri=store.uri)
    assert done.returncode == 13, shown(done)
    assert f"file://{destination}/" in done.stderr
    assert "probably the wrong destination" in done.stderr
    assert any(run in done.stderr for run in old)
    assert before.against(Snapshot.of(store.database, store.root)) == []

    done = gcd("gc", *ALL, *served, "--absent-trees", "collect", uri=store.uri)
    assert done.returncode == 0, shown(done)
    assert store.runs() == set()


@pytest.mark.parametrize("kind", ["trace", "model"])
def test_what_goes_with_an_experiment_counts_too(store: RealStore, kind: str) -> None:
    experiment = store.numbered("e")
    if kind == "trace":
        for _ in range(10):
            filed_trace(store, experiment)
    else:
        run = store.run(experiment, files={})
        models = [store.logged_model(run, f"m{n}") for n in range(10)]
        shutil.rmtree(store.root / experiment / "models")
        assert len(models) == 10
    tree = store.root / experiment / "traces" / "tr-0" / "artifacts"
    tree.mkdir(parents=True)
    store.run(experiment)
    store.delete(experiment)
    done = gcd("gc", *ALL, uri=store.uri)
    assert done.returncode == 13, shown(done)
    named = gcd("gc", *ALL, "--experiment-ids", experiment, uri=store.uri)
    assert named.returncode == 13, shown(named)
    assert experiment in store.experiments()
    collect(store.uri, "--absent-trees", "collect")
    assert experiment not in store.experiments()


def test_few_missing_trees_do_not_stop_the_cycle(store: RealStore) -> None:
    old, new, destination = moved(store, 5, 5)
    done = report(store.uri, "--artifacts-destination", destination)
    assert done["already_empty"] == 5
    assert store.runs().isdisjoint([*old, *new])


def test_files_that_stayed_when_their_experiment_moved_to_a_workspace_are_named(
    store: RealStore,
) -> None:
    """`mlflow db move-resources` changes rows alone; a server puts the prefix before the path."""
    experiment = store.experiment("e", "mlflow-artifacts:/1")
    early, late = (store.run(experiment, files={}) for _ in range(2))
    for place, run in (("1", early), ("workspaces/team/1", late)):
        tree = store.root / place / run / "artifacts"
        tree.mkdir(parents=True)
        (tree / "f").write_bytes(b"x")
    store.sql(
        "UPDATE experiments SET workspace = 'team' WHERE experiment_id = :number",
        number=int(experiment),
    )
    store.delete(early, late)
    words = ("--artifacts-destination", store.root, "--all-workspaces")
    collect(store.uri, *words, expect=3)
    assert store.runs() == {early}
    done = gcd("plan", "--json", *ALL[:2], *words, uri=store.uri)
    assert f"its files are in file://{store.root}/1/{early}/artifacts/" in done.stdout


# Another root -------------------------------------------------------------------------------------


def test_a_backup_of_the_artifacts_is_not_taken_for_them(store: RealStore) -> None:
    """It has the trees that the database names, and is another folder than gcd knows."""
    experiment = store.numbered("e")
    runs = [store.run(experiment) for _ in range(3)]
    store.delete(runs[0])
    collect(store.uri)
    store.delete(*runs[1:])
    original = store.root.with_name("original")
    store.root.rename(original)
    shutil.copytree(original, store.root)

    done = collect(store.uri, expect=3)
    assert store.runs() == set(runs[1:]), shown(done)
    detail = gcd("plan", "--json", *ALL[:2], uri=store.uri).stdout
    assert "is another disk or folder than before" in detail

    done = gcd("doctor", "--accept-root", store.root.as_uri(), uri=store.uri)
    assert done.returncode == 0, shown(done)
    collect(store.uri)
    assert store.runs() == set()
    shutil.rmtree(original)
