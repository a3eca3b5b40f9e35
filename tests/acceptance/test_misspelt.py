"""Tags, stages, patterns and settings that are misspelt delete nothing, and are told of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from gcd.store.schema import read_schema
from gcd.store.tag_holds import TAGS, marks
from tests.daemon import Running, daemon, settings
from tests.mlflow_store import DAY, RealStore, now_ms
from tests.program import collect, decisions, gcd, shown
from tests.snapshot import Snapshot
from tests.stopper import PURGE, Moment, resumed, stopped
from tests.whole import attach, trace

CYCLE = ("gc", "--older-than", "0s", "--yes")
MISSPELT = ("gcd.holds", "gcd_hold", "GCD.HOLD", " gcd.hold", "gcd.hold-until", "Gcd")
"""Keys that MLflow's client takes, and that somebody may mean as one of gcd's."""
OTHERS = ("mlflow.note", "gc.hold", "agcd.hold", "team")


def look(store: RealStore) -> Snapshot:
    """The store now."""
    return Snapshot.of(store.database, store.root)


def details(uri: str, *arguments: object) -> dict[str, str]:
    """The first detail of each decision of `gcd plan`."""
    done = gcd("plan", "--older-than", "0s", "--json", *arguments, uri=uri)
    assert done.returncode == 0, shown(done)
    items: list[dict[str, Any]] = json.loads(done.stdout)["items"]
    return {each["id"]: each["reasons"][0]["detail"] for each in items if each["reasons"]}


# -- tags --------------------------------------------------------------------------------------------


def test_a_tag_that_may_be_meant_as_a_hold_holds_a_run(store: RealStore) -> None:
    experiment = store.experiment("e")
    held = {key: store.run(experiment, tags={key: "x"}) for key in MISSPELT}
    held["gcd.older_than"] = store.run(experiment, tags={"gcd.older_than": "900d"})
    held["gcd.hold_until"] = store.run(experiment, tags={"gcd.hold_until": "tomorrow"})
    free = [store.run(experiment, tags={key: "x"}) for key in OTHERS]
    free.append(store.run(experiment, tags={"gcd.hold_until": "2020-01-01"}))
    store.delete(*held.values(), *free)
    before = look(store)

    found = decisions(store.uri)

    assert found == {**dict.fromkeys(held.values(), "held"), **dict.fromkeys(free, "collect")}
    told = details(store.uri)
    for key in MISSPELT:
        assert f"the tag {key!r} on the run is not known" in told[held[key]]
    for key in ("gcd.holds", "gcd_hold", "GCD.HOLD"):
        assert "did you mean gcd.hold?" in told[held[key]]
    assert "did you mean gcd.hold_until?" in told[held["gcd.hold-until"]].replace("-", "_")
    assert "belongs on the experiment" in told[held["gcd.older_than"]]
    assert "'tomorrow' of the tag gcd.hold_until" in told[held["gcd.hold_until"]]
    collect(store.uri)
    assert before.without(free).against(look(store)) == []

    for key, run in held.items():
        store.client.restore_run(run)
        store.client.delete_tag(run, key)
        store.delete(run)
    collect(store.uri)
    assert before.without([*free, *held.values()]).against(look(store)) == []


@pytest.mark.parametrize("kind", ["logged_model", "experiment", "trace"])
def test_a_tag_that_may_be_meant_as_a_hold_holds_other_entities(
    store: RealStore, kind: str
) -> None:
    experiment = store.experiment("e")
    run = store.run(experiment)
    model = store.logged_model(store.run(store.experiment("live")), "m")
    traced = trace(store, experiment)
    attach(store, traced)
    match kind:
        case "logged_model":
            store.client.set_logged_model_tags(model, {"gcd_hold": "x"})
            held = {model: "held", experiment: "collect", run: "collect"}
        case "experiment":
            store.client.set_experiment_tag(experiment, "GCD.Hold", "x")
            held = {model: "collect", experiment: "held", run: "held"}
        case _:
            store.client.set_trace_tag(traced, "gcd.holds", "x")
            held = {model: "collect", experiment: "held", run: "collect"}
    store.client.delete_logged_model(model)
    store.client.delete_experiment(experiment)
    before = look(store)

    assert decisions(store.uri) == held
    collect(store.uri)

    gone = {each for each, found in held.items() if found == "collect"}
    assert gone.isdisjoint(store.runs() | store.experiments())
    after = look(store)
    if kind == "experiment":
        assert before.without(gone).against(after) == []
    if kind == "trace":
        assert traced in str(after.tables["trace_info"])


def test_an_age_that_cannot_be_read_holds_the_experiment(store: RealStore) -> None:
    values = ("30", "forever", "", "10 days", "-1d")
    live = store.experiment("live")
    store.client.set_experiment_tag(live, "gcd.older_than", "soon")
    store.delete(run := store.run(live))
    gone = {value: store.experiment(f"gone {value}") for value in values}
    runs = [store.run(each) for each in gone.values()]
    for value, experiment in gone.items():
        store.client.set_experiment_tag(experiment, "gcd.older_than", value)
        store.client.delete_experiment(experiment)
    before = look(store)

    assert decisions(store.uri) == dict.fromkeys((run, *runs, *gone.values()), "held")
    told = details(store.uri)
    for value, experiment in gone.items():
        text = f"the value {value!r} of the tag gcd.older_than on the experiment cannot be read"
        assert text in told[experiment]
    collect(store.uri)
    assert before.against(look(store)) == []


def test_an_age_under_a_misspelt_key_shortens_nothing(store: RealStore) -> None:
    experiment = store.experiment("e")
    run = store.run(experiment)
    store.client.set_experiment_tag(experiment, "GCD.older_than", "1s")
    store.delete(run)
    setting = {"GCD_RETENTION__SHORTEST": "0s"}
    done = gcd("plan", "--older-than", "1d", "--json", uri=store.uri, env=setting)
    [item] = json.loads(done.stdout)["items"]
    assert {each["reason"] for each in item["reasons"]} == {"held", "too_young"}


def test_a_misspelt_tag_set_after_the_plan_holds(store: RealStore) -> None:
    """What the purge reads again in its transaction is read by the same rule."""
    experiment = store.experiment("e")
    runs = {store.run(experiment) for _ in range(3)}
    store.delete(*runs)
    before = look(store)
    with stopped(Moment("after", "commit", PURGE), *CYCLE, uri=store.uri) as process:
        held = max(store.runs())
        store.sql("INSERT INTO tags ({key}, value, run_uuid) VALUES (' Gcd_hold', 'x', :r)", r=held)
        done = resumed(process)
    assert done.returncode == 0, shown(done)
    assert store.runs() == {held}
    store.sql("DELETE FROM tags WHERE {key} = ' Gcd_hold'")
    assert before.without(runs - {held}).against(look(store)) == []


@pytest.mark.parametrize("is_narrow", [False, True])
def test_tags_are_found_by_an_index(store: RealStore, is_narrow: bool) -> None:
    """Few tags are gcd's, of millions: of all, and of the runs of a batch."""
    run = store.run(store.experiment("e"))
    with store.database.begin() as conn:
        query = marks(read_schema(conn), TAGS[0], [run] if is_narrow else None)
        text = str(query.compile(conn, compile_kwargs={"literal_binds": True}))
        if store.database.dialect == "postgresql":
            conn.exec_driver_sql("SET LOCAL enable_seqscan = off")
        explain = "EXPLAIN QUERY PLAN " if store.database.dialect == "sqlite" else "EXPLAIN "
        found = str(conn.exec_driver_sql((explain + text).replace("%", "%%")).all())
    wanted = {
        "sqlite": "USING INDEX",
        "postgresql": "index_tags_run_uuid" if is_narrow else "tag_pk",
        "mariadb": "'ref', 'index_tags_run_uuid'" if is_narrow else "'range', 'PRIMARY'",
    }
    assert wanted[store.database.dialect] in found, found


# -- stages ------------------------------------------------------------------------------------------


def test_a_stage_that_is_not_spelt_as_mlflow_spells_it_is_not_deleted(store: RealStore) -> None:
    live, gone, odd = (store.experiment(name) for name in ("live", "gone", "odd"))
    run, other, inside, in_odd = (store.run(each) for each in (live, live, gone, odd))
    model, free = (store.logged_model(store.run(live), name) for name in ("m", "free"))
    fed = store.run(live)
    store.measure(fed, model)
    store.delete(run, other, fed)
    for each in (model, free):
        store.client.delete_logged_model(each)
    for experiment in (gone, odd):
        store.client.delete_experiment(experiment)
    respell(store, "runs", run, "DELETED")
    respell(store, "runs", inside, "deleted ")
    respell(store, "logged_models", model, "Deleted")
    respell(store, "experiments", int(odd), "d\u00e9leted")
    before = look(store)

    found = decisions(store.uri)

    assert found == {
        other: "collect",
        free: "collect",
        fed: "feeds_live_model",
        gone: "has_live_children",
        in_odd: "collect",
    }
    collect(store.uri)
    assert before.without([other, free, in_odd]).against(look(store)) == []


def respell(store: RealStore, table: str, entity: object, stage: str) -> None:
    """Write another stage into a row, past the constraints of databases that compare exactly."""
    with store.database.begin() as conn:
        if store.database.dialect == "sqlite":
            conn.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
        for name in (f"{table}_lifecycle_stage", f"{table}_lifecycle_stage_check"):
            if store.database.dialect != "sqlite":
                conn.exec_driver_sql(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}")
        key = {"runs": "run_uuid", "logged_models": "model_id"}.get(table, "experiment_id")
        query = f"UPDATE {table} SET lifecycle_stage = :stage WHERE {key} = :entity"
        conn.execute(sa.text(query), {"stage": stage, "entity": entity})


def test_an_id_in_another_case_selects_nothing(store: RealStore) -> None:
    experiment = store.experiment("e")
    run = store.run(experiment)
    model = store.logged_model(store.run(experiment), "m")
    store.delete(run)
    store.client.delete_logged_model(model)
    before = look(store)

    for option, entity in (("--run-ids", run), ("--logged-model-ids", model)):
        collect(store.uri, option, entity.upper(), expect=3)

    assert before.against(look(store)) == []


# -- variables ---------------------------------------------------------------------------------------

ON_SQLITE = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
"""For what no database has a part in."""
COMMANDS = (
    ("gc", "--yes"),
    ("plan",),
    ("explain", "RUN"),
    ("hold", "add", "RUN"),
    ("status",),
    ("retry",),
    ("doctor",),
    ("init",),
    ("sweep-rows",),
    ("daemon",),
    ("config", "check"),
    ("config", "show"),
)


@ON_SQLITE
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_refuses_a_variable_that_is_not_known(
    store: RealStore, words: tuple[str, ...]
) -> None:
    run = store.run(store.experiment("e"))
    store.delete(run)
    store.stamp(run, 1)  # older than the default age
    before = look(store)
    variables = {
        "GCD_RETENTION_OLDER_THAN": "3650d",
        "gcd_retention__older_than": "3650d",
        "MLFLOW_BACKEND_STORE_URI": store.uri,
    }

    done = gcd(*(run if each == "RUN" else each for each in words), env=variables)

    assert done.returncode == 10, shown(done)
    for name in ("GCD_RETENTION_OLDER_THAN", "gcd_retention__older_than"):
        assert name in done.stderr
    assert done.stderr.count("did you mean GCD_RETENTION__OLDER_THAN?") == 2
    assert before.against(look(store)) == []


@ON_SQLITE
def test_a_configuration_that_others_may_write_deletes_nothing(
    store: RealStore, tmp_path: Path
) -> None:
    """Somebody put it where an administrator runs gcd."""
    run = store.run(store.experiment("e"))
    store.delete(run)
    before = look(store)
    (tmp_path / "gcd.toml").write_text('[retention]\nolder_than = "0s"\n')
    (tmp_path / "gcd.toml").chmod(0o666)

    done = gcd("gc", "--yes", uri=store.uri, cwd=tmp_path)

    assert done.returncode == 10, shown(done)
    assert "can be written by others" in done.stderr
    assert "--config" in done.stderr
    assert before.against(look(store)) == []
    assert gcd("config", "init", "--force", cwd=tmp_path).returncode == 0
    (tmp_path / "gcd.toml").unlink()
    assert gcd("config", "init", cwd=tmp_path).returncode == 0
    assert gcd("config", "check", cwd=tmp_path).returncode == 0


# -- patterns ----------------------------------------------------------------------------------------

PATTERNS = {
    "GCD_RETENTION__EXCLUDE": "PROD-*,produ-*",
    "GCD_RETENTION__AGES": '["teaM-a: 180d", "taem-*: 90d"]',
}
MISSED = (
    "the pattern 'taem-*' in retention.ages matches no experiment",
    "the pattern 'produ-*' in retention.exclude matches no experiment",
)


def test_patterns_ignore_case_and_those_that_match_nothing_are_told_of(store: RealStore) -> None:
    names = ("prod-a", "Team-A", "other")
    runs = {name: store.run(store.experiment(name)) for name in names}
    store.delete(*runs.values())
    for run in runs.values():
        store.stamp(run, now_ms() - 100 * DAY)
    before = look(store)

    found = gcd("plan", "--json", uri=store.uri, env=PATTERNS)

    assert found.returncode == 0, shown(found)
    document = json.loads(found.stdout)
    told = {item["id"]: [each["reason"] for each in item["reasons"]] for item in document["items"]}
    assert told == {
        runs["prod-a"]: ["excluded"],
        runs["Team-A"]: ["too_young"],
        runs["other"]: [],
    }
    assert set(document["summary"]["notes"]) >= set(MISSED)
    assert not any("PROD" in note or "teaM" in note for note in document["summary"]["notes"])
    shown_plan = gcd("plan", uri=store.uri, env=PATTERNS)
    assert all(sentence in " ".join(shown_plan.stdout.split()) for sentence in MISSED)

    environment = {**PATTERNS, "MLFLOW_BACKEND_STORE_URI": store.uri}
    checked = gcd("config", "check", env=environment)
    assert checked.returncode == 0, shown(checked)
    for sentence in MISSED:
        assert f"warning: {sentence}; is it misspelt?" in checked.stderr
    assert "PROD" not in checked.stderr

    done = gcd("gc", "--yes", uri=store.uri, env=PATTERNS)
    assert done.returncode == 0, shown(done)
    assert before.without([runs["other"]]).against(look(store)) == []


@ON_SQLITE
def test_config_check_says_where_it_cannot_check_patterns(store: RealStore) -> None:
    for uri in ("", "sqlite:////nowhere/mlflow.db"):
        done = gcd("config", "check", env={**PATTERNS, "MLFLOW_BACKEND_STORE_URI": uri})
        assert done.returncode == 0, shown(done)
        assert "patterns are not checked against experiments" in done.stderr
    assert "patterns" not in gcd("config", "check").stderr


@ON_SQLITE
@pytest.mark.parametrize("mode", ["observe", "collect"])
def test_the_daemon_tells_of_patterns_once_until_they_change(
    store: RealStore, tmp_path: Path, mode: str
) -> None:
    store.delete(store.run(store.experiment("prod-a")))
    wanted = settings(store, schedule="every 1s", mode=mode)
    wanted["retention"] = {"exclude": ["PROD-*", "late-*"]}
    sentence = "the pattern 'late-*' in retention.exclude matches no experiment; is it misspelt?"
    with daemon(tmp_path, wanted) as running:
        ends = "observed: would" if mode == "observe" else "cycle "
        running.ready().until(lambda: turns(running, ends) >= 3, "too few cycles")
        assert running.events().count(sentence) == 1, running.log.read_text()
        late = store.experiment("Late-1")
        running.until(lambda: turns(running, ends) >= 6, "too few cycles")
        store.sql("DELETE FROM experiments WHERE experiment_id = :number", number=int(late))
        running.until(lambda: running.events().count(sentence) == 2, "it is not told again")
        assert running.stop() == 0
    [record] = {each["level"] for each in running.lines() if each["event"] == sentence}
    assert record == "warning"
    assert not any("PROD" in event for event in running.events())


def turns(running: Running, start: str) -> int:
    """How many turns of the store have ended."""
    return sum(event.startswith(start) for event in running.events())
