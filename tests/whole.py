"""Whole experiments: with one of everything that MLflow's API can make in one, and files for it.

It must never write a row that MLflow itself could not have written, but by what says so.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.mlflow_store import DAY, RealStore, local_path, now_ms
from tests.servers import Database
from tests.snapshot import Snapshot, mentions

with warnings.catch_warnings(action="ignore"):  # MLflow's own, at import
    import mlflow
    from mlflow.entities.gateway_endpoint import GatewayEndpointModelConfig, GatewayModelLinkageType
    from mlflow.entities.gateway_guardrail import GuardrailAction, GuardrailStage
    from mlflow.genai.label_schemas import InputText, create_label_schema
    from mlflow.genai.review_queues import add_items_to_review_queue, create_review_queue
    from mlflow.store.db.trace_rollups import run_sql_trace_rollups
    from mlflow.store.jobs.sqlalchemy_store import SqlAlchemyJobStore
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

ARCHIVE = "archive"
ATTACHMENT = b"\x89PNG, says a prompt"


ENTITIES = (
    ("runs", "run_uuid"),
    ("logged_models", "model_id"),
    ("trace_info", "request_id"),
    ("experiments", "experiment_id"),
)
"""(table, key) of what has files or contents of its own."""


def there(database: Database) -> set[str]:
    """The id of everything whose row is there; an experiment's number as text."""
    return {
        str(row[0])
        for table, column in ENTITIES
        for row in database.rows(f"SELECT {column} FROM {table}")
    }


def inside(database: Database, *experiments: str) -> set[str]:
    """The ids of these experiments and of everything in them."""
    numbers = ", ".join(experiments)
    return {
        str(row[0])
        for table, column in ENTITIES
        for row in database.rows(f"SELECT {column} FROM {table} WHERE experiment_id IN ({numbers})")
    }


# -- making --------------------------------------------------------------------------------------


@dataclass
class Whole:
    """An experiment with one of everything, two of some."""

    experiment: str
    name: str
    runs: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)
    scorer: Any = None
    endpoint: str | None = None


def laid_out(store: RealStore, name: str) -> str:
    """A new experiment where a server with a default artifact root puts it: <root>/<its id>."""
    inner = SqlAlchemyStore(store.uri, (store.root / "mlruns").as_uri())
    return str(inner.create_experiment(name))


def whole(store: RealStore, name: str, experiment: str | None = None) -> Whole:
    """A new experiment, filled."""
    made = Whole(experiment or store.experiment(name), name)
    store.client.set_experiment_tag(made.experiment, "team", name)
    parent = store.run(made.experiment, dataset=f"data of {name}")
    child = store.run(made.experiment, parent=parent, dataset="shared")
    made.runs = [parent, child]
    made.models = [
        store.logged_model(parent, "m-measured", metrics=True),
        store.logged_model(child, "m-plain"),
    ]
    store.model_input(child, made.models[0])
    made.traces = [trace(store, made.experiment, run=parent), trace(store, made.experiment)]
    store.client.link_traces_to_run([made.traces[0]], child)
    store.assess(made.traces[1], child)
    for each in made.traces:
        attach(store, each)
    apparatus(store, made)
    return made


def trace(store: RealStore, experiment: str, run: str | None = None) -> str:
    """A trace, written at once: MLflow's own threads take a second to be flushed."""
    os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"  # until the end of the test
    return store.trace(experiment, run)


def attach(store: RealStore, trace: str) -> Path:
    """A payload beside the trace's spans, as clients upload images and prompts; its folder."""
    folder = payload(store, trace)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "attachment.png").write_bytes(ATTACHMENT)
    return folder


def payload(store: RealStore, trace: str, tag: str = "mlflow.artifactLocation") -> Path:
    """Where the trace's files are, or its archived ones by the other tag."""
    uri = store.database.scalar(
        f"SELECT value FROM trace_tags WHERE request_id = :trace AND {key(store)} = :tag",
        trace=trace,
        tag=tag,
    )
    return local_path(str(uri))


def key(store: RealStore) -> str:
    """The column of that name, quoted."""
    return "`key`" if store.database.dialect == "mariadb" else '"key"'


def inner(store: RealStore) -> SqlAlchemyStore:
    """MLflow's own store under the client, for what has no call there."""
    return store.client._tracking_client.store  # type: ignore[no-any-return]


def apparatus(store: RealStore, made: Whole) -> None:
    """Scorers, issues, label schemas, review queues, an endpoint, prompts, evaluation data, a job."""
    experiment, run, traced = made.experiment, made.runs[0], made.traces[0]
    within = inner(store)
    made.scorer = within.register_scorer(experiment, "judge", json.dumps({"name": "judge"}))
    within.register_scorer(experiment, "judge", json.dumps({"name": "judge", "again": 1}))
    within.upsert_online_scoring_config(experiment, "judge", 0.0)
    issue = within.create_issue(
        experiment_id=experiment,
        name="slow",
        description="slow answers",
        source_run_id=run,
        categories=["latency"],
    )
    made.endpoint = endpoint(store, made.name, experiment)
    within.create_endpoint_binding(made.endpoint, "scorer", made.scorer.scorer_id)
    with store.as_tracking():
        mlflow.log_issue(
            trace_id=traced, issue_id=issue.issue_id, issue_name="slow", run_id=made.runs[1]
        )
        tone = create_label_schema(
            "tone", type="feedback", input=InputText(), experiment_id=experiment
        )
        queue = create_review_queue(
            "Q",
            queue_type="custom",
            users=["ann"],
            experiment_id=experiment,
            schema_ids=[tone.schema_id],
        )
        add_items_to_review_queue(queue.queue_id, item_ids=[traced])
        dataset = store.client.create_dataset(
            f"evaluation of {made.name}", experiment_id=[experiment, "0"], tags={"k": "v"}
        )
        dataset.merge_records([{"inputs": {"q": "a"}, "expectations": {"a": "1"}}])
        prompt = store.client.register_prompt(name=f"prompt-{experiment}", template="Hi {{you}}")
        store.client.link_prompt_version_to_run(run, prompt)
        store.client.link_prompt_versions_to_trace([prompt], traced)
    finished_job(store, experiment)


def endpoint(store: RealStore, name: str, experiment: str | None = None) -> str:
    """A gateway endpoint, whose usage is traced in the experiment."""
    within = inner(store)
    secret = within.create_gateway_secret(f"secret {name}", {"api_key": "x"}, provider="openai")
    model = within.create_gateway_model_definition(
        f"model {name}", secret.secret_id, "openai", "gpt"
    )
    config = GatewayEndpointModelConfig(
        model_definition_id=model.model_definition_id,
        linkage_type=GatewayModelLinkageType.PRIMARY,
        weight=1.0,
    )
    made = within.create_gateway_endpoint(f"endpoint {name}", [config], experiment_id=experiment)
    return str(made.endpoint_id)


def guardrail(store: RealStore, made: Whole) -> str:
    """A live endpoint that is guarded by the experiment's scorer; the guardrail's id."""
    within, scorer = inner(store), made.scorer
    guard = within.create_gateway_guardrail(
        "guard",
        scorer.scorer_id,
        scorer.scorer_version,
        GuardrailStage.BEFORE,
        GuardrailAction.VALIDATION,
    )
    within.add_guardrail_to_endpoint(endpoint(store, "guarded"), guard.guardrail_id)
    return str(guard.guardrail_id)


def finished_job(store: RealStore, experiment: str | None = None, days_ago: int = 0) -> str:
    """A job that succeeded, made some days ago; it worked on the experiment if one is given."""
    jobs = SqlAlchemyJobStore(store.uri)
    params = {"experiment_id": experiment} if experiment else {}
    job = str(jobs.create_job("score", json.dumps(params)).job_id)
    jobs.start_job(job)
    jobs.finish_job(job, "{}")
    if days_ago:
        at = now_ms() - days_ago * DAY
        store.sql("UPDATE jobs SET creation_time = :at WHERE id = :job", at=at, job=job)
    return job


def archive(store: RealStore, *experiments: str) -> None:
    """Let MLflow move the spans of the experiments' traces to an archive beside the store's root."""
    for experiment in experiments:
        store.client.set_experiment_tag(experiment, "mlflow.trace.archiveNow", "{}")
    inner(store).archive_traces(
        resolved_trace_archival_location=(store.root / ARCHIVE).as_uri(), broader_retention="900d"
    )


def roll_up(store: RealStore) -> None:
    """Let MLflow sum its traces up by day, as if two days had passed."""
    engine = store.database.engine()
    run_sql_trace_rollups(engine, now_ms=now_ms() + 3 * DAY, max_workers=1)
    engine.dispose()


def backdate(store: RealStore, days: int = 10) -> None:
    """Make everything in the store look older."""
    for table, *columns in (
        ("runs", "deleted_time", "start_time", "end_time"),
        ("experiments", "last_update_time", "creation_time"),
        ("logged_models", "last_updated_timestamp_ms", "creation_timestamp_ms"),
        ("trace_info", "timestamp_ms"),
    ):
        changes = ", ".join(f"{column} = {column} - {days * DAY}" for column in columns)
        store.sql(f"UPDATE {table} SET {changes}")


# -- looking -------------------------------------------------------------------------------------


def missing(expected: Snapshot, found: Snapshot) -> list[str]:
    """What is lost or changed; what is still to be deleted may be there."""
    return [
        problem
        for problem in expected.against(found)
        if problem.startswith(("lost", "changed")) or ": lost " in problem
    ]


def leftovers(found: Snapshot, gone: Collection[str]) -> list[str]:
    """Every row and file that still names something that is gone, but for what may."""
    words = {each for each in gone if not each.isdecimal()}
    files = [name for name in found.files if set(Path(name).parts) & words]
    return mentions(found.tables, gone) + files


def undeleted(snapshot: Snapshot, *experiments: str) -> Snapshot:
    """The same store with these experiments as MLflow restores them, but for when that was."""
    numbers = set(map(int, experiments))

    def active(row: dict[str, Any]) -> dict[str, Any]:
        if row["experiment_id"] not in numbers:
            return row
        changes = {"lifecycle_stage": "active", "deleted_time": None, "last_update_time": None}
        return {**row, **{name: value for name, value in changes.items() if name in row}}

    rows = {name: list(map(active, snapshot.tables[name])) for name in ("runs", "experiments")}
    return Snapshot({**snapshot.tables, **rows}, snapshot.files)
