"""Nothing that stays loses a part, and what can be restored keeps what it needs.

Each test compares every row and file of the store with what must be left of it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.mlflow_store import DAY, RealStore, now_ms
from tests.program import collect, decisions, gcd, shown
from tests.servers import Database
from tests.snapshot import Snapshot
from tests.stopper import Moment, resumed, stopped
from tests.whole import leftovers, trace

CYCLE = ("gc", "--older-than", "0s", "--yes")
ON_SQLITE = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
AGE = ("--older-than", "10d")


def look(store: RealStore) -> Snapshot:
    """The store now."""
    return Snapshot.of(store.database, store.root)


def metrics_of(database: Database, model: str) -> int:
    """How many metric rows a logged model has."""
    query = "SELECT COUNT(*) FROM logged_model_metrics WHERE model_id = :model"
    return int(database.scalar(query, model=model))


def old(store: RealStore, days: int = 40) -> None:
    """Let everything that is deleted have been deleted so many days ago."""
    at = now_ms() - days * DAY
    store.sql(
        f"UPDATE runs SET deleted_time = {at} WHERE lifecycle_stage = 'deleted'",
        f"UPDATE experiments SET last_update_time = {at} WHERE lifecycle_stage = 'deleted'",
        f"UPDATE logged_models SET last_updated_timestamp_ms = {at}",
        f"UPDATE trace_info SET timestamp_ms = {at}",
    )


# -- a model that stays keeps its metrics ----------------------------------------------------------

Keeper = Callable[[RealStore, str, str, str], None]


def tagged(store: RealStore, experiment: str, run: str, model: str) -> None:
    store.client.set_logged_model_tags(model, {"gcd.hold": "paper"})


def held_by_an_operator(store: RealStore, experiment: str, run: str, model: str) -> None:
    assert gcd("init", uri=store.uri).returncode == 0
    done = gcd("hold", "add", model, "--backend-store-uri", store.uri)
    assert done.returncode == 0, shown(done)


def traced_today(store: RealStore, experiment: str, run: str, model: str) -> None:
    trace(store, experiment)


def used_elsewhere(store: RealStore, experiment: str, run: str, model: str) -> None:
    other = store.logged_model(store.run(experiment), "m-other")
    store.model_input(store.run(store.experiment("elsewhere")), other)


def another_run_held(store: RealStore, experiment: str, run: str, model: str) -> None:
    store.client.set_tag(store.run(experiment), "gcd.hold", "audit")


def another_model_elsewhere(store: RealStore, experiment: str, run: str, model: str) -> None:
    store.point_model(store.logged_model(run, "m-odd"), (store.root / "odd").as_uri())


KEEPERS: tuple[Keeper, ...] = (
    tagged,
    held_by_an_operator,
    traced_today,
    used_elsewhere,
    another_run_held,
    another_model_elsewhere,
)


@pytest.mark.parametrize("keeper", KEEPERS)
def test_an_active_model_of_an_experiment_that_stays_keeps_its_metrics(
    store: RealStore, keeper: Keeper
) -> None:
    experiment = store.experiment("e")
    run, plain = store.run(experiment), store.run(experiment)
    model = store.logged_model(run, "m", metrics=True)
    keeper(store, experiment, run, model)
    held = [r for r in store.runs_in(experiment) if "hold" in store.client.get_run(r).data.tags]
    store.client.delete_experiment(experiment)
    if keeper is traced_today:
        store.sql(
            f"UPDATE runs SET deleted_time = {now_ms() - 40 * DAY}",
            f"UPDATE experiments SET last_update_time = {now_ms() - 40 * DAY}",
        )
    else:
        old(store)
    before = look(store)
    kept = {r: d for r, d in decisions(store.uri, *AGE).items() if r in (run, plain)}

    collect(store.uri, *AGE, expect=None)

    assert kept == {run: "feeds_live_model", plain: "collect"}
    assert not store.exists(plain), "its runs go by their own age"
    gone = set(before_runs(before)) - store.runs()
    assert not gone & {run, *held}
    assert before.without(gone).against(look(store)) == []
    assert metrics_of(store.database, model) == 1
    store.client.restore_experiment(experiment)
    assert [m.key for m in store.client.get_logged_model(model).metrics] == ["f1"]


def before_runs(before: Snapshot) -> list[str]:
    """The runs of a snapshot."""
    return [str(row["run_uuid"]) for row in before.tables["runs"]]


def test_a_model_deleted_too_recently_keeps_its_metrics(store: RealStore) -> None:
    experiment, other = store.experiment("e"), store.experiment("other")
    run, stranger = store.run(experiment), store.run(other)
    model = store.logged_model(run, "m", metrics=True)
    store.measure(stranger, model)
    store.delete(run, stranger)
    old(store)
    store.client.delete_logged_model(model)
    before = look(store)

    found = decisions(store.uri, *AGE)
    collect(store.uri, *AGE)

    assert found == {model: "too_young", run: "feeds_live_model", stranger: "feeds_live_model"}
    assert before.against(look(store)) == []
    collect(store.uri)  # of whatever age: the model first, then its runs, in one cycle
    assert before.without([model, run, stranger]).against(look(store)) == []


def test_a_deleted_model_that_stays_for_whatever_reason_keeps_its_runs(store: RealStore) -> None:
    experiment, reasons = store.experiment("e"), {}
    for reason in ("held", "registered", "unsafe_target"):
        run = store.run(experiment)
        model = store.logged_model(store.run(experiment), f"m-{reason}")
        store.measure(run, model)
        if reason == "held":
            store.client.set_logged_model_tags(model, {"gcd.hold": "paper"})
        elif reason == "registered":
            store.version("classifier", f"models:/{model}", model=model)
        else:
            store.point_model(model, (store.root / "elsewhere").as_uri())
        store.delete(run, model)
        reasons |= {model: reason, run: "feeds_live_model"}
    before = look(store)

    assert decisions(store.uri) == reasons
    collect(store.uri)

    assert before.against(look(store)) == []


def test_a_selector_of_runs_leaves_what_they_measured(store: RealStore) -> None:
    experiment, gone = store.experiment("e"), store.experiment("gone")
    by_itself, within = store.run(experiment), store.run(gone)
    deleted = store.logged_model(by_itself, "m-deleted", metrics=True)
    store.logged_model(within, "m-within", metrics=True)
    store.delete(by_itself, deleted)
    store.client.delete_experiment(gone)
    before = look(store)

    done = gcd(*CYCLE, "--run-ids", f"{by_itself},{within}", uri=store.uri)

    assert done.returncode == 3, shown(done)
    assert done.stderr.count("feeds_live_model") == 2, shown(done)
    assert before.against(look(store)) == []
    for each in (by_itself, within):  # asked without a selector they would go
        explained = gcd("explain", each, "--older-than", "0s", uri=store.uri)
        assert "would be collected" in explained.stdout, shown(explained)
    collect(store.uri, "--run-ids", by_itself, "--logged-model-ids", deleted)
    assert before.without([by_itself, deleted]).against(look(store)) == []


# -- what can be restored keeps what it needs --------------------------------------------------------


def need_as_input(store: RealStore, run: str, model: str) -> None:
    store.model_input(run, model)


def need_by_measuring(store: RealStore, run: str, model: str) -> None:
    store.measure(run, model)


def need_as_output(store: RealStore, run: str, model: str) -> None:
    from mlflow.entities import LoggedModelOutput

    store.client.log_outputs(run, [LoggedModelOutput(model, 1)])


@pytest.mark.parametrize("need", [need_as_input, need_by_measuring, need_as_output])
@pytest.mark.parametrize("stays", ["too young", "held", "active"])
def test_a_run_that_stays_keeps_the_models_of_other_deleted_experiments(
    store: RealStore, need: Callable[[RealStore, str, str], None], stays: str
) -> None:
    live, gone = store.experiment("live"), store.experiment("gone")
    maker, user = store.run(gone), store.run(live)
    model = store.logged_model(maker, "m")
    need(store, user, model)
    if stays == "held":
        store.client.set_tag(user, "gcd.hold", "audit")
    store.client.delete_experiment(gone)
    old(store)
    if stays != "active":
        store.delete(user)
    before = look(store)

    found = decisions(store.uri, *AGE)
    collect(store.uri, *AGE)

    assert found[gone] == "has_live_children"
    assert before.without([maker]).against(look(store)) == []
    explained = gcd("explain", gone, *AGE, uri=store.uri)
    assert model in explained.stdout, shown(explained)
    if stays == "active":
        store.delete(user)
    elif stays == "held":
        store.sql("DELETE FROM tags WHERE {key} = 'gcd.hold'")
    before = look(store)
    collect(store.uri)
    assert before.without([gone, user]).against(look(store)) == []


def test_chains_and_circles_over_experiments_stay_or_go_as_a_whole(store: RealStore) -> None:
    first, second, third, alone = (store.experiment(f"e{n}") for n in range(4))
    runs = {e: store.run(e) for e in (first, second, third, alone)}
    models = {e: store.logged_model(runs[e], "m", metrics=True) for e in runs}
    store.measure(runs[second], models[first])  # first stays: so do second and, by it, third
    store.model_input(runs[second], models[third])
    store.measure(runs[first], models[alone])  # alone does not need first, but first needs it
    for experiment in runs:
        store.client.delete_experiment(experiment)
    old(store)
    store.client.set_logged_model_tags(models[first], {"gcd.hold": "paper"})
    before = look(store)

    found = decisions(store.uri, *AGE)
    collect(store.uri, *AGE)

    assert {found[each] for each in runs.values()} == {"feeds_live_model"}
    assert before.against(look(store)) == []
    store.sql("DELETE FROM logged_model_tags WHERE tag_key = 'gcd.hold'")
    before = look(store)
    assert set(decisions(store.uri, *AGE).values()) == {"collect"}
    collect(store.uri, *AGE)
    assert before.without(list(runs)).against(look(store)) == []
    assert leftovers(look(store), before.gone(list(runs))) == []


def test_a_named_experiment_stays_where_runs_that_were_not_named_need_it(store: RealStore) -> None:
    one, other = store.experiment("one"), store.experiment("other")
    run, user = store.run(one), store.run(other)
    model = store.logged_model(run, "m", metrics=True)
    store.model_input(user, model)
    for experiment in (one, other):
        store.client.delete_experiment(experiment)
    before = look(store)

    done = gcd(*CYCLE, "--experiment-ids", one, uri=store.uri)

    assert done.returncode == 3, shown(done)
    assert before.against(look(store)) == []
    collect(store.uri, "--experiment-ids", f"{one},{other}")
    assert before.without([one, other]).against(look(store)) == []


def linked(store: RealStore, of: str, run: str) -> None:
    store.client.link_traces_to_run([of], run)


def made_in(store: RealStore, of: str, run: str) -> None:
    store.sql(
        "INSERT INTO trace_request_metadata (request_id, {key}, value)"
        " VALUES (:of, 'mlflow.sourceRun', :run)",
        of=of,
        run=run,
    )


def assessed(store: RealStore, of: str, run: str) -> None:
    store.assess(of, run)


@pytest.mark.parametrize("link", [linked, made_in, assessed])
def test_a_trace_of_a_run_that_stays_elsewhere_keeps_its_experiment(
    store: RealStore, link: Callable[[RealStore, str, str], None]
) -> None:
    live, gone = store.experiment("live"), store.experiment("gone")
    maker, user = store.run(gone), store.run(live)
    link(store, trace(store, gone), user)
    store.client.delete_experiment(gone)
    before = look(store)

    assert decisions(store.uri)[gone] == "has_live_children"
    collect(store.uri)

    assert before.without([maker]).against(look(store)) == []
    store.delete(user)
    before = look(store)
    collect(store.uri)
    assert before.without([gone, user]).against(look(store)) == []


def test_a_held_trace_keeps_its_experiment_and_what_that_needs(store: RealStore) -> None:
    gone = store.experiment("gone")
    run, plain = store.run(gone), store.run(gone)
    store.logged_model(run, "m", metrics=True)
    held = trace(store, gone)
    store.client.set_trace_tag(held, "gcd.hold", "evidence")
    store.client.delete_experiment(gone)
    before = look(store)

    assert decisions(store.uri)[gone] == "held"
    collect(store.uri)

    assert before.without([plain]).against(look(store)) == []


def test_the_runs_of_an_experiment_that_stays_go_by_their_own_age_and_explain_says_when(
    store: RealStore,
) -> None:
    gone = store.experiment("gone")
    runs, measurer = [store.run(gone) for _ in range(12)], store.run(gone)
    store.logged_model(measurer, "m", metrics=True)
    store.client.delete_experiment(gone)
    old(store)
    trace(store, gone)  # a forgotten client logs one a day
    before = look(store)

    collect(store.uri, *AGE)

    assert before.without(runs).against(look(store)) == []
    told = gcd("explain", gone, *AGE, uri=store.uri).stdout
    assert "would be kept" in told
    assert "12 runs in it were deleted, each by its own age" in told
    named = [run for run in runs if f"run {run}, by cycle 1 at 2" in told]
    assert len(named) == 10
    assert "and 2 runs earlier" in told
    assert measurer not in told.partition("own age")[2]


def test_a_quota_that_leaves_a_model_for_later_leaves_its_runs_too(store: RealStore) -> None:
    experiment, gone = store.experiment("e"), store.experiment("gone")
    run, measurer, inside = store.run(experiment), store.run(experiment), store.run(gone)
    deleted = store.logged_model(store.run(experiment), "m-deleted")
    within = store.logged_model(inside, "m-within", metrics=True)
    store.measure(run, deleted)
    store.measure(measurer, within)
    store.delete(run, measurer)
    old(store, 50)
    store.client.delete_logged_model(deleted)
    store.client.delete_experiment(gone)
    before = look(store)

    for _ in range(3):
        collect(store.uri, "--limit", "1")
        there = look(store)
        for model in (deleted, within):
            models = [row for row in there.tables["logged_models"] if row["model_id"] == model]
            assert bool(models) == bool(metrics_of(store.database, model))
            assert metrics_of(store.database, model) in (0, 2 if model == within else 1)

    assert before.without([gone, run, measurer, deleted]).against(look(store)) == []


def test_both_are_collected_only_where_no_run_that_stays_needs_the_model(store: RealStore) -> None:
    experiment, setting = store.experiment("e"), "GCD_RETENTION__RUNS_OF_LIVE_MODELS"
    free, maker, chained = (store.run(experiment) for _ in range(3))
    user = store.run(experiment, tags={"gcd.hold": "audit"})
    models = {
        run: store.logged_model(run, f"m-{n}", metrics=True)
        for n, run in enumerate((free, maker, chained))
    }
    store.model_input(user, models[maker])  # the user stays, so the model, so its maker ...
    store.measure(maker, models[chained])  # ... so the model that that measured, so its maker
    store.delete(free, maker, chained, user)
    before = look(store)

    found = decisions(store.uri, env={setting: "collect_both"})
    collect(store.uri, env={setting: "collect_both"})

    assert found == {
        free: "collect",
        models[free]: "collect",
        maker: "feeds_live_model",
        chained: "feeds_live_model",
        user: "held",
    }
    assert before.without([free, models[free]]).against(look(store)) == []


# -- asked again in the transaction -----------------------------------------------------------------

FIRST_RUN_GONE = Moment("after", "commit", r"DELETE FROM runs\b")
"""By then it is decided what stays; of an experiment, the runs that measured nothing go first."""


def test_a_model_held_between_plan_and_purge_keeps_its_runs(store: RealStore) -> None:
    gone = store.experiment("gone")
    run, plain = store.run(gone), store.run(gone)
    model = store.logged_model(run, "m", metrics=True)
    store.client.delete_experiment(gone)

    with stopped(FIRST_RUN_GONE, *CYCLE, uri=store.uri) as gc:
        assert not store.exists(plain)
        store.client.set_logged_model_tags(model, {"gcd.hold": "paper"})
        held = look(store)
        done = resumed(gc)

    assert done.returncode == 0, shown(done)
    after = look(store)
    assert held.tables["logged_model_metrics"] == after.tables["logged_model_metrics"]
    assert {store.exists(run), store.exists(plain)} == {True, False}
    assert gone in store.experiments()
    assert held.without([plain]).against(after) == []


def test_a_run_restored_between_plan_and_purge_keeps_what_it_needs(store: RealStore) -> None:
    gone, other = store.experiment("gone"), store.experiment("other")
    maker, plain, user = store.run(gone), store.run(gone), store.run(other)
    model = store.logged_model(maker, "m", metrics=True)
    store.model_input(user, model)
    store.logged_model(user, "m-of-user", metrics=True)
    for experiment in (gone, other):
        store.client.delete_experiment(experiment)

    with stopped(FIRST_RUN_GONE, *CYCLE, uri=store.uri) as gc:
        store.restore(user)
        restored = look(store)
        done = resumed(gc)

    assert done.returncode == 0, shown(done)
    assert restored.without([plain]).against(look(store)) == []
    assert store.client.get_run(user).inputs.model_inputs
