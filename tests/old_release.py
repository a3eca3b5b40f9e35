"""What a release of MLflow does by itself, in its own Python: make a store, and go on using one.

It must never import anything of gcd's or of these tests': `python old_release.py make|use URI FOLDER`
runs where only MLflow is installed, any from 1.30 on. What a release cannot do yet is left out.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
os.environ.update(
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="true",
    GIT_PYTHON_REFRESH="quiet",
    MLFLOW_ENABLE_ASYNC_TRACE_LOGGING="false",
)

import mlflow  # noqa: E402, after its environment
from mlflow.entities import Metric, Param, RunTag  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402

Made = dict[str, Any]


class Store:
    """A store, and what this release can put into it."""

    def __init__(self, uri: str, root: Path) -> None:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        self.client, self.root = MlflowClient(uri, uri), root
        self.places: dict[str, str] = {}
        """Experiment to the folder that it logs to."""

    def can(self, name: str) -> bool:
        """Whether this release's client has such a call."""
        return hasattr(self.client, name)

    def run(self, experiment: str, parent: str | None = None) -> str:
        """A finished run with files."""
        tags = {"mlflow.parentRunId": parent} if parent else {}
        run = str(self.client.create_run(experiment, tags=tags).info.run_id)
        now = int(time.time() * 1000)
        metrics = [Metric("loss", 1 / (step + 1), now + step, step) for step in range(10)]
        self.client.log_batch(run, metrics, [Param("lr", "0.01")], [RunTag("k", "v")])
        self.client.log_metric(run, "nan", float("nan"))
        self.client.log_text(run, "hello", "notes/h\u00e4 llo #1.txt")
        if self.can("log_inputs"):
            self.dataset(run, f"of {experiment}")
            self.dataset(run, "shared")
        self.client.set_terminated(run)
        return run

    def dataset(self, run: str, name: str) -> None:
        """A dataset that went into a run: until 3.9 the first experiment owns it for all."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(name=name, digest="d1", source_type="local", source="{}")
        self.client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", "t")])])

    def model(self, experiment: str, run: str) -> str:
        """A logged model with files, made and measured by a run."""
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus

        made = self.client.create_logged_model(
            experiment, name="m", source_run_id=run, tags={"k": "v"}, params={"depth": "3"}
        )
        staging = self.root / "staging"
        staging.mkdir(exist_ok=True)
        (staging / "MLmodel").write_text(f"flavors: {{}}\nmodel_id: {made.model_id}\n")
        self.client.log_model_artifacts(made.model_id, str(staging))
        self.client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
        self.client.log_outputs(run, [LoggedModelOutput(made.model_id, 1)])
        now = int(time.time() * 1000)
        self.client.log_batch(run, [Metric("f1", 0.5, now, 0, model_id=made.model_id)])
        (staging / "MLmodel").unlink()
        staging.rmdir()
        return str(made.model_id)

    def trace(self, experiment: str, run: str) -> str:
        """A trace with a span inside, and feedback where it is stored."""
        span = self.client.start_trace("t", experiment_id=experiment, inputs={"q": "x"})
        ident = getattr(span, "trace_id", None) or span.request_id
        inner = self.client.start_span("inner", ident, parent_id=span.span_id)
        self.client.end_span(ident, inner.span_id, outputs={"y": 2})
        self.client.end_trace(ident, outputs={"a": 1})
        self.client.set_trace_tag(ident, "k", "v")
        payload = self.root / self.places[experiment] / "traces" / str(ident) / "artifacts"
        if not payload.exists():  # some releases write it only where a server does
            payload.mkdir(parents=True)
            (payload / "traces.json").write_text('{"spans": []}')
        if self.can("link_traces_to_run"):
            self.client.link_traces_to_run([ident], run)
            mlflow.log_feedback(trace_id=ident, name="good", value=True)
        return str(ident)

    def experiment(self, name: str) -> Made:
        """One of everything, twice."""
        uri = (self.root / name).as_uri()
        experiment = str(self.client.create_experiment(name, artifact_location=uri))
        self.places[experiment] = name
        self.client.set_experiment_tag(experiment, "team", name)
        parent = self.run(experiment)
        made: Made = {"experiment": experiment, "runs": [parent, self.run(experiment, parent)]}
        runs = made["runs"]
        made["models"] = (
            [self.model(experiment, run) for run in runs] if self.can("log_outputs") else []
        )
        made["traces"] = (
            [self.trace(experiment, run) for run in runs] if self.can("start_trace") else []
        )
        return made

    def version(self, source: str, run: str | None) -> str:
        """A version of the registered model."""
        return str(self.client.create_model_version("classifier", source, run).version)


def make(store: Store) -> Made:
    """A live experiment, a deleted one, and one in which half is deleted; what goes, what stays."""
    live, gone, mixed = (store.experiment(name) for name in ("live", "gone", "mixed"))
    client = store.client
    client.create_registered_model("classifier")
    for run in (live["runs"][0], mixed["runs"][1]):
        store.version(client.get_run(run).info.artifact_uri + "/model", run)
    old = store.version(client.get_run(live["runs"][0]).info.artifact_uri + "/old", live["runs"][0])
    client.delete_model_version("classifier", old)
    kept = [mixed["runs"][1]]
    for model in mixed["models"]:
        client.delete_logged_model(model)
    for run in mixed["runs"]:
        client.delete_run(run)
    client.delete_experiment(gone["experiment"])
    ids = [gone["experiment"], mixed["runs"][0], *mixed["models"]]
    return {"mlflow": mlflow.__version__, "gone": ids, "kept": kept, "live": live, "mixed": mixed}


def use(store: Store) -> Made:
    """Read all that is there, write to it, and make and delete something new."""
    client = store.client
    search = getattr(client, "search_experiments", None) or client.list_experiments
    experiments = {each.name: each.experiment_id for each in search()}
    found = [run.info.run_id for run in client.search_runs([experiments["live"]])]
    for run in found:
        assert client.get_run(run).data.metrics["loss"] > 0
        assert len(client.get_metric_history(run, "loss")) == 10
        [notes] = client.list_artifacts(run, "notes")
        assert notes.file_size == 5
    if store.can("log_inputs"):
        for run in found:
            assert len(client.get_run(run).inputs.dataset_inputs) == 2, "a live run lost a dataset"
    if store.can("search_logged_models"):
        [*models] = client.search_logged_models([experiments["live"]])
        assert len(models) == 2
        assert all(model.metrics for model in models)
    if store.can("start_trace"):
        traces = client.search_traces(experiment_ids=[experiments["live"]])
        assert len(traces) == 2
    versions = client.search_model_versions("name = 'classifier'")
    assert len(versions) == 2
    made = store.experiment(f"new {time.time()}")
    client.delete_run(made["runs"][0])
    client.restore_run(made["runs"][0])
    client.delete_experiment(made["experiment"])
    client.restore_experiment(made["experiment"])
    client.set_tag(found[0], "still", "works")
    client.delete_experiment(made["experiment"])
    return {"gone": [made["experiment"]]}


def start(store: Store) -> Made:
    """Only what every start of a server does."""
    search = getattr(store.client, "search_experiments", None) or store.client.list_experiments
    return {"experiments": len(search())}


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    what = {"make": make, "use": use, "start": start}[sys.argv[1]]
    told, sys.stdout = sys.stdout, sys.stderr  # MLflow prints; the answer alone goes to stdout
    print(json.dumps(what(Store(sys.argv[2], Path(sys.argv[3])))), file=told)
