"""Every way in which a row refers to an entity: what goes, what is changed, what stays as it is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from gcd.store.references import ALL, OWNERS, Action, Reference
from tests import world as put
from tests.expectation import Row, Tables, mentions, without
from tests.program import collect, decisions, gcd, report, shown
from tests.servers import Database
from tests.snapshot import Snapshot, differences, read_tables
from tests.world import COLLECTED, GONE, LIVE, LIVE_TRACE, TOO, TRACE, World


@pytest.fixture
def world(database: Database, tmp_path: Path) -> World:
    """Deleted and living entities, with a row of every kind of reference to each."""
    return put.filled(database, tmp_path / "artifacts")


def test_all_that_refers_to_what_goes_goes_or_changes_and_nothing_else(
    world: World, tmp_path: Path
) -> None:
    before = Snapshot.of(world.database, world.place)
    collect(world.database.uri)
    after = Snapshot.of(world.database, world.place)

    assert differences(world.expected(before.tables), after.tables) == []
    assert before.without(COLLECTED).against(after) == []
    assert mentions(scrubbed(after.tables), before.gone(COLLECTED)) == []
    assert left_over_rows(world.database) == 0


def test_a_report_counts_every_row_that_went(world: World) -> None:
    before = Snapshot.of(world.database, world.place).size
    done = report(world.database.uri)
    assert done["rows"] == before - Snapshot.of(world.database, world.place).size


def test_the_expectation_of_other_tests_says_the_same(world: World) -> None:
    before = read_tables(world.database)
    assert differences(world.expected(before), without(before, COLLECTED)) == []


def test_every_row_of_the_table_of_references_is_put_to_the_test(world: World) -> None:
    tables = read_tables(world.database)
    for reference in ALL:
        if reference.table not in tables or reference.table == "guardrails":
            continue
        for lives in (False, True):
            keys = {str(row[OWNERS[reference.to]]) for row in world.rows(reference.to, lives=lives)}
            rows = world.rows(reference.table, lives=lives)
            assert any(keys & set(named(row, reference)) for row in rows), (reference, lives)


def named(row: Row, reference: Reference) -> Iterable[str]:
    """The keys that a row names by the column of a reference."""
    if any(row.get(column) not in values for column, values in reference.where):
        return []
    value = row.get(reference.column)
    if reference.action is Action.UNLIST:
        return str(value).split(",")
    if reference.member:
        return [str(json.loads(value).get(reference.member))] if is_object(value) else []
    return [] if value is None else [str(value)]


def is_object(value: Any) -> bool:
    """Whether a text is a JSON object."""
    try:
        return isinstance(json.loads(value), dict)
    except (TypeError, ValueError):
        return False


def test_a_guardrail_keeps_the_experiment_of_its_scorer(world: World) -> None:
    put.guard(world)
    before = Snapshot.of(world.database, world.place)

    decided = decisions(world.database.uri)
    assert (decided[str(GONE)], decided[str(TOO)]) == ("in_use", "collect")
    done = report(world.database.uri)

    after = Snapshot.of(world.database, world.place)
    # An experiment that stays keeps its logged model, and with that the runs that measured it.
    assert done["kept"] == {"in_use": 1, "feeds_live_model": 2}
    assert {decided[put.RUN], decided[put.RUN_INSIDE]} == {"feeds_live_model"}
    free = [put.MODEL, str(TOO), put.FREE_RUN]
    assert before.without(free).against(after) == []
    world.database.execute("DELETE FROM guardrail_configs", "DELETE FROM guardrails")
    before = Snapshot.of(world.database, world.place)
    collect(world.database.uri)
    after = Snapshot.of(world.database, world.place)
    assert before.without([str(GONE), put.RUN]).against(after) == []


def test_what_overrode_the_mark_of_an_issue_that_goes_overrides_nothing(world: World) -> None:
    put.override_a_mark(world)
    before = read_tables(world.database)
    collect(world.database.uri)
    assert differences(world.expected(before), read_tables(world.database)) == []


@pytest.mark.parametrize("table", ["spans", "metrics"])
def test_more_rows_than_a_transaction_may_take_are_no_obstacle(world: World, table: str) -> None:
    many = 2500
    if table == "spans":
        multiply_spans(world, many)
    else:
        multiply_metrics(world, many)
    before = Snapshot.of(world.database, world.place)

    done = report(world.database.uri, env={"GCD_PURGE__BATCH_ROWS": "1000"})

    after = Snapshot.of(world.database, world.place)
    assert before.without(COLLECTED).against(after) == []
    assert done["purged"] == {
        "run": 2,
        "logged_model": 2,
        "experiment": 2,
        "trace": 1,
        "job": 0,
    }


def multiply_spans(world: World, many: int) -> None:
    """A gone trace and a live one with many spans each."""
    table = world.meta.tables["spans"]
    rows = [
        {
            "trace_id": trace,
            "span_id": f"s{n}",
            "experiment_id": number,
            "status": "OK",
            "start_time_unix_nano": n,
            "content": "{}",
        }
        for trace, number in ((TRACE, GONE), (LIVE_TRACE, LIVE))
        for n in range(many)
    ]
    with world.database.begin() as conn:
        conn.execute(table.insert(), rows)


def multiply_metrics(world: World, many: int) -> None:
    """Gone logged models and a live one with many metrics each."""
    table = world.meta.tables["logged_model_metrics"]
    rows = [
        {
            "model_id": model,
            "run_id": put.LIVE_RUN if model != put.MODEL_INSIDE else put.RUN_INSIDE,
            "experiment_id": number,
            "metric_name": "many",
            "metric_timestamp_ms": 1,
            "metric_step": n,
            "metric_value": 0.1,
        }
        for model, number in ((put.MODEL, LIVE), (put.LIVE_MODEL, LIVE), (put.MODEL_INSIDE, GONE))
        for n in range(many)
    ]
    with world.database.begin() as conn:
        conn.execute(table.insert(), rows)


def scrubbed(tables: Tables) -> Tables:
    """The tables without what was put there to look like a reference and is none."""
    lookalikes = {
        "trace_request_metadata": lambda row: row["key"] == "note",
        "registered_model_tags": lambda row: row["key"] == "note",
        "assessments": lambda row: row["assessment_id"].startswith(("about", "scored", "named")),
        "entity_associations": lambda row: row["source_type"] == "prompt_version",
        "endpoint_bindings": lambda row: row["resource_type"] != "scorer",
    }
    return {
        name: [row for row in rows if not lookalikes.get(name, lambda _: False)(row)]
        for name, rows in tables.items()
    }


def left_over_rows(database: Database) -> int:
    """How many rows without an owner `gcd sweep-rows` sees."""
    done = gcd("sweep-rows", "--dry-run", "--json", uri=database.uri)
    assert done.returncode == 0, shown(done)
    return int(json.loads(done.stdout)["rows"])
