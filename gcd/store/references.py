"""The table of all that refers to an entity in MLflow's schema, with or without a foreign key.

It must never hold a guess: each row was seen in MLflow's source or schema, and says what becomes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gcd.model import Kind


class Action(StrEnum):
    """What happens to the row that holds a reference to a purged entity."""

    DELETE = "delete"
    """The row exists only to describe the entity or to link it."""
    CLEAR = "clear"
    """The row is somebody else's; the pointer in it becomes NULL."""
    REDACT = "redact"
    """As MLflow does when a model version is deleted."""
    UNLIST = "unlist"
    """The column is a comma-separated list; the id is taken out of it."""
    DELETE_IF_MEMBER = "delete_if_member"
    """The column is a JSON object; the row goes if its member `member` is the id."""
    HAND_OVER = "hand_over"
    """The number in the row may be wrong or shared; handover.py finds the true owner."""
    REFUSE = "refuse"
    """The row is live configuration: what it needs is not purged."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One way in which rows of `table` refer by `column` to the rows of the table `to`.

    `is_scanned` references have no index that serves them: they are looked for once a cycle in one
    pass over the table, after the purge, rather than once a batch under its locks; those to
    experiments within the purge, for SQLite gives their numbers out again. `is_unbounded` ones may
    be any number for one entity. `is_text` columns hold an experiment's number as text. Where there is a
    column `beside`, the row has the same in it as the row that it refers to, and an index serves that.
    """

    table: str
    column: str
    to: str
    action: Action
    meaning: str
    where: tuple[tuple[str, tuple[str | int, ...]], ...] = ()
    is_scanned: bool = False
    is_unbounded: bool = False
    is_text: bool = False
    member: str = ""
    beside: str = ""


OWNERS: dict[str, str] = {
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
    "jobs": "id",
    "assessments": "assessment_id",
}
"""Tables that others refer to, and the column they do it by."""

ENTITY_TABLES: dict[Kind, str] = {
    Kind.RUN: "runs",
    Kind.LOGGED_MODEL: "logged_models",
    Kind.TRACE: "trace_info",
    Kind.EXPERIMENT: "experiments",
    Kind.JOB: "jobs",
}

FINISHED_JOBS = (2, 3, 4, 5)
"""MLflow's JobStatus: succeeded, failed, timed out, cancelled."""


def _links(kind: str, to: str, *, is_text: bool = False) -> tuple[Reference, ...]:
    """Many-to-many links, in either direction."""
    return tuple(
        Reference(
            "entity_associations",
            f"{side}_id",
            to,
            Action.DELETE,
            "links to it",
            ((f"{side}_type", (kind,)),),
            is_text=is_text,
        )
        for side in ("source", "destination")
    )


def _many(table: str, column: str, to: str, meaning: str) -> Reference:
    return Reference(table, column, to, Action.DELETE, meaning, is_unbounded=True)


def _few(table: str, column: str, to: str, meaning: str) -> Reference:
    return Reference(table, column, to, Action.DELETE, meaning)


_PROMPT_RUNS = (("key", ("mlflow.prompt.associatedRunIds",)),)
_DELETED_VERSION = (("current_stage", ("Deleted_Internal",)),)

OF_RUNS: tuple[Reference, ...] = (
    Reference(
        "inputs",
        "destination_id",
        "runs",
        Action.DELETE,
        "datasets that went into it",
        (("destination_type", ("RUN",)),),
    ),
    Reference(
        "inputs",
        "source_id",
        "runs",
        Action.DELETE,
        "models it used or made",
        (("source_type", ("RUN_INPUT", "RUN_OUTPUT")),),
    ),
    _many("metrics", "run_uuid", "runs", "every value of every metric"),
    _many("logged_model_metrics", "run_id", "runs", "metrics it measured of a model"),
    _many("latest_metrics", "run_uuid", "runs", "the last value of every metric"),
    _many("params", "run_uuid", "runs", "its parameters"),
    _many("tags", "run_uuid", "runs", "its tags"),
    *_links("run", "runs"),
    Reference("issues", "source_run_id", "runs", Action.CLEAR, "issues found by it"),
    Reference("assessments", "run_id", "runs", Action.CLEAR, "assessments made in it"),
    Reference(
        "assessments",
        "assessment_metadata",
        "runs",
        Action.DELETE_IF_MEMBER,
        "assessments it is the source of; MLflow deletes them with the run, later ones escape it",
        is_scanned=True,
        member="mlflow.assessment.sourceRunId",
    ),
    Reference(
        "trace_request_metadata",
        "value",
        "runs",
        Action.DELETE,
        "the mark that a trace was made in it; the trace stays",
        (("key", ("mlflow.sourceRun",)),),
        is_scanned=True,
    ),
    Reference(
        "model_versions",
        "run_id",
        "runs",
        Action.REDACT,
        "deleted model versions made from it",
        _DELETED_VERSION,
        is_scanned=True,
    ),
    Reference(
        "registered_model_tags", "value", "runs", Action.UNLIST, "prompts used", _PROMPT_RUNS, True
    ),
    Reference(
        "model_version_tags", "value", "runs", Action.UNLIST, "prompts used", _PROMPT_RUNS, True
    ),
)
"""Left as they are, by design: `tags` mlflow.parentRunId and `logged_models.source_run_id`, rows of
other entities that merely name the run; and every mention in free text."""

OF_LOGGED_MODELS: tuple[Reference, ...] = (
    Reference(
        "inputs",
        "destination_id",
        "logged_models",
        Action.DELETE,
        "runs that used or made it",
        (("destination_type", ("MODEL_INPUT", "MODEL_OUTPUT")),),
    ),
    _many("logged_model_metrics", "model_id", "logged_models", "its metrics"),
    _many("logged_model_params", "model_id", "logged_models", "its parameters"),
    _many("logged_model_tags", "model_id", "logged_models", "its tags"),
    *_links("model", "logged_models"),
    Reference(
        "trace_request_metadata",
        "value",
        "logged_models",
        Action.DELETE,
        "the mark that a trace was made with it; the trace stays",
        (("key", ("mlflow.modelId",)),),
        is_scanned=True,
    ),
)

OF_TRACES: tuple[Reference, ...] = (
    _many("span_metrics", "trace_id", "trace_info", "figures of its spans"),
    _many("spans", "trace_id", "trace_info", "its spans"),
    _many("assessments", "trace_id", "trace_info", "feedback and expectations on it"),
    _many("trace_metrics", "request_id", "trace_info", "its figures"),
    _many("trace_request_metadata", "request_id", "trace_info", "its metadata"),
    _many("trace_tags", "request_id", "trace_info", "its tags"),
    *_links("trace", "trace_info"),
    Reference(
        "review_queue_items",
        "item_id",
        "trace_info",
        Action.DELETE,
        "its place in review queues",
        (("item_type", ("trace",)),),
    ),
)

OF_EXPERIMENTS: tuple[Reference, ...] = (
    _few("experiment_tags", "experiment_id", "experiments", "its tags"),
    _few("issues", "experiment_id", "experiments", "issues found in it"),
    _few("review_queues", "experiment_id", "experiments", "its review queues"),
    _few("label_schemas", "experiment_id", "experiments", "its label schemas"),
    _few("scorers", "experiment_id", "experiments", "its scorers"),
    _few("sql_trace_metric_daily_rollups", "experiment_id", "experiments", "daily sums"),
    _few("sql_span_cost_daily_rollups", "experiment_id", "experiments", "daily sums"),
    _few("sql_assessment_daily_rollups", "experiment_id", "experiments", "daily sums"),
    _few("sql_trace_rollup_rebuild_queue", "experiment_id", "experiments", "sums to be made"),
    *_links("experiment", "experiments", is_text=True),
    Reference("endpoints", "experiment_id", "experiments", Action.CLEAR, "where usage was traced"),
    *(
        Reference(table, "experiment_id", "experiments", Action.HAND_OVER, "a copy of its owner's")
        for table in (
            "datasets",
            "spans",
            "assessments",
            "logged_model_metrics",
            "logged_model_params",
            "logged_model_tags",
            "online_scoring_configs",
        )
    ),
    *(
        Reference(table, "experiment_id", "experiments", Action.REFUSE, "an entity of its own")
        for table in ("runs", "logged_models", "trace_info")
    ),
    Reference(
        "registered_model_tags",
        "value",
        "experiments",
        Action.UNLIST,
        "prompts that belong to it; a reused number would show them in a stranger's experiment",
        (("key", ("_mlflow_experiment_ids",)),),
        is_scanned=True,
        is_text=True,
    ),
    Reference(
        "jobs",
        "params",
        "experiments",
        Action.DELETE_IF_MEMBER,
        "finished jobs that worked on it",
        (("status", FINISHED_JOBS),),
        is_scanned=True,
        is_text=True,
        member="experiment_id",
    ),
)

OF_PARTS: tuple[Reference, ...] = (
    _few("input_tags", "input_uuid", "inputs", "tags of an input"),
    Reference(
        "inputs",
        "source_id",
        "datasets",
        Action.DELETE,
        "uses of a dataset",
        (("source_type", ("DATASET",)),),
    ),
    _few("issue_categories", "issue_id", "issues", "categories of an issue"),
    Reference(
        "assessments",
        "name",
        "issues",
        Action.DELETE,
        "marks of an issue on traces",
        (("assessment_type", ("issue",)),),
    ),
    Reference("guardrails", "scorer_id", "scorers", Action.REFUSE, "guardrails of an endpoint"),
    _few("online_scoring_configs", "scorer_id", "scorers", "when a scorer runs by itself"),
    Reference(
        "endpoint_bindings",
        "resource_id",
        "scorers",
        Action.DELETE,
        "endpoints that a scorer uses",
        (("resource_type", ("scorer",)),),
    ),
    _few("scorer_versions", "scorer_id", "scorers", "versions of a scorer"),
    _few("review_queue_label_schemas", "schema_id", "label_schemas", "queues that ask for it"),
    _few("review_queue_label_schemas", "queue_id", "review_queues", "what a queue asks for"),
    _few("review_queue_items", "queue_id", "review_queues", "what is in a queue"),
    _few("review_queue_users", "queue_id", "review_queues", "who works on a queue"),
    _few("job_locks", "job_id", "jobs", "what a job holds"),
    Reference(
        "assessments",
        "overrides",
        "assessments",
        Action.CLEAR,
        "what overrode an assessment; where the whole trace goes, it goes too",
        beside="trace_id",
    ),
)

ALL: tuple[Reference, ...] = (
    *OF_RUNS,
    *OF_LOGGED_MODELS,
    *OF_TRACES,
    *OF_EXPERIMENTS,
    *OF_PARTS,
)
