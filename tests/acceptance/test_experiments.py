"""Whole experiments: they go with all that is in them, and nothing else does.

Pains by their number in the list that the project started from.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from mlflow import MlflowException
from mlflow.tracking import MlflowClient

from tests.mlflow_store import DAY, FILES, RealStore, now_ms, release
from tests.program import collect, decisions, gcd, report, shown
from tests.servers import Database, Keeper
from tests.snapshot import Snapshot, read_tables
from tests.stopper import Moment, killed, resumed, stopped
from tests.whole import (
    ARCHIVE,
    archive,
    attach,
    backdate,
    guardrail,
    inside,
    laid_out,
    leftovers,
    missing,
    payload,
    roll_up,
    there,
    trace,
    undeleted,
    whole,
)


def look(store: RealStore) -> Snapshot:
    """The store now."""
    return Snapshot.of(store.database, store.root)


def root_of(uri: Path) -> dict[str, str]:
    """The environment that allows a further root."""
    return {"GCD_ARTIFACTS__ROOTS": str(uri)}


# -- pains -----------------------------------------------------------------------------------------


def test_pain_2_model_files_of_a_deleted_experiment_go(store: RealStore) -> None:
    gone, live = laid_out(store, "gone"), laid_out(store, "live")
    for experiment in (gone, live):
        run = store.run(experiment)
        store.logged_model(run, "m-of-a-run", metrics=True)
        alone = store.client.create_logged_model(experiment, name="m-alone").model_id
        folder = store.root / "mlruns" / experiment / "models" / alone / "artifacts"
        folder.mkdir(parents=True)
        (folder / "weights.bin").write_bytes(b"\0" * 1000)
    store.client.delete_experiment(gone)
    before = look(store)
    assert decisions(store.uri)[gone] == "collect"

    done = report(store.uri)

    assert done["purged"] == {"run": 1, "logged_model": 2, "experiment": 1, "trace": 0, "job": 0}
    after = look(store)
    assert before.without([gone]).against(after) == []
    assert leftovers(after, before.gone([gone])) == []
    assert not (store.root / "mlruns" / gone).exists()
    assert (store.root / "mlruns" / live / "models").is_dir()


def test_pain_2_deleted_models_go_and_their_runs_stay(store: RealStore) -> None:
    experiment = store.experiment("e")
    run, user = store.run(experiment), store.run(experiment)
    gone = [store.logged_model(run, "m-a", metrics=True), store.logged_model(run, "m-b")]
    store.model_input(user, gone[0])
    store.logged_model(run, "m-stays", metrics=True)
    for model in gone:
        store.client.delete_logged_model(model)
    before = look(store)

    assert decisions(store.uri) == dict.fromkeys(gone, "collect")
    collect(store.uri)

    after = look(store)
    assert before.without(gone).against(after) == []
    assert leftovers(after, gone) == []


def test_pain_3_model_versions_keep_what_they_refer_to(store: RealStore) -> None:
    free = store.experiment("free")
    store.logged_model(store.run(free), "m-free")
    kept = {form: registered(store, form) for form in FORMS}
    store.client.delete_experiment(free)
    for experiment, _ in kept.values():
        store.client.delete_experiment(experiment)
    free_runs = [each for _, runs in kept.values() for each in runs]
    before = look(store)

    found = decisions(store.uri)

    for form, (experiment, _) in kept.items():
        assert found[experiment] in ("registered", "has_live_children"), form
    collect(store.uri)
    assert before.without([free, *free_runs]).against(look(store)) == []

    for version in store.client.search_model_versions():
        store.client.delete_model_version(version.name, version.version)
    before = look(store)
    collect(store.uri)
    everything = [experiment for experiment, _ in kept.values()]
    assert before.without(everything).against(look(store)) == []


FORMS = (
    "a path in the run",
    "a path without its run",
    "a bare path",
    "runs:/",
    "models:/m-",
    "its place of storage",
    "the archived stage",
)


def registered(store: RealStore, form: str) -> tuple[str, list[str]]:
    """An experiment in which a version refers to a run or its model; and the runs that are free."""
    experiment = store.experiment(form.replace(":/", ""))
    run, sibling = store.run(experiment), store.run(experiment)
    model = store.logged_model(run, "m-of-a-version")
    store.logged_model(sibling, "m-of-none")
    trace(store, experiment)
    uri = store.client.get_run(run).info.artifact_uri
    name = "model of " + str(FORMS.index(form))
    match form:
        case "a path without its run":
            store.version(name, uri + "/model")
        case "a bare path":
            store.version(name, str(store.tree(run) / "model"))
        case "runs:/":
            store.version(name, f"runs:/{run}/model", run)
        case "models:/m-":
            store.version(name, f"models:/{model}", model=model)
        case "its place of storage":
            store.version(name, uri + "/model", run)
            store.sql(
                "UPDATE model_versions SET source = 'elsewhere', run_id = NULL, storage_location = :at"
                " WHERE name = :name",
                at=store.client.get_logged_model(model).artifact_location,
                name=name,
            )
        case _:
            version = store.version(name, uri + "/model", run)
            if form == "the archived stage":
                store.client.transition_model_version_stage(name, version, "Archived")
    return experiment, [sibling, run] if form == "its place of storage" else [sibling]


def test_pain_3_a_registry_in_another_database_keeps_them_too(
    store: RealStore, server: Keeper, schema: Database
) -> None:
    registry = server.copy(schema)
    client = MlflowClient(store.uri, registry.uri)
    live = store.experiment("live")
    gone, kept_run, kept_model = (store.experiment(name) for name in ("a", "b", "c"))
    free, by_run, single = store.run(gone), store.run(kept_run), store.run(live)
    model = store.logged_model(store.run(kept_model), "m")
    deleted = store.logged_model(store.run(live), "m-deleted")
    for number, (source, run) in enumerate(
        [
            (f"runs:/{by_run}/model", by_run),
            (f"models:/{model}", None),
            (f"models:/{deleted}", None),
            (client.get_run(single).info.artifact_uri + "/model", None),
        ]
    ):
        client.create_registered_model(f"registered {number}")
        with store.as_tracking():
            client.create_model_version(f"registered {number}", source, run)
    store.delete(single)
    store.client.delete_logged_model(deleted)
    for experiment in (gone, kept_run, kept_model):
        store.client.delete_experiment(experiment)
    release(registry.uri)
    before, versions = look(store), read_tables(registry)
    assert set(decisions(store.uri).values()) == {"collect"}

    found = decisions(store.uri, "--registry-store-uri", registry.uri)

    assert found[free] == found[gone] == "collect"
    kept = (by_run, kept_run, deleted, single)
    assert {found[each] for each in kept} == {"registered"}
    assert found[kept_model] in ("registered", "has_live_children")
    collect(store.uri, "--registry-store-uri", registry.uri)
    assert before.without([gone]).against(look(store)) == []
    assert read_tables(registry) == versions


def test_pain_3_nothing_is_purged_while_the_registry_cannot_be_read(
    store: RealStore, tmp_path: Path, empty_database: Database
) -> None:
    experiment = store.experiment("e")
    store.run(experiment)
    store.client.delete_experiment(experiment)
    before = look(store)
    with empty_database.begin():
        pass  # makes the file where that is what a database is
    for registry, code in (
        (empty_database.uri, 14),
        ("postgresql://nobody@127.0.0.1:1/nothing", 12),
        (f"sqlite:///{tmp_path}/nothing.db", 12),
    ):
        done = collect(store.uri, "--registry-store-uri", registry, expect=None)
        assert done.returncode in (code, 14), shown(done)
        assert "Traceback" not in done.stderr
    assert before.against(look(store)) == []


def test_pain_11_no_rows_are_left_behind(store: RealStore) -> None:
    gone, live = whole(store, "gone"), whole(store, "live")
    roll_up(store)
    store.client.delete_experiment(gone.experiment)
    before = look(store)
    everything = before.gone([gone.experiment])
    assert inside(store.database, gone.experiment) <= everything

    assert decisions(store.uri)[gone.experiment] == "collect"
    done = report(store.uri)

    assert done["purged"] == {"run": 2, "logged_model": 2, "experiment": 1, "trace": 2, "job": 0}
    after = look(store)
    assert before.without([gone.experiment]).against(after) == []
    assert leftovers(after, everything) == []
    assert report(store.uri)["rows"] == 0
    assert after.against(look(store)) == []
    assert {*live.runs, *live.models, *live.traces} <= there(store.database)


def test_pain_13_payloads_of_traces_go_with_their_experiment(store: RealStore) -> None:
    gone, live = laid_out(store, "gone"), laid_out(store, "live")
    folders = {}
    for experiment in (gone, live):
        for each in (trace(store, experiment), trace(store, experiment)):
            folders[each] = attach(store, each)
    store.client.delete_experiment(gone)
    before = look(store)

    done = report(store.uri)

    assert done["purged"]["trace"] == 2
    assert done["bytes"] >= 2 * (folders_bytes := (folders[each] / "attachment.png").stat().st_size)
    assert folders_bytes
    after = look(store)
    assert before.without([gone]).against(after) == []
    assert leftovers(after, before.gone([gone])) == []
    assert not (store.root / "mlruns" / gone).exists()


def test_pain_13_archived_payloads_go_where_the_archive_is_a_root(store: RealStore) -> None:
    gone, live = store.experiment("gone"), store.experiment("live")
    traces = {
        experiment: trace(store, experiment, run=store.run(experiment))
        for experiment in (gone, live)
    }
    archive(store, gone, live)
    archived = payload(store, traces[gone], "mlflow.trace.archiveLocation")
    assert archived.is_relative_to(store.root / ARCHIVE)
    assert [path.name for path in archived.iterdir()] == ["traces.pb"]
    store.client.delete_experiment(gone)
    before = look(store)
    allowed = root_of(store.root / ARCHIVE)
    assert decisions(store.uri)[gone] == "unsafe_target"
    assert decisions(store.uri, env=allowed)[gone] == "collect"

    collect(store.uri, env=allowed)

    after = look(store)
    assert before.without([gone]).against(after) == []
    assert leftovers(after, before.gone([gone])) == []


def test_an_experiment_whose_archive_is_no_root_loses_only_its_runs(store: RealStore) -> None:
    gone = store.experiment("gone")
    run = store.run(gone)
    store.logged_model(run, "m")
    trace(store, gone)
    archive(store, gone)
    store.client.delete_experiment(gone)
    before = look(store)

    collect(store.uri)

    assert before.without([run]).against(look(store)) == []


def test_an_archive_that_is_not_mounted_keeps_models_and_traces(store: RealStore) -> None:
    gone = store.experiment("gone")
    run = store.run(gone)
    store.logged_model(run, "m")
    trace(store, gone)
    archive(store, gone)
    store.client.delete_experiment(gone)
    (store.root / ARCHIVE).rename(store.root / "unmounted")
    (store.root / ARCHIVE).mkdir()
    before = look(store)
    allowed = root_of(store.root / ARCHIVE)

    collect(store.uri, env=allowed, expect=3)

    assert before.without([run]).against(look(store)) == []
    assert decisions(store.uri, env=allowed)[gone] == "unreachable"


def test_pain_17_an_active_run_keeps_its_deleted_experiment(store: RealStore) -> None:
    kept, gone = whole(store, "kept"), store.experiment("gone")
    store.run(gone)
    for experiment in (kept.experiment, gone):
        store.client.delete_experiment(experiment)
    active, deleted = kept.runs
    store.restore(active)
    before = look(store)

    found = decisions(store.uri)

    assert found[kept.experiment] == "has_live_children"
    assert active not in found
    explained = gcd("explain", kept.experiment, "--older-than", "0s", uri=store.uri)
    assert "1 run in it is not deleted" in explained.stdout, shown(explained)
    collect(store.uri)
    assert before.without([gone, deleted]).against(look(store)) == []

    store.delete(active)
    before = look(store)
    collect(store.uri)
    assert before.without([kept.experiment]).against(look(store)) == []


def test_pain_24_the_name_is_free_again(store: RealStore) -> None:
    name = "a name that is wanted"
    old = laid_out(store, name)
    store.logged_model(store.run(old), "m")
    store.client.delete_experiment(old)
    with pytest.raises(MlflowException, match="exist"):
        laid_out(store, name)

    collect(store.uri, "--experiment-ids", old)

    new = laid_out(store, name)
    assert store.client.get_experiment_by_name(name).experiment_id == new
    if store.database.dialect == "sqlite":
        assert new == old, "SQLite gives the number again: then its folder is the same too"
    run = store.run(new)
    store.logged_model(run, "m")
    trace(store, new)
    after = look(store)
    collect(store.uri)
    assert after.against(look(store)) == []
    store.client.delete_experiment(new)
    collect(store.uri)
    assert inside(store.database, new) == set()
    assert not (store.root / "mlruns" / new).exists()


# -- what keeps an experiment ----------------------------------------------------------------------


def test_a_held_part_keeps_its_experiment(store: RealStore) -> None:
    kept = [store.experiment(f"held by {what}") for what in ("itself", "its run", "its model")]
    by_itself, by_run, by_model = kept
    runs = {experiment: store.run(experiment) for experiment in kept}
    models = {experiment: store.logged_model(runs[experiment], "m") for experiment in kept}
    for experiment in kept:
        trace(store, experiment)
    store.client.set_experiment_tag(by_itself, "gcd.hold", "audit")
    store.client.set_tag(runs[by_run], "gcd.hold_until", "2999-01-01")
    store.client.set_logged_model_tags(models[by_model], {"gcd.hold": "paper"})
    for experiment in kept:
        store.client.delete_experiment(experiment)
    before = look(store)

    found = decisions(store.uri)

    assert found[by_itself] == found[runs[by_itself]] == "held"
    assert found[by_run] == found[runs[by_run]] == "held"
    assert found[by_model] in ("held", "has_live_children")
    collect(store.uri)
    # Of an experiment that is kept for its model alone, the deleted run goes by itself.
    assert before.without([runs[by_model]]).against(look(store)) == []


def test_a_scorer_that_guards_an_endpoint_keeps_its_experiment(store: RealStore) -> None:
    kept = whole(store, "kept")
    guard = guardrail(store, kept)
    store.client.delete_experiment(kept.experiment)
    before = look(store)

    assert decisions(store.uri)[kept.experiment] == "in_use"
    collect(store.uri)

    # The other run measured a model that stays with its experiment, hence it stays.
    assert before.without(kept.runs[1:]).against(look(store)) == []
    store.client._tracking_client.store.delete_gateway_guardrail(guard)
    before = look(store)
    collect(store.uri)
    assert before.without([kept.experiment]).against(look(store)) == []


def test_the_default_experiment_stays_without_its_deleted_runs(store: RealStore) -> None:
    store.sql(
        "UPDATE experiments SET artifact_location = :at WHERE experiment_id = 0",
        at=(store.root / "0").as_uri(),
    )
    run = store.run("0")
    store.logged_model(run, "m")
    trace(store, "0")
    store.client.delete_experiment("0")
    before = look(store)

    assert decisions(store.uri) == {"0": "default_experiment", run: "collect"}
    collect(store.uri)

    assert before.without([run]).against(look(store)) == []


def test_a_model_that_a_live_run_elsewhere_uses_keeps_its_experiment(store: RealStore) -> None:
    kept, live = store.experiment("kept"), store.experiment("live")
    maker = store.run(kept)
    taken, measured = store.logged_model(maker, "m-taken"), store.logged_model(maker, "m-measured")
    user = store.run(live)
    store.model_input(user, taken)
    store.client.log_metric(store.run(live), "f1", 0.5, model_id=measured)
    store.client.delete_experiment(kept)
    before = look(store)

    assert decisions(store.uri)[kept] == "has_live_children"
    collect(store.uri)

    assert before.without([maker]).against(look(store)) == []


def test_an_experiment_is_as_young_as_its_newest_part(store: RealStore) -> None:
    plain, with_run, with_model, with_trace = (
        store.experiment(name) for name in ("plain", "with run", "with model", "with trace")
    )
    everything = (plain, with_run, with_model, with_trace)
    for experiment in everything:
        store.logged_model(store.run(experiment), "m")
        store.client.delete_experiment(experiment)
    backdate(store, 10)
    young = next(iter(inside(store.database, with_run) & store.runs()))
    store.stamp(young, now_ms() - DAY)
    store.sql(
        "UPDATE logged_models SET last_updated_timestamp_ms = :at WHERE experiment_id = :number",
        at=now_ms() - DAY,
        number=int(with_model),
    )
    late = trace(store, with_trace)  # MLflow accepts traces into a deleted experiment
    attach(store, late)
    before = look(store)
    age = ("--older-than", "5d")

    found = decisions(store.uri, *age)

    assert {each: found[each] for each in everything} == {
        **dict.fromkeys(everything, "too_young"),
        plain: "collect",
    }
    done = gcd("gc", "--yes", *age, uri=store.uri)
    assert done.returncode == 0, shown(done)
    old_runs = (
        inside(store.database, with_model, with_trace) | inside(store.database, with_run)
    ) & set()
    runs = {row["run_uuid"] for row in before.tables["runs"]} - {young}
    assert old_runs == set()
    assert before.without({plain, *runs}).against(look(store)) == []


# -- restored, changed, added to in the middle -------------------------------------------------------

SMALL = {"GCD_PURGE__BATCH_RUNS": "2"}
CYCLE = ("gc", "--older-than", "0s", "--yes")


@pytest.mark.parametrize("table", ["runs", "logged_models", "trace_info"])
def test_restored_in_the_middle_it_comes_back_with_what_was_not_purged(
    store: RealStore, table: str
) -> None:
    made = whole(store, "restored")
    runs = [*made.runs, *(store.run(made.experiment) for _ in range(5))]
    store.client.delete_experiment(made.experiment)
    before = look(store)
    moment = Moment("after", "commit", rf"DELETE FROM {table}\b")
    killed(moment, *CYCLE, uri=store.uri, env=SMALL)
    left = inside(store.database, made.experiment)
    gone = before.gone([made.experiment]) - left
    purged = [each for each in gone if each in {*runs, *made.models, *made.traces}]
    assert purged
    assert made.experiment in left

    store.client.restore_experiment(made.experiment)

    expected = undeleted(before.without(purged), made.experiment)
    assert missing(expected, undeleted(look(store), made.experiment)) == []
    assert {run.info.run_id for run in store.client.search_runs([made.experiment])} == left & {
        *runs
    }
    collect(store.uri)
    after = undeleted(look(store), made.experiment)
    assert expected.against(after) == []
    assert leftovers(after, purged) == []


def test_once_its_row_is_gone_a_restore_is_refused(store: RealStore) -> None:
    made = whole(store, "gone")
    store.client.delete_experiment(made.experiment)
    before = look(store)
    killed(Moment("after", "commit", r"DELETE FROM experiments\b"), *CYCLE, uri=store.uri)

    with pytest.raises(MlflowException, match=made.experiment):
        store.client.restore_experiment(made.experiment)

    collect(store.uri)
    assert before.without([made.experiment]).against(look(store)) == []


@pytest.mark.parametrize("table", ["runs", "logged_models", "trace_info"])
def test_a_trace_logged_between_plan_and_purge_stays(store: RealStore, table: str) -> None:
    made = whole(store, "e")
    store.client.delete_experiment(made.experiment)
    before = look(store)

    with stopped(Moment("after", "commit", rf"DELETE FROM {table}\b"), *CYCLE, uri=store.uri) as gc:
        late = trace(store, made.experiment)
        attach(store, late)
        new = look(store)
        done = resumed(gc)

    assert done.returncode == 0, shown(done)
    after = look(store)
    assert {late, made.experiment} <= there(store.database)
    gone = before.gone([made.experiment]) - there(store.database) - {made.experiment}
    purged = [each for each in gone if each in {*made.runs, *made.models, *made.traces}]
    assert set(made.runs) <= set(purged)
    assert new.without(purged).against(after) == []


LOCKED = (
    r"SELECT experiments\.experiment_id, experiments\.lifecycle_stage, experiments\.last_update"
    r"[^;]* FOR UPDATE"
)
"""How a purge locks experiments that go: for the models that runs measured, for the other models, for the
traces, then to purge them."""


@pytest.mark.parametrize("server", ["postgresql", "mariadb"], indirect=True)
def test_a_trace_logged_just_before_its_experiments_row_goes_keeps_that(store: RealStore) -> None:
    made = whole(store, "e")
    store.client.delete_experiment(made.experiment)

    with stopped(Moment("before", "statement", LOCKED, number=4), *CYCLE, uri=store.uri) as gc:
        assert inside(store.database, made.experiment) == {made.experiment}, "the moment is meant"
        late = trace(store, made.experiment)
        attach(store, late)
        new = look(store)
        done = resumed(gc)

    assert done.returncode == 0, shown(done)
    purged = [*made.runs, *made.models, *made.traces]
    assert new.without(purged).against(look(store)) == []
    assert inside(store.database, made.experiment) == {made.experiment, late}


def test_a_run_restored_after_the_plan_keeps_its_experiment(store: RealStore) -> None:
    made = whole(store, "e")
    store.client.delete_experiment(made.experiment)
    kept, other = made.runs  # the one that measured a model goes after that, hence last
    before = look(store)

    moment = Moment("after", "commit", r"DELETE FROM runs\b")
    with stopped(moment, *CYCLE, uri=store.uri) as gc:
        first = set(made.runs) - there(store.database)
        store.restore(kept)
        done = resumed(gc)

    assert done.returncode == 0, shown(done)
    expected = undeleted(before.without(first), made.experiment)
    assert first == {other}
    assert expected.against(undeleted(look(store), made.experiment)) == []


# -- selecting ---------------------------------------------------------------------------------------


def test_experiment_ids_only_narrow(store: RealStore) -> None:
    wanted, other, live, held = (store.experiment(name) for name in ("a", "b", "c", "d"))
    for experiment in (wanted, other, live, held):
        store.logged_model(store.run(experiment), "m")
    single = store.run(live)
    deleted = store.logged_model(store.run(live), "m-deleted")
    store.delete(single)
    store.client.delete_logged_model(deleted)
    store.client.set_experiment_tag(held, "gcd.hold", "x")
    for experiment in (wanted, other, held):
        store.client.delete_experiment(experiment)
    before = look(store)
    for bad in ("", " ", ",", f"{wanted},", "x", f"{wanted},e1", "-1"):
        done = gcd("gc", "--yes", f"--experiment-ids={bad}", uri=store.uri)
        assert done.returncode == 2, shown(done)
    assert before.against(look(store)) == []

    plan = decisions(store.uri, "--experiment-ids", wanted)
    collect(store.uri, "--experiment-ids", wanted)

    assert set(plan) == before.gone([wanted]) & store_ids(before, "runs", "experiments")
    assert before.without([wanted]).against(look(store)) == []

    done = collect(store.uri, "--experiment-ids", f"{other},{live},{held},98765", expect=3)
    for each in (live, held, "98765"):
        assert f"experiment {each}: " in done.stderr
    assert "held" in done.stderr
    assert before.without([wanted, other]).against(look(store)) == []


def store_ids(snapshot: Snapshot, *tables: str) -> set[str]:
    """The ids in these tables as text."""
    keys = {"runs": "run_uuid", "experiments": "experiment_id", "logged_models": "model_id"}
    return {str(row[keys[table]]) for table in tables for row in snapshot.tables[table]}


def test_logged_model_ids_only_narrow(store: RealStore) -> None:
    live, gone = store.experiment("live"), store.experiment("gone")
    run = store.run(live)
    wanted, other, active = (store.logged_model(run, f"m-{n}") for n in range(3))
    in_gone, sibling = (store.logged_model(store.run(gone), f"m-{n}") for n in range(2))
    for model in (wanted, other, in_gone, sibling):
        store.client.delete_logged_model(model)
    store.client.delete_experiment(gone)
    store.delete(store.run(live))
    before = look(store)
    for bad in ("", " ", ",", f"{wanted},"):
        done = gcd("gc", "--yes", f"--logged-model-ids={bad}", uri=store.uri)
        assert done.returncode == 2, shown(done)

    assert decisions(store.uri, "--logged-model-ids", wanted) == {wanted: "collect"}
    collect(store.uri, "--logged-model-ids", wanted)
    assert before.without([wanted]).against(look(store)) == []

    unknown = "m-" + "f" * 32
    named = f"{in_gone},{active},{unknown}"
    done = collect(store.uri, "--logged-model-ids", named, expect=3)
    assert active in done.stderr
    assert unknown in done.stderr
    assert before.without([wanted, in_gone]).against(look(store)) == []


def test_selectors_of_several_kinds_add_up_and_nothing_more(store: RealStore) -> None:
    live, gone, other = (store.experiment(name) for name in "abc")
    run, model = store.run(live), store.logged_model(store.run(live), "m")
    spared = store.run(live)
    store.run(gone)
    store.run(other)
    store.delete(run, spared)
    store.client.delete_logged_model(model)
    for experiment in (gone, other):
        store.client.delete_experiment(experiment)
    before = look(store)

    named = ("--run-ids", run, "--logged-model-ids", model, "--experiment-ids", gone)
    collect(store.uri, *named)

    assert before.without([run, model, gone]).against(look(store)) == []


# -- where files are ---------------------------------------------------------------------------------


def test_a_store_without_any_file_is_collected_where_that_is_allowed(store: RealStore) -> None:
    gone, live = store.experiment("gone"), store.experiment("live")
    for experiment in (gone, live):
        run = store.run(experiment, files={})
        store.client.create_logged_model(experiment, name="m", source_run_id=run)
        trace(store, experiment)  # its spans are in the database
    store.client.delete_experiment(gone)
    before = look(store)
    assert before.files == {}
    assert set(decisions(store.uri).values()) <= {"unreachable", "has_live_children"}
    collect(store.uri, expect=3)
    assert before.against(look(store)) == []

    collect(store.uri, "--absent-roots", "collect")

    after = look(store)
    assert before.without([gone]).against(after) == []
    assert leftovers(after, before.gone([gone])) == []
    assert after.files == {}


def test_two_experiments_that_share_a_location_do_not_share_their_end(store: RealStore) -> None:
    where = (store.root / "shared").as_uri()
    gone, live = store.experiment("gone", where), store.experiment("live", where)
    for experiment in (gone, live):
        store.logged_model(store.run(experiment), "m")
        attach(store, trace(store, experiment))
    store.client.delete_experiment(gone)
    before = look(store)

    collect(store.uri)

    assert before.without([gone]).against(look(store)) == []
    store.client.delete_experiment(live)
    before = look(store)
    collect(store.uri)
    after = look(store)
    assert before.without([live]).against(after) == []
    assert [name for name, what in after.files.items() if what != "folder"] == []


def test_both_experiments_of_a_location_can_go_at_once(store: RealStore) -> None:
    where = (store.root / "shared").as_uri()
    both = [store.experiment(name, where) for name in ("a", "b")]
    (store.root / "shared").mkdir()
    (store.root / "shared" / "notes.txt").write_text("nobody's")
    for experiment in both:
        store.logged_model(store.run(experiment), "m")
        attach(store, trace(store, experiment))
        store.client.delete_experiment(experiment)
    before = look(store)

    collect(store.uri)

    assert before.without(both).against(look(store)) == []
    assert (store.root / "shared" / "notes.txt").read_text() == "nobody's"


def test_an_experiment_inside_anothers_run_never_costs_that_run_a_byte(store: RealStore) -> None:
    outer = store.experiment("outer")
    host, plain = store.run(outer), store.run(outer)
    inner = store.experiment("inner", (store.tree(host) / "inner").as_uri())
    guest = store.run(inner)
    store.logged_model(guest, "m")
    attach(store, trace(store, inner))
    store.client.delete_experiment(inner)
    before = look(store)

    assert decisions(store.uri) == {inner: "shared", guest: "shared"}
    collect(store.uri)
    assert before.against(look(store)) == []

    store.client.restore_experiment(inner)
    store.client.delete_experiment(outer)
    before = look(store)
    found = decisions(store.uri)
    assert found[host] == "shared"
    assert found[outer] in ("shared", "has_live_children")
    collect(store.uri)
    assert before.without([plain]).against(look(store)) == []


def test_a_copied_run_keeps_the_tree_that_it_points_into(store: RealStore) -> None:
    source, copies = store.experiment("source"), store.experiment("copies")
    original, other = store.run(source), store.run(source)
    with_files = store.run(copies)
    model = store.logged_model(original, "m")
    copied = store.run(copies, files={})
    of_model = store.run(copies, files={})
    store.point(copied, store.client.get_run(original).info.artifact_uri)
    store.point(of_model, store.client.get_logged_model(model).artifact_location)
    store.client.delete_experiment(source)
    before = look(store)

    found = decisions(store.uri)
    assert found[original] == "shared"
    assert found[source] in ("shared", "has_live_children")
    collect(store.uri)
    assert before.without([other]).against(look(store)) == []

    store.client.restore_experiment(source)
    store.client.delete_experiment(copies)
    before = look(store)
    assert decisions(store.uri)[copied] == "unsafe_target"
    collect(store.uri)
    assert before.without([with_files]).against(look(store)) == []


def test_ids_in_upper_case_are_not_those_in_lower_case(store: RealStore) -> None:
    gone, live = store.experiment("gone"), store.experiment("live")
    lower = "".join(f"{n % 6 + 10:x}" for n in range(32))
    upper = lower.upper()
    run, model = store.run(gone), store.logged_model(store.run(gone), "m-imported")
    rename(store, RUN, run, upper)
    rename(store, MODEL, model, "m-" + upper)
    rename(store, TRACE, trace(store, gone), "tr-" + upper)
    if store.database.dialect != "mariadb":  # there they would be one and the same
        rename(store, RUN, store.run(live), lower)
        twin = store.logged_model(store.run(live), "m")
        rename(store, MODEL, twin, "m-" + lower)
        rename(store, TRACE, trace(store, live), "tr-" + lower)
    else:
        store.run(live)
    store.client.delete_experiment(gone)
    before = look(store)

    assert decisions(store.uri)[upper] == "collect"
    collect(store.uri)

    after = look(store)
    assert before.without([gone]).against(after) == []
    assert leftovers(after, before.gone([gone])) == []


def test_a_selector_in_another_case_names_nothing(store: RealStore) -> None:
    experiment = store.experiment("e")
    run, model = store.run(experiment), store.logged_model(store.run(experiment), "m")
    store.delete(run)
    store.client.delete_logged_model(model)
    before = look(store)

    # A database may take both for the same; what is told has to be what is done.
    for flag, named in (
        ("--run-ids", run.upper()),
        ("--logged-model-ids", "m-" + model[2:].upper()),
    ):
        done = collect(store.uri, flag, named, expect=3)
        assert f"{named}: unknown" in done.stderr, shown(done)
    assert before.against(look(store)) == []


RUN, MODEL, TRACE = "runs", "logged_models", "trace_info"
NAMED: dict[str, tuple[tuple[str, str], ...]] = {
    RUN: (
        *((table, "run_uuid") for table in ("runs", "metrics", "latest_metrics", "params", "tags")),
        ("logged_models", "source_run_id"),
        ("logged_model_metrics", "run_id"),
        ("inputs", "source_id"),
        ("inputs", "destination_id"),
    ),
    MODEL: (
        *((f"logged_model{part}", "model_id") for part in ("s", "_metrics", "_params", "_tags")),
        ("inputs", "destination_id"),
    ),
    TRACE: (
        *(
            (table, "request_id")
            for table in ("trace_info", "trace_tags", "trace_request_metadata")
        ),
        ("spans", "trace_id"),
    ),
}
PLACES = {
    RUN: ("runs", "artifact_uri"),
    MODEL: ("logged_models", "artifact_location"),
    TRACE: ("trace_tags", "value"),
}
CHECKS = {
    "sqlite": ("PRAGMA foreign_keys = OFF", "PRAGMA foreign_keys = ON"),
    "postgresql": (
        "SET session_replication_role = replica",
        "SET session_replication_role = DEFAULT",
    ),
    "mariadb": ("SET foreign_key_checks = 0", "SET foreign_key_checks = 1"),
}


def rename(store: RealStore, kind: str, old: str, new: str) -> None:
    """Give an entity another id, as importers do, in its rows and in its files' place."""
    off, on = CHECKS[store.database.dialect]
    table, column = PLACES[kind]
    store.sql(
        off,
        *(f"UPDATE {each} SET {key} = :new WHERE {key} = :old" for each, key in NAMED[kind]),
        f"UPDATE {table} SET {column} = replace({column}, :old, :new)",
        on,
        old=old,
        new=new,
    )
    assert new in there(store.database)
    assert old not in there(store.database)
    for path in list(store.root.rglob(old)):
        path.rename(path.with_name(new))


NAMES = (
    "наука и 実験 — ελληνικά",
    "emoji 🧪🗑️ and é",
    "‮right to left‬",
    "quotes ' \" ` and \\ backslash",
    "per%cent %s {braces} [bold] ${VAR}",
    "#hash?query=1&x#y",
    "tab\tand\nnew line",
    "\x1b[31mred\x1b[0m",
    "'; DROP TABLE runs; --",
    "   ",
    "x" * 250,
)


def test_any_unicode_in_names(store: RealStore) -> None:
    names = (*NAMES, "caf\u00e9", "cafe\u0301")  # composed and decomposed: two names
    gone, stays = [], []
    for number, name in enumerate(names):
        experiment = odd(store, name, store.root / "g" / folder(name, number))
        store.client.delete_experiment(experiment)
        gone.append(experiment)
        stays.append(odd(store, f"live {name}"[:250], store.root / "l" / folder(name, number)))
    before = look(store)

    plan = gcd("plan", "--older-than", "0s", uri=store.uri)
    assert plan.returncode == 0, shown(plan)
    assert "\x1b[31m" not in plan.stdout
    for experiment in gone:
        explained = gcd("explain", experiment, "--older-than", "0s", uri=store.uri)
        assert "would be collected now" in explained.stdout, shown(explained)
        assert "\x1b[31m" not in explained.stdout
    found = decisions(store.uri)
    assert {each: found[each] for each in gone} == dict.fromkeys(gone, "collect")
    collect(store.uri)

    after = look(store)
    assert before.without(gone).against(after) == []
    assert inside(store.database, *gone) == set()
    assert set(stays) <= there(store.database)


def folder(name: str, number: int) -> str:
    """A folder of that name, as far as 200 characters of a run's URI go."""
    return f"{number}{name}".replace("/", "_")[:6]


def odd(store: RealStore, name: str, home: Path) -> str:
    """An experiment of that name with a run, a model and a trace that carry it too."""
    experiment = store.experiment(name, "file://" + quote(str(home)))
    run = store.run(
        experiment,
        tags={"mlflow.runName": name or "-", "note": name},
        params={"p": name},
        files={**FILES, folder(name, 0): b"x"},
    )
    store.logged_model(run, "m")
    attach(store, trace(store, experiment))
    return experiment


# -- NULLs -------------------------------------------------------------------------------------------

MEANT = {"lifecycle_stage", "experiment_id", "artifact_uri", "artifact_location", "input_uuid"}
"""Columns whose NULL means something; they have tests of their own."""


def nullable(database: Database) -> list[tuple[str, str]]:
    """(table, column) of whatever may be NULL, the rest of a key apart."""
    with database.begin() as conn:
        inspector = sa.inspect(conn)
        return [
            (table, column["name"])
            for table in sorted(inspector.get_table_names())
            for column in inspector.get_columns(table)
            if column["nullable"]
            and not column.get("computed")
            and column["name"] not in MEANT
            and column["name"] not in inspector.get_pk_constraint(table)["constrained_columns"]
        ]


def set_null(store: RealStore, table: str, column: str) -> None:
    """Make a column NULL in all rows, where no check forbids it."""
    with suppress(sa.exc.IntegrityError):
        store.sql(f"UPDATE {table} SET {column} = NULL")


def test_nulls_wherever_the_schema_allows_them(store: RealStore) -> None:
    gone, live = whole(store, "gone"), whole(store, "live")
    store.version("registered", store.client.get_run(live.runs[0]).info.artifact_uri + "/model")
    single = store.run(live.experiment)
    store.delete(single)
    store.client.delete_experiment(gone.experiment)
    for table, column in nullable(store.database):
        set_null(store, table, column)
    before = look(store)

    plan = gcd("plan", "--older-than", "0s", "--json", uri=store.uri)
    assert plan.returncode == 0, shown(plan)
    done = collect(store.uri, expect=None)

    assert done.returncode in (0, 3), shown(done)
    assert "Traceback" not in done.stderr
    after = look(store)
    expected = spelled(before).without([gone.experiment, single])
    assert expected.against(spelled(after)) == []


def spelled(snapshot: Snapshot) -> Snapshot:
    """The same store with empty lists instead of NULLs where lists of ids are expected."""
    rows = {
        name: [{**row, "value": row["value"] or ""} for row in snapshot.tables[name]]
        for name in ("registered_model_tags", "model_version_tags")
    }
    return Snapshot({**snapshot.tables, **rows}, snapshot.files)


def test_a_null_stage_is_not_deleted(store: RealStore) -> None:
    by_run, by_itself = store.experiment("by its run"), store.experiment("by itself")
    null, other, third = store.run(by_run), store.run(by_run), store.run(by_itself)
    for experiment in (by_run, by_itself):
        store.client.delete_experiment(experiment)
    store.sql("UPDATE runs SET lifecycle_stage = NULL WHERE run_uuid = :run", run=null)
    store.sql(
        "UPDATE experiments SET lifecycle_stage = NULL WHERE experiment_id = :number",
        number=int(by_itself),
    )
    before = look(store)

    found = decisions(store.uri)

    assert found == {other: "collect", third: "collect", by_run: "has_live_children"}
    collect(store.uri)
    assert before.without([other, third]).against(look(store)) == []


def test_an_experiment_without_a_stamp_or_a_location(store: RealStore) -> None:
    undated, homeless = store.experiment("undated"), store.experiment("homeless")
    for experiment in (undated, homeless):
        store.run(experiment)
        store.client.delete_experiment(experiment)
    backdate(store, 10)
    store.sql(
        "UPDATE experiments SET last_update_time = NULL WHERE experiment_id = :number",
        number=int(undated),
    )
    store.sql(
        "UPDATE experiments SET artifact_location = NULL WHERE experiment_id = :number",
        number=int(homeless),
    )
    before = look(store)
    age = ("--older-than", "5d")

    found = decisions(store.uri, *age)

    assert (found[undated], found[homeless]) == ("undated", "unsafe_target")
    done = gcd("gc", "--yes", *age, uri=store.uri)
    assert done.returncode == 0, shown(done)
    run = next(iter(inside_of(before, undated)))
    assert before.without([run]).against(look(store)) == []
    store.sql(f"UPDATE alembic_gcd_seen SET first_seen_ms = first_seen_ms - {6 * DAY}")
    done = gcd("gc", "--yes", *age, uri=store.uri)
    assert done.returncode == 0, shown(done)
    assert before.without([undated]).against(look(store)) == []


def inside_of(snapshot: Snapshot, experiment: str) -> set[str]:
    """The runs of an experiment as it was."""
    rows = snapshot.tables["runs"]
    return {row["run_uuid"] for row in rows if row["experiment_id"] == int(experiment)}
