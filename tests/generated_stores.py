"""Stores that Hypothesis makes up, written into MLflow's own tables in a few milliseconds.

It must never make a store on which `mlflow gc` is known to abort or to destroy something live: each
such rule stands where the strategy keeps to it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from hypothesis import strategies as st
from mlflow.store.db.base_sql_model import Base

from tests.expectation import SOURCE_RUN
from tests.mlflow_store import DAY, now_ms


class Age(StrEnum):
    """When something was deleted."""

    OLD = "old"
    YOUNG = "young"
    FUTURE = "future"
    UNDATED = "undated"


STAMPS = {Age.OLD: -30 * DAY, Age.YOUNG: -DAY // 24, Age.FUTURE: DAY}
LIMIT = "7d"
Deleted = Age | None


@dataclass(frozen=True)
class Run:
    """A run; others are named by their place in its experiment."""

    deleted: Deleted = None
    parent: int | None = None
    metrics: int = 0
    params: int = 0
    datasets: tuple[int, ...] = ()
    files: int = 0
    is_running: bool = False
    """By its status alone; it was active long ago."""


@dataclass(frozen=True)
class Model:
    """A logged model; the runs that made, took and measured it are of its experiment."""

    deleted: Deleted = None
    source: int | None = None
    made_by: int | None = None
    used_by: tuple[int, ...] = ()
    measured_by: tuple[int, ...] = ()
    dataset: int | None = None
    files: int = 0


@dataclass(frozen=True)
class Trace:
    """A trace, the runs and the model of its experiment that it names, and what was said of it."""

    run: int | None = None
    model: int | None = None
    linked: tuple[int, ...] = ()
    spans: int = 0
    by_run: int | None = None
    """The run that is the source of an assessment of it."""
    in_run: int | None = None
    """The run in which one was made."""
    is_overridden: bool = False
    files: int = 0


@dataclass(frozen=True)
class Experiment:
    """An experiment with all that is in it."""

    deleted: Deleted = None
    runs: tuple[Run, ...] = ()
    models: tuple[Model, ...] = ()
    traces: tuple[Trace, ...] = ()
    datasets: int = 0
    has_apparatus: bool = False
    """A scorer, an issue found by its first run, a review queue, daily sums, a finished job."""
    prompts: int = 0


@dataclass(frozen=True)
class Version:
    """A model version: of a live run or logged model, or deleted."""

    experiment: int
    run: int | None = None
    model: int | None = None


@dataclass(frozen=True)
class Store:
    """All of it, and the age from which it is collected."""

    older_than: str | None = None
    experiments: tuple[Experiment, ...] = ()
    versions: tuple[Version, ...] = ()


# -- making up -----------------------------------------------------------------------------------


def goes(deleted: Deleted, older_than: str | None) -> bool:
    """Whether `mlflow gc` takes an experiment that was deleted then."""
    return deleted is Age.OLD or (deleted in (Age.YOUNG, Age.UNDATED) and older_than is None)


def some(count: int, most: int = 2) -> st.SearchStrategy[tuple[int, ...]]:
    """A few of the first `count` numbers."""
    if not count:
        return st.just(())
    return st.lists(st.integers(0, count - 1), max_size=most, unique=True).map(tuple)


def maybe(count: int) -> st.SearchStrategy[int | None]:
    """One of the first `count` numbers, or none."""
    return st.none() | st.integers(0, count - 1) if count else st.none()


@st.composite
def experiments(draw: st.DrawFn, older_than: str | None) -> Experiment:
    """An experiment that `mlflow gc` treats well, whether it takes it or not.

    In one that it takes nothing is active, for that would be destroyed, and nothing is too young, for
    that would abort it. Without an age it takes undated experiments, and gcd does; undated runs it
    takes in these alone. What is deleted in the future it takes by an experiment, gcd never.
    """
    stages = [None, None, Age.OLD, Age.OLD, Age.YOUNG, Age.UNDATED]
    deleted = draw(st.sampled_from(stages if older_than is None else [*stages, Age.FUTURE]))
    is_going = goes(deleted, older_than)
    if is_going:
        of_runs: list[Deleted] = [Age.OLD] if older_than else [Age.OLD, Age.YOUNG, Age.UNDATED]
        of_models: list[Deleted] = [None, Age.OLD] if older_than else [None, Age.OLD, Age.YOUNG]
    else:
        of_runs = [None, Age.OLD, Age.YOUNG, Age.FUTURE, *([Age.UNDATED] if older_than else [])]
        of_models = [None, Age.OLD, Age.YOUNG, Age.FUTURE]
    datasets = draw(st.integers(0, 2))
    count = draw(st.integers(0, 3))
    runs = tuple(
        Run(
            deleted=draw(st.sampled_from(of_runs)),
            parent=draw(maybe(index)),
            metrics=draw(st.integers(0, 3)),
            params=draw(st.integers(0, 2)),
            datasets=draw(some(datasets)),
            files=draw(st.integers(0, 2)),
            is_running=draw(st.booleans()),
        )
        for index in range(count)
    )
    models = tuple(
        Model(
            deleted=draw(st.sampled_from(of_models)),
            source=draw(maybe(count)),
            made_by=draw(maybe(count)),
            used_by=draw(some(count)),
            measured_by=draw(some(count)),
            dataset=draw(maybe(datasets)),
            files=draw(st.integers(0, 2)),
        )
        for _ in range(draw(st.integers(0, 2)))
    )
    traces = tuple(
        Trace(
            run=draw(maybe(count)),
            model=draw(maybe(len(models))),
            linked=draw(some(count)),
            spans=draw(st.integers(0, 2)),
            by_run=draw(maybe(count)),
            in_run=draw(maybe(count)),
            is_overridden=draw(st.booleans()),
            files=draw(st.integers(0, 1)),
        )
        for _ in range(draw(st.integers(0, 2)))
    )
    apparatus = draw(st.booleans())
    prompts = draw(st.integers(0, 1))
    return Experiment(deleted, runs, models, traces, datasets, apparatus, prompts)


@st.composite
def stores(draw: st.DrawFn) -> Store:
    """A few experiments, and model versions of what is live in those that are.

    A version that names something deleted would lose its files by `mlflow gc`.
    """
    older_than = draw(st.sampled_from([None, LIMIT]))
    made = tuple(draw(st.lists(experiments(older_than), min_size=1, max_size=3)))
    live = [
        version
        for number, each in enumerate(made)
        if each.deleted is None
        for version in live_versions(number, each)
    ]
    deleted = [Version(number) for number in range(len(made))]
    chosen = draw(st.lists(st.sampled_from(live + deleted), max_size=3))
    return Store(older_than, made, tuple(chosen))


def live_versions(number: int, each: Experiment) -> Iterator[Version]:
    """Every version that a live run or logged model of a live experiment may have."""
    for index, run in enumerate(each.runs):
        if run.deleted is None:
            yield Version(number, run=index)
    for index, model in enumerate(each.models):
        if model.deleted is None:
            yield Version(number, model=index)


# -- writing -------------------------------------------------------------------------------------


@dataclass
class Writer:
    """Turns a made-up store into rows and files below a folder."""

    folder: Path
    now: int = field(default_factory=now_ms)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    serial: int = 0

    def add(self, table: str, **values: Any) -> None:
        """A row; columns that must have a value get one."""
        self.serial += 1
        columns = Base.metadata.tables[table].columns
        missing = {
            column.name: self.value(column)
            for column in columns
            if column.name not in values
            and not column.nullable
            and column.default is None
            and column.server_default is None
            and not isinstance(column.type, sa.BigInteger | sa.Integer)
        }
        zero = {
            column.name: 1
            for column in columns
            if column.name not in values
            and not column.nullable
            and column.server_default is None
            and isinstance(column.type, sa.BigInteger | sa.Integer)
        }
        self.rows[table].append({**missing, **zero, **values})

    def value(self, column: sa.Column[Any]) -> Any:
        """Something of the column's type."""
        if isinstance(column.type, sa.Boolean):
            return False
        if isinstance(column.type, sa.JSON):
            return {}
        if isinstance(column.type, sa.Date):
            return sa.func.current_date()
        if isinstance(column.type, sa.Float):
            return 0.5
        return f"{column.name[:12]} {self.serial}"

    def stamp(self, deleted: Deleted) -> int | None:
        """When something was deleted, in MLflow's unit."""
        return None if deleted in (None, Age.UNDATED) else self.now + STAMPS[deleted]

    def write(self, store: Store, engine: sa.Engine) -> None:
        """All rows in one transaction, and all files."""
        for number, each in enumerate(store.experiments):
            self.experiment(number, each)
        for serial, version in enumerate(store.versions):
            self.version(serial, version)
        with engine.begin() as conn:
            for table in Base.metadata.sorted_tables:
                for row in self.rows.get(table.name, ()):
                    conn.execute(table.insert().values(row))

    def files(self, count: int, *names: str) -> str:
        """An entity's folder, with so many files in it; its URI."""
        tree = self.folder.joinpath(*names, "artifacts")
        for number in range(count):
            path = tree / ("deep" if number else "") / f"file {number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{names} {number}")
        return tree.as_uri()

    def experiment(self, number: int, each: Experiment) -> None:
        """The experiment's row and all that is in it."""
        own = {"experiment_id": number + 1}
        self.add(
            "experiments",
            name=f"experiment {number}",
            artifact_location=(self.folder / str(number + 1)).as_uri(),
            lifecycle_stage="deleted" if each.deleted else "active",
            creation_time=self.now - 60 * DAY,
            last_update_time=self.stamp(each.deleted or Age.OLD),
            **own,
        )
        self.add("experiment_tags", key="team", value="blue", **own)
        for index in range(each.datasets):
            name = dataset_id(number, index)
            self.add("datasets", dataset_uuid=name, name=f"data {index}", digest="1", **own)
        for index, run in enumerate(each.runs):
            self.run(number, index, run)
        for index, model in enumerate(each.models):
            self.model(number, index, model)
        for index, trace in enumerate(each.traces):
            self.trace(number, index, trace)
        if each.has_apparatus:
            self.apparatus(number, each)
        for index in range(each.prompts):
            listed = f",{number + 1},0,"
            name = f"prompt {number} {index}"
            self.add("registered_models", name=name)
            self.add("registered_model_tags", name=name, key="_mlflow_experiment_ids", value=listed)

    def run(self, number: int, index: int, run: Run) -> None:
        """A run with what it logged."""
        ident = run_id(number, index)
        own = {"run_uuid": ident}
        self.add(
            "runs",
            name="r",
            user_id="ann",
            source_type="LOCAL",
            status="RUNNING" if run.is_running else "FINISHED",
            start_time=self.now - 50 * DAY,
            lifecycle_stage="deleted" if run.deleted else "active",
            deleted_time=self.stamp(run.deleted),
            artifact_uri=self.files(run.files, str(number + 1), ident),
            experiment_id=number + 1,
            **own,
        )
        for step in range(run.metrics):
            point = {"key": "loss", "timestamp": self.now - 50 * DAY + step, "step": step}
            point |= {"value": 1 / (step + 3), "is_nan": step == 1}
            self.add("metrics", **point, **own)
            if step == 0:
                self.add("latest_metrics", **point, **own)
        for count in range(run.params):
            self.add("params", key=f"p{count}", value="1", **own)
        self.add("tags", key="team", value="blue", **own)
        if run.parent is not None:
            self.add("tags", key="mlflow.parentRunId", value=run_id(number, run.parent), **own)
        for dataset in run.datasets:
            self.use("DATASET", dataset_id(number, dataset), "RUN", ident)

    def use(self, *ends: str) -> None:
        """A row of inputs with its tag; (type, id) of both ends."""
        names = ("source_type", "source_id", "destination_type", "destination_id")
        uuid = f"input {self.serial}"
        self.add("inputs", input_uuid=uuid, **dict(zip(names, ends, strict=True)))
        self.add("input_tags", input_uuid=uuid, name="context", value="training")

    def model(self, number: int, index: int, model: Model) -> None:
        """A logged model with what it has."""
        ident = model_id(number, index)
        own = {"model_id": ident, "experiment_id": number + 1}
        self.add(
            "logged_models",
            name="m",
            artifact_location=self.files(model.files, str(number + 1), "models", ident),
            creation_timestamp_ms=self.now - 50 * DAY,
            last_updated_timestamp_ms=self.stamp(model.deleted or Age.OLD),
            lifecycle_stage="deleted" if model.deleted else "active",
            source_run_id=None if model.source is None else run_id(number, model.source),
            **own,
        )
        self.add("logged_model_params", param_key="depth", param_value="3", **own)
        self.add("logged_model_tags", tag_key="k", tag_value="v", **own)
        if model.made_by is not None:
            self.use("RUN_OUTPUT", run_id(number, model.made_by), "MODEL_OUTPUT", ident)
        for run in model.used_by:
            self.use("RUN_INPUT", run_id(number, run), "MODEL_INPUT", ident)
        for run in model.measured_by:
            measured = {"metric_name": "f1", "metric_timestamp_ms": 1, "metric_step": run}
            on = None if model.dataset is None else dataset_id(number, model.dataset)
            self.add(
                "logged_model_metrics",
                run_id=run_id(number, run),
                metric_value=1 / 3,
                dataset_uuid=on,
                **measured,
                **own,
            )

    def trace(self, number: int, index: int, trace: Trace) -> None:
        """A trace with its spans, and what was said of it."""
        ident = trace_id(number, index)
        own = {"request_id": ident}
        began = self.now - 40 * DAY
        self.add("trace_info", experiment_id=number + 1, timestamp_ms=began, status="OK", **own)
        uri = self.files(trace.files, str(number + 1), "traces", ident)
        self.add("trace_tags", key="mlflow.artifactLocation", value=uri, **own)
        self.add("trace_request_metadata", key="note", value="x", **own)
        self.add("trace_metrics", key="total_tokens", value=7.0, **own)
        for key, value in (
            ("mlflow.sourceRun", None if trace.run is None else run_id(number, trace.run)),
            ("mlflow.modelId", None if trace.model is None else model_id(number, trace.model)),
        ):
            if value is not None:
                self.add("trace_request_metadata", key=key, value=value, **own)
        for run in trace.linked:
            self.link("trace", ident, "run", run_id(number, run))
        for span in range(trace.spans):
            named = {"trace_id": ident, "span_id": f"s{span}"}
            self.add("spans", experiment_id=number + 1, status="OK", content="{}", **named)
            self.add("span_metrics", key="total_cost", value=0.25, **named)
        self.assessments(number, ident, trace)

    def assessments(self, number: int, ident: str, trace: Trace) -> None:
        """Feedback by a run, in a run, and what overrode it."""
        shared = {"trace_id": ident, "experiment_id": number + 1, "assessment_type": "feedback"}
        names = {}
        if trace.by_run is not None:
            source = json.dumps({SOURCE_RUN: run_id(number, trace.by_run)})
            names["by"] = {"assessment_metadata": source}
        if trace.in_run is not None:
            names["in"] = {"run_id": run_id(number, trace.in_run)}
        for name, values in names.items():
            self.add("assessments", assessment_id=f"{ident} {name}", name=name, **values, **shared)
        if trace.is_overridden and names:
            first = f"{ident} {next(iter(names))}"
            over = {"assessment_id": f"{ident} over", "overrides": first}
            self.add("assessments", name="over", **over, **shared)

    def link(self, *ends: str) -> None:
        """A row of associations; (type, id) of both ends."""
        names = ("source_type", "source_id", "destination_type", "destination_id")
        ident = f"link {self.serial}"
        ends_by_name = dict(zip(names, ends, strict=True))
        self.add("entity_associations", association_id=ident, **ends_by_name)

    def apparatus(self, number: int, each: Experiment) -> None:
        """What else an experiment has."""
        own = {"experiment_id": number + 1}
        scorer, queue = f"scorer {number}", f"queue {number}"
        self.add("scorers", scorer_id=scorer, scorer_name="judge", **own)
        self.add("scorer_versions", scorer_id=scorer, scorer_version=1)
        self.add("endpoints", endpoint_id=f"endpoint {number}", name=f"e{number}", **own)
        bound = {"resource_type": "scorer", "resource_id": scorer}
        self.add("endpoint_bindings", endpoint_id=f"endpoint {number}", **bound)
        run = run_id(number, 0) if each.runs else None
        self.add("issues", issue_id=f"issue {number}", source_run_id=run, status="open", **own)
        self.add("review_queues", queue_id=queue, name="Q", name_key="q", **own)
        if each.traces:
            item = {"item_id": trace_id(number, 0), "item_type": "trace"}
            self.add("review_queue_items", queue_id=queue, **item)
        self.add("sql_trace_rollup_rebuild_queue", rollup_family="span_cost", **own)
        job = {"params": json.dumps({"experiment_id": str(number + 1)}), "status": 2}
        self.add("jobs", id=f"job {number}", **job)
        self.link("evaluation_dataset", "d-1", "experiment", str(number + 1))

    def version(self, serial: int, version: Version) -> None:
        """A model version as MLflow writes it, or leaves it when it is deleted."""
        name, number = f"registered {serial}", version.experiment
        self.add("registered_models", name=name)
        values: dict[str, Any] = {"current_stage": "None", "run_id": None}
        if version.run is not None:
            run = run_id(number, version.run)
            place = (self.folder / str(number + 1) / run / "artifacts" / "model").as_uri()
            values |= {"run_id": run, "source": place, "storage_location": place}
        elif version.model is not None:
            values |= {"source": f"models:/{model_id(number, version.model)}"}
        else:
            values |= {"current_stage": "Deleted_Internal", "run_id": "REDACTED-RUN-ID"}
            values |= {"source": "REDACTED-SOURCE-PATH"}
        self.add("model_versions", name=name, version=1, **values)


def run_id(number: int, index: int) -> str:
    """The id of an experiment's run."""
    return hexadecimal("a", number, index)


def hexadecimal(kind: str, number: int, index: int) -> str:
    """32 digits that nothing of another kind has: in doubt gcd takes them for the same thing."""
    return f"{kind}{number + 1:015x}{index + 1:016x}"


def model_id(number: int, index: int) -> str:
    """The id of its logged model."""
    return "m-" + hexadecimal("b", number, index)


def trace_id(number: int, index: int) -> str:
    """The id of its trace."""
    return "tr-" + hexadecimal("c", number, index)


def dataset_id(number: int, index: int) -> str:
    """The id of its dataset."""
    return f"dataset-{number}-{index}"
