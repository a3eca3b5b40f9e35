"""What an operator does: holds, ages, quotas, the fuse, jobs, workspaces, status, retry, leftovers, export."""

from __future__ import annotations

import gzip
import json
import os
import stat
import subprocess
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from tests.mlflow_store import DAY, RealStore, now_ms, release
from tests.program import (
    collect,
    decisions,
    gcd,
    gcd_as_nobody,
    report,
    shown,
    start,
)
from tests.snapshot import Snapshot, differences, read_tables
from tests.stopper import BEGUN, PURGE, Moment, resumed, stopped
from tests.whole import (
    archive,
    attach,
    backdate,
    finished_job,
    inside,
    leftovers,
    missing,
    roll_up,
    there,
    trace,
    whole,
)

with warnings.catch_warnings(action="ignore"):  # MLflow's own, at import
    from mlflow.cli import cli as mlflow_cli
    from mlflow.entities import RunStatus
    from mlflow.entities.workspace import Workspace
    from mlflow.store.jobs.sqlalchemy_store import SqlAlchemyJobStore
    from mlflow.store.tracking.sqlalchemy_workspace_store import WorkspaceAwareSqlAlchemyStore
    from mlflow.store.workspace.sqlalchemy_store import SqlAlchemyStore as WorkspaceStore
    from mlflow.utils.workspace_context import WorkspaceContext

CYCLE = ("gc", "--older-than", "0s", "--yes")
ONE_BY_ONE = {"GCD_PURGE__BATCH_RUNS": "1"}
ON_ONE = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
"""For what no database has a part in."""
AT_A_LOCK = 1.5
"""Seconds in which `gcd hold` comes to what it has to wait for, and would be through otherwise."""
NOTHING = {"run": 0, "logged_model": 0, "experiment": 0, "trace": 0, "job": 0}


def look(store: RealStore) -> Snapshot:
    """The store now."""
    return Snapshot.of(store.database, store.root)


def hold(store: RealStore, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """`gcd hold ...`, which has to end with `expect`."""
    done = gcd("hold", *arguments, "--backend-store-uri", store.uri)
    assert done.returncode == expect, shown(done)
    assert "Traceback" not in done.stderr, shown(done)
    return done


def holding(store: RealStore, entity: str) -> subprocess.Popen[str]:
    """`gcd hold add` on its way."""
    return start("hold", "add", entity, "--backend-store-uri", store.uri)


def status(store: RealStore, **options: Any) -> dict[str, Any]:
    """What `gcd status --json` tells."""
    done = gcd("status", "--json", uri=store.uri, **options)
    assert done.returncode == 0, shown(done)
    return dict(json.loads(done.stdout))


def due(store: RealStore, run: str, days: float) -> None:
    """Say that a run was deleted this long ago."""
    store.stamp(run, now_ms() - int(days * DAY))


# -- gcd hold ----------------------------------------------------------------------------------------


def test_holds_keep_and_let_go(store: RealStore) -> None:
    live, gone = store.experiment("live"), store.experiment("gone")
    run, free, run_of_gone = store.run(live), store.run(live), store.run(gone)
    model = store.logged_model(store.run(live), "m")
    attach(store, trace(store, gone))
    hold(store, "add", run, model, gone, "--reason", "the paper's figures")
    store.delete(run, free)
    store.client.delete_logged_model(model)
    store.client.delete_experiment(gone)
    before = look(store)
    held = {run: "held", model: "held", gone: "held", run_of_gone: "held"}

    assert decisions(store.uri) == {**held, free: "collect"}
    assert "the paper's figures" in gcd("explain", run, uri=store.uri).stdout
    listed = hold(store, "ls").stdout
    for line in (f"run {run}", f"logged model {model}", f"experiment {gone}", "for good"):
        assert line in listed
    assert listed.count("the paper's figures") == 3
    told = {each["id"]: each for each in json.loads(hold(store, "ls", "--json").stdout)}
    assert {each["reason"] for each in told.values()} == {"the paper's figures"}
    assert {entity: each["kind"] for entity, each in told.items()} == {
        run: "run",
        model: "logged_model",
        gone: "experiment",
    }
    assert told[run]["until"] is None
    collect(store.uri)
    assert before.without([free]).against(look(store)) == []

    hold(store, "rm", run, model, gone)
    assert hold(store, "ls").stdout == "nothing is held\n"
    assert "was not held" in hold(store, "rm", run, expect=1).stdout
    collect(store.uri)
    assert before.without([free, run, model, gone]).against(look(store)) == []


def test_a_hold_on_a_live_experiment_covers_what_is_deleted_in_it(store: RealStore) -> None:
    held, free = store.experiment("held"), store.experiment("free")
    runs = [store.run(experiment) for experiment in (held, free)]
    models = [store.logged_model(store.run(experiment), "m") for experiment in (held, free)]
    store.delete(*runs)
    for model in models:
        store.client.delete_logged_model(model)
    hold(store, "add", held)
    before = look(store)

    assert decisions(store.uri) == {
        runs[0]: "held",
        models[0]: "held",
        runs[1]: "collect",
        models[1]: "collect",
    }
    collect(store.uri)

    assert before.without([runs[1], models[1]]).against(look(store)) == []


@ON_ONE
def test_a_hold_ends_when_it_should(store: RealStore) -> None:
    experiment = store.experiment("e")
    run, other = store.run(experiment), store.run(experiment)
    store.delete(run, other)
    for past in ("2020-01-01", "2020-01-01T00:00:00Z", "soon", ""):
        hold(store, "add", run, "--until", past, expect=2)
    hold(store, "add", run, "--until", "90d", "--reason", "audit")
    hold(store, "add", other, "--until", "2999-12-31")
    assert "until 3000-01-01 00:00:00 UTC" in hold(store, "ls").stdout
    assert decisions(store.uri) == {run: "held", other: "held"}
    until = store.database.scalar(
        "SELECT until_ms FROM alembic_gcd_hold WHERE entity_id = :run", run=run
    )
    assert abs(int(str(until)) - now_ms() - 90 * DAY) < DAY / 24

    store.sql(
        "UPDATE alembic_gcd_hold SET until_ms = :at WHERE entity_id = :run", at=now_ms(), run=run
    )

    assert f"run {run}  ended " in hold(store, "ls").stdout
    assert decisions(store.uri) == {run: "collect", other: "held"}
    collect(store.uri)
    assert store.runs() == {other}
    hold(store, "add", other, "--reason", "replaced")
    [only] = [
        each for each in json.loads(hold(store, "ls", "--json").stdout) if each["id"] == other
    ]
    assert (only["until"], only["reason"]) == (None, "replaced")


def test_what_is_not_there_cannot_be_held(store: RealStore) -> None:
    run = store.run(store.experiment("e"))
    for unknown in ("f" * 32, "m-" + "f" * 32, "98765"):
        done = hold(store, "add", run, unknown, expect=1)
        assert f"there is no {'run' if unknown[0] == 'f' else ''}" in done.stderr
        assert unknown in done.stderr
    assert f"run {run}" in hold(store, "ls").stdout, "those before it are held"
    store.delete(run)
    hold(store, "rm", run)
    cycle = report(store.uri)["cycle"]
    done = hold(store, "add", run, expect=1)
    assert f"already collected, by cycle {cycle}" in done.stderr


def test_a_hold_by_an_id_in_another_case_holds_or_is_refused(store: RealStore) -> None:
    run = store.run(store.experiment("e"))
    store.delete(run)
    process = start("hold", "add", run.upper(), "--backend-store-uri", store.uri)
    out, err = process.communicate(timeout=120)
    assert process.returncode in (0, 1), err
    if process.returncode == 0:
        assert decisions(store.uri) == {run: "held"}, out
    else:
        assert "there is no run" in err


@pytest.mark.parametrize(
    ("kind", "table"),
    [("run", "runs"), ("model", "logged_models"), ("experiment", "experiments")],
)
def test_a_hold_waits_for_the_purge_that_is_under_way_and_is_told(
    store: RealStore, kind: str, table: str
) -> None:
    entity = deleted(store, kind)
    before = look(store)
    moment = Moment("before", "commit", rf"DELETE FROM {table}\b")
    with stopped(moment, *CYCLE, uri=store.uri) as gc:
        process = holding(store, entity)
        time.sleep(AT_A_LOCK)
        assert process.poll() is None, process.communicate()
        done = resumed(gc)
        _, err = process.communicate(timeout=120)
    assert done.returncode == 0, shown(done)
    assert process.returncode == 1, err
    assert "already collected, by cycle 1" in err
    assert before.without([entity]).against(look(store)) == []


@pytest.mark.parametrize("kind", ["run", "model", "experiment"])
def test_a_hold_before_the_purge_wins(store: RealStore, kind: str) -> None:
    canary = store.run(store.experiment("canary"))
    store.delete(canary)
    entity = deleted(store, kind)
    before = look(store)
    with stopped(Moment("after", "commit", BEGUN), *CYCLE, uri=store.uri) as gc:
        hold(store, "add", entity)
        done = resumed(gc)
    assert done.returncode == 0, shown(done)
    assert before.without([canary]).against(look(store)) == []
    assert decisions(store.uri)[entity] == "held"


def deleted(store: RealStore, kind: str) -> str:
    """A soft-deleted entity with files."""
    experiment = store.experiment("e")
    run = store.run(experiment)
    match kind:
        case "run":
            store.delete(run)
            return run
        case "model":
            model = store.logged_model(run, "m")
            store.client.delete_logged_model(model)
            return model
    attach(store, trace(store, experiment))
    store.logged_model(run, "m")
    store.client.delete_experiment(experiment)
    return experiment


@pytest.mark.parametrize("table", ["runs", "logged_models", "trace_info"])
def test_a_hold_on_an_experiment_wins_in_the_middle_of_a_purge_in_it(
    store: RealStore, table: str
) -> None:
    """What the hold was acknowledged for is there afterwards, whatever was under way."""
    made = whole(store, "e")
    runs = [store.run(made.experiment) for _ in range(3)]
    store.client.delete_experiment(made.experiment)
    before = look(store)
    moment = Moment("before", "statement", rf"DELETE FROM {table}\b")
    with stopped(moment, *CYCLE, uri=store.uri) as gc:
        process = holding(store, made.experiment)
        deadline = time.monotonic() + AT_A_LOCK
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        seen = there(store.database) if process.poll() is not None else None
        done = resumed(gc)
        _, err = process.communicate(timeout=120)
        seen = there(store.database) if seen is None else seen
    assert done.returncode == 0, shown(done)
    assert process.returncode in (0, 1), err
    if process.returncode == 0:
        assert seen - there(store.database) == set(), "acknowledged, and purged all the same"
        purged = before.gone([made.experiment]) - seen
        gone = [each for each in purged if each in {*runs, *made.runs, *made.models, *made.traces}]
        assert missing(before.without(gone), look(store)) == []


# -- what is left alone ------------------------------------------------------------------------------


@ON_ONE
def test_excluded_experiments_are_left_alone(store: RealStore) -> None:
    kept, gone = (
        [store.experiment(f"{prefix}-{n}") for n in range(2)] for prefix in ("prod", "dev")
    )
    runs = {experiment: store.run(experiment) for experiment in (*kept, *gone)}
    models = {e: store.logged_model(store.run(e), "m") for e in (*kept, *gone)}
    for live, deleted_ in ((kept[0], kept[1]), (gone[0], gone[1])):
        store.delete(runs[live])
        store.client.delete_logged_model(models[live])
        store.client.delete_experiment(deleted_)
    before = look(store)
    setting = {"GCD_RETENTION__EXCLUDE": "prod-*"}

    found = decisions(store.uri, env=setting)

    excluded = {runs[kept[0]], models[kept[0]], kept[1]}
    assert {entity for entity, why in found.items() if why == "excluded"} >= excluded
    assert {found[each] for each in (runs[gone[0]], models[gone[0]], gone[1])} == {"collect"}
    collect(store.uri, env=setting)
    goes = [runs[gone[0]], models[gone[0]], gone[1]]
    assert before.without(goes).against(look(store)) == []


@ON_ONE
def test_experiments_have_ages_of_their_own(store: RealStore) -> None:
    by_pattern, by_tag, plain, odd, short = (
        store.experiment(name) for name in ("prod-a", "tagged", "plain", "odd", "short")
    )
    runs = {each: store.run(each) for each in (by_pattern, by_tag, plain, odd, short)}
    store.client.set_experiment_tag(by_tag, "gcd.older_than", "100d")
    store.client.set_experiment_tag(odd, "gcd.older_than", "a while")
    store.client.set_experiment_tag(short, "gcd.older_than", "2d")
    store.delete(*runs.values())
    for run in runs.values():
        due(store, run, 40)
    setting = {"GCD_RETENTION__AGES": '["prod-*: 180d"]', "GCD_RETENTION__OLDER_THAN": "30d"}

    assert plan(store, setting) == {
        runs[by_pattern]: "too_young",
        runs[by_tag]: "too_young",
        runs[plain]: "collect",
        runs[odd]: "held",
        runs[short]: "collect",
    }
    explained = gcd("explain", runs[by_tag], uri=store.uri, env=setting)
    assert "its experiment's age is 100d" in explained.stdout, shown(explained)
    explained = gcd("explain", runs[odd], uri=store.uri, env=setting)
    assert "'a while'" in explained.stdout, shown(explained)
    for run in runs.values():
        due(store, run, 3)
    assert set(plan(store, setting).values()) == {"too_young", "held"}
    shorter = {**setting, "GCD_RETENTION__SHORTEST": "1d"}
    assert plan(store, shorter)[runs[short]] == "collect"
    assert plan(store, shorter)[runs[plain]] == "too_young"
    assert plan(store, {**setting, "GCD_RETENTION__SHORTEST": "7d"})[runs[short]] == "too_young"
    done = gcd("gc", "--yes", uri=store.uri, env=shorter)
    assert done.returncode == 0, shown(done)
    assert store.runs() == {run for each, run in runs.items() if each != short}


@ON_ONE
def test_an_age_of_its_own_holds_for_the_experiment_too(store: RealStore) -> None:
    long, short = store.experiment("long"), store.experiment("short")
    for experiment, age in ((long, "100d"), (short, "5d")):
        attach(store, trace(store, experiment))
        store.logged_model(store.run(experiment), "m")
        store.client.set_experiment_tag(experiment, "gcd.older_than", age)
        store.client.delete_experiment(experiment)
    backdate(store, 40)
    before = look(store)

    done = gcd("gc", "--yes", uri=store.uri)

    assert done.returncode == 0, shown(done)
    assert before.without([short]).against(look(store)) == []
    backdate(store, 70)
    done = gcd("gc", "--yes", uri=store.uri)
    assert done.returncode == 0, shown(done)
    assert inside(store.database, long) == set()


def plan(store: RealStore, setting: Mapping[str, str]) -> dict[str, str]:
    """What `gcd plan` decides by the configured age."""
    done = gcd("plan", "--json", uri=store.uri, env=setting)
    assert done.returncode == 0, shown(done)
    return {
        item["id"]: item["reasons"][0]["reason"] if item["reasons"] else item["decision"]
        for item in json.loads(done.stdout)["items"]
    }


# -- runs of live models -----------------------------------------------------------------------------


@pytest.fixture
def feeding(store: RealStore) -> dict[str, str]:
    """Deleted runs whose metrics belong to live models: their own, a used one, somebody else's."""
    experiment = store.experiment("e")
    made: dict[str, str] = {"live": store.run(experiment)}
    for name in ("own", "used"):
        made[name] = store.run(experiment)
        made[f"{name} model"] = store.logged_model(made[name], f"m-{name}", metrics=True)
    store.model_input(made["live"], made["used model"])
    made["theirs model"] = store.logged_model(made["live"], "m-theirs")
    made["theirs"] = store.run(experiment)
    model = made["theirs model"]
    store.client.log_metric(made["theirs"], "f1", 0.5, model_id=model)
    store.delete(made["own"], made["used"], made["theirs"])
    return made


FEEDERS = ("own", "used", "theirs")


def test_runs_of_live_models_are_kept_and_the_plan_says_what_else_there_is(
    store: RealStore, feeding: dict[str, str]
) -> None:
    before = look(store)

    assert decisions(store.uri) == {feeding[name]: "feeds_live_model" for name in FEEDERS}
    shown_plan = gcd("plan", "--older-than", "0s", uri=store.uri).stdout

    assert '"collect_run" would collect 3, "collect_both" 1' in shown_plan
    assert report(store.uri)["purged"] == NOTHING
    assert before.against(look(store)) == []


def test_collect_run_takes_the_metrics_and_leaves_the_models(
    store: RealStore, feeding: dict[str, str]
) -> None:
    before = look(store)
    setting = {"GCD_RETENTION__RUNS_OF_LIVE_MODELS": "collect_run"}

    assert report(store.uri, env=setting)["purged"] == {**NOTHING, "run": 3}

    assert before.without([feeding[name] for name in FEEDERS]).against(look(store)) == []
    assert {feeding[f"{name} model"] for name in FEEDERS} <= there(store.database)


def test_collect_both_takes_the_model_that_nothing_else_uses(
    store: RealStore, feeding: dict[str, str]
) -> None:
    before = look(store)
    setting = {"GCD_RETENTION__RUNS_OF_LIVE_MODELS": "collect_both"}

    assert decisions(store.uri, env=setting) == {
        feeding["own"]: "collect",
        feeding["own model"]: "collect",
        feeding["used"]: "feeds_live_model",
        feeding["theirs"]: "feeds_live_model",
    }
    assert report(store.uri, env=setting)["purged"] == {**NOTHING, "run": 1, "logged_model": 1}

    gone = [feeding["own"], feeding["own model"]]
    after = look(store)
    assert before.without(gone).against(after) == []
    assert leftovers(after, gone) == []


# -- quotas and the fuse -----------------------------------------------------------------------------


def test_a_limit_takes_the_oldest_and_the_next_cycles_the_rest(store: RealStore) -> None:
    live, gone = store.experiment("live"), store.experiment("gone")
    runs = [store.run(live) for _ in range(4)]
    model = store.logged_model(store.run(live), "m")
    in_gone = store.run(gone)
    store.delete(*runs)
    store.client.delete_logged_model(model)
    store.client.delete_experiment(gone)
    days = {runs[2]: 60, runs[0]: 50, model: 45, runs[3]: 40, in_gone: 35, gone: 34, runs[1]: 31}
    for run in (*runs, in_gone):
        due(store, run, days[run])
    stamps = {
        "logged_models SET last_updated_timestamp_ms": ("model_id", model, days[model]),
        "experiments SET last_update_time": ("experiment_id", int(gone), days[gone]),
    }
    for column, (key, entity, ago) in stamps.items():
        at = now_ms() - ago * DAY
        store.sql(f"UPDATE {column} = :at WHERE {key} = :entity", at=at, entity=entity)
    before = look(store)
    order = sorted(days, key=lambda entity: -days[entity])

    for first in range(0, len(order), 2):
        done = gcd("gc", "--yes", "--limit", "2", "--json", uri=store.uri)
        assert done.returncode == 0, shown(done)
        taken = order[: first + 2]
        assert before.without(taken).against(look(store)) == [], f"cycle {first // 2 + 1}"
        kept = json.loads(done.stdout)["kept"]
        assert kept.get("over_quota", 0) + kept.get("has_live_children", 0) == len(order) - len(
            taken
        )
    assert inside(store.database, gone) == set()


@ON_ONE
def test_a_limit_of_one_takes_an_experiment_apart_and_ends(store: RealStore) -> None:
    made = whole(store, "e")
    store.client.delete_experiment(made.experiment)
    before = look(store)

    for left in (2, 1, 0):
        collect(store.uri, "--limit", "1")
        assert len(inside(store.database, made.experiment) & store.runs()) == max(0, left - 1)

    assert before.without([made.experiment]).against(look(store)) == []


@ON_ONE
def test_a_quota_of_bytes_is_kept(store: RealStore) -> None:
    experiment = store.experiment("e")
    runs = [store.run(experiment, files={"big": b"\0" * 100_000}) for _ in range(5)]
    store.delete(*runs)
    for number, run in enumerate(runs):
        due(store, run, 50 - number)
    before = look(store)
    setting = {"GCD_QUOTA__MAX_BYTES": "250000"}

    found = report(store.uri, env=setting)

    assert (found["purged"]["run"], found["bytes"], found["kept"]) == (
        2,
        200_000,
        {"over_quota": 3},
    )
    assert before.without(runs[:2]).against(look(store)) == []
    assert report(store.uri, env=setting)["purged"]["run"] == 2
    assert report(store.uri, env=setting)["purged"]["run"] == 1
    assert before.without(runs).against(look(store)) == []


def test_a_quota_of_time_ends_the_purging_and_not_the_sweeping(store: RealStore) -> None:
    experiment = store.experiment("e")
    runs = [store.run(experiment) for _ in range(6)]
    gone = store.experiment("gone")
    store.run(gone)
    store.client.delete_experiment(gone)
    store.delete(*runs)
    before = look(store)
    setting = {"GCD_QUOTA__MAX_DURATION": "2s", **ONE_BY_ONE}

    with stopped(
        Moment("after", "commit", PURGE, number=2), *CYCLE, "--json", uri=store.uri, env=setting
    ) as gc:
        time.sleep(2.5)
        done = resumed(gc)

    assert done.returncode == 0, shown(done)
    found = json.loads(done.stdout)
    assert found["purged"]["run"] == 2
    assert found["kept"]["over_quota"] >= 4
    left = there(store.database)
    purged = [run for run in runs if run not in left]
    assert len(purged) == 2
    assert before.without(purged).against(look(store)) == []
    collect(store.uri)
    assert before.without([*runs, gone]).against(look(store)) == []


def test_a_blown_fuse_writes_nothing_but_the_history(store: RealStore) -> None:
    experiment = store.experiment("e")
    runs = [store.run(experiment) for _ in range(6)]
    store.delete(*runs[:3])
    before = look(store)
    setting = {"GCD_FUSE__MAX_SHARE": "0.3"}

    done = collect(store.uri, env=setting, expect=13)

    assert "3 of the store's" in done.stderr
    assert before.against(look(store)) == []
    for table in ("journal", "seen", "root", "hold"):
        assert store.database.scalar(f"SELECT COUNT(*) FROM alembic_gcd_{table}") == 0, table
    told = status(store)
    assert told["last_failure"]["cycle"] == 1
    assert told["cycles"][0]["state"] == "failed"
    assert told["holder"] is None
    dry = gcd("plan", "--older-than", "0s", uri=store.uri, env=setting)
    assert dry.returncode == 13, shown(dry)
    collect(store.uri, "--limit", "2", env=setting)  # in steps, as the hint says
    assert len(store.runs() & set(runs[:3])) == 1
    collect(store.uri, env={"GCD_FUSE__MAX_SHARE": "0.5"})
    assert before.without(runs[:3]).against(look(store)) == []


@ON_ONE
def test_sizes_are_what_the_cycle_then_frees(store: RealStore) -> None:
    gone, live = whole(store, "gone"), store.experiment("live")
    run, model = store.run(live), store.logged_model(store.run(live), "m")
    store.delete(run)
    store.client.delete_logged_model(model)
    store.client.delete_experiment(gone.experiment)
    trees = [store.tree(each) for each in (*gone.runs, run)]
    files = [path for tree in trees for path in tree.rglob("*") if path.is_file()]

    done = gcd("plan", "--older-than", "0s", "--json", "--sizes", uri=store.uri)

    told = json.loads(done.stdout)["summary"]
    freed = report(store.uri)
    assert (told["objects"], told["bytes"]) == (freed["objects"], freed["bytes"])
    assert told["objects"] > len(files)


# -- jobs --------------------------------------------------------------------------------------------


def test_jobs_are_collected_where_asked_for(store: RealStore) -> None:
    jobs = SqlAlchemyJobStore(store.uri)
    old, older, young = (finished_job(store, days_ago=days) for days in (40, 50, 1))
    pending = str(jobs.create_job("f", "{}").job_id)
    running = str(jobs.create_job("f", "{}").job_id)
    jobs.start_job(running)
    failed = str(jobs.create_job("f", "{}").job_id)
    jobs.start_job(failed)
    jobs.fail_job(failed, "because")
    store.sql(
        f"UPDATE jobs SET creation_time = {now_ms() - 60 * DAY} WHERE id IN (:a, :b, :c)",
        a=pending,
        b=running,
        c=failed,
    )
    run = store.run(store.experiment("e"))
    store.delete(run)
    before = look(store)

    collect(store.uri, "--run-ids", run)
    assert before.without([run]).against(look(store)) == []
    named = f"{old},{young},{running},{'0' * 36}"
    done = gcd("gc", "--yes", "--job-ids", named, uri=store.uri)
    assert done.returncode == 3, shown(done)
    for each in (young, running, "0" * 36):
        assert f"job {each}: " in done.stderr
    assert f"job {old}" not in done.stderr
    assert before.without([run, old]).against(look(store)) == []

    done = gcd("gc", "--yes", "--jobs", "--json", uri=store.uri)
    assert done.returncode == 0, shown(done)
    assert json.loads(done.stdout)["purged"] == {**NOTHING, "job": 2}
    assert before.without([run, old, older, failed]).against(look(store)) == []
    collect(store.uri, "--jobs")
    assert before.without([run, old, older, failed, young]).against(look(store)) == []


def test_without_being_asked_for_jobs_stay(store: RealStore) -> None:
    gone = store.experiment("gone")
    store.run(gone)
    free, of_gone = finished_job(store, days_ago=99), finished_job(store, gone, days_ago=99)
    jobs = SqlAlchemyJobStore(store.uri)
    waiting = str(jobs.create_job("f", json.dumps({"experiment_id": gone})).job_id)
    store.client.delete_experiment(gone)

    collect(store.uri)

    left = {str(row[0]) for row in store.database.rows("SELECT id FROM jobs")}
    assert left == {free, waiting}
    assert of_gone not in left


# -- workspaces --------------------------------------------------------------------------------------


@pytest.fixture
def spaces(store: RealStore) -> dict[str, dict[str, str]]:
    """Two workspaces made by MLflow, each with a deleted experiment, a deleted run and a job."""
    os.environ["MLFLOW_ENABLE_WORKSPACES"] = "true"
    os.environ["MLFLOW_WORKSPACE_STORE_URI"] = store.uri
    WorkspaceStore(store.uri).create_workspace(Workspace(name="team-a"))
    within = WorkspaceAwareSqlAlchemyStore(store.uri, (store.root / "mlruns").as_uri())
    made: dict[str, dict[str, str]] = {}
    for space in ("default", "team-a"):
        with WorkspaceContext(space):
            gone = str(within.create_experiment("gone"))
            live = str(within.create_experiment("live"))
            runs = [within.create_run(each, "ann", now_ms(), [], "r") for each in (gone, live)]
            for run in runs:
                within.update_run_info(run.info.run_id, RunStatus.FINISHED, now_ms(), None)
                tree = Path(run.info.artifact_uri.removeprefix("file://"))
                assert f"/workspaces/{space}/" in str(tree)
                tree.mkdir(parents=True)
                (tree / "f").write_text(space)
            within.delete_run(runs[1].info.run_id)
            within.delete_experiment(gone)
        made[space] = {"gone": gone, "run": runs[1].info.run_id, "live": live}
    for name in ("MLFLOW_ENABLE_WORKSPACES", "MLFLOW_WORKSPACE_STORE_URI"):
        del os.environ[name]
    for space, parts in made.items():
        parts["job"] = finished_job(store, days_ago=50)
        store.sql(
            "UPDATE jobs SET workspace = :space WHERE id = :job", space=space, job=parts["job"]
        )
    return made


def everything(space: Mapping[str, str]) -> list[str]:
    """What is deleted in a workspace."""
    return [space["gone"], space["run"], space["job"]]


def test_without_flags_only_the_default_workspace_is_collected(
    store: RealStore, spaces: dict[str, dict[str, str]]
) -> None:
    before = look(store)

    collect(store.uri, "--jobs")

    assert before.without(everything(spaces["default"])).against(look(store)) == []


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_a_workspace_can_be_named(
    store: RealStore, spaces: dict[str, dict[str, str]], how: str
) -> None:
    before = look(store)
    other = spaces["default"]["run"]
    flags = ("--workspace", "team-a") if how == "flag" else ()
    env = {} if how == "flag" else {"MLFLOW_WORKSPACE": "team-a"}

    done = collect(store.uri, *flags, "--run-ids", other, env=env, expect=3)
    assert "another workspace" in done.stderr
    assert before.against(look(store)) == []
    collect(store.uri, "--jobs", *flags, env=env)

    assert before.without(everything(spaces["team-a"])).against(look(store)) == []
    assert not (store.root / "mlruns" / "workspaces" / "team-a" / spaces["team-a"]["gone"]).exists()


def test_all_workspaces_at_once(store: RealStore, spaces: dict[str, dict[str, str]]) -> None:
    before = look(store)
    both = gcd(*CYCLE, "--all-workspaces", "--workspace", "team-a", uri=store.uri)
    assert both.returncode == 2, shown(both)
    empty = gcd(*CYCLE, "--workspace", "", uri=store.uri)
    assert empty.returncode == 2, shown(empty)
    nobody = collect(store.uri, "--workspace", "nobody")
    assert before.against(look(store)) == [], shown(nobody)
    for space in spaces.values():
        explained = gcd("explain", space["run"], "--older-than", "0s", uri=store.uri)
        assert "would be collected now" in explained.stdout, shown(explained)

    collect(store.uri, "--jobs", "--all-workspaces")

    gone = [each for space in spaces.values() for each in everything(space)]
    assert before.without(gone).against(look(store)) == []


@ON_ONE
def test_proxied_artifacts_of_a_workspace_are_found_below_its_prefix(
    store: RealStore, spaces: dict[str, dict[str, str]]
) -> None:
    destination = store.root / "mlruns"
    for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
        store.sql(
            f"UPDATE {table} SET {column} = replace({column}, :old, 'mlflow-artifacts:/workspaces')",
            old=(destination / "workspaces").as_uri(),
        )
    before = look(store)

    collect(store.uri, "--all-workspaces", "--artifacts-destination", str(destination))

    gone = [space[part] for space in spaces.values() for part in ("gone", "run")]
    assert before.without(gone).against(look(store)) == []


# -- gcd status --------------------------------------------------------------------------------------


def test_status_of_a_store_that_nobody_collected_yet(store: RealStore) -> None:
    tables = set(table_names(store))

    done = gcd("status", uri=store.uri)

    assert done.returncode == 0, shown(done)
    for line in ("nobody collects now", "nothing waits", "none yet"):
        assert line in done.stdout
    told = status(store)
    assert (told["cycles"], told["last_failure"], told["holder"]) == ([], None, None)
    assert {ahead: sum(counts.values()) for ahead, counts in told["due"].items()} == {
        "0s": 0,
        "7d": 0,
        "30d": 0,
    }
    assert set(table_names(store)) == tables


def table_names(store: RealStore) -> list[str]:
    """Every table, gcd's own too."""
    with store.database.begin() as conn:
        return sa.inspect(conn).get_table_names()


@ON_ONE
def test_status_tells_what_comes_due_and_what_was_done(store: RealStore) -> None:
    live, gone = store.experiment("live"), store.experiment("gone")
    runs = [store.run(live) for _ in range(5)]
    model = store.logged_model(store.run(live), "m")
    store.client.set_tag(runs[4], "gcd.hold", "x")
    store.delete(*runs)
    store.client.delete_logged_model(model)
    store.client.delete_experiment(gone)
    for run, days in zip(runs, (31, 32, 25, 10, 40), strict=True):
        due(store, run, days)

    told = status(store)

    assert {
        ahead: {kind: count for kind, count in counts.items() if count}
        for ahead, counts in told["due"].items()
    } == {
        "0s": {"run": 3},
        "7d": {"run": 4},
        "30d": {"run": 5, "logged_model": 1, "experiment": 1},
    }
    done = gcd("gc", "--yes", uri=store.uri)
    assert done.returncode == 0, shown(done)
    told = status(store)
    [cycle] = told["cycles"]
    assert (cycle["state"], cycle["report"]["purged"]) == ("done", {"run": 2})
    assert cycle["report"]["kept"] == {"held": 1, "too_young": 4}
    assert told["waiting"]["second_look"] == 2
    people = gcd("status", uri=store.uri).stdout
    assert "2 runs purged" in people
    assert "held" in people
    assert "too_young" in people
    assert "in 7d" in people


@ON_ONE
def test_status_of_many_cycles_lists_the_newest(store: RealStore) -> None:
    for _ in range(3):
        collect(store.uri)
    columns = "started_ms, ended_ms, holder, state, report"
    for number in range(200):
        store.sql(
            f"INSERT INTO alembic_gcd_cycle ({columns}) VALUES ({number}, {number}, 'h', 'done', '{{}}')"
        )

    told = status(store)

    assert [cycle["cycle"] for cycle in told["cycles"]] == [203, 202, 201, 200, 199]
    few = gcd("status", "--cycles", "2", uri=store.uri)
    assert few.stdout.count("cycle ") == 2
    assert gcd("status", "--cycles", "0", uri=store.uri).returncode == 0


@ON_ONE
def test_the_last_failure_comes_first_until_a_cycle_is_done(store: RealStore) -> None:
    run, other = (store.run(store.experiment(name)) for name in ("a", "b"))
    store.delete(run)
    collect(store.uri)
    store.delete(other)
    collect(store.uri, env={"GCD_FUSE__MAX_SHARE": "0"}, expect=13)

    lines = gcd("status", uri=store.uri).stdout.splitlines()

    failure = next(n for n, line in enumerate(lines) if line.startswith("last failure  cycle 2"))
    assert failure < next(n for n, line in enumerate(lines) if line.startswith("cycle 2"))
    assert failure <= 1
    assert status(store)["last_failure"]["error"].startswith("1 of the store's")
    collect(store.uri)
    assert status(store)["last_failure"] is None
    assert "last failure" not in gcd("status", uri=store.uri).stdout


def test_status_while_a_collector_is_at_work(store: RealStore) -> None:
    run = store.run(store.experiment("e"))
    store.delete(run)
    with stopped(Moment("after", "commit", PURGE), *CYCLE, uri=store.uri) as gc:
        told = status(store)
        assert str(gc.pid) in told["holder"]
        assert told["waiting"]["due"] == 1
        assert told["cycles"][0]["state"] == "running"
        resumed(gc)
    assert status(store)["holder"] is None


# -- gcd retry ---------------------------------------------------------------------------------------


@contextmanager
def away(path: Path) -> Iterator[None]:
    """A folder that is not there for a while."""
    aside = path.with_name(path.name + "-away")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


def test_retry_makes_what_was_deferred_due_now(store: RealStore) -> None:
    experiment = store.experiment("e")
    run = store.run(experiment)
    store.delete(run)
    tree = store.tree(run)
    with stopped(Moment("after", "commit", PURGE), *CYCLE, uri=store.uri) as gc:
        with away(store.root / "e"):
            done = resumed(gc)
        assert done.returncode == 3, shown(done)
    told = status(store)
    assert told["waiting"]["deferred"] == 1
    [entry] = told["troubled"]
    assert (entry["id"], entry["state"], entry["attempts"]) == (run, "pending", 1)
    assert "is not there" in entry["error"]
    assert "deferred" in gcd("status", uri=store.uri).stdout
    collect(store.uri)
    assert tree.exists(), "it waits for its time"
    next_one = store.run(experiment)
    store.delete(next_one)
    strict = {"GCD_GATE__MAX_FAILURES": "1"}
    assert decisions(store.uri, env=strict) == {next_one: "root_unhealthy"}

    assert gcd("retry", "f" * 32, uri=store.uri).returncode == 1
    done = gcd("retry", run, uri=store.uri)

    assert done.returncode == 0, shown(done)
    assert "1 tree" in done.stdout
    assert tree.exists(), "the next cycle deletes"
    assert decisions(store.uri, env=strict) == {next_one: "collect"}, "the failure is forgiven"
    collect(store.uri)
    assert not tree.parent.exists()
    assert status(store)["waiting"]["deferred"] == 0
    assert gcd("retry", uri=store.uri).stdout.startswith("0 trees")


@ON_ONE
def test_retry_gives_what_was_stuck_another_chance(store: RealStore) -> None:
    run = store.run(store.experiment("e"))
    store.delete(run)
    folder = store.tree(run).parent
    outside = store.root / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    with stopped(Moment("after", "commit", PURGE), *CYCLE, uri=store.uri) as gc:
        aside = folder.with_name("aside")
        folder.rename(aside)
        folder.symlink_to(outside)
        done = resumed(gc)
    assert done.returncode == 3, shown(done)
    assert status(store)["waiting"]["stuck"] == 1
    lines = gcd("status", uri=store.uri).stdout
    assert "stuck until a person acts" in lines
    assert (outside / "precious").read_text() == "x"
    assert collect(store.uri, expect=None).returncode in (0, 3)
    assert status(store)["waiting"]["stuck"] == 1

    folder.unlink()
    aside.rename(folder)
    assert gcd("retry", uri=store.uri).returncode == 0
    collect(store.uri)

    assert not folder.exists()
    assert status(store)["waiting"]["stuck"] == 0
    assert (outside / "precious").read_text() == "x"


def test_retry_parks_again_what_is_still_needed(store: RealStore) -> None:
    run = store.run(store.experiment("e"))
    store.delete(run)
    tree = store.tree(run)
    with stopped(Moment("after", "commit", PURGE), *CYCLE, uri=store.uri) as gc:
        version = store.version("late", tree.as_uri() + "/model")
        done = resumed(gc)
    assert done.returncode == 0, shown(done)
    files = {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    assert len(files) == 2
    assert status(store)["waiting"]["parked"] == 1
    assert "version 1 of late" in status(store)["troubled"][0]["error"]

    assert gcd("retry", run, uri=store.uri).returncode == 0
    collect(store.uri)

    assert status(store)["waiting"]["parked"] == 1
    assert {path: path.read_bytes() for path in files} == files
    store.client.delete_model_version("late", version)
    assert gcd("retry", run, uri=store.uri).returncode == 0
    collect(store.uri)
    assert not tree.parent.exists()


# -- gcd sweep-rows ----------------------------------------------------------------------------------


def mlflow_gc(store: RealStore, *arguments: str) -> None:
    """What users ran before."""
    with store.as_tracking():
        done = CliRunner().invoke(
            mlflow_cli,
            ["gc", "--backend-store-uri", store.uri, *arguments],
            env={"MLFLOW_TRACKING_URI": store.uri},
        )
    assert done.exit_code == 0, done.output[-3000:]
    release(store.uri)


def age_links(store: RealStore) -> None:
    """Let all links be two days old: a younger one may name what is yet to come."""
    store.sql("UPDATE entity_associations SET created_time = :at", at=now_ms() - 2 * DAY)


def test_sweep_rows_leaves_a_link_whose_trace_may_be_on_its_way(store: RealStore) -> None:
    run = store.run(store.experiment("e"))
    store.client.link_traces_to_run(["tr-" + "5" * 32], run)
    before = look(store)
    assert len(before.tables["entity_associations"]) == 1

    done = gcd("sweep-rows", uri=store.uri)

    assert done.stdout.strip() == "0 rows deleted", shown(done)
    assert before.against(look(store)) == []
    # However old it is, its trace may have been sent to another server.
    age_links(store)
    assert json.loads(gcd("sweep-rows", "--dry-run", "--json", uri=store.uri).stdout)["rows"] == 0


def test_sweep_rows_removes_what_mlflow_gc_left_and_nothing_else(store: RealStore) -> None:
    gone, live = whole(store, "gone"), whole(store, "live")
    run, model = store.run(live.experiment, dataset="d"), store.logged_model(live.runs[0], "m-gone")
    store.model_input(run, live.models[0])
    store.client.link_traces_to_run([live.traces[0]], run)
    store.trace(live.experiment, run=run)
    version = store.version("v", store.client.get_run(live.runs[0]).info.artifact_uri + "/model")
    store.client.set_model_version_tag("v", version, "k", "v")
    kept = store.version("v", store.client.get_run(live.runs[0]).info.artifact_uri + "/notes")
    store.client.set_model_version_tag("v", kept, "k", "v")
    store.client.delete_model_version("v", version)
    store.delete(run)
    store.client.delete_logged_model(model)
    store.client.delete_experiment(gone.experiment)
    entities = {*inside(store.database, gone.experiment), run, model}
    age_links(store)
    before = look(store)
    ideal = before.without([gone.experiment, run, model])
    mlflow_gc(store)
    assert there(store.database) & entities == set()
    left = look(store)
    tables = [table for table, rows in ideal.tables.items() if len(rows) < len(left.tables[table])]
    assert {"inputs", "input_tags", "entity_associations"} <= set(tables)

    dry = gcd("sweep-rows", "--dry-run", uri=store.uri)
    assert dry.returncode == 0, shown(dry)
    assert "would be deleted" in dry.stdout
    assert left.against(look(store)) == []
    done = gcd("sweep-rows", uri=store.uri)

    assert done.returncode == 0, shown(done)
    after = look(store)
    assert left.files == after.files
    expected = {**ideal.tables, "jobs": before.tables["jobs"]}  # they are for `gc --jobs`
    expected["model_version_tags"] = [
        row
        for row in expected["model_version_tags"]
        if (row["name"], str(row["version"])) != ("v", version)
    ]
    # These may name a model, and a trace, of another server: nothing proves that they were here.
    uses = [row for row in before.tables["inputs"] if row["destination_id"] == model]
    prompts = [
        row
        for row in before.tables["entity_associations"]
        if row["destination_type"] == "prompt_version" and row["source_id"] in entities
    ]
    assert len(uses) == 1
    expected["inputs"] = expected["inputs"] + uses
    expected["entity_associations"] = expected["entity_associations"] + prompts
    assert differences(expected, after.tables) == []
    again = gcd("sweep-rows", uri=store.uri)
    assert again.stdout.strip() == "0 rows deleted"
    assert after.against(look(store)) == []


def test_sweep_rows_counts_beforehand_what_it_then_deletes(store: RealStore) -> None:
    made = whole(store, "gone")
    store.client.delete_experiment(made.experiment)
    mlflow_gc(store)
    age_links(store)
    before = read_tables(store.database)

    dry = json.loads(gcd("sweep-rows", "--dry-run", "--json", uri=store.uri).stdout)
    done = json.loads(gcd("sweep-rows", "--json", uri=store.uri).stdout)

    after = read_tables(store.database)
    gone = sum(len(before[name]) - len(after[name]) for name in before)
    assert gone > 0
    assert (dry["rows"], done["rows"]) == (gone, gone)
    assert sum(each["rows"] for each in done["tables"]) == gone


def test_sweep_rows_leaves_a_store_as_it_is_in_which_nothing_is_left(store: RealStore) -> None:
    made = whole(store, "a")
    whole(store, "b")
    roll_up(store)
    archive(store, made.experiment)
    store.delete(made.runs[0])
    store.client.delete_logged_model(made.models[0])
    store.client.delete_experiment(made.experiment)
    before = look(store)

    done = gcd("sweep-rows", uri=store.uri)

    assert done.returncode == 0, shown(done)
    assert done.stdout.strip() == "0 rows deleted"
    assert before.against(look(store)) == []


def test_sweep_rows_excludes_a_collector(store: RealStore) -> None:
    run = store.run(store.experiment("e"))
    store.delete(run)
    with stopped(Moment("after", "commit", PURGE), *CYCLE, uri=store.uri) as gc:
        assert gcd("sweep-rows", uri=store.uri).returncode == 11
        assert gcd("sweep-rows", "--dry-run", uri=store.uri).returncode == 0
        resumed(gc)
    assert gcd("sweep-rows", "--dry-run", "--yes", uri=store.uri).returncode == 2


# -- export ------------------------------------------------------------------------------------------


def exported(folder: Path) -> dict[str, Counter[str]]:
    """Every row in the folder's files that was committed, by table."""
    rows: dict[str, Counter[str]] = {}
    for path in sorted(folder.iterdir()):
        batch: list[dict[str, Any]] = []
        number = None
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in map(json.loads, lines):
                if "batch" in line:
                    batch, number = [], line["batch"]
                elif "committed" in line:
                    assert line["committed"] == number
                    for row in batch:
                        if "row" in row:  # else it was not purged
                            rows.setdefault(row["table"], Counter())[like_json(row["row"])] += 1
                    batch, number = [], None
                elif "abandoned" in line:
                    batch, number = [], None
                else:
                    batch.append(line)
        assert number is None, "a batch without an end"
    return rows


def like_json(row: Mapping[str, Any]) -> str:
    """A row as its export tells it."""
    return json.dumps({name: text(value) for name, value in row.items()}, sort_keys=True)


def text(value: Any) -> Any:
    """A value however the driver or JSON gives it, with nothing lost."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, dict) and set(value) == {"bytes"}:
        return value["bytes"]
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, dict | list):
        return json.dumps(value, sort_keys=True)
    return value if value is None else repr(value) if isinstance(value, float) else str(value)


KEYS = {
    "assessments": ("assessment_id",),
    "endpoints": ("endpoint_id",),
    "issues": ("issue_id",),
    "registered_model_tags": ("name", "key"),
    "model_version_tags": ("name", "version", "key"),
}
"""Tables in which rows that stay are changed by a collection, with what tells one from another."""
POINTERS = {"assessments": "run_id", "issues": "source_run_id"}
"""What is emptied in rows when the run that they name goes, which may be before they go themselves."""
COMPUTED = {"spans": "duration_ns"}
"""A generated column, which SQLite's catalogue does not list."""


def purged(before: Snapshot, left: Snapshot, table: str) -> list[dict[str, Any]]:
    """The rows of a table that a collection deletes."""
    names = KEYS.get(table, tuple(before.tables[table][0]) if before.tables[table] else ())

    def key(row: Mapping[str, Any]) -> str:
        return like_json({name: row[name] for name in names})

    stays = {key(row) for row in left.tables[table]}
    return [row for row in before.tables[table] if key(row) not in stays]


def comparable(table: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without what is emptied in it, and without what the database computes."""
    ignored = {POINTERS.get(table), COMPUTED.get(table)}
    return {name: value for name, value in row.items() if name not in ignored}


def test_an_export_has_every_purged_row_and_no_other(store: RealStore, tmp_path: Path) -> None:
    gone, live = whole(store, "gone"), whole(store, "live")
    roll_up(store)
    store.version("v", store.client.get_run(live.runs[1]).info.artifact_uri + "/model")
    run, model = store.run(live.experiment, dataset="d"), store.logged_model(live.runs[0], "m-gone")
    big = store.run(live.experiment, metrics=3000)
    store.delete(run, big)
    store.client.delete_logged_model(model)
    store.client.delete_experiment(gone.experiment)
    before = look(store)
    left = before.without([gone.experiment, run, big, model])
    folder = tmp_path / "exports"

    collect(store.uri, "--export", folder, env={"GCD_PURGE__BATCH_ROWS": "1000"})

    assert left.against(look(store)) == []
    found = exported(folder)
    for table in before.tables:
        wanted = Counter(like_json(comparable(table, row)) for row in purged(before, left, table))
        there_is = Counter[str]()
        for row, times in found.get(table, Counter()).items():
            there_is[json.dumps(comparable(table, json.loads(row)), sort_keys=True)] += times
        assert there_is == wanted, table
    [path] = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert path.name.startswith("gcd-cycle-000001-")


def test_an_export_has_rows_as_they_were_before_the_cycle(store: RealStore, tmp_path: Path) -> None:
    """Also those in which a pointer is emptied before they go themselves."""
    gone = whole(store, "gone")
    store.client.delete_experiment(gone.experiment)
    before = look(store)
    left = before.without([gone.experiment])

    collect(store.uri, "--export", tmp_path / "exports")

    [path] = (tmp_path / "exports").iterdir()
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.readlines()
    for table, pointer in POINTERS.items():
        [key] = KEYS[table]
        named = {row[key]: row[pointer] for row in purged(before, left, table) if row[pointer]}
        assert named, table
        for entity, run in named.items():
            assert any(entity in line and run in line for line in lines), f"{table} {entity}"


@ON_ONE
def test_a_cycle_that_purges_nothing_exports_nothing(store: RealStore, tmp_path: Path) -> None:
    store.run(store.experiment("e"))
    collect(store.uri, "--export", tmp_path / "exports")
    assert not (tmp_path / "exports").exists() or list((tmp_path / "exports").iterdir()) == []


def test_a_batch_that_a_crash_rolled_back_is_not_committed_in_its_export(
    store: RealStore, tmp_path: Path
) -> None:
    experiment = store.experiment("e")
    runs = [store.run(experiment) for _ in range(2)]
    store.delete(*runs)
    before = look(store)
    folder = tmp_path / "exports"
    with stopped(
        Moment("before", "commit", PURGE), *CYCLE, "--export", folder, uri=store.uri
    ) as gc:
        gc.kill()
        gc.communicate()
    assert before.against(look(store)) == []
    [path] = folder.iterdir()
    lines = unzipped(path.read_bytes())
    assert runs[0].encode() in lines or runs[1].encode() in lines, (
        "it was written before the COMMIT"
    )
    assert b"committed" not in lines
    path.unlink()

    collect(store.uri, "--export", folder)

    assert exported(folder)["runs"].total() == 2


@pytest.mark.parametrize("server", ["postgresql"], indirect=True)
def test_a_batch_whose_connection_is_lost_is_marked_as_abandoned(
    store: RealStore, tmp_path: Path
) -> None:
    run = store.run(store.experiment("e"))
    store.delete(run)
    before = look(store)
    folder = tmp_path / "exports"
    with stopped(
        Moment("before", "commit", PURGE), *CYCLE, "--export", folder, uri=store.uri
    ) as gc:
        store.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'"
            f" AND datname = '{store.database.name}'"
        )
        done = resumed(gc)
    assert done.returncode == 12, shown(done)
    assert before.against(look(store)) == []
    [path] = folder.iterdir()
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        assert json.loads(lines.read().splitlines()[-1]) == {"abandoned": 1}
    assert exported(folder) == {}


def unzipped(data: bytes) -> bytes:
    """As much as can be read of a file that was cut off."""
    return zlib.decompressobj(wbits=31).decompress(data)


@pytest.mark.parametrize("how", ["a file is in its way", "nobody may write there", "full"])
def test_an_export_that_cannot_be_written_purges_nothing(
    store: RealStore, tmp_path: Path, how: str
) -> None:
    run = store.run(store.experiment("e"))
    store.delete(run)
    before = look(store)
    folder: Path = tmp_path / "exports"
    if how == "a file is in its way":
        folder.write_text("not a folder")
        done = collect(store.uri, "--export", folder, expect=1)
    elif how == "full":
        folder = full_disk(folder)
        done = collect(store.uri, "--export", folder, expect=1)
    else:
        if os.geteuid() or store.database.dialect == "sqlite":
            pytest.skip("only root can become somebody who may not write; SQLite's file is root's")
        folder.mkdir(mode=0o755)
        store.root.chmod(0o777)
        (store.root / "e").chmod(0o777)
        for path in (store.root / "e").rglob("*"):
            path.chmod(0o777)
        for parent in store.root.parents[:3]:
            parent.chmod(0o755)
        before = look(store)
        done = gcd_as_nobody(*CYCLE, "--export", folder, uri=store.uri)
        assert done.returncode == 1, shown(done)
    assert "cannot write the export" in done.stderr
    assert "Traceback" not in done.stderr
    assert missing(before, look(store)) == []
    assert store.exists(run)


def full_disk(folder: Path) -> Path:
    """A folder on a file system without room."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=2", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount here")
    MOUNTED.append(folder)
    (folder / "filler").write_bytes(b"\0" * 4096)
    return folder


MOUNTED: list[Path] = []


@pytest.fixture(autouse=True)
def _unmounted() -> Iterator[None]:
    """Nothing stays mounted."""
    yield
    while MOUNTED:
        subprocess.run(["umount", str(MOUNTED.pop())], check=True)


@ON_ONE
def test_old_exports_are_pruned_and_nothing_else(store: RealStore, tmp_path: Path) -> None:
    folder = tmp_path / "exports"
    folder.mkdir()
    old = time.time() - 400 * 86_400
    names = {
        "gcd-cycle-000001-20200101T000000Z.jsonl.gz": False,
        "gcd-cycle-000002-20990101T000000Z.jsonl.gz": True,
        "gcd-cycle-000003-20200101T000000Z.jsonl.gz.bak": True,
        "notes.txt": True,
    }
    for name in names:
        (folder / name).write_text("x")
        if "000002" not in name:
            os.utime(folder / name, (old, old))
    setting = {"GCD_JOURNAL__EXPORT_TO": str(folder)}
    run = store.run(store.experiment("e"))
    store.delete(run)

    collect(store.uri, env=setting)

    for name, stays in names.items():
        assert (folder / name).exists() == stays, name
    assert len(list(folder.iterdir())) == sum(names.values()) + 1
