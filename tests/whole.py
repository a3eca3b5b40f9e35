"""Whole experiments, with all that MLflow's API can make in one; and what has to be left without them.

The expectation is written here on its own, from MLflow's tables; it shares nothing with gcd.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.mlflow_store import DAY, RealStore, local_path, now_ms
from tests.servers import Database
from tests.snapshot import Row, Snapshot, Tables, member, mentions, read_tables, without_trees

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


@dataclass(frozen=True)
class Ids:
    """Entities by kind; an experiment by its number as MLflow tells it, as text."""

    runs: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    traces: frozenset[str] = frozenset()
    experiments: frozenset[str] = frozenset()

    def __or__(self, other: Ids) -> Ids:
        return Ids(
            self.runs | other.runs,
            self.models | other.models,
            self.traces | other.traces,
            self.experiments | other.experiments,
        )

    def __sub__(self, other: Ids) -> Ids:
        return Ids(
            self.runs - other.runs,
            self.models - other.models,
            self.traces - other.traces,
            self.experiments - other.experiments,
        )

    @property
    def words(self) -> frozenset[str]:
        """The ids that can be told from any other text."""
        return self.runs | self.models | self.traces


def ids(
    runs: Iterable[str] = (), models: Iterable[str] = (), experiments: Iterable[str] = ()
) -> Ids:
    """Single entities."""
    return Ids(frozenset(runs), frozenset(models), frozenset(), frozenset(experiments))


def there(database: Database) -> Ids:
    """Everything whose row is there."""
    return Ids(
        *(
            frozenset(str(row[0]) for row in database.rows(f"SELECT {key} FROM {table}"))
            for table, key in (
                ("runs", "run_uuid"),
                ("logged_models", "model_id"),
                ("trace_info", "request_id"),
                ("experiments", "experiment_id"),
            )
        )
    )


def inside(database: Database, *experiments: str) -> Ids:
    """These experiments with everything in them."""
    numbers = ", ".join(experiments)
    parts = (
        frozenset(
            str(row[0])
            for row in database.rows(
                f"SELECT {key} FROM {table} WHERE experiment_id IN ({numbers})"
            )
        )
        for table, key in (
            ("runs", "run_uuid"),
            ("logged_models", "model_id"),
            ("trace_info", "request_id"),
        )
    )
    return Ids(*parts, frozenset(experiments))


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
    made.traces = [store.trace(made.experiment, run=parent), store.trace(made.experiment)]
    store.client.link_traces_to_run([made.traces[0]], child)
    store.assess(made.traces[1], child)
    for trace in made.traces:
        attach(store, trace)
    apparatus(store, made)
    return made


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
    experiment, run, trace = made.experiment, made.runs[0], made.traces[0]
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
            trace_id=trace, issue_id=issue.issue_id, issue_name="slow", run_id=made.runs[1]
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
        add_items_to_review_queue(queue.queue_id, item_ids=[trace])
        dataset = store.client.create_dataset(
            f"evaluation of {made.name}", experiment_id=[experiment, "0"], tags={"k": "v"}
        )
        dataset.merge_records([{"inputs": {"q": "a"}, "expectations": {"a": "1"}}])
        prompt = store.client.register_prompt(name=f"prompt-{experiment}", template="Hi {{you}}")
        store.client.link_prompt_version_to_run(run, prompt)
        store.client.link_prompt_versions_to_trace([prompt], trace)
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


# -- what must be left ---------------------------------------------------------------------------

KEYS = {
    "runs": "run_uuid",
    "logged_models": "model_id",
    "trace_info": "request_id",
    "experiments": "experiment_id",
    "inputs": "input_uuid",
    "datasets": "dataset_uuid",
    "issues": "issue_id",
    "scorers": "scorer_id",
    "label_schemas": "schema_id",
    "review_queues": "queue_id",
}
LINKS = (
    ("run", "runs"),
    ("model", "logged_models"),
    ("trace", "trace_info"),
    ("experiment", "experiments"),
)
OF_TRACES = {
    "request_id": ("trace_tags", "trace_request_metadata", "trace_metrics"),
    "trace_id": ("spans", "span_metrics", "assessments"),
}
DIES: tuple[tuple[str, str, str, dict[str, tuple[object, ...]]], ...] = (
    *((table, "run_uuid", "runs", {}) for table in ("metrics", "latest_metrics", "params", "tags")),
    ("inputs", "destination_id", "runs", {"destination_type": ("RUN",)}),
    ("inputs", "source_id", "runs", {"source_type": ("RUN_INPUT", "RUN_OUTPUT")}),
    ("logged_model_metrics", "run_id", "runs", {}),
    ("trace_request_metadata", "value", "runs", {"key": ("mlflow.sourceRun",)}),
    ("assessments", "assessment_metadata/mlflow.assessment.sourceRunId", "runs", {}),
    (
        *("inputs", "destination_id", "logged_models"),
        {"destination_type": ("MODEL_INPUT", "MODEL_OUTPUT")},
    ),
    *(
        (f"logged_model_{p}", "model_id", "logged_models", {})
        for p in ("metrics", "params", "tags")
    ),
    ("trace_request_metadata", "value", "logged_models", {"key": ("mlflow.modelId",)}),
    *((table, column, "trace_info", {}) for column, all_ in OF_TRACES.items() for table in all_),
    ("review_queue_items", "item_id", "trace_info", {"item_type": ("trace",)}),
    *(
        ("entity_associations", f"{side}_id", table, {f"{side}_type": (kind,)})
        for side in ("source", "destination")
        for kind, table in LINKS
    ),
    *(
        (table, "experiment_id", "experiments", {})
        for table in (
            "experiment_tags",
            "datasets",
            "issues",
            "scorers",
            "label_schemas",
            "review_queues",
            "sql_trace_metric_daily_rollups",
            "sql_span_cost_daily_rollups",
            "sql_assessment_daily_rollups",
            "sql_trace_rollup_rebuild_queue",
        )
    ),
    ("jobs", "params/experiment_id", "experiments", {"status": (2, 3, 4, 5)}),
    ("input_tags", "input_uuid", "inputs", {}),
    ("inputs", "source_id", "datasets", {"source_type": ("DATASET",)}),
    ("issue_categories", "issue_id", "issues", {}),
    ("assessments", "name", "issues", {"assessment_type": ("issue",)}),
    ("scorer_versions", "scorer_id", "scorers", {}),
    ("online_scoring_configs", "scorer_id", "scorers", {}),
    ("endpoint_bindings", "resource_id", "scorers", {"resource_type": ("scorer",)}),
    ("review_queue_label_schemas", "schema_id", "label_schemas", {}),
    *(
        (f"review_queue_{part}", "queue_id", "review_queues", {})
        for part in ("label_schemas", "items", "users")
    ),
)
"""(table, column or column/member, table of the owner, condition): rows that die with their owner."""
CLEARED = (
    ("assessments", "run_id", "runs"),
    ("issues", "source_run_id", "runs"),
    ("endpoints", "experiment_id", "experiments"),
)
"""Pointers in rows of others that become NULL."""
LISTS = (
    ("registered_model_tags", "mlflow.prompt.associatedRunIds", "runs"),
    ("model_version_tags", "mlflow.prompt.associatedRunIds", "runs"),
    ("registered_model_tags", "_mlflow_experiment_ids", "experiments"),
)
"""(table, key, owner): comma-separated lists that lose the id."""


def without(snapshot: Snapshot, gone: Ids) -> Snapshot:
    """What has to be left when these are collected."""
    return Snapshot(rows_without(snapshot.tables, gone), without_trees(snapshot.files, gone.words))


def rows_without(tables: Tables, gone: Ids) -> Tables:
    """The rows as they must be once these are purged."""
    dead = {name: set[str]() for name in KEYS}
    dead["runs"] |= gone.runs
    dead["logged_models"] |= gone.models
    dead["trace_info"] |= gone.traces
    dead["experiments"] |= gone.experiments
    while spread(tables, dead):
        pass
    return {
        name: [cleared(name, row, dead) for row in rows if not is_dead(name, row, dead)]
        for name, rows in tables.items()
    }


def spread(tables: Tables, dead: dict[str, set[str]]) -> bool:
    """Mark what dies with what is dead; whether there was more."""
    before = sum(map(len, dead.values()))
    for name, column in KEYS.items():
        for row in tables.get(name, ()):
            if is_dead(name, row, dead):
                dead[name].add(str(row[column]))
    return sum(map(len, dead.values())) > before


def is_dead(name: str, row: Row, dead: dict[str, set[str]]) -> bool:
    """Whether the row is dead or dies with something that is."""
    if name in KEYS and str(row[KEYS[name]]) in dead[name]:
        return True
    return any(
        str(told(row, column)) in dead[owner]
        for table, column, owner, where in DIES
        if table == name and all(row[c] in values for c, values in where.items())
    )


def told(row: Row, column: str) -> Any:
    """A column's value, or that of a member of the JSON object in it."""
    name, _, path = column.partition("/")
    return member(row[name], path) if path else row[name]


def cleared(name: str, row: Row, dead: dict[str, set[str]]) -> Row:
    """A row that stays, without its pointers to what is dead."""
    new = dict(row)
    for table, column, owner in CLEARED:
        if table == name and str(row[column]) in dead[owner]:
            new[column] = None
    for table, tag, owner in LISTS:
        if table == name and row["key"] == tag:
            new["value"] = unlisted(str(row["value"]), dead[owner])
    return new


def unlisted(text: str, dead: Collection[str]) -> str:
    """A comma-separated list without some ids, framed by commas if it was."""
    kept = [part for part in text.split(",") if part and part not in dead]
    framed = text.startswith(",") and kept
    return f",{','.join(kept)}," if framed else ",".join(kept)


def lost(expected: Snapshot, found: Snapshot) -> list[str]:
    """What is missing or changed; what is still to be deleted may be there."""
    return [
        problem
        for problem in expected.against(found)
        if problem.startswith(("lost", "changed")) or ": lost " in problem
    ]


def traces_of(found: Snapshot, gone: Ids) -> list[str]:
    """Everything that still names something that is gone, but for what may."""
    problems = mentions(found.tables, gone.words)
    problems += [name for name in found.files if set(Path(name).parts) & gone.words]
    numbers = {int(each) for each in gone.experiments}
    problems += [
        f"{name}.{column} = {row[column]}"
        for name, rows in found.tables.items()
        for row in rows
        for column in row
        if column == "experiment_id" and row[column] in numbers
    ]
    return problems


# -- reading -------------------------------------------------------------------------------------


def undeleted(snapshot: Snapshot, *experiments: str) -> Snapshot:
    """The same store as it reads once these experiments are restored, stamps of change apart."""
    numbers = {int(each) for each in experiments}

    def active(row: Row) -> Row:
        changes = {"lifecycle_stage": "active"}
        changes |= {"deleted_time": None} if "deleted_time" in row else {}
        changes |= {"last_update_time": None} if "last_update_time" in row else {}
        return {**row, **changes} if row["experiment_id"] in numbers else row

    tables = {
        **snapshot.tables,
        **{name: list(map(active, snapshot.tables[name])) for name in ("runs", "experiments")},
    }
    return replace(snapshot, tables=tables)


def rows_of(database: Database, gone: Ids) -> Iterator[tuple[str, Row]]:
    """(table, row) of every row that must go with these: all that stays is left out."""
    tables = read_tables(database)
    left = rows_without(tables, gone)
    for name, rows in tables.items():
        for row in rows:
            if row not in left[name]:
                yield name, row
