"""What a collection must leave of the rows of a store: of those that stay, and how they change.

Written from MLflow's tables on its own; it shares nothing with gcd. By design these stay: the tag
`mlflow.parentRunId`, `logged_models.source_run_id`, evaluation datasets, and whatever names something
in free text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

Row = dict[str, Any]
Tables = dict[str, list[Row]]
Ids = frozenset[str]
SOURCE_RUN = "mlflow.assessment.sourceRunId"
FINISHED = (2, 3, 4, 5)
"""MLflow's JobStatus: SUCCEEDED, FAILED, TIMEOUT, CANCELED."""


@dataclass(frozen=True)
class Gone:
    """Everything that is collected, and the parts of it that other rows name."""

    runs: Ids = frozenset()
    models: Ids = frozenset()
    traces: Ids = frozenset()
    jobs: Ids = frozenset()
    experiments: frozenset[int] = frozenset()
    scorers: Ids = frozenset()
    schemas: Ids = frozenset()
    queues: Ids = frozenset()
    issues: Ids = frozenset()
    datasets: Ids = frozenset()
    inputs: Ids = frozenset()
    assessments: Ids = frozenset()

    @property
    def ids(self) -> Ids:
        """All ids that are text and that nobody else can have."""
        mine = (self.runs, self.models, self.traces, self.jobs, self.scorers, self.schemas)
        return frozenset().union(*mine, self.queues, self.issues)

    @property
    def numbers(self) -> Ids:
        """The experiments as text."""
        return frozenset(map(str, self.experiments))


def without(tables: Tables, ids: Collection[str]) -> Tables:
    """The rows as they must be once these entities are collected, of whatever kind each is."""
    moved, gone = settled_datasets(tables, collected(tables, ids))
    left = {name: [row for row in moved[name] if not goes(name, row, gone)] for name in tables}
    homes = owners_homes(left)
    return {name: [changed(name, row, gone, homes) for row in rows] for name, rows in left.items()}


# -- what goes -------------------------------------------------------------------------------------


def collected(tables: Tables, ids: Collection[str]) -> Gone:
    """What these ids take along, datasets and their inputs apart."""
    kinds: dict[str, set[str]] = {kind: set() for kind in ("experiments", "models", "traces", "")}
    for each in ids:
        kinds[kind_of(each)].add(each)
    experiments = frozenset(map(int, kinds["experiments"]))
    jobs = {row["id"] for row in tables.get("jobs", ())}
    named = Gone(
        runs=frozenset(kinds[""] - jobs),
        models=frozenset(kinds["models"]),
        traces=frozenset(kinds["traces"]),
        jobs=frozenset(kinds[""] & jobs),
        experiments=experiments,
    )

    def inside(table: str, key: str) -> Ids:
        rows = tables.get(table, ())
        return frozenset(row[key] for row in rows if row["experiment_id"] in experiments)

    whole = replace(
        named,
        runs=named.runs | inside("runs", "run_uuid"),
        models=named.models | inside("logged_models", "model_id"),
        traces=named.traces | inside("trace_info", "request_id"),
        jobs=named.jobs | {row["id"] for row in tables.get("jobs", ()) if is_done(row, named)},
        scorers=inside("scorers", "scorer_id"),
        schemas=inside("label_schemas", "schema_id"),
        queues=inside("review_queues", "queue_id"),
        issues=inside("issues", "issue_id"),
    )
    assessments = tables.get("assessments", ())
    lost = (row["assessment_id"] for row in assessments if is_lost_assessment(row, whole))
    return replace(whole, assessments=frozenset(lost))


def kind_of(entity: str) -> str:
    """MLflow's ids never look alike: experiments have numbers; runs and jobs no prefix."""
    if entity.isdecimal() and len(entity) < 32:
        return "experiments"
    return {"m-": "models", "tr": "traces"}.get(entity[:2], "")


def is_done(job: Row, gone: Gone) -> bool:
    """A job that has ended and worked on an experiment that goes."""
    return job["status"] in FINISHED and str(member(job["params"], "experiment_id")) in gone.numbers


def is_lost_assessment(row: Row, gone: Gone) -> bool:
    """An assessment of a trace that goes, made by a run that goes, or the mark of such an issue."""
    is_mark = row["assessment_type"] == "issue" and row["name"] in gone.issues
    by_run = member(row["assessment_metadata"], SOURCE_RUN) in gone.runs
    return row["trace_id"] in gone.traces or by_run or is_mark


def is_lost_input(row: Row, gone: Gone) -> bool:
    """An input or output of a run that goes, a use of a model or a dataset that does."""
    source, destination = row["source_id"], row["destination_id"]
    return (
        (row["source_type"] == "DATASET" and source in gone.datasets)
        or (row["source_type"] in ("RUN_INPUT", "RUN_OUTPUT") and source in gone.runs)
        or (row["destination_type"] == "RUN" and destination in gone.runs)
        or (
            row["destination_type"] in ("MODEL_INPUT", "MODEL_OUTPUT")
            and destination in gone.models
        )
    )


def is_lost_link(row: Row, gone: Gone) -> bool:
    """A link to or from something that goes."""
    ids = {
        "run": gone.runs,
        "model": gone.models,
        "trace": gone.traces,
        "experiment": gone.numbers,
    }
    return any(
        row[f"{side}_id"] in ids.get(row[f"{side}_type"], ()) for side in ("source", "destination")
    )


def is_lost_mark(row: Row, gone: Gone) -> bool:
    """Metadata of a trace that goes, or the mark of a run or a model that does."""
    marks = {"mlflow.sourceRun": gone.runs, "mlflow.modelId": gone.models}
    return row["request_id"] in gone.traces or row["value"] in marks.get(row["key"], ())


Goes = Callable[[Row, Gone], bool]


def by(column: str, kind: str) -> Goes:
    """The row belongs to what its column names."""
    return lambda row, gone: row[column] in getattr(gone, kind)


GOES: dict[str, Goes] = {
    **dict.fromkeys(
        ("runs", "metrics", "latest_metrics", "params", "tags"), by("run_uuid", "runs")
    ),
    **dict.fromkeys(
        ("logged_models", "logged_model_params", "logged_model_tags"), by("model_id", "models")
    ),
    "logged_model_metrics": lambda row, gone: (
        row["run_id"] in gone.runs or row["model_id"] in gone.models
    ),
    **dict.fromkeys(("trace_info", "trace_tags", "trace_metrics"), by("request_id", "traces")),
    **dict.fromkeys(("spans", "span_metrics"), by("trace_id", "traces")),
    "trace_request_metadata": is_lost_mark,
    "assessments": by("assessment_id", "assessments"),
    "inputs": by("input_uuid", "inputs"),
    "input_tags": by("input_uuid", "inputs"),
    "datasets": by("dataset_uuid", "datasets"),
    "entity_associations": is_lost_link,
    **dict.fromkeys(
        (
            "experiments",
            "experiment_tags",
            "sql_trace_metric_daily_rollups",
            "sql_span_cost_daily_rollups",
            "sql_assessment_daily_rollups",
            "sql_trace_rollup_rebuild_queue",
        ),
        by("experiment_id", "experiments"),
    ),
    **dict.fromkeys(
        ("scorers", "scorer_versions", "online_scoring_configs"), by("scorer_id", "scorers")
    ),
    "endpoint_bindings": lambda row, gone: (
        row["resource_type"] == "scorer" and row["resource_id"] in gone.scorers
    ),
    "label_schemas": by("schema_id", "schemas"),
    **dict.fromkeys(("review_queues", "review_queue_users"), by("queue_id", "queues")),
    "review_queue_items": lambda row, gone: (
        row["queue_id"] in gone.queues
        or (row["item_type"] == "trace" and row["item_id"] in gone.traces)
    ),
    "review_queue_label_schemas": lambda row, gone: (
        row["queue_id"] in gone.queues or row["schema_id"] in gone.schemas
    ),
    **dict.fromkeys(("issues", "issue_categories"), by("issue_id", "issues")),
    "jobs": by("id", "jobs"),
    "job_locks": by("job_id", "jobs"),
}
"""The tables that lose rows. Guardrails are not among them: they keep their scorer's experiment."""


def goes(name: str, row: Row, gone: Gone) -> bool:
    """Whether a row of the table of this name goes."""
    return name in GOES and GOES[name](row, gone)


def member(value: Any, name: str) -> Any:
    """A member of a JSON object, however the driver gives it; None where there is none."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None
    return found.get(name) if isinstance(found, Mapping) else None


# -- datasets: until MLflow 3.9 the first experiment that logged one owned it for all ---------------


def settled_datasets(tables: Tables, gone: Gone) -> tuple[Tables, Gone]:
    """The tables with datasets given to those who still use them; and what goes, with the others."""
    dead = dead_inputs(tables, gone)
    left = {
        **tables,
        "inputs": [r for r in tables.get("inputs", ()) if r["input_uuid"] not in dead],
    }
    lost: set[str] = set()
    rows = tables.get("datasets", ())
    for row in sorted(rows, key=lambda row: row["experiment_id"]):
        if row["experiment_id"] not in gone.experiments:
            continue
        homes = list(users_homes(left, gone, row["dataset_uuid"]))
        twin = twin_of(left, row, min(homes)) if homes else None
        if not homes or twin:
            lost.add(row["dataset_uuid"])
        if twin:
            left = used_instead(left, row["dataset_uuid"], twin)
        elif homes:
            left = rehomed(left, row["dataset_uuid"], min(homes))
    gone = replace(gone, datasets=frozenset(lost))
    gone = replace(gone, inputs=frozenset(dead | dead_inputs(left, gone)))
    return left, gone


def dead_inputs(tables: Tables, gone: Gone) -> set[str]:
    """The inputs that go."""
    return {row["input_uuid"] for row in tables.get("inputs", ()) if is_lost_input(row, gone)}


def users_homes(tables: Tables, gone: Gone, dataset: str) -> Iterator[int]:
    """The experiments of the runs that still use a dataset, or measured a model on it."""
    runs = {
        r["run_uuid"]: r["experiment_id"] for r in tables["runs"] if r["run_uuid"] not in gone.runs
    }
    for row in tables.get("inputs", ()):
        if row["source_type"] == "DATASET" and row["source_id"] == dataset:
            yield from (runs[each] for each in [row["destination_id"]] if each in runs)
    for row in tables.get("logged_model_metrics", ()):
        if row["dataset_uuid"] == dataset and row["model_id"] not in gone.models:
            yield from (runs[each] for each in [row["run_id"]] if each in runs)


def twin_of(tables: Tables, dataset: Row, home: int) -> str | None:
    """The dataset of the same name and digest that an experiment has of its own."""
    same = (home, dataset["name"], dataset["digest"])
    return next(
        (
            row["dataset_uuid"]
            for row in tables["datasets"]
            if (row["experiment_id"], row["name"], row["digest"]) == same
        ),
        None,
    )


def rehomed(tables: Tables, dataset: str, home: int) -> Tables:
    """A dataset belongs to another experiment."""
    rows = [
        {**row, "experiment_id": home} if row["dataset_uuid"] == dataset else row
        for row in tables["datasets"]
    ]
    return {**tables, "datasets": rows}


def used_instead(tables: Tables, dataset: str, twin: str) -> Tables:
    """Whoever used a dataset uses its twin; a use of the twin that is there already stays alone."""
    uses = tables.get("inputs", [])
    both = {
        row["destination_id"]
        for row in uses
        if row["source_type"] == "DATASET" and row["source_id"] == twin
    }

    def pointed(row: Row) -> Row:
        is_use = row["source_type"] == "DATASET" and row["source_id"] == dataset
        return {**row, "source_id": twin} if is_use and row["destination_id"] not in both else row

    metrics = [
        {**row, "dataset_uuid": twin} if row["dataset_uuid"] == dataset else row
        for row in tables.get("logged_model_metrics", [])
    ]
    changed = {"inputs": list(map(pointed, uses)), "logged_model_metrics": metrics}
    return {**tables, **{name: rows for name, rows in changed.items() if name in tables}}


# -- what changes ----------------------------------------------------------------------------------

COPIES = {
    "spans": ("trace_id", "trace_info"),
    "assessments": ("trace_id", "trace_info"),
    "logged_model_metrics": ("model_id", "logged_models"),
    "logged_model_params": ("model_id", "logged_models"),
    "logged_model_tags": ("model_id", "logged_models"),
    "online_scoring_configs": ("scorer_id", "scorers"),
}
"""Tables with a second copy of their owner's experiment, which old releases wrote wrongly."""
OWNERS = {"trace_info": "request_id", "logged_models": "model_id", "scorers": "scorer_id"}
POINTERS: dict[str, tuple[str, str]] = {
    "issues": ("source_run_id", "runs"),
    "endpoints": ("experiment_id", "experiments"),
}
"""Pointers in rows of others that are emptied, with the kind of what they point to."""
LISTS = ("registered_model_tags", "model_version_tags")

Homes = Mapping[str, Mapping[str, int]]


def owners_homes(tables: Tables) -> Homes:
    """Table to key to experiment, of those that copies are made of."""
    return {
        name: {row[key]: row["experiment_id"] for row in tables.get(name, ())}
        for name, key in OWNERS.items()
    }


def changed(name: str, row: Row, gone: Gone, homes: Homes) -> Row:
    """A row that stays, without what it said of what goes."""
    new = dict(row)
    if name in COPIES and row.get("experiment_id") in gone.experiments:
        column, owner = COPIES[name]
        new["experiment_id"] = homes[owner][row[column]]
    if name in POINTERS:
        column, kind = POINTERS[name]
        if row.get(column) in getattr(gone, kind):
            new[column] = None
    if name == "assessments":
        new["run_id"] = None if row["run_id"] in gone.runs else row["run_id"]
        new["overrides"] = None if row["overrides"] in gone.assessments else row["overrides"]
    if name == "model_versions" and row["current_stage"] == "Deleted_Internal":
        new["run_id"] = "REDACTED-RUN-ID" if row["run_id"] in gone.runs else row["run_id"]
    if name in LISTS and row["key"] == "mlflow.prompt.associatedRunIds":
        new["value"] = unlisted(row["value"], gone.runs)
    if name == "registered_model_tags" and row["key"] == "_mlflow_experiment_ids":
        new["value"] = unlisted(row["value"], gone.numbers)
    return new


def unlisted(text: str, ids: Iterable[str]) -> str:
    """A comma-separated list without the ids; MLflow frames lists of experiments by commas."""
    gone = set(ids)
    if not gone.intersection(text.split(",")):
        return text
    kept = [part for part in text.split(",") if part and part not in gone]
    return f",{','.join(kept)}," if kept and text.startswith(",") else ",".join(kept)


# -- what may still name what is gone ----------------------------------------------------------------

MENTIONS = {
    ("logged_models", "source_run_id"),
    ("tags", "value"),
    ("params", "value"),
    ("experiment_tags", "value"),
    ("trace_tags", "value"),
    ("spans", "content"),
    ("jobs", "params"),
    ("jobs", "result"),
    ("evaluation_dataset_records", "source"),
    ("evaluation_dataset_records", "source_id"),
    # A deleted version's place of storage stays as MLflow left it.
    ("model_versions", "storage_location"),
}
"""Rows of what stays that merely name it: text, and the two pointers that are left by design."""
NUMBERED = "experiment_id"


def mentions(tables: Tables, ids: Collection[str]) -> list[str]:
    """Every value anywhere that still names one of the entities, those that may apart."""
    numbers = {each for each in ids if kind_of(each) == "experiments"}
    words = set(ids) - numbers
    found = [
        f"{name}.{column} = {text[:200]}"
        for name, rows in tables.items()
        for row in rows
        for column, value in row.items()
        if value is not None and (name, column) not in MENTIONS
        for text in [value if isinstance(value, str) else json.dumps(value, default=str)]
        if any(word in text for word in words) or (column == NUMBERED and text in numbers)
    ]
    return found + [
        f"{name} names experiment {number}: {row}"
        for name, rows in tables.items()
        for row in rows
        for number in numbers.intersection(numbers_in(name, row))
    ]


def numbers_in(name: str, row: Row) -> Iterator[str]:
    """The experiments that a row names as text."""
    if name == "entity_associations":
        yield from (
            row[f"{side}_id"]
            for side in ("source", "destination")
            if row[f"{side}_type"] == "experiment"
        )
    if name == "registered_model_tags" and row["key"] == "_mlflow_experiment_ids":
        yield from row["value"].split(",")
    if name == "jobs" and row["status"] in FINISHED:
        yield str(member(row["params"], "experiment_id"))
