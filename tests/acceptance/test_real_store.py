"""A store made by MLflow's own client: what is deleted and free goes, all else reads as before."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from copy import deepcopy

import pytest

from tests.apparatus import Apparatus
from tests.mlflow_store import RealStore, Saved, local_path, release
from tests.program import collect, decisions, gcd, report, shown
from tests.read_back import pages, read_back
from tests.rich_store import Rich, rich_store
from tests.servers import Database, Keeper
from tests.snapshot import Snapshot, mentions, without_trees
from tests.stopper import Moment, killed

CYCLE = ("gc", "--older-than", "0s", "--yes")
ALL_KINDS = {"run", "logged_model", "experiment", "trace", "job"}
ON_SQLITE = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
"""The one that hands the highest number of an experiment out again."""


@pytest.fixture(scope="session")
def made(
    server: Keeper, schema: Database, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Rich, Saved]]:
    """A store with something of everything, made by MLflow once, and a copy of it."""
    folder = tmp_path_factory.mktemp("rich")
    with server.passing():
        rich = rich_store(RealStore(server, server.copy(schema), folder / "artifacts"))
        yield rich, rich.store.save()
        release(rich.store.uri)


@pytest.fixture
def rich(made: tuple[Rich, Saved]) -> Rich:
    """The store as it was made, whatever the test before did to it."""
    rich, saved = made
    rich.store.again(saved)
    return deepcopy(rich, {id(rich.store): rich.store, id(rich.apparatus): rich.apparatus})


def test_what_is_deleted_and_free_goes_and_all_else_stays(rich: Rich) -> None:
    store = rich.store
    whole = Snapshot.of(store.database, store.root).gone(rich.gone)
    told = read_back(store, without=whole)
    before = Snapshot.of(store.database, store.root)

    decided = decisions(store.uri)

    assert decided == {**dict.fromkeys(rich.gone, "collect"), **rich.kept}
    assert before.against(Snapshot.of(store.database, store.root)) == []
    assert left_over_rows(store) == 0

    first = report(store.uri)

    after = Snapshot.of(store.database, store.root)
    assert before.without(rich.gone).against(after) == []
    assert mentions(after.tables, whole) == []
    assert without_trees(after.files, whole - rich.gone_experiments) == after.files
    assert read_back(store, without=whole) == told
    assert first["purged"] == purged(before, after)
    assert left_over_rows(store) == 0

    second = report(store.uri)

    assert second["purged"] == dict.fromkeys(ALL_KINDS, 0)
    assert second["state"] == "done"
    assert second["kept"] == Counter(rich.kept.values())
    assert after.against(Snapshot.of(store.database, store.root)) == []


def test_a_plan_counts_by_kind_what_a_cycle_then_purges(rich: Rich) -> None:
    store = rich.store
    planned = json.loads(gcd("plan", "--older-than", "0s", "--json", uri=store.uri).stdout)
    summary = planned["summary"]
    kinds = Counter(item["kind"] for item in planned["items"] if item["decision"] == "collect")

    assert summary["collect"] == len(rich.gone) == sum(summary["collect_by_kind"].values())
    assert summary["collect_by_kind"] == {**dict.fromkeys(ALL_KINDS, 0), **kinds}
    assert summary["kept"] == Counter(rich.kept.values())
    for item in planned["items"]:
        trees = [local_path(uri) for uri in item["targets"]]
        if item["decision"] == "collect" and item["kind"] != "experiment":
            assert [tree.parts[-2:] for tree in trees] == [(item["id"], "artifacts")]

    done = report(store.uri)["purged"]

    for kind in ("run", "experiment"):
        assert done[kind] == summary["collect_by_kind"][kind]


def test_a_report_counts_the_rows_that_went(rich: Rich) -> None:
    store = rich.store
    before = Snapshot.of(store.database, store.root).size
    done = report(store.uri)
    assert done["rows"] == before - Snapshot.of(store.database, store.root).size


# -- runs whose metrics belong to live models ------------------------------------------------------


@pytest.mark.parametrize("choice", ["collect_run", "collect_both"])
def test_runs_of_live_models_go_where_that_is_chosen(rich: Rich, choice: str) -> None:
    store, gone = rich.store, set(rich.gone)
    feeders = {run for run, reason in rich.kept.items() if reason == "feeds_live_model"}
    used_elsewhere = set(store.runs_in(experiment_named(store, "model in use, measured here")))
    if choice == "collect_run":
        gone |= feeders
    else:  # what nothing live uses goes with the run that made it
        gone |= {*feeders - used_elsewhere, model_named(store, "m-fed")}
    env = {"GCD_RETENTION__RUNS_OF_LIVE_MODELS": choice}
    before = Snapshot.of(store.database, store.root)

    assert decisions(store.uri, env=env) == {**rich.kept, **dict.fromkeys(gone, "collect")}
    collect(store.uri, env=env)

    assert before.without(gone).against(Snapshot.of(store.database, store.root)) == []
    assert report(store.uri, env=env)["purged"] == dict.fromkeys(ALL_KINDS, 0)


def experiment_named(store: RealStore, name: str) -> str:
    """The experiment of this name, in whatever stage."""
    return str(store.client.get_experiment_by_name(name).experiment_id)


def model_named(store: RealStore, name: str) -> str:
    """The first logged model of this name, in whatever stage."""
    query = "SELECT model_id FROM logged_models WHERE name = :name ORDER BY experiment_id"
    return str(store.database.scalar(query, name=name))


# -- names and numbers are free again --------------------------------------------------------------


def test_the_names_of_collected_experiments_are_free_again(rich: Rich) -> None:
    store, client = rich.store, rich.store.client
    names = {e.experiment_id: e.name for e in client.search_experiments(view_type=3)}
    collect(store.uri)
    for number in sorted(rich.gone_experiments):
        assert store.numbered(names[number])


@ON_SQLITE
def test_an_experiment_with_a_number_of_old_shows_nothing_of_the_old_one(rich: Rich) -> None:
    store = rich.store
    collect(store.uri)

    again = store.numbered("quite another")

    assert again == rich.last
    assert_nothing_in(store, again)
    assert not list(store.folder(again).rglob("*.bin"))
    run = store.run(again)
    store.delete(run)
    collect(store.uri)
    assert not store.exists(run)
    assert again in store.experiments()


@ON_SQLITE
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_number_that_is_given_again_before_a_crash_is_mended_shows_nothing_either(
    rich: Rich, when: str
) -> None:
    store = rich.store
    killed(Moment(when, "commit", r"DELETE FROM experiments\b"), *CYCLE, uri=store.uri)
    if when == "before":
        assert rich.last in store.experiments()
        collect(store.uri)

    again = store.numbered("quite another")

    assert again == rich.last
    assert_nothing_in(store, again)
    collect(store.uri)
    assert_nothing_in(store, again)
    assert again in store.experiments()


def assert_nothing_in(store: RealStore, experiment: str) -> None:
    """MLflow's client and store tell of nothing that is in a live experiment."""
    client, inner, number = store.client, store.inner, [experiment]
    assert client.get_experiment(experiment).tags == {}
    assert list(pages(lambda token: client.search_runs(number, "", 3, 1000, None, token))) == []
    assert client.search_logged_models(number) == []
    assert client.search_traces(number) == []
    assert inner.list_scorers(experiment) == []
    assert inner.list_review_queues(experiment) == []
    assert [s.name for s in inner.list_label_schemas(experiment) if not s.is_default] == []
    assert inner.search_issues(experiment) == []
    assert inner.search_datasets(number) == []
    assert [e.name for e in inner.list_gateway_endpoints() if e.experiment_id == experiment] == []
    named = [job for job in store.jobs.list_jobs(params={"experiment_id": experiment})]
    assert [job.status for job in named if job.status != "RUNNING"] == []
    with store.as_tracking():
        assert client.search_prompts(f'experiment_id = "{experiment}"') == []
    for table in ("sql_trace_metric_daily_rollups", "sql_trace_rollup_rebuild_queue"):
        query = f"SELECT COUNT(*) FROM {table} WHERE experiment_id = :number"
        assert store.database.scalar(query, number=int(experiment)) == 0


# -- trees beside the canonical ones -----------------------------------------------------------------


def test_an_archived_trace_goes_with_its_experiment_where_the_archive_is_in_scope(
    store: RealStore,
) -> None:
    experiment, live = store.experiment("archived"), store.experiment("live")
    run = store.run(experiment)
    trace, other = (
        store.trace(experiment, run, file=b"x", days_ago=3),
        store.trace(live, days_ago=3),
    )
    archive = store.root / "archive"
    store.inner.archive_traces(
        resolved_trace_archival_location=archive.as_uri(), broader_retention="1d"
    )
    payloads = {each.parts[-3]: each for each in archive.rglob("*") if each.is_file()}
    assert payloads.keys() == {trace, other}
    store.delete(experiment)
    before = Snapshot.of(store.database, store.root)

    assert decisions(store.uri) == {run: "collect", experiment: "unsafe_target"}
    roots = {"GCD_ARTIFACTS__ROOTS": store.root.as_uri()}
    assert decisions(store.uri, env=roots) == {run: "collect", experiment: "collect"}
    collect(store.uri, env=roots)

    after = Snapshot.of(store.database, store.root)
    assert before.without([experiment]).against(after) == []
    assert not payloads[trace].exists()
    assert payloads[other].exists()


def test_an_experiment_that_never_logged_a_file_goes(store: RealStore) -> None:
    store.run(store.experiment("with files"))
    never = store.experiment("never", (store.root / "nobody" / "logged" / "here").as_uri())
    store.delete(never)
    assert decisions(store.uri) == {never: "collect"}
    collect(store.uri)
    assert never not in store.experiments()


@pytest.mark.parametrize("what", ["model", "trace"])
def test_a_tree_in_an_experiment_that_a_live_run_points_into_keeps_all_of_it(
    store: RealStore, what: str
) -> None:
    experiment, live = store.experiment("shared"), store.experiment("live")
    run = store.run(experiment)
    model, trace = store.logged_model(run, "m"), store.trace(experiment, file=b"x")
    places = {
        "model": store.client.get_logged_model(model).artifact_location,
        "trace": store.client.get_trace(trace).info.tags["mlflow.artifactLocation"],
    }
    store.point(store.run(live, files={}), places[what] + "/inside")
    store.delete(experiment)
    before = Snapshot.of(store.database, store.root)

    planned = decisions(store.uri)
    collect(store.uri)

    assert before.without([run]).against(Snapshot.of(store.database, store.root)) == []
    assert planned[experiment] in ("shared", "has_live_children")


# -- later ---------------------------------------------------------------------------------------


def test_what_is_kept_goes_once_nothing_holds_it(store: RealStore) -> None:
    experiment, other = store.experiment("e"), store.experiment("other")
    held = store.run(experiment, tags={"gcd.hold": "paper"})
    registered = store.run(experiment)
    model = store.logged_model(store.run(experiment), "m")
    version = store.version("m", store.client.get_run(registered).info.artifact_uri + "/model")
    versioned = store.version("m", f"models:/{model}", None, model)
    used = store.logged_model(store.run(other), "used")
    user = store.run(experiment)
    store.model_input(user, used)
    guard = Apparatus(store)
    endpoint = guard.endpoint("ep")
    guardrail = guard.guardrail("g", guard.scorer(other, "judge", "ep"), endpoint)
    store.client.set_experiment_tag(other, "gcd.hold_until", "2999-01-01")
    kept = (held, registered, model, other)
    before = Snapshot.of(store.database, store.root)
    store.delete(*kept)
    collect(store.uri)
    assert decisions(store.uri).keys() == {*kept, *store.runs_in(other)}

    store.restore(held, registered)
    store.client.restore_experiment(other)
    assert unstamped(before).against(unstamped(Snapshot.of(store.database, store.root))) == []
    store.client.delete_tag(held, "gcd.hold")
    store.client.delete_model_version("m", version)
    store.client.delete_model_version("m", versioned)
    store.client.delete_experiment_tag(other, "gcd.hold_until")
    store.delete(held, registered, other)
    assert {r for i, r in decisions(store.uri).items() if i == other} == {"in_use"}
    store.inner.delete_gateway_guardrail(guardrail)
    assert {r for i, r in decisions(store.uri).items() if i == other} == {"has_live_children"}
    store.delete(user)
    before = Snapshot.of(store.database, store.root)
    assert set(decisions(store.uri).values()) == {"collect"}
    collect(store.uri)

    after = Snapshot.of(store.database, store.root)
    assert before.without([*kept, user]).against(after) == []


def test_finished_jobs_go_where_they_are_asked_for(store: RealStore) -> None:
    apparatus, experiment = Apparatus(store), store.experiment("e")
    done, busy = apparatus.job(experiment), apparatus.job(experiment, ended=False)
    before = Snapshot.of(store.database, store.root)
    assert report(store.uri)["purged"] == dict.fromkeys(ALL_KINDS, 0)
    assert before.against(Snapshot.of(store.database, store.root)) == []

    assert decisions(store.uri, "--jobs") == {done: "collect"}
    assert report(store.uri, "--jobs")["purged"] == {**dict.fromkeys(ALL_KINDS, 0), "job": 1}

    assert before.without([done]).against(Snapshot.of(store.database, store.root)) == []
    assert [job.job_id for job in store.jobs.list_jobs()] == [busy]


# -- what the tests above look at ------------------------------------------------------------------


def left_over_rows(store: RealStore) -> int:
    """How many rows without an owner `gcd sweep-rows` sees."""
    done = gcd("sweep-rows", "--dry-run", "--json", uri=store.uri)
    assert done.returncode == 0, shown(done)
    return int(json.loads(done.stdout)["rows"])


def purged(before: Snapshot, after: Snapshot) -> Mapping[str, int]:
    """How many entities of each kind are gone."""
    tables = {
        "run": "runs",
        "logged_model": "logged_models",
        "experiment": "experiments",
        "trace": "trace_info",
    }
    lost = {
        kind: len(before.tables[table]) - len(after.tables[table]) for kind, table in tables.items()
    }
    return {**lost, "job": 0}


def unstamped(snapshot: Snapshot) -> Snapshot:
    """A store without what deleting and restoring leaves in it."""
    stages = {"last_update_time", "last_updated_timestamp_ms", "lifecycle_stage", "status"}
    names = ("experiments", "logged_models")
    rows = {
        name: [{k: v for k, v in row.items() if k not in stages} for row in snapshot.tables[name]]
        for name in names
    }
    return Snapshot({**snapshot.tables, **rows}, snapshot.files)
