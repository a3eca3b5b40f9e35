"""Looks through whole tables: `gcd doctor` names the index that would save each, and it does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from gcd.cli import main
from gcd.store import indexes
from gcd.store.references import Reference
from gcd.store.schema import Schema, read_schema
from tests import world as put
from tests.program import gcd, shown
from tests.servers import Database
from tests.snapshot import Snapshot
from tests.world import COLLECTED, LIVE, LIVE_MODEL, World

MANY = 12_000
"""Rows from which a look for each deleted row is worth a word."""


@pytest.fixture
def world(database: Database, tmp_path: Path) -> World:
    """Some of everything, and many rows in each table that grows with use."""
    made = put.filled(database, tmp_path / "artifacts")
    with database.begin() as conn:
        for table, values in many(made):
            conn.execute(made.meta.tables[table].insert(), values)
    analyze(database)
    return made


def many(world: World) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(table, rows): all of them live, in a hundred experiments, as planners expect it."""
    homes = [{"experiment_id": LIVE + 1000 + n % 100} for n in range(MANY)]
    place = {"lifecycle_stage": "active", "artifact_location": (world.place / "many").as_uri()}
    yield "experiments", [{"name": f"e{n}", **homes[n], **place} for n in range(100)]
    at: dict[str, Any] = {"timestamp": 1, "value": 0.5, "is_nan": False}
    runs = [f"{n:032x}" for n in range(MANY)]
    stage = {"lifecycle_stage": "active"}
    yield "runs", [{"run_uuid": r, **stage, **home} for r, home in zip(runs, homes, strict=True)]
    yield "metrics", [{"key": "m", "step": 1, "run_uuid": r, **at} for r in runs]
    yield "latest_metrics", [{"key": "m", "step": 1, "run_uuid": r, **at} for r in runs]
    yield "params", [{"key": "p", "value": "1", "run_uuid": r} for r in runs]
    yield "tags", [{"key": "t", "value": "1", "run_uuid": r} for r in runs]
    measured = {"metric_name": "f1", "metric_timestamp_ms": 1, "metric_value": 0.5}
    of_model = {"model_id": LIVE_MODEL, **measured}
    steps = [{"metric_step": n, "run_id": run} for n, run in enumerate(runs)]
    yield "logged_model_metrics", [{**steps[n], **of_model, **homes[n]} for n in range(MANY)]
    span = {"trace_id": put.LIVE_TRACE, "status": "OK", "content": "{}"}
    times = [{"span_id": f"s{n}", "start_time_unix_nano": n} for n in range(MANY)]
    yield "spans", [{**times[n], **span, **homes[n]} for n in range(MANY)]
    assessment = {"name": "n", "assessment_type": "feedback", "value": "1", "valid": True}
    assessment |= {"created_timestamp": 1, "last_updated_timestamp": 1, "source_type": "HUMAN"}
    assessment |= {"trace_id": put.LIVE_TRACE_2, "is_numeric_value": False}
    marks = [{"assessment_id": f"a{n}", **assessment} for n in range(MANY)]
    yield "assessments", [{**marks[n], **homes[n]} for n in range(MANY)]
    ends = ("DATASET", "d-live", "RUN")
    use = dict(zip(("source_type", "source_id", "destination_type"), ends, strict=True))
    yield "inputs", [{"input_uuid": r, "destination_id": r, "step": 0, **use} for r in runs]
    yield "input_tags", [{"input_uuid": r, "name": "c", "value": "t"} for r in runs]
    link = {"source_type": "trace", "source_id": "x", "destination_type": "run"}
    links = [{"association_id": r, "destination_id": r, "created_time": 1, **link} for r in runs]
    yield "entity_associations", links


def analyze(database: Database) -> None:
    """Let the database know its own size, as servers do by themselves in time."""
    if database.dialect == "mariadb":
        names = ", ".join(
            f"`{row[0]}`" for row in database.rows("SHOW TABLES") if "gcd" not in str(row[0])
        )
        database.execute(f"ANALYZE TABLE {names}")
    else:
        database.execute("ANALYZE")


def findings(database: Database) -> dict[str, str]:
    """What `gcd doctor` says of indexes: the first words of each finding to its mend."""
    done = gcd("doctor", "--json", uri=database.uri)
    assert done.returncode in (0, 1), shown(done)
    return {
        each["seen"].split()[0]: each["mend"]
        for each in json.loads(done.stdout)
        if each["subject"] == "indexes" and each["mend"]
    }


def run(database: Database, statement: str) -> None:
    """Send a statement as a person would, in no transaction."""
    engine = database.engine().execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as conn:
        conn.exec_driver_sql(statement.rstrip(";"))


@dataclass
class Seen:
    """Statements of write transactions, each form once, with the parameters it had."""

    dialect: str
    statements: dict[str, Any] = field(default_factory=dict)

    def note(self, conn: sa.Connection, _: Any, text: str, values: Any, *rest: Any) -> None:
        """An event of SQLAlchemy's."""
        if conn.get_execution_options().get("gcd_writes") and not rest[1]:
            self.statements.setdefault(text, values)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, all engines of this process are listened to."""
        sa.event.listen(sa.Engine, "before_cursor_execute", self.note)
        try:
            yield
        finally:
            sa.event.remove(sa.Engine, "before_cursor_execute", self.note)

    def looks_through(self, database: Database) -> dict[str, str]:
        """Each table that some statement reads as a whole, with that statement."""
        found: dict[str, str] = {}
        with database.begin() as conn:
            for text, values in self.statements.items():
                if re.match(r"\s*(SELECT|UPDATE|DELETE)\b", text) and "alembic_gcd" not in text:
                    found |= dict.fromkeys(whole_tables(conn, text, values), text)
        return found


def whole_tables(conn: sa.Connection, text: str, values: Any) -> Iterator[str]:
    """What the plan of a statement reads from end to end."""
    words = "EXPLAIN QUERY PLAN " if conn.dialect.name == "sqlite" else "EXPLAIN "
    plan = conn.exec_driver_sql(words + text, values).all()
    if conn.dialect.name == "sqlite":
        yield from (m[1] for *_, line in plan if (m := re.match(r"SCAN (\w+)", line)))
    elif conn.dialect.name == "postgresql":
        yield from (m[1] for (line,) in plan if (m := re.search(r"Seq Scan on (\w+)", line)))
    else:
        yield from (row.table for row in plan if row.type in ("ALL", "index"))


def test_a_purge_looks_through_no_big_table_but_those_that_doctor_names_an_index_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, seen = world.database, Seen(world.database.dialect)
    on_postgresql = database.dialect == "postgresql"
    named = findings(database)
    if database.dialect == "mariadb":  # makes an index for each foreign key by itself
        assert named == {}
    else:
        assert named.keys() == {
            "logged_model_metrics.run_id",
            "logged_model_metrics.experiment_id",
            "runs.experiment_id",
        }
        concurrently, place = ("CONCURRENTLY ", "public.") if on_postgresql else ("", "")
        index = f"INDEX {concurrently}gcd_logged_model_metrics_run_id"
        wanted = f"CREATE {index} ON {place}logged_model_metrics (run_id);"
        assert named["logged_model_metrics.run_id"] == wanted

    monkeypatch.setattr(indexes, "FEW_A_BATCH", MANY)
    named |= dict(told(database))
    before = Snapshot.of(database, world.place)
    words = ["gc", "--yes", "--older-than", "0s", "--backend-store-uri", database.uri]
    with seen.listening():
        done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    after = Snapshot.of(database, world.place)
    assert before.without(COLLECTED).against(after) == []
    big = {table for table, rows in many(world) if len(rows) >= MANY}
    assert any("DELETE FROM runs" in text for text in seen.statements)
    allowed = {name.split(".")[0] for name in named}
    assert unwanted(seen.looks_through(database), big - allowed) == {}

    for statement in named.values():
        run(database, statement)
    analyze(database)
    assert dict(told(database)) == {} == findings(database)
    assert unwanted(seen.looks_through(database), big) == {}


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
def test_keys_that_are_checked_at_once_stop_what_would_leave_a_row_without_its_run(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = put.filled(database, tmp_path / "artifacts")
    before = Snapshot.of(database, made.place)
    known = Schema.references

    def forgetful(self: Schema, to: str, *, scanned: bool) -> Iterator[Reference]:
        return (each for each in known(self, to, scanned=scanned) if each.table != "tags")

    monkeypatch.setattr(Schema, "references", forgetful)
    monkeypatch.setattr(indexes, "seconds_each", lambda *_: {"runs": 1.0})
    words = ["gc", "--yes", "--older-than", "0s", "--run-ids", put.RUN]
    # The logged models that it measured stay, as nobody named them: they would keep it.
    env = {"GCD_RETENTION__RUNS_OF_LIVE_MODELS": "collect_run"}
    done = CliRunner().invoke(main, [*words, "--backend-store-uri", database.uri], env=env)
    assert done.exit_code == 3  # named, and kept
    assert f"unknown_reference: a row of tags refers to {put.RUN}" in done.output
    assert before.against(Snapshot.of(database, made.place)) == []


def unwanted(found: dict[str, str], tables: set[str]) -> dict[str, str]:
    """Those of the looks that are through one of the tables."""
    return {table: text for table, text in found.items() if table in tables}


def told(database: Database) -> Iterator[tuple[str, str]]:
    """(table.column, statement) of each index that is missing."""
    with database.begin() as conn:
        for each in indexes.missing(conn, read_schema(conn)):
            yield f"{each.lookup.table}.{each.lookup.column}", each.statement
