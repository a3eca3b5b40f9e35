"""Every way in which a row refers to a run: what goes, what is changed, what stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.program import gcd
from tests.servers import Database
from tests.snapshot import read_tables

GONE, LIVE = "a" * 32, "b" * 32
SOURCE_RUN = "mlflow.assessment.sourceRunId"


@pytest.fixture
def filled(database: Database, tmp_path: Path) -> Database:
    """A deleted run and a live one, with one row of every kind of reference to each."""
    place = (tmp_path / "artifacts" / "7").as_uri()
    database.execute(
        "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, workspace)"
        f" VALUES (7, 'seven', '{place}', 'active', 'default')",
        "INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status, db_payload_generation)"
        " VALUES ('tr-1', 7, 1, 'OK', 0)",
        "INSERT INTO registered_models (name, workspace) VALUES ('m', 'default')",
    )
    for number, run in enumerate((GONE, LIVE)):
        add_run(database, run, place, number)
        add_references(database, run, number)
    tree = tmp_path / "artifacts" / "7" / GONE / "artifacts"
    tree.mkdir(parents=True)
    (tree / "f").write_text("x")
    return database


def add_run(database: Database, run: str, place: str, number: int) -> None:
    """A run with a row in each of its own tables."""
    stage, stamp = ("deleted", "1600000000000") if run == GONE else ("active", "NULL")
    key = "`key`" if database.dialect == "mariadb" else '"key"'
    false = "false" if database.dialect == "postgresql" else "0"
    database.execute(
        "INSERT INTO runs (run_uuid, experiment_id, artifact_uri, lifecycle_stage, deleted_time, status)"
        f" VALUES ('{run}', 7, '{place}/{run}/artifacts', '{stage}', {stamp}, 'FINISHED')",
        f"INSERT INTO metrics ({key}, value, timestamp, run_uuid, step, is_nan)"
        f" VALUES ('loss', 0.333333333333333, 1, '{run}', 0, {false})",
        f"INSERT INTO latest_metrics ({key}, value, timestamp, run_uuid, step, is_nan)"
        f" VALUES ('loss', 0.333333333333333, 1, '{run}', 0, {false})",
        f"INSERT INTO params ({key}, value, run_uuid) VALUES ('lr', '1', '{run}')",
        f"INSERT INTO tags ({key}, value, run_uuid) VALUES ('t', '1', '{run}')",
        "INSERT INTO logged_models (model_id, experiment_id, name, artifact_location,"
        " creation_timestamp_ms, last_updated_timestamp_ms, status, lifecycle_stage, source_run_id)"
        f" VALUES ('m-{number}', 7, 'n', '{place}/models/m-{number}/artifacts', 1, 1, 2, 'deleted', '{run}')",
        "INSERT INTO logged_model_metrics (model_id, metric_name, metric_timestamp_ms, metric_step,"
        f" metric_value, experiment_id, run_id) VALUES ('m-{number}', 'f1', 1, 0, 0.5, 7, '{run}')",
    )


def add_references(database: Database, run: str, number: int) -> None:
    """Rows of other entities that refer to the run."""
    key = "`key`" if database.dialect == "mariadb" else '"key"'
    false = "false" if database.dialect == "postgresql" else "0"
    metadata = json.dumps({SOURCE_RUN: run, "other": "x"})
    child = str(number) * 32
    inputs = (
        ("DATASET", f"d{number}", "RUN", run),
        ("RUN_INPUT", run, "MODEL_INPUT", f"m-{number}"),
        ("RUN_OUTPUT", run, "MODEL_OUTPUT", f"m-{number}"),
    )
    for index, row in enumerate(inputs):
        uuid = f"i{number}{index}"
        database.execute(
            "INSERT INTO inputs (input_uuid, source_type, source_id, destination_type, destination_id, step)"
            f" VALUES ('{uuid}', '{row[0]}', '{row[1]}', '{row[2]}', '{row[3]}', 0)",
            f"INSERT INTO input_tags (input_uuid, name, value) VALUES ('{uuid}', 'context', 'x')",
        )
    assessment = (
        "INSERT INTO assessments (assessment_id, trace_id, name, assessment_type, value,"
        " created_timestamp, last_updated_timestamp, source_type, run_id, valid, assessment_metadata,"
        " is_numeric_value) VALUES ('{}', 'tr-1', 'n', 'feedback', '1', 1, 1, 'HUMAN', {}, {}, {}, {})"
    )
    true = "true" if database.dialect == "postgresql" else "1"
    database.execute(
        f"INSERT INTO entity_associations VALUES ('e{number}a', 'run', '{run}', 'trace', 'tr-1', 1)",
        f"INSERT INTO entity_associations VALUES ('e{number}b', 'trace', 'tr-1', 'run', '{run}', 1)",
        "INSERT INTO issues (issue_id, experiment_id, name, description, status, source_run_id,"
        f" created_timestamp, last_updated_timestamp) VALUES ('s{number}', 7, 'n', 'd', 'open', '{run}', 1, 1)",
        assessment.format(f"a{number}r", f"'{run}'", true, "NULL", false),
        assessment.format(f"a{number}m", "NULL", true, f"'{metadata}'".replace(":", r"\:"), false),
        f"INSERT INTO runs (run_uuid, experiment_id, lifecycle_stage) VALUES ('{child}', 7, 'active')",
        f"INSERT INTO tags ({key}, value, run_uuid) VALUES ('mlflow.parentRunId', '{run}', '{child}')",
        "INSERT INTO model_versions (name, version, current_stage, source, run_id, workspace) VALUES"
        f" ('m', {number + 1}, 'Deleted_Internal', 'REDACTED-SOURCE-PATH', '{run}', 'default')",
    )
    if number == 0:
        both = f"{GONE},{LIVE}"
        database.execute(
            f"INSERT INTO trace_request_metadata ({key}, value, request_id) VALUES ('mlflow.sourceRun', '{GONE}', 'tr-1')",
            f"INSERT INTO registered_model_tags ({key}, value, name, workspace) VALUES"
            f" ('mlflow.prompt.associatedRunIds', '{both}', 'm', 'default')",
            f"INSERT INTO model_version_tags ({key}, value, name, version, workspace) VALUES"
            f" ('mlflow.prompt.associatedRunIds', '{both}', 'm', 1, 'default')",
        )


def test_all_that_refers_to_a_run_goes_and_nothing_else(filled: Database, tmp_path: Path) -> None:
    before = read_tables(filled)
    result = gcd("gc", "--older-than", "0s", "--yes", uri=filled.uri)
    assert result.returncode == 0, result.stderr
    after = read_tables(filled)

    gone = {
        table: len(before[table]) - len(after[table])
        for table in before
        if len(before[table]) != len(after[table])
    }
    assert gone == {
        "runs": 1,
        "metrics": 1,
        "latest_metrics": 1,
        "params": 1,
        "tags": 1,
        "logged_model_metrics": 1,
        "inputs": 3,
        "input_tags": 3,
        "entity_associations": 2,
        "assessments": 1,
        "trace_request_metadata": 1,
    }
    assert not (tmp_path / "artifacts" / "7" / GONE).exists()


def test_pointers_in_rows_of_others_are_cleared(filled: Database) -> None:
    assert gcd("gc", "--older-than", "0s", "--yes", uri=filled.uri).returncode == 0
    key = "`key`" if filled.dialect == "mariadb" else '"key"'
    assert filled.rows("SELECT source_run_id FROM issues ORDER BY issue_id") == [(None,), (LIVE,)]
    run = "SELECT run_id FROM assessments WHERE assessment_id = '{}'"
    assert filled.scalar(run.format("a0r")) is None
    assert filled.scalar(run.format("a1r")) == LIVE
    versions = filled.rows("SELECT run_id FROM model_versions ORDER BY version")
    assert versions == [("REDACTED-RUN-ID",), (LIVE,)]
    listed = f"SELECT value FROM {{}} WHERE {key} = 'mlflow.prompt.associatedRunIds'"
    assert filled.scalar(listed.format("registered_model_tags")) == LIVE
    assert filled.scalar(listed.format("model_version_tags")) == LIVE
    # Rows of live entities that merely name the run stay as they are.
    parents = filled.rows(
        f"SELECT value FROM tags WHERE {key} = 'mlflow.parentRunId' ORDER BY run_uuid"
    )
    assert parents == [(GONE,), (LIVE,)]
    sources = filled.rows("SELECT source_run_id FROM logged_models ORDER BY model_id")
    assert sources == [(GONE,), (LIVE,)]
