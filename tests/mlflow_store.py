"""Stores made by MLflow's own client: runs, logged models, model versions, traces.

It must never write a row that MLflow itself could not have written, but by `sql` and what says so.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import urllib.parse
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.expectation import SOURCE_RUN, kind_of
from tests.servers import Database, Keeper

with warnings.catch_warnings(action="ignore"):  # MLflow's own, at import
    import alembic.command
    import mlflow
    from alembic.script import ScriptDirectory
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
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.jobs.sqlalchemy_store import SqlAlchemyJobStore
    from mlflow.store.model_registry import sqlalchemy_store as registry_store
    from mlflow.store.tracking import sqlalchemy_store as tracking_store
    from mlflow.store.tracking.dbmodels.initial_models import Base as FirstTables
    from mlflow.tracing.attachments import Attachment
    from mlflow.tracking import MlflowClient
    from mlflow.utils import crypto

DAY = 86_400_000
FILES = {"model/weights.bin": b"\0" * 2048, "notes/hello.txt": b"hello"}
ODD_FILES = {
    "notes/n\u00e4me with space #1 100%.txt": b"odd",
    "deep/er/and/deeper/still.json": b"{}",
    ".hidden": b"h",
    "-rf": b"looks like an option",
}
COSTLY: dict[str, Any] = {
    "mlflow.chat.tokenUsage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
    "mlflow.llm.cost": {"input_cost": 0.1, "output_cost": 0.2, "total_cost": 0.3},
    "mlflow.llm.model": "gpt",
    "mlflow.llm.provider": "openai",
}
"""What a span tells that asked a model: figures of the span and of the trace."""

crypto.PBKDF2_ITERATIONS = 1  # nobody's secrets, encrypted some hundred times
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


def make_old_schema(database: Database, revision: str) -> Database:
    """MLflow's tables as they were at a revision, or at 0.9.1, which had none: by its migrations."""
    engine = database.engine()
    FirstTables.metadata.create_all(engine)
    engine.dispose()
    if revision != "base":
        upgrade(database, revision)
    return database


def upgrade(database: Database, revision: str) -> None:
    """MLflow's migrations up to a revision, as by `mlflow db upgrade`."""
    alembic.command.upgrade(_get_alembic_config(database.uri), revision)


def revisions() -> list[str]:
    """Every revision that the installed MLflow ships, oldest first."""
    script = ScriptDirectory.from_config(_get_alembic_config("sqlite://"))
    return [each.revision for each in script.walk_revisions()][::-1]


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

    @property
    def jobs(self) -> SqlAlchemyJobStore:
        """The store of the server's jobs, which is in the same database."""
        return SqlAlchemyJobStore(self.uri)

    @property
    def inner(self) -> Any:
        """The store behind the client: some entities have no other way in."""
        return self.client._tracking_client.store

    # -- making ------------------------------------------------------------------------------

    def experiment(self, name: str, location: str | None = None) -> str:
        """A new experiment; it logs below the store's folder unless a location says otherwise."""
        return str(
            self.client.create_experiment(
                name, artifact_location=location or (self.root / name).as_uri()
            )
        )

    def numbered(self, name: str) -> str:
        """A new experiment where MLflow puts it unless told otherwise: a folder with its number."""
        number = self.experiment(name)
        self.sql(
            "UPDATE experiments SET artifact_location = :uri WHERE experiment_id = :number",
            uri=(self.root / number).as_uri(),
            number=int(number),
        )
        return number

    def folder(self, experiment: str) -> Path:
        """The folder below which an experiment logs."""
        return local_path(self.client.get_experiment(experiment).artifact_location)

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

    def logged_model(
        self,
        run: str,
        name: str,
        *,
        metrics: bool = False,
        tags: Mapping[str, str] | None = None,
        experiment: str | None = None,
        source: str | None = None,
    ) -> str:
        """A logged model that the run made, with files, tags and, if asked, metrics.

        It is in the run's experiment unless another is given, and says that the run is its source
        unless another is.
        """
        model = self.client.create_logged_model(
            experiment or self.client.get_run(run).info.experiment_id,
            name=name,
            source_run_id=source or run,
            tags={"k": "v", **(tags or {})},
            params={"depth": "3"},
        ).model_id
        folder = self.root / "staging"
        folder.mkdir()
        (folder / "MLmodel").write_text(f"flavors: {{}}\nmodel_id: {model}\n")
        self.client.log_model_artifacts(model, str(folder))
        shutil.rmtree(folder)
        self.client.finalize_logged_model(model, LoggedModelStatus.READY)
        self.client.log_outputs(run, [LoggedModelOutput(model, 1)])
        if metrics:
            self.measure(run, model)
        return str(model)

    def measure(self, run: str, model: str) -> None:
        """The run logs a metric of the model."""
        self.client.log_batch(run, [Metric("f1", 1 / 3, now_ms(), 0, model_id=model)])

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

    def trace(
        self,
        experiment: str,
        run: str | None = None,
        *,
        model: str | None = None,
        file: bytes = b"",
        days_ago: int = 0,
    ) -> str:
        """A trace of two spans, with a file if one is given; made in the run, with the model."""
        began = time.time_ns() - days_ago * DAY * 1_000_000
        image = {"image": Attachment(content_type="image/png", content_bytes=file)} if file else {}
        with self.as_tracking():
            span = self.client.start_trace(
                "t", experiment_id=experiment, inputs={"q": 1, **image}, start_time_ns=began
            )
            trace = str(span.trace_id)
            inner = self.client.start_span(
                "inner",
                trace,
                parent_id=span.span_id,
                inputs={"x": 1},
                attributes=COSTLY,
                start_time_ns=began + 1000,
            )
            self.client.end_span(trace, inner.span_id, outputs={"y": 2}, end_time_ns=began + 2000)
            self.client.end_trace(trace, outputs={"a": 1}, end_time_ns=began + 5_000_000)
        for key, value in (("mlflow.sourceRun", run), ("mlflow.modelId", model)):
            if value:  # what `mlflow.start_span` inside `mlflow.start_run` leaves
                self.sql(
                    "INSERT INTO trace_request_metadata (request_id, {key}, value)"
                    " VALUES (:trace, :name, :value)",
                    trace=trace,
                    name=key,
                    value=value,
                )
        return trace

    def assess(self, trace: str, run: str) -> None:
        """Feedback on a trace, by a person, and with a run as its source; and what was expected."""
        source = AssessmentSource("HUMAN", "ann")
        named = {SOURCE_RUN: run}
        with self.as_tracking():
            mlflow.log_feedback(trace_id=trace, name="good", value=True, source=source)
            mlflow.log_feedback(
                trace_id=trace, name="by run", value=0.1, source=source, metadata=named
            )
            mlflow.log_expectation(trace_id=trace, name="answer", value="42", source=source)

    @contextmanager
    def as_tracking(self) -> Iterator[None]:
        """Some parts of MLflow know one tracking URI only, the process's; traces are not late."""
        os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"
        mlflow.set_tracking_uri(self.uri)
        mlflow.tracing.reset()  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            mlflow.set_tracking_uri("")

    # -- deleting, restoring -------------------------------------------------------------------

    def delete(self, *ids: str) -> None:
        """Soft-delete runs, logged models and experiments by MLflow's client."""
        ways = {
            "experiments": self.client.delete_experiment,
            "models": self.client.delete_logged_model,
        }
        for each in ids:
            ways.get(kind_of(each), self.client.delete_run)(each)

    def restore(self, *runs: str) -> None:
        """Restore by MLflow's client; raises what it raises."""
        for run in runs:
            self.client.restore_run(run)

    def exists(self, run: str) -> bool:
        """Whether the run's row is there, in whatever stage."""
        found = self.database.scalar("SELECT COUNT(*) FROM runs WHERE run_uuid = :run", run=run)
        return bool(found)

    def experiments(self) -> set[str]:
        """Every experiment whose row is there, in whatever stage."""
        return {str(row[0]) for row in self.database.rows("SELECT experiment_id FROM experiments")}

    def runs_in(self, experiment: str) -> list[str]:
        """Every run of an experiment, in whatever stage."""
        query = "SELECT run_uuid FROM runs WHERE experiment_id = :number"
        return [str(row[0]) for row in self.database.rows(query, number=int(experiment))]

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

    def point_model(self, model: str, uri: str) -> None:
        """The same for a logged model."""
        self.sql(
            "UPDATE logged_models SET artifact_location = :uri WHERE model_id = :model",
            uri=uri,
            model=model,
        )

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
    for store in (
        tracking_store.SqlAlchemyStore,
        registry_store.SqlAlchemyStore,
        SqlAlchemyJobStore,
    ):
        engine = getattr(store, "_engine_map", {}).get(uri)
        if engine is not None:
            engine.dispose()
