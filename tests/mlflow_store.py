"""Stores made by MLflow's own client, and what gcd has to make of them.

It must never write a row that MLflow itself could not have written, but by `sql` and what says so.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
import urllib.parse
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers import Database, Keeper
from tests.snapshot import SOURCE_RUN

with warnings.catch_warnings(action="ignore"):  # MLflow's own, at import
    import mlflow
    from mlflow.entities import (
        AssessmentSource,
        Dataset,
        DatasetInput,
        InputTag,
        LoggedModelInput,
        LoggedModelOutput,
        LoggedModelStatus,
        Metric,
        Param,
        RunTag,
    )
    from mlflow.store.model_registry import sqlalchemy_store as registry_store
    from mlflow.store.tracking import sqlalchemy_store as tracking_store
    from mlflow.tracking import MlflowClient

DAY = 86_400_000
FILES = {"model/weights.bin": b"\0" * 2048, "notes/hello.txt": b"hello"}
ODD_FILES = {
    "notes/n\u00e4me with space #1 100%.txt": b"odd",
    "deep/er/and/deeper/still.json": b"{}",
    ".hidden": b"h",
    "-rf": b"looks like an option",
}

logging.getLogger("mlflow").setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.ERROR)


def now_ms() -> int:
    """The host's time in MLflow's unit."""
    return int(time.time() * 1000)


def make_schema(database: Database) -> Database:
    """Let MLflow make its tables and its default experiment in an empty database."""
    MlflowClient(database.uri, database.uri).search_experiments()
    release(database.uri)
    return database


def local_path(uri: str) -> Path:
    """The path of a `file:` URI or of a plain path."""
    parsed = urllib.parse.urlparse(uri)
    if parsed.scheme not in ("", "file"):
        raise ValueError(f"{uri} is not on this disk")
    return Path(urllib.parse.unquote(parsed.path) if parsed.scheme else uri)


@dataclass(frozen=True)
class Saved:
    """A store put away: a copy of its database, and its files in another folder."""

    database: Database
    files: Path


class RealStore:
    """An MLflow store and the client that writes to it."""

    def __init__(self, keeper: Keeper, database: Database, root: Path) -> None:
        self.keeper, self.database, self.root = keeper, database, root
        self.root.mkdir(parents=True, exist_ok=True)
        self.uri = database.uri
        self.client = MlflowClient(self.uri, self.uri)

    # -- making ------------------------------------------------------------------------------

    def experiment(self, name: str, location: str | None = None) -> str:
        """A new experiment; it logs below the store's folder unless a location says otherwise."""
        return str(
            self.client.create_experiment(
                name, artifact_location=location or (self.root / name).as_uri()
            )
        )

    def run(
        self,
        experiment: str,
        *,
        parent: str | None = None,
        files: Mapping[str, bytes] = FILES,
        metrics: int = 5,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        dataset: str | None = None,
        status: str = "FINISHED",
    ) -> str:
        """A run with `metrics` values of one metric, odd numbers among others, and files."""
        named = {"mlflow.runName": "r", **(tags or {})}
        if parent:
            named["mlflow.parentRunId"] = parent
        run = str(self.client.create_run(experiment, tags=named).info.run_id)
        stamp = now_ms()
        for first in range(0, metrics, 1000):
            steps = range(first, min(metrics, first + 1000))
            self.client.log_batch(run, [Metric("loss", 1 / (s + 3), stamp + s, s) for s in steps])
        if metrics:
            odd = [float("nan"), float("inf"), -1e-300]
            self.client.log_batch(run, [Metric("odd", v, stamp, i) for i, v in enumerate(odd)])
        values = [Param(k, v) for k, v in (params or {"lr": "0.01"}).items()]
        self.client.log_batch(run, params=values, tags=[RunTag("team", "blue")])
        if dataset:
            self.dataset_input(run, dataset)
        self.write(run, files)
        if status != "RUNNING":
            self.client.set_terminated(run, status)
        return run

    def dataset_input(self, run: str, name: str) -> None:
        """The run took this dataset; two runs of an experiment share it by name."""
        data = Dataset(name, "d1", "local", '{"uri": "/data/x.csv"}', schema="{}", profile="{}")
        tags = [InputTag("mlflow.data.context", "training")]
        self.client.log_inputs(run, [DatasetInput(data, tags)])

    def tree(self, run: str) -> Path:
        """The run's artifact folder."""
        return local_path(self.client.get_run(run).info.artifact_uri)

    def write(self, run: str, files: Mapping[str, bytes]) -> None:
        """Put files where MLflow's client would upload them."""
        if not files:
            return
        tree = self.tree(run)
        for name, content in files.items():
            path = tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def logged_model(self, run: str, name: str, *, metrics: bool = False) -> str:
        """A logged model that the run made, with files, tags and, if asked, metrics."""
        experiment = self.client.get_run(run).info.experiment_id
        model = self.client.create_logged_model(
            experiment, name=name, source_run_id=run, tags={"k": "v"}, params={"depth": "3"}
        ).model_id
        folder = self.root / "staging"
        folder.mkdir()
        (folder / "MLmodel").write_text(f"flavors: {{}}\nmodel_id: {model}\n")
        self.client.log_model_artifacts(model, str(folder))
        shutil.rmtree(folder)
        self.client.finalize_logged_model(model, LoggedModelStatus.READY)
        self.client.log_outputs(run, [LoggedModelOutput(model, 1)])
        if metrics:
            self.client.log_batch(run, [Metric("f1", 1 / 3, now_ms(), 0, model_id=model)])
        return str(model)

    def model_input(self, run: str, model: str) -> None:
        """The run took this logged model."""
        self.client.log_inputs(run, models=[LoggedModelInput(model)])

    def version(
        self, name: str, source: str, run: str | None = None, model: str | None = None
    ) -> str:
        """A model version; the registered model is made if it is new."""
        with suppress(mlflow.MlflowException):
            self.client.create_registered_model(name, tags={"owner": "ann"})
        with self.as_tracking():
            made = self.client.create_model_version(name, source, run, model_id=model)
        return str(made.version)

    def trace(self, experiment: str, run: str | None = None) -> str:
        """A trace of two spans; made in the run if one is given."""
        with self.as_tracking():
            span = self.client.start_trace("t", experiment_id=experiment, inputs={"q": 1})
            trace = str(span.trace_id)
            inner = self.client.start_span("inner", trace, parent_id=span.span_id, inputs={"x": 1})
            self.client.end_span(trace, inner.span_id, outputs={"y": 2})
            self.client.end_trace(trace, outputs={"a": 1})
            mlflow.flush_trace_async_logging()
        if run:  # what `mlflow.start_span` inside `mlflow.start_run` leaves
            self.sql(
                "INSERT INTO trace_request_metadata (request_id, {key}, value)"
                " VALUES (:trace, 'mlflow.sourceRun', :run)",
                trace=trace,
                run=run,
            )
        return trace

    def assess(self, trace: str, run: str) -> None:
        """Feedback on a trace, once by a person and once with a run as its source."""
        source = AssessmentSource("HUMAN", "ann")
        named = {SOURCE_RUN: run}
        with self.as_tracking():
            mlflow.log_feedback(trace_id=trace, name="good", value=True, source=source)
            mlflow.log_feedback(
                trace_id=trace, name="by run", value=0.1, source=source, metadata=named
            )

    @contextmanager
    def as_tracking(self) -> Iterator[None]:
        """Some parts of MLflow know one tracking URI only, the process's."""
        mlflow.set_tracking_uri(self.uri)
        mlflow.tracing.reset()  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            mlflow.set_tracking_uri("")

    # -- deleting, restoring -------------------------------------------------------------------

    def delete(self, *runs: str) -> None:
        """Soft-delete by MLflow's client."""
        for run in runs:
            self.client.delete_run(run)

    def restore(self, *runs: str) -> None:
        """Restore by MLflow's client; raises what it raises."""
        for run in runs:
            self.client.restore_run(run)

    def exists(self, run: str) -> bool:
        """Whether the run's row is there, in whatever stage."""
        found = self.database.scalar("SELECT COUNT(*) FROM runs WHERE run_uuid = :run", run=run)
        return bool(found)

    def runs(self) -> set[str]:
        """Every run whose row is there."""
        return {str(row[0]) for row in self.database.rows("SELECT run_uuid FROM runs")}

    # -- behind MLflow's back ------------------------------------------------------------------

    def sql(self, *statements: str, **parameters: object) -> None:
        """What MLflow's client cannot do. `{key}` is the column of that name, quoted."""
        quote = "`key`" if self.database.dialect == "mariadb" else '"key"'
        self.database.execute(*(s.replace("{key}", quote) for s in statements), **parameters)

    def stamp(self, run: str, deleted_ms: int | None) -> None:
        """Say when the run was deleted."""
        self.sql("UPDATE runs SET deleted_time = :at WHERE run_uuid = :run", at=deleted_ms, run=run)

    def point(self, run: str, uri: str) -> None:
        """Give the run another artifact URI, as imports and edited rows have."""
        self.sql("UPDATE runs SET artifact_uri = :uri WHERE run_uuid = :run", uri=uri, run=run)

    # -- saving --------------------------------------------------------------------------------

    def save(self) -> Saved:
        """Put the store away as it is now."""
        release(self.uri)
        files = self.root.with_name(self.root.name + "-saved")
        shutil.rmtree(files, ignore_errors=True)
        shutil.copytree(self.root, files, symlinks=True)
        return Saved(self.keeper.copy(self.database), files)

    def again(self, saved: Saved) -> None:
        """Make the store what it was when it was saved; gcd's own tables are gone too."""
        release(self.uri)
        shutil.rmtree(self.root)
        shutil.copytree(saved.files, self.root, symlinks=True)
        self.keeper.reset(self.database, saved.database)


def release(uri: str) -> None:
    """Let MLflow close the connections that it keeps to a database."""
    for store in (tracking_store.SqlAlchemyStore, registry_store.SqlAlchemyStore):
        engine = getattr(store, "_engine_map", {}).get(uri)
        if engine is not None:
            engine.dispose()


# -- reading back --------------------------------------------------------------------------------


def read_back(client: MlflowClient, without: Iterable[str] = ()) -> dict[str, Any]:
    """Everything that MLflow's client tells of a store, leaving out the runs `without`.

    A trace's mark that it was made in one of those runs is left out too.
    """
    gone = set(without)
    found: dict[str, Any] = {}
    for experiment in client.search_experiments(view_type=3):
        number = experiment.experiment_id
        found[f"experiment {number}"] = dict(experiment)
        for run in pages(lambda token, n=number: client.search_runs([n], "", 3, 1000, None, token)):
            if run.info.run_id not in gone:
                found[f"run {run.info.run_id}"] = run_details(client, run)
        for model in pages(
            lambda token, n=number: client.search_logged_models([n], page_token=token)
        ):
            found[f"model {model.model_id}"] = model_details(model, gone)
        for trace in pages(lambda token, n=number: client.search_traces([n], page_token=token)):
            found[f"trace {trace.info.trace_id}"] = trace_details(trace, gone)
    for version in client.search_model_versions():
        found[f"version {version.name} {version.version}"] = plain(dict(version))
    for model in client.search_registered_models():
        found[f"registered model {model.name}"] = plain(dict(model))
    return found


def pages(get: Any) -> Iterable[Any]:
    """All items of a paged answer."""
    token = None
    while True:
        page = get(token)
        yield from page
        token = page.token
        if not token:
            return


def run_details(client: MlflowClient, run: Any) -> Any:
    """A run with its metric histories and its list of artifacts."""
    run_id = run.info.run_id
    details = plain(run.to_dictionary())
    details["outputs"] = plain(run.outputs.to_dictionary()) if run.outputs else None
    details["history"] = {
        key: sorted(repr(dict(metric)) for metric in client.get_metric_history(run_id, key))
        for key in run.data.metrics
    }
    details["artifacts"] = sorted(listed(client, run_id))
    return details


def listed(client: MlflowClient, run: str, path: str | None = None) -> Iterable[tuple[str, Any]]:
    """Every artifact of the run, folders opened."""
    for info in client.list_artifacts(run, path):
        yield info.path, info.file_size
        if info.is_dir:
            yield from listed(client, run, info.path)


def model_details(model: Any, gone: set[str]) -> Any:
    """A logged model; metrics that a purged run measured are that run's."""
    metrics = [dict(metric) for metric in model.metrics or [] if metric.run_id not in gone]
    return {**plain(model.to_dictionary()), "metrics": plain(metrics)}


def trace_details(trace: Any, gone: set[str]) -> Any:
    """A trace without the mark and the assessments that are a purged run's."""
    details = json.loads(json.dumps(trace.to_dict(), default=str))
    metadata = details["info"].get("trace_metadata") or {}
    if metadata.get("mlflow.sourceRun") in gone:
        del metadata["mlflow.sourceRun"]
    details["info"]["assessments"] = [
        each
        for each in details["info"].get("assessments") or []
        if (each.get("metadata") or {}).get(SOURCE_RUN) not in gone
    ]
    return details


def plain(value: Any) -> Any:
    """Comparable by ==: NaN as text, objects by their words."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        items = [plain(item) for item in value]
        return sorted(items, key=repr) if isinstance(value, set) else items
    return value if isinstance(value, str | int | bool | None) else repr(value)


# -- a store with something of everything --------------------------------------------------------


@dataclass
class Rich:
    """What was made, and what has to become of it."""

    store: RealStore
    gone: dict[str, str] = field(default_factory=dict)
    """Run to go, and what is special about it."""
    kept: dict[str, str] = field(default_factory=dict)
    """Deleted run to stay, and the keep reason."""
    live: list[str] = field(default_factory=list)

    def go(self, what: str, run: str) -> str:
        """Delete it; it has to go."""
        self.store.delete(run)
        self.gone[run] = what
        return run

    def keep(self, reason: str, run: str) -> str:
        """Delete it; it has to stay."""
        self.store.delete(run)
        self.kept[run] = reason
        return run

    def stay(self, run: str) -> str:
        """It is live."""
        self.live.append(run)
        return run


def rich_store(store: RealStore) -> Rich:
    """Several experiments with everything that hangs on runs; part of the runs deleted."""
    rich = Rich(store)
    alpha, beta = store.experiment("alpha"), store.experiment("beta")
    for experiment in (alpha, beta):
        rich.stay(store.run(experiment, files=ODD_FILES, dataset="shared"))
    plain_ones(rich, alpha)
    nested_ones(rich, beta)
    modelled_ones(rich, alpha)
    registered_ones(rich, alpha, beta)
    traced_ones(rich, beta)
    edited_ones(rich, beta)
    of_deleted_experiment(rich)
    return rich


def plain_ones(rich: Rich, experiment: str) -> None:
    """Runs that nothing refers to."""
    store = rich.store
    rich.go("odd files", store.run(experiment, files={**FILES, **ODD_FILES}))
    rich.go("no files", store.run(experiment, files={}))
    rich.go("no rows but its own", store.run(experiment, metrics=0, params={}))
    rich.go("failed", store.run(experiment, status="FAILED"))
    rich.go("dataset of a live run", store.run(experiment, dataset="shared"))
    rich.go("dataset of its own", store.run(experiment, dataset="only mine"))
    linked = store.run(experiment)
    outside = store.root / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("not yours")
    (store.tree(linked) / "folder").symlink_to(outside)
    (store.tree(linked) / "file.txt").symlink_to(outside / "precious.txt")
    (store.tree(linked) / "dangling").symlink_to(outside / "nothing")
    (store.tree(linked) / "empty").mkdir()
    rich.go("symlinks and an empty folder", linked)
    rich.keep("held", store.run(experiment, tags={"gcd.hold": "paper"}))
    rich.keep("held", store.run(experiment, tags={"gcd.hold_until": "2999-01-01"}))
    rich.go("no longer held", store.run(experiment, tags={"gcd.hold_until": "2020-01-01"}))
    rich.keep("still_running", store.run(experiment, status="RUNNING"))


def nested_ones(rich: Rich, experiment: str) -> None:
    """Parents and children, one of them or both deleted."""
    store = rich.store
    parent = store.run(experiment)
    rich.stay(store.run(experiment, parent=parent))
    rich.go("parent of a live child", parent)
    live = rich.stay(store.run(experiment))
    rich.go("child of a live parent", store.run(experiment, parent=live))
    both = store.run(experiment)
    rich.go("child of a deleted parent", store.run(experiment, parent=both))
    rich.go("parent of a deleted child", both)


def modelled_ones(rich: Rich, experiment: str) -> None:
    """Runs that made or used logged models."""
    store = rich.store
    maker = store.run(experiment)
    model = store.logged_model(maker, "m-plain")
    user = rich.stay(store.run(experiment))
    store.model_input(user, model)
    taker = store.run(experiment)
    store.model_input(taker, model)
    rich.go("made a live model", maker)
    rich.go("took a live model", taker)
    feeder = store.run(experiment)
    store.logged_model(feeder, "m-fed", metrics=True)
    rich.keep("feeds_live_model", feeder)
    ended = store.run(experiment)
    deleted = store.logged_model(ended, "m-deleted", metrics=True)
    store.client.delete_logged_model(deleted)
    rich.go("metrics of a deleted model", ended)


def registered_ones(rich: Rich, alpha: str, beta: str) -> None:
    """Runs that model versions point into, and one whose version was deleted."""
    store, client = rich.store, rich.store.client
    by_path = store.run(alpha)
    store.version("classifier", client.get_run(by_path).info.artifact_uri + "/model", by_path)
    client.set_registered_model_alias("classifier", "champion", "1")
    rich.keep("registered", by_path)
    anonymous = store.run(alpha)
    store.version("classifier", client.get_run(anonymous).info.artifact_uri + "/model")
    rich.keep("registered", anonymous)
    by_run = store.run(beta)
    store.version("classifier", f"runs:/{by_run}/model", by_run)
    rich.keep("registered", by_run)
    by_model = store.run(beta)
    model = store.logged_model(by_model, "m-registered")
    store.version("classifier", f"models:/{model}", by_model, model)
    rich.keep("registered", by_model)
    former = store.run(beta)
    old = store.version("classifier", client.get_run(former).info.artifact_uri + "/model", former)
    client.delete_model_version("classifier", old)
    rich.go("its version was deleted", former)
    live = rich.live[0]
    store.version("classifier", client.get_run(live).info.artifact_uri + "/model", live)


def traced_ones(rich: Rich, experiment: str) -> None:
    """Runs that traces, links and assessments name; the traces are live."""
    store = rich.store
    traced = store.run(experiment)
    trace = store.trace(experiment, run=traced)
    rich.go("a trace was made in it", traced)
    live = rich.stay(store.run(experiment))
    store.trace(experiment, run=live)
    linked = store.run(experiment)
    store.client.link_traces_to_run([trace], linked)
    store.client.link_traces_to_run([trace], live)
    rich.go("linked to a trace", linked)
    judge = rich.go("source of assessments", store.run(experiment))
    # MLflow deletes such assessments together with the run; this one comes later and escapes it.
    store.assess(trace, judge)
    store.assess(trace, live)


def edited_ones(rich: Rich, experiment: str) -> None:
    """What imports, other tools and wrong clocks leave behind."""
    store = rich.store
    undated = rich.go("no stamp", store.run(experiment))
    store.stamp(undated, None)
    future = rich.keep("from_the_future", store.run(experiment))
    store.stamp(future, now_ms() + DAY)
    host = store.run(experiment)
    guest = rich.stay(store.run(experiment, files={}))
    store.point(guest, store.client.get_run(host).info.artifact_uri + "/model")
    rich.keep("shared", host)
    elsewhere = store.run(experiment)
    store.point(elsewhere, (store.root / "elsewhere").as_uri())
    (store.root / "elsewhere").mkdir()
    (store.root / "elsewhere" / "file").write_text("whose?")
    rich.keep("unsafe_target", elsewhere)


def of_deleted_experiment(rich: Rich) -> None:
    """Runs that went with their experiment; one was restored, which MLflow allows."""
    store = rich.store
    gone = store.experiment("gone")
    runs: Sequence[str] = [store.run(gone) for _ in range(3)]
    store.client.delete_experiment(gone)
    for run in runs[:2]:
        rich.gone[run] = "its experiment was deleted"
    store.restore(runs[2])
    rich.stay(runs[2])
