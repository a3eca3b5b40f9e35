"""A small world put into MLflow's tables by SQL: for every way to refer, rows that name what goes and
rows that name what lives. Each row knows what becomes of it.

The rows that releases up to 3.16 wrote wrongly are among them.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tests.expectation import Row, Tables
from tests.servers import Database

STAYS: Mapping[str, Any] = {}
GOES: Mapping[str, Any] = {"goes": True}
LONG_AGO = 1_600_000_000_000
LIVE, GONE, OTHER, TOO = 101, 102, 103, 104
"""Experiments: a live one, a deleted one, another of each."""


def text(label: str, length: int = 32) -> str:
    """An id made of a letter or two."""
    return (label * length)[:length]


RUN, LIVE_RUN, RUN_INSIDE, OTHER_RUN, LAST_RUN = map(text, ("a", "b", "c", "d", "ab"))
"""A deleted run in the live experiment, a live one there, one in the deleted experiment; live ones in
the other experiment."""
FREE_RUN = text("cd")
"""A deleted run in the deleted experiment that measured no logged model: see `guard`."""
MODEL, LIVE_MODEL, MODEL_INSIDE = ("m-" + text(each) for each in "123")
TRACE, LIVE_TRACE, LIVE_TRACE_2, LIVE_TRACE_3 = ("tr-" + text(each) for each in "4567")
COLLECTED = (RUN, MODEL, str(GONE), str(TOO))
"""What somebody deleted; the rest goes with it."""


@dataclass
class World:
    """The rows, and what becomes of each: nothing, it goes, or some columns change."""

    database: Database
    place: Path
    meta: sa.MetaData = field(default_factory=sa.MetaData)
    fates: list[tuple[str, Row, Mapping[str, Any]]] = field(default_factory=list)
    serial: int = 0
    written: int = 0

    def add(self, name: str, fate: Mapping[str, Any] = STAYS, /, **values: Any) -> None:
        """A row with these values; columns that must have one get one.

        What this revision of MLflow does not have is left out.
        """
        self.serial += 1
        if not self.has(name):
            return
        columns = self.meta.tables[name].columns
        values = {column: value for column, value in values.items() if column in columns}
        if fate is not STAYS and fate is not GOES:
            fate = {column: value for column, value in fate.items() if column in columns} or STAYS
        missing = [
            column
            for column in columns
            if column.name not in values
            and not column.nullable
            and column.computed is None
            and column.server_default is None
            and column.autoincrement is not True
        ]
        row = {**{column.name: self.value(column) for column in missing}, **values}
        self.fates.append((name, row, fate))

    def has(self, table: str) -> bool:
        """Whether this revision has a table."""
        return table in self.meta.tables

    def write(self) -> None:
        """Put the rows that were added since the last time into the tables."""
        with self.database.begin() as conn:
            for name, row, _ in self.fates[self.written :]:
                conn.execute(self.meta.tables[name].insert().values(row))
        self.written = len(self.fates)

    def value(self, column: sa.Column[Any]) -> Any:
        """Something of the column's type."""
        if column.name == "workspace":
            return "default"
        if isinstance(column.type, sa.JSON):
            return {}
        if isinstance(column.type, sa.Boolean):
            return False
        if isinstance(column.type, sa.LargeBinary):
            return b"x"
        if isinstance(column.type, sa.Date):
            return sa.func.current_date()
        if isinstance(column.type, sa.Integer | sa.Numeric | sa.Float):
            return 1 if "TINYINT" in str(column.type) else self.serial
        is_long = getattr(column.type, "length", None) is None
        return "{}" if is_long else f"{column.name[:20]} {self.serial}"

    # -- what must become of it --------------------------------------------------------------------

    def expected(self, before: Tables) -> Tables:
        """The tables as they must be after a collection."""
        left = {name: list(rows) for name, rows in before.items()}
        for name, row, fate in self.fates:
            [found] = [each for each in left[name] if matches(each, row)]
            left[name].remove(found)
            if not fate.get("goes"):
                left[name].append({**found, **fate})
        return left

    def rows(self, name: str, *, lives: bool) -> list[Row]:
        """Rows of a table that stay exactly as they are, or those that do not."""
        return [
            row for table, row, fate in self.fates if table == name and (fate is STAYS) is lives
        ]


def matches(found: Row, row: Row) -> bool:
    """Whether a row that was read is the one that was written, by all of its text and numbers."""
    return all(
        found[name] == value
        for name, value in row.items()
        if isinstance(value, str | int) and not isinstance(value, bool)
    )


def filled(database: Database, place: Path) -> World:
    """All of it, and a tree of files for each entity that goes."""
    world = World(database, place)
    engine = database.engine()
    with warnings.catch_warnings(action="ignore"):
        world.meta.reflect(engine)
    engine.dispose()
    for part in (
        entities,
        of_runs,
        inputs,
        of_models,
        of_traces,
        assessments,
        links,
        marks,
        of_experiments,
        lists,
        jobs,
        shared_datasets,
        twin_datasets,
        measured_datasets,
        wrong_copies,
    ):
        part(world)
    world.write()
    return world


# -- entities ----------------------------------------------------------------------------------------


def entities(world: World) -> None:
    """Experiments, runs, logged models and traces."""
    deleted = {"lifecycle_stage": "deleted"}
    active = {"lifecycle_stage": "active"}
    for number, stage, fate in (
        (LIVE, active, STAYS),
        (GONE, deleted, GOES),
        (OTHER, active, STAYS),
        (TOO, deleted, GOES),
    ):
        uri = (world.place / str(number)).as_uri()
        world.add(
            "experiments",
            fate,
            experiment_id=number,
            name=f"experiment {number}",
            artifact_location=uri,
            last_update_time=LONG_AGO,
            **stage,
        )
        world.add("experiment_tags", fate, key="team", value="blue", experiment_id=number)
    for run, number, stage, fate in (
        (RUN, LIVE, deleted, GOES),
        (LIVE_RUN, LIVE, active, STAYS),
        (RUN_INSIDE, GONE, deleted, GOES),
        (OTHER_RUN, OTHER, active, STAYS),
        (LAST_RUN, OTHER, active, STAYS),
    ):
        uri = tree(world, fate, str(number), run)
        stamp = LONG_AGO if stage is deleted else None
        values = {"artifact_uri": uri, "deleted_time": stamp, "status": "FINISHED", **stage}
        world.add("runs", fate, run_uuid=run, experiment_id=number, **values)
    for model, number, stage, fate in (
        (MODEL, LIVE, deleted, GOES),
        (LIVE_MODEL, LIVE, active, STAYS),
        (MODEL_INSIDE, GONE, active, GOES),
    ):
        if not world.has("logged_models"):
            break
        values = {"artifact_location": tree(world, fate, str(number), "models", model), **stage}
        values["last_updated_timestamp_ms"] = LONG_AGO
        # A live model says which run made it, gone or not.
        world.add(
            "logged_models",
            fate,
            model_id=model,
            experiment_id=number,
            source_run_id=RUN,
            name=model[:3],
            **values,
        )
    for trace, number, fate in (
        (TRACE, GONE, GOES),
        (LIVE_TRACE, LIVE, STAYS),
        (LIVE_TRACE_2, LIVE, STAYS),
        (LIVE_TRACE_3, OTHER, STAYS),
    ):
        if not world.has("trace_info"):
            break
        uri = tree(world, fate, str(number), "traces", trace)
        world.add("trace_info", fate, request_id=trace, experiment_id=number, timestamp_ms=LONG_AGO)
        world.add("trace_tags", fate, request_id=trace, key="mlflow.artifactLocation", value=uri)


def tree(world: World, fate: Mapping[str, Any], *names: str) -> str:
    """The place of an entity's files; there are some if it goes."""
    place = world.place.joinpath(*names, "artifacts")
    place.mkdir(parents=True)
    (place / "file").write_text("x")
    return place.as_uri()


# -- what belongs to one entity ------------------------------------------------------------------------


def of_runs(world: World) -> None:
    """What a run logs, and pointers to it in rows of others."""
    for run, fate in ((RUN, GOES), (LIVE_RUN, STAYS), (RUN_INSIDE, GOES)):
        point = {"key": "loss", "value": 0.1, "timestamp": 1, "step": 0, "is_nan": False}
        world.add("metrics", fate, run_uuid=run, **point)
        world.add("latest_metrics", fate, run_uuid=run, **point)
        world.add("params", fate, run_uuid=run, key="lr", value="1")
        world.add("tags", fate, run_uuid=run, key="t", value="1")
    for child, parent in ((LIVE_RUN, RUN), (OTHER_RUN, RUN_INSIDE), (LAST_RUN, LIVE_RUN)):
        world.add("tags", STAYS, run_uuid=child, key="mlflow.parentRunId", value=parent)
    for run, fate in ((RUN, {"source_run_id": None}), (LIVE_RUN, STAYS)):
        world.add(
            "issues",
            fate,
            issue_id=f"iss-{run[:8]}",
            experiment_id=LIVE,
            source_run_id=run,
            status="pending",
        )
    world.add("registered_models", STAYS, name="m")
    redacted = {"run_id": "REDACTED-RUN-ID"}
    for version, (run, fate) in enumerate(((RUN, redacted), (LIVE_RUN, STAYS)), start=1):
        world.add(
            "model_versions",
            fate,
            name="m",
            version=version,
            run_id=run,
            current_stage="Deleted_Internal",
            source="REDACTED-SOURCE-PATH",
        )
    world.add("model_versions", STAYS, name="m", version=3, run_id=LIVE_RUN, current_stage="None")


def inputs(world: World) -> None:
    """Uses of datasets and models by runs, each with a tag."""
    world.add("datasets", STAYS, dataset_uuid="d-live", experiment_id=LIVE, name="n", digest="1")
    world.add("datasets", GOES, dataset_uuid="d-gone", experiment_id=GONE, name="n", digest="1")
    for run, fate in ((RUN, GOES), (LIVE_RUN, STAYS)):
        use(world, fate, "DATASET", "d-live", "RUN", run)
    use(world, GOES, "DATASET", "d-gone", "RUN", RUN_INSIDE)
    use(world, GOES, "DATASET", "d-gone", "RUN", text("e"))  # a run that `mlflow gc` took
    for kind in ("INPUT", "OUTPUT") if world.has("logged_models") else ():
        for run, model, fate in (
            (RUN, LIVE_MODEL, GOES),
            (LIVE_RUN, MODEL, GOES),
            (RUN_INSIDE, MODEL_INSIDE, GOES),
            (LIVE_RUN, LIVE_MODEL, STAYS),
        ):
            use(world, fate, f"RUN_{kind}", run, f"MODEL_{kind}", model)


def use(world: World, fate: Mapping[str, Any], *ends: str) -> None:
    """A row of inputs with its tag; (type, id) of the source and of the destination."""
    names = ("source_type", "source_id", "destination_type", "destination_id")
    uuid = f"input {world.serial}"
    world.add("inputs", fate, input_uuid=uuid, **dict(zip(names, ends, strict=True)))
    tag_fate = GOES if fate is GOES else STAYS
    world.add("input_tags", tag_fate, input_uuid=uuid, name="context", value="training")


def of_models(world: World) -> None:
    """What a logged model has."""
    for model, number, fate in (
        (MODEL, LIVE, GOES),
        (LIVE_MODEL, LIVE, STAYS),
        (MODEL_INSIDE, GONE, GOES),
    ):
        own = {"model_id": model, "experiment_id": number}
        world.add("logged_model_params", fate, param_key="depth", param_value="3", **own)
        world.add("logged_model_tags", fate, tag_key="k", tag_value="v", **own)
    for model, run, number, fate in (
        (MODEL, RUN, LIVE, GOES),
        (MODEL, LIVE_RUN, LIVE, GOES),
        (LIVE_MODEL, LIVE_RUN, LIVE, STAYS),
        (MODEL_INSIDE, RUN_INSIDE, GONE, GOES),
        (MODEL_INSIDE, RUN, GONE, GOES),
    ):
        measure(world, fate, model, run, number)


def measure(
    world: World, fate: Mapping[str, Any], model: str, run: str, number: int, **more: Any
) -> None:
    """A metric of a model, measured by a run."""
    values = {"metric_timestamp_ms": 1, "metric_step": world.serial, "metric_value": 0.5, **more}
    names = {"model_id": model, "run_id": run, "experiment_id": number}
    world.add("logged_model_metrics", fate, metric_name="f1", **names, **values)


def of_traces(world: World) -> None:
    """Spans and figures of a trace."""
    for trace, number, fate in ((TRACE, GONE, GOES), (LIVE_TRACE, LIVE, STAYS)):
        span(world, fate, trace, number)
        world.add("trace_metrics", fate, request_id=trace, key="input_tokens", value=7.0)
        world.add("trace_request_metadata", fate, request_id=trace, key="k", value="v")
        world.add("trace_tags", fate, request_id=trace, key="k", value="v")


def span(world: World, fate: Mapping[str, Any], trace: str, number: int) -> None:
    """A span with a figure of its own."""
    own = {"trace_id": trace, "span_id": f"span {world.serial}"}
    world.add("spans", fate, experiment_id=number, status="OK", **own)
    world.add("span_metrics", GOES if fate is GOES else STAYS, key="cost", value=0.25, **own)


def assessments(world: World) -> None:
    """Feedback on traces: made by a run, made in a run, overridden, marks of issues."""
    by_run, lost = {"run_id": None}, {"overrides": None}
    of_issue = GOES if world.has("issues") else STAYS
    for ident, trace, fate, more in (
        ("of a gone trace", TRACE, GOES, {}),
        ("of a live trace", LIVE_TRACE, STAYS, {"experiment_id": LIVE}),
        ("by a gone run", LIVE_TRACE, GOES, by(RUN)),
        ("by a live run", LIVE_TRACE, STAYS, by(LIVE_RUN)),
        ("by a live run on a gone trace", TRACE, GOES, by(LIVE_RUN)),
        ("in a gone run", LIVE_TRACE, by_run, {"run_id": RUN}),
        ("in a live run", LIVE_TRACE, STAYS, {"run_id": LIVE_RUN}),
        ("about a gone run", LIVE_TRACE, STAYS, {"assessment_metadata": f'{{"x": "{RUN}"}}'}),
        ("scored by a gone trace", LIVE_TRACE, STAYS, by(TRACE, "mlflow.assessment.scorerTraceId")),
        ("no JSON", LIVE_TRACE, STAYS, {"assessment_metadata": "[1]"}),
        ("over a gone one", LIVE_TRACE, lost, {"overrides": "by a gone run"}),
        ("over a live one", LIVE_TRACE, STAYS, {"overrides": "by a live run"}),
        ("of a gone issue", LIVE_TRACE, of_issue, {"assessment_type": "issue", "name": "iss-gone"}),
        ("of a live issue", LIVE_TRACE, STAYS, {"assessment_type": "issue", "name": "iss-live"}),
        ("named like an issue", LIVE_TRACE, STAYS, {"name": "iss-gone"}),
    ):
        kind = {"assessment_type": "feedback", "name": "good", **more}
        world.add("assessments", fate, assessment_id=ident, trace_id=trace, **kind)


def by(ident: str, member: str = "mlflow.assessment.sourceRunId") -> dict[str, str]:
    """The metadata of an assessment that names its source."""
    return {"assessment_metadata": json.dumps({"other": "x", member: ident})}


# -- links between entities ------------------------------------------------------------------------------


def links(world: World) -> None:
    """Many-to-many links in both directions; other kinds of things may have such ids too."""
    for kind, gone, live in (
        ("run", RUN, LIVE_RUN),
        ("model", MODEL, LIVE_MODEL),
        ("trace", TRACE, LIVE_TRACE),
        ("experiment", str(GONE), str(LIVE)),
    ):
        for ident, fate in ((gone, GOES), (live, STAYS)):
            link(world, fate, kind, ident, "evaluation_dataset", "d-1")
            link(world, fate, "evaluation_dataset", "d-1", kind, ident)
        link(world, STAYS, "prompt_version", gone, "evaluation_dataset", gone)
    link(world, GOES, "trace", LIVE_TRACE, "run", RUN)
    # A run that stays would keep the trace: it can show it.
    link(world, GOES, "trace", TRACE, "run", RUN)
    link(world, STAYS, "trace", LIVE_TRACE, "run", LIVE_RUN)


def link(world: World, fate: Mapping[str, Any], *ends: str) -> None:
    """A row of associations; (type, id) of both ends."""
    names = ("source_type", "source_id", "destination_type", "destination_id")
    ident = f"link {world.serial}"
    ends_by_name = dict(zip(names, ends, strict=True))
    world.add("entity_associations", fate, association_id=ident, **ends_by_name)


def marks(world: World) -> None:
    """The metadata of a live trace that name what it was made by."""
    for trace, run, model, fate in (
        (LIVE_TRACE_2, RUN, MODEL, GOES),
        (LIVE_TRACE, LIVE_RUN, LIVE_MODEL, STAYS),
        (LIVE_TRACE_3, RUN_INSIDE, MODEL_INSIDE, GOES),
    ):
        world.add(
            "trace_request_metadata", fate, request_id=trace, key="mlflow.sourceRun", value=run
        )
        of_model = fate if world.has("logged_models") else STAYS
        world.add(
            "trace_request_metadata", of_model, request_id=trace, key="mlflow.modelId", value=model
        )
        world.add("trace_request_metadata", STAYS, request_id=trace, key="note", value=run)


# -- what else an experiment has -----------------------------------------------------------------------


def of_experiments(world: World) -> None:
    """Scorers, label schemas, review queues, issues, sums, endpoints, evaluation datasets."""
    world.add("evaluation_datasets", STAYS, dataset_id="d-1", name="eval")
    world.add(
        "evaluation_dataset_records",
        STAYS,
        dataset_record_id="dr-1",
        dataset_id="d-1",
        source_id=TRACE,
        source_type="TRACE",
    )
    for word, number, fate in (("gone", GONE, GOES), ("live", LIVE, STAYS)):
        own = {"experiment_id": number}
        scorers(world, word, number, fate)
        schema, queue = {"schema_id": f"ls-{word}"}, {"queue_id": f"rq-{word}"}
        world.add("label_schemas", fate, name="tone", **schema, **own)
        world.add("review_queues", fate, name="Q", name_key="q", **queue, **own)
        world.add("review_queue_users", fate, user_id="ann", **queue)
        world.add("review_queue_label_schemas", fate, **queue, **schema)
        world.add("issues", fate, issue_id=f"iss-{word}", status="pending", **own)
        for table in (
            "sql_trace_metric_daily_rollups",
            "sql_span_cost_daily_rollups",
            "sql_assessment_daily_rollups",
        ):
            world.add(table, fate, metric_name=word, **own)
        world.add("sql_trace_rollup_rebuild_queue", fate, rollup_family="span_cost", **own)
    for queue, item, kind, fate in (
        ("rq-live", TRACE, "trace", GOES),
        ("rq-live", LIVE_TRACE, "trace", STAYS),
        ("rq-live", text("f"), "session", STAYS),
        ("rq-gone", LIVE_TRACE, "trace", GOES),
    ):
        world.add("review_queue_items", fate, queue_id=queue, item_id=item, item_type=kind)
    world.add("review_queue_label_schemas", GOES, queue_id="rq-live", schema_id="ls-gone")
    world.add("review_queue_label_schemas", GOES, queue_id="rq-gone", schema_id="ls-live")


def scorers(world: World, word: str, number: int, fate: Mapping[str, Any]) -> None:
    """A scorer with two versions, and an endpoint that it asks and that is traced in its experiment."""
    own = {"scorer_id": f"scorer-{word}"}
    world.add("scorers", fate, experiment_id=number, scorer_name="judge", **own)
    for version in (1, 2):
        world.add("scorer_versions", fate, scorer_version=version, **own)
    config = {"online_scoring_config_id": f"osc-{word}", "sample_rate": 0.5}
    world.add("online_scoring_configs", fate, experiment_id=number, **own, **config)
    endpoint = {"endpoint_id": f"e-{word}"}
    traced = {"experiment_id": None} if fate is GOES else STAYS
    world.add("endpoints", traced, name=word, experiment_id=number, **endpoint)
    bound = {"resource_id": own["scorer_id"], **endpoint}
    world.add("endpoint_bindings", fate, resource_type="scorer", **bound)
    world.add("endpoint_bindings", STAYS, resource_type="something else", **bound)


def lists(world: World) -> None:
    """Comma-separated lists of experiments and runs, in the tags of prompts."""
    for number, (old, new) in enumerate(
        (
            (f",{GONE},{LIVE},", f",{LIVE},"),
            (f",{LIVE},{GONE},", f",{LIVE},"),
            (f",{GONE},", ""),
            (f",{TOO},{LIVE},{GONE},{OTHER},", f",{LIVE},{OTHER},"),
            (f"{LIVE},{GONE}", f"{LIVE}"),
            (f",{GONE}1,1{GONE},{LIVE},", f",{GONE}1,1{GONE},{LIVE},"),
            (f",{LIVE},", f",{LIVE},"),
        )
    ):
        name = f"prompt {number}"
        world.add("registered_models", STAYS, name=name)
        fate = {"value": new} if old != new else STAYS
        values = {"key": "_mlflow_experiment_ids", "value": old}
        world.add("registered_model_tags", fate, name=name, **values)
        world.add("registered_model_tags", STAYS, name=name, key="note", value=old)
    for name, old, new in (
        ("prompt 0", f"{RUN},{LIVE_RUN}", LIVE_RUN),
        ("prompt 1", RUN, ""),
        ("prompt 2", f"{LIVE_RUN},{OTHER_RUN}", f"{LIVE_RUN},{OTHER_RUN}"),
    ):
        fate = {"value": new} if old != new else STAYS
        values = {"key": "mlflow.prompt.associatedRunIds", "value": old}
        world.add("registered_model_tags", fate, name=name, **values)
        world.add("model_versions", STAYS, name=name, version=1, source="dummy-source")
        world.add("model_version_tags", fate, name=name, version=1, **values)


def jobs(world: World) -> None:
    """Jobs that have ended go with their experiment; each holds a lock."""
    mine = json.dumps({"experiment_id": str(GONE), "trace_ids": [TRACE]})
    for status, params, fate in (
        *((status, mine, GOES) for status in (2, 3, 4, 5)),
        *((status, mine, STAYS) for status in (0, 1, 6)),
        (2, json.dumps({"experiment_id": GONE}), GOES),
        (2, json.dumps({"experiment_id": str(LIVE)}), STAYS),
        (2, json.dumps({"experiment_id": f"{GONE}1"}), STAYS),
        (2, json.dumps({"experiment_id": None, "run_id": RUN}), STAYS),
        (2, json.dumps({"of": {"experiment_id": str(GONE)}}), STAYS),
        (2, f'no JSON: "experiment_id": "{GONE}"', STAYS),
    ):
        job = f"job {world.serial}"
        world.add("jobs", fate, id=job, status=status, params=params)
        world.add("job_locks", fate, lock_key=f"lock of {job}", job_id=job)


# -- rows that old releases wrote wrongly ------------------------------------------------------------------


def shared_datasets(world: World) -> None:
    """Datasets of deleted experiments that runs of live ones use: they move."""
    for uuid, users, home in (
        ("d-moved", [LIVE_RUN], LIVE),
        ("d-moved-to-the-lowest", [LAST_RUN, OTHER_RUN, LIVE_RUN], LIVE),
    ):
        dataset(world, {"experiment_id": home}, uuid, GONE, uuid)
        for user in users:
            use(world, STAYS, "DATASET", uuid, "RUN", user)
        use(world, GOES, "DATASET", uuid, "RUN", RUN_INSIDE)
        use(world, GOES, "DATASET", uuid, "RUN", RUN)


def twin_datasets(world: World) -> None:
    """The same where the live experiment has such a dataset already: its users take that."""
    dataset(world, STAYS, "d-here", OTHER, "twin")
    dataset(world, GOES, "d-there", GONE, "twin")
    use(world, {"source_id": "d-here"}, "DATASET", "d-there", "RUN", OTHER_RUN)
    use(world, GOES, "DATASET", "d-there", "RUN", LAST_RUN)
    use(world, STAYS, "DATASET", "d-here", "RUN", LAST_RUN)
    # Both deleted experiments have the same one, and a live one uses both.
    dataset(world, {"experiment_id": OTHER}, "d-first", GONE, "both")
    dataset(world, GOES, "d-second", TOO, "both")
    use(world, STAYS, "DATASET", "d-first", "RUN", OTHER_RUN)
    use(world, {"source_id": "d-first"}, "DATASET", "d-second", "RUN", LAST_RUN)


def measured_datasets(world: World) -> None:
    """Datasets of a deleted experiment on which a live run measured a live model."""
    if not world.has("logged_models"):
        return
    dataset(world, {"experiment_id": LIVE}, "d-measured", GONE, "measured")
    measure(world, STAYS, LIVE_MODEL, LIVE_RUN, LIVE, dataset_uuid="d-measured")
    dataset(world, STAYS, "d-mine", LIVE, "measured too")
    dataset(world, GOES, "d-yours", GONE, "measured too")
    now = {"dataset_uuid": "d-mine"}
    measure(world, now, LIVE_MODEL, LIVE_RUN, LIVE, dataset_uuid="d-yours")


def dataset(world: World, fate: Mapping[str, Any], uuid: str, number: int, name: str) -> None:
    """A dataset of an experiment."""
    world.add("datasets", fate, dataset_uuid=uuid, experiment_id=number, name=name, digest="1")


def wrong_copies(world: World) -> None:
    """Rows whose copy of their owner's experiment is wrong, either way."""
    mended = {"experiment_id": LIVE}
    for trace, number, fate in ((LIVE_TRACE, GONE, mended), (TRACE, LIVE, GOES)):
        span(world, fate, trace, number)
        own = {"assessment_id": f"copy of {number}", "trace_id": trace, "experiment_id": number}
        world.add("assessments", fate, assessment_type="feedback", name="n", **own)
    for model, run, number, fate in (
        (LIVE_MODEL, LIVE_RUN, GONE, mended),
        (MODEL_INSIDE, RUN_INSIDE, LIVE, GOES),
    ):
        measure(world, fate, model, run, number)
        own = {"model_id": model, "experiment_id": number}
        world.add("logged_model_params", fate, param_key="wrong", param_value="1", **own)
        world.add("logged_model_tags", fate, tag_key="wrong", tag_value="1", **own)
    for word, number, fate in (("live", GONE, mended), ("gone", LIVE, GOES)):
        own = {"scorer_id": f"scorer-{word}", "experiment_id": number}
        ident = f"osc wrong {word}"
        world.add("online_scoring_configs", fate, online_scoring_config_id=ident, **own)


# -- every table ----------------------------------------------------------------------------------------


def crowd(world: World) -> None:
    """What is deleted and has to stay, and a row in every table that has none yet."""
    for part in (registered, restored, unstaged, of_tomorrow, guarding, of_another_team):
        part(world)
    world.write()
    strangers(world)
    world.write()


def experiment(
    world: World, fate: Mapping[str, Any], number: int, stage: str | None, **more: Any
) -> None:
    """An experiment with a tag."""
    uri = (world.place / str(number)).as_uri()
    values = {"artifact_location": uri, "lifecycle_stage": stage, "last_update_time": LONG_AGO}
    name = f"experiment {number}"
    world.add("experiments", fate, experiment_id=number, name=name, **values, **more)
    world.add("experiment_tags", fate, key="team", value="red", experiment_id=number)


def run(
    world: World, fate: Mapping[str, Any], ident: str, number: int, stage: str | None, **more: Any
) -> str:
    """A run with a parameter and files; its artifact URI."""
    uri = tree(world, fate, str(number), ident)
    stamp = {"deleted_time": LONG_AGO if stage == "deleted" else None, **more}
    values = {"artifact_uri": uri, "status": "FINISHED", "lifecycle_stage": stage, **stamp}
    world.add("runs", fate, run_uuid=ident, experiment_id=number, **values)
    world.add("params", fate, run_uuid=ident, key="lr", value="1")
    return uri


def registered(world: World) -> None:
    """A deleted run and a deleted logged model that model versions are made of."""
    if world.has("model_versions"):
        ident = text("5a")
        uri = run(world, STAYS, ident, LIVE, "deleted")
        own = {"current_stage": "Archived", "run_id": ident, "source": f"{uri}/model"}
        world.add("model_versions", STAYS, name="m", version=4, **own)
    if world.has("logged_models"):
        model = "m-" + text("5b")
        own = {"artifact_location": tree(world, STAYS, str(LIVE), "models", model), "name": "kept"}
        own |= {"lifecycle_stage": "deleted", "last_updated_timestamp_ms": LONG_AGO}
        world.add("logged_models", STAYS, model_id=model, experiment_id=LIVE, **own)
        own = {"current_stage": "None", "run_id": LIVE_RUN, "source": f"models:/{model}"}
        world.add("model_versions", STAYS, name="m", version=5, **own)


def restored(world: World) -> None:
    """A deleted experiment in which a run was restored; the other one goes."""
    experiment(world, STAYS, 105, "deleted")
    run(world, STAYS, text("5c"), 105, "active")
    run(world, GOES, text("5d"), 105, "deleted")


def unstaged(world: World) -> None:
    """Without a stage nothing is deleted."""
    experiment(world, STAYS, 106, None)
    run(world, STAYS, text("5e"), 106, None)


def of_tomorrow(world: World) -> None:
    """A run that was deleted after the present."""
    if "deleted_time" in world.meta.tables["runs"].columns:
        run(world, STAYS, text("5f"), LIVE, "deleted", deleted_time=32_503_680_000_000)


def guarding(world: World) -> None:
    """A deleted experiment whose scorer guards an endpoint."""
    if not world.has("guardrails"):
        return
    experiment(world, STAYS, 107, "deleted")
    own = {"scorer_id": "scorer that guards"}
    world.add("scorers", STAYS, experiment_id=107, scorer_name="guard", **own)
    world.add("scorer_versions", STAYS, scorer_version=1, **own)
    own |= {"scorer_version": 1, "stage": "BEFORE", "action": "VALIDATION"}
    world.add("guardrails", STAYS, guardrail_id="gr", **own)
    world.add("guardrail_configs", STAYS, endpoint_id="e-live", guardrail_id="gr")


def of_another_team(world: World) -> None:
    """A deleted experiment of another workspace, which nobody asked for."""
    if world.has("workspaces"):
        world.add("workspaces", STAYS, name="team-b")
        experiment(world, STAYS, 108, "deleted", workspace="team-b")


def strangers(world: World) -> None:
    """A row in each table that has nothing to do with what is deleted."""
    filled_tables = {name for name, _, _ in world.fates} | {"alembic_version"}
    for table in world.meta.sorted_tables:
        if table.name in filled_tables or table.name.startswith("alembic_gcd_"):
            continue
        world.add(table.name, STAYS, **parents_of(world, table))


def parents_of(world: World, table: sa.Table) -> dict[str, Any]:
    """The foreign keys of a row that refers to rows that stay."""
    found: dict[str, Any] = {}
    for constraint in table.foreign_key_constraints:
        parent = world.rows(constraint.referred_table.name, lives=True)[0]
        for element in constraint.elements:
            if element.column.name in parent:  # or both take the same default
                found[element.parent.name] = parent[element.column.name]
    return found


# -- for those that look at it -------------------------------------------------------------------------


def override_a_mark(world: World) -> None:
    """Somebody overrode the mark of an issue that goes."""
    over = {"assessment_type": "feedback", "name": "no issue", "overrides": "of a gone issue"}
    lost = {"overrides": None}
    world.add("assessments", lost, assessment_id="over a mark", trace_id=LIVE_TRACE, **over)
    world.write()


def guard(world: World) -> None:
    """A scorer of the deleted experiment guards a live endpoint; a run in it needs nothing of it."""
    uri = tree(world, GOES, str(GONE), FREE_RUN)
    stage = {"lifecycle_stage": "deleted", "deleted_time": LONG_AGO, "status": "FINISHED"}
    world.add("runs", GOES, run_uuid=FREE_RUN, experiment_id=GONE, artifact_uri=uri, **stage)
    world.add("params", GOES, run_uuid=FREE_RUN, key="lr", value="1")
    own = {"scorer_id": "scorer-gone", "scorer_version": 1}
    world.add("guardrails", STAYS, guardrail_id="gr", stage="BEFORE", action="VALIDATION", **own)
    world.add("guardrail_configs", STAYS, endpoint_id="e-live", guardrail_id="gr")
    world.write()
